//! What the kernel holds for services and members, in bytes, as it accounts for them itself.
//!
//! Maps and programs say it in `/proc/self/fdinfo`, sockets' storage in `ss -m`. What each
//! socket in a SOCKMAP costs besides, the kernel says nowhere: it is one `sk_psock` and one
//! `sk_psock_link`, whose sizes its BTF has.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::btf::{Btf, HasSize as _, types};
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, Program};
use overspill::{Capacity, Namespace, Service};

use crate::field::Shape;

/// Bytes that the kernel holds for something.
#[derive(Debug, Clone)]
pub(crate) struct Charge {
    pub(crate) capacity: Capacity,
    pub(crate) shape: Shape,
    pub(crate) what: String,
    pub(crate) bytes: u64,
}

/// The maps that lead to the rosters, all together.
pub(crate) const ROSTERS: &str = "ways to rosters";
/// All programs together.
pub(crate) const PROGRAMS: &str = "programs";
/// Storage in the members' sockets.
pub(crate) const STORAGE: &str = "storage in sockets";
/// The sockets' entries in the SOCKMAP.
pub(crate) const ENTRIES: &str = "entries of sockets";

/// The capacities in whose differences a service's and a member's part is seen.
pub(crate) const CAPACITIES: [Capacity; 3] = [
    Capacity { services: 1_024, members: 4_096 },
    Capacity { services: 1_024, members: 65_536 },
    Capacity { services: 65_536, members: 65_536 },
];

/// The state of a namespace that has a single service of a single member.
pub(crate) fn of_empty_state(capacity: Capacity) -> Result<Vec<Charge>> {
    let (service, _listeners) =
        Service::builder("one").capacity(capacity).listen([world::at("10.0.0.1:80")])?;
    let found = of_services(Shape { services: 1, members: 1 })?;
    service.remove()?;
    Ok(found)
}

/// What the namespace of the calling thread has.
pub(crate) fn of_services(shape: Shape) -> Result<Vec<Charge>> {
    let inode = Namespace::current()?.inode();
    let folder = PathBuf::from(format!("/sys/fs/bpf/overspill/{inode}"));
    let services = MapHandle::from_pinned_path(folder.join("services"))?;
    let mut maps: Vec<(String, u64)> = Vec::new();
    let (programs, numbers) = programs(&folder)?;
    for number in numbers {
        let map = MapHandle::from_map_id(number)?;
        maps.push((map.name().to_string_lossy().into_owned(), memlock(map.as_fd())?));
    }
    // Programs have shortened names, and a map of constants each: not those of users.
    maps.sort();
    maps.push((PROGRAMS.to_owned(), programs));
    maps.push((ROSTERS.to_owned(), rosters(&services)?));
    maps.push((STORAGE.to_owned(), storage()?));
    let members = u64::from(shape.services * shape.members);
    maps.push((ENTRIES.to_owned(), members * entry()?));
    // One for each; `services` has one more.
    let entries =
        |map| -> Result<u32> { Ok(MapHandle::from_pinned_path(folder.join(map))?.max_entries()) };
    let capacity = Capacity { services: entries("dispatchers")?, members: entries("sockets")? };
    Ok(maps.into_iter().map(|(what, bytes)| Charge { capacity, shape, what, bytes }).collect())
}

/// What the pinned programs cost, and the numbers of the maps that they use.
fn programs(folder: &Path) -> Result<(u64, BTreeSet<u32>)> {
    let mut bytes = 0;
    let mut own = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        // Maps and links are refused.
        if let Ok(program) = Program::fd_from_pinned_path(entry?.path()) {
            bytes += memlock(program.as_fd())?;
            own.insert(u32::try_from(field(program.as_fd(), "prog_id")?)?);
        }
    }
    let options = ProgInfoQueryOptions::default().include_map_ids(true);
    let all = ProgInfoIter::with_query_opts(options);
    let maps = all.filter(|program| own.contains(&program.id)).flat_map(|it| it.map_ids);
    Ok((bytes, maps.collect()))
}

fn rosters(services: &MapHandle) -> Result<u64> {
    let mut bytes = 0;
    for service in 0..services.max_entries() {
        if let Some(number) = services.lookup(&service.to_ne_bytes(), MapFlags::ANY)? {
            let number = u32::from_ne_bytes(number.as_slice().try_into()?);
            bytes += memlock(MapHandle::from_map_id(number)?.as_fd())?;
        }
    }
    Ok(bytes)
}

fn memlock(object: BorrowedFd<'_>) -> Result<u64> {
    field(object, "memlock")
}

/// What the kernel tells of a descriptor (`bpf_map_show_fdinfo`, `bpf_prog_show_fdinfo`).
fn field(object: BorrowedFd<'_>, name: &str) -> Result<u64> {
    let path = format!("/proc/thread-self/fdinfo/{}", object.as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    Ok(value.with_context(|| format!("{path} has no {name}"))?.parse()?)
}

/// What listening sockets have allocated for options and storage: `o` in `skmem`.
fn storage() -> Result<u64> {
    let output = Command::new("ss").args(["-Hltm"]).output().context("run ss")?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let fields = text.split([',', '(', ')']).filter_map(|field| field.strip_prefix('o'));
    Ok(fields.filter_map(|bytes| bytes.parse::<u64>().ok()).sum())
}

/// What `sock_map_link` allocates for each socket (`net/core/sock_map.c`).
fn entry() -> Result<u64> {
    let btf = Btf::from_vmlinux()?;
    let size = |name: &str| -> Result<u64> {
        let structure: types::Struct<'_> =
            btf.type_by_name(name).with_context(|| format!("the kernel has no struct {name}"))?;
        Ok(u64::try_from(structure.size())?.next_power_of_two())
    };
    Ok(size("sk_psock")? + size("sk_psock_link")?)
}
