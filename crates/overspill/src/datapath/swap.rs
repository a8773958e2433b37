//! Replaces the programs of one folder by those of another in one step, and completes or undoes
//! an upgrade that was killed.
//!
//! During an upgrade there are two folders, `INODE` and `new-INODE`. Both pin the same links.
//! The valid folder is the one whose program `overspill` the link has attached. Before the
//! update of the link ([`commit`]), removing the new folder undoes the upgrade; after it,
//! [`finish`] completes it. The next writer does what is needed ([`recover`]).
//!
//! This code uses only the contract between builds (`bpf/overspill.h`), so that each build can
//! complete an upgrade of another.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use libbpf_rs::{Link, MapCore as _, MapFlags, MapHandle, MapType, Program, ProgramHandle};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::counters::Counted;
use super::folder::{ASIDE, attached_to, open_map, open_program, read_state, remove_folder};
use super::maps::{map_name, number, roster_map};
use super::pin;
use super::verifier::hush;
use crate::error::{Error, Result};
use crate::sys;

/// Waits until every program that runs now has ended.
///
/// The kernel waits at each change of a map of maps (`maybe_wait_bpf_programs`); this map is
/// temporary.
pub(super) fn wait_for_programs() -> Result<()> {
    let failed = |error| Error::bpf("wait for", "the programs that run", error);
    let inner = roster_map()?;
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        inner_map_fd: inner.as_fd().as_raw_fd().cast_unsigned(),
        ..Default::default()
    };
    let outer =
        MapHandle::create(MapType::ArrayOfMaps, Some("wait"), 4, 4, 1, &options).map_err(failed)?;
    let fd = inner.as_fd().as_raw_fd().to_ne_bytes();
    outer.update(&0_u32.to_ne_bytes(), &fd, MapFlags::ANY).map_err(failed)
}

/// Puts a program into an array of programs.
pub(super) fn put_program(map: &MapHandle, key: u32, program: BorrowedFd<'_>) -> Result<()> {
    let fd = program.as_raw_fd().to_ne_bytes();
    map.update(&key.to_ne_bytes(), &fd, MapFlags::ANY)
        .map_err(|error| Error::bpf("change", map_name(map), error))
}

/// Lists the links on control groups that a folder pins: the id of each group, and the pin.
pub(super) fn counted(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let failed = |error| Error::system("read", folder.display().to_string(), error);
    let mut links = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(pin::COUNTED)?.parse().ok());
        links.extend(id.map(|id| (id, entry.path())));
    }
    Ok(links)
}

/// Pins the links of one folder in another one too.
pub(super) fn share_links(from: &Path, to: &Path) -> Result<()> {
    let groups = counted(from)?.into_iter().map(|(_, path)| path);
    for path in groups.chain([from.join(pin::LINK)]) {
        let link = open_link(&path)?;
        let copy = to.join(path.file_name().expect("it has one"));
        sys::pin(link.as_fd(), &copy)
            .map_err(|error| Error::system("pin", copy.display().to_string(), error))?;
    }
    Ok(())
}

/// Attaches the program of the new folder in place of the old one. It places requests from now
/// on.
pub(super) fn commit(aside: &Path) -> Result<()> {
    update(&aside.join(pin::LINK), aside, pin::PROGRAM)
}

/// Completes an upgrade after [`commit`]: moves the other links, the counters and the
/// dispatchers to the new folder, and gives it the name of the old one. Repeating it from the
/// start is safe.
pub(super) fn finish(main: &Path, aside: &Path) -> Result<()> {
    for (_, link) in counted(aside)? {
        match update(&link, aside, pin::COUNTER) {
            // Its control group has been removed, and all connections in it have ended.
            Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::ENOLINK) => {}
            updated => updated?,
        }
    }
    put_program(&open_map(aside, "movers")?, 0, open_program(aside, pin::MOVER)?.as_fd())?;
    // Until they end, runs of the old programs call the program in `finish`, and count.
    wait_for_programs()?;
    take_over_counters(main, aside)?;
    take_over_dispatchers(main, aside)?;
    renameat_with(CWD, aside, CWD, main, RenameFlags::EXCHANGE)
        .map_err(|error| Error::system("swap", aside.display().to_string(), error))?;
    remove_folder(aside)
}

/// Completes or undoes the upgrade that left this folder.
pub(super) fn recover(main: &Path, inode: u64, aside: &Path) -> Result<()> {
    let link = main.join(pin::LINK);
    let is_alive = attached_to(&link).is_ok_and(|attached| attached == inode);
    if is_alive && is_at_work(&link, aside)? { finish(main, aside) } else { remove_folder(aside) }
}

/// Whether the link has the program of that folder attached.
fn is_at_work(link: &Path, folder: &Path) -> Result<bool> {
    // The program is not pinned yet, or its pin has been removed.
    let Ok(program) = ProgramHandle::from_pinned_path(folder.join(pin::PROGRAM)) else {
        return Ok(false);
    };
    let info = open_link(link)?.info();
    let info = info.map_err(|error| Error::bpf("open", link.display().to_string(), error))?;
    Ok(info.prog_id == program.id())
}

/// The folder that the attached program belongs to: that aside where an upgrade has replaced the
/// program and was stopped before it could move the folder, else `main`. The next
/// holder of the lock completes the upgrade; readers take no lock.
pub(super) fn valid_folder(main: &Path, inode: u64) -> PathBuf {
    let link = main.join(pin::LINK);
    let aside = main.with_file_name(format!("{ASIDE}{inode}"));
    let valid = [main, &aside].into_iter().find(|it| is_at_work(&link, it).unwrap_or(false));
    valid.unwrap_or(main).to_owned()
}

fn open_link(path: &Path) -> Result<Link> {
    hush();
    Link::open(path).map_err(|error| Error::bpf("open", path.display().to_string(), error))
}

fn update(link: &Path, folder: &Path, program: &str) -> Result<()> {
    let program = open_program(folder, program)?;
    sys::update_link(open_link(link)?.as_fd(), program.as_fd())
        .map_err(|error| Error::system("update the link", link.display().to_string(), error))
}

/// Adds the old counts to the new maps of counters. Maps that both folders share keep theirs.
fn take_over_counters(main: &Path, aside: &Path) -> Result<()> {
    let state = read_state(aside)?;
    let counters =
        [("service_counters", state.services), ("member_counters", state.members), ("exits", 1)];
    for (name, own) in counters {
        let (old, new) = (open_map(main, name)?, open_map(aside, name)?);
        if number(&old)? != number(&new)? {
            Counted::of(&new, own)?.take_over(&Counted::of(&old, own)?);
        }
    }
    Ok(())
}

/// Puts the new `take_answer` into `finish`, and the dispatchers into the new state.
///
/// Dispatchers end with a call of the program in `finish`. The old program needs the old
/// `take_answer` there. So the caller first waits until runs of the old program have ended;
/// until then the new state has no dispatchers, and next-available places its requests.
fn take_over_dispatchers(main: &Path, aside: &Path) -> Result<()> {
    let (old, new) = (open_map(main, "finish")?, open_map(aside, "finish")?);
    if number(&old)? != number(&new)? {
        return Ok(()); // there are no dispatchers: `upgrade` would have refused
    }
    put_program(&new, 0, open_program(aside, pin::TAKER)?.as_fd())?;
    let (old, new) = (open_map(main, "dispatchers")?, open_map(aside, "dispatchers")?);
    for service in 0..read_state(aside)?.services {
        let program = old
            .lookup(&service.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| Error::bpf("read", "the map dispatchers", error))?;
        let Some(program) = program else { continue };
        let program = u32::from_ne_bytes(program.try_into().expect("a number"));
        let program = Program::fd_from_id(program)
            .map_err(|error| Error::bpf("open", "a dispatcher", error))?;
        put_program(&new, service, program.as_fd())?;
    }
    Ok(())
}
