//! What there is to tell at one moment.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use overspill::{Exits, MemberState, Namespace, Service, Status};
use procfs::FromRead as _;
use procfs::process::Stat;

use crate::args::Places;
use crate::failure::Failure;

/// Everything, read within one moment.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(super) spaces: Vec<Space>,
    /// When each process of a member started, in seconds since 1970, where it is there.
    pub(super) started: HashMap<u32, f64>,
    pub(super) took: Duration,
}

/// A network namespace with services.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) inode: u64,
    /// Those that `ip netns` has given it.
    pub(super) names: Vec<String>,
    /// Why they can't be read does not hide the other namespaces.
    pub(super) contents: Result<Contents, Failure>,
}

#[derive(Debug)]
pub(super) struct Contents {
    pub(super) services: Vec<Status>,
    pub(super) exits: Exits,
}

impl Reading {
    /// Fails only where it can't be told which namespaces there are.
    pub(crate) fn take(places: &Places) -> Result<Self, Failure> {
        let begin = Instant::now();
        let mut names = names();
        let mut space = |namespace: &Namespace| {
            let inode = namespace.inode();
            let names = names.remove(&inode).unwrap_or_default();
            let contents = contents(namespace).transpose()?;
            Some(Space { inode, names, contents })
        };
        let spaces: Vec<Space> = places.namespaces()?.iter().filter_map(&mut space).collect();
        let started = started(&spaces);
        Ok(Self { spaces, started, took: begin.elapsed() })
    }

    /// Why namespaces can't be read.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> + '_ {
        let failed = |space: &Space| {
            let failure = space.contents.as_ref().err()?;
            Some(format!("cannot read network namespace {}: {failure}", space.inode))
        };
        self.spaces.iter().filter_map(failed)
    }
}

impl Space {
    pub(super) fn services(&self) -> &[Status] {
        self.contents.as_ref().map_or(&[], |contents| &contents.services)
    }
}

/// A namespace's services, or `None` where it has none: the last one may have gone since
/// the namespace was found.
fn contents(namespace: &Namespace) -> Result<Option<Contents>, Failure> {
    let services = Service::statuses(namespace)?;
    Ok(namespace.exits()?.map(|exits| Contents { services, exits }))
}

/// The names of network namespaces, by inode number; one may have several.
fn names() -> HashMap<u64, Vec<String>> {
    let mut names: HashMap<u64, Vec<String>> = HashMap::new();
    // Where there is no such folder, none has a name.
    for file in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if let Ok(metadata) = fs::metadata(file.path()) {
            let name = file.file_name().to_string_lossy().into_owned();
            names.entry(metadata.ino()).or_default().push(name);
        }
    }
    names
}

/// When the members' processes started. One that has ended, or may not be seen, has no
/// entry; nor has that of a member that is gone, whose number may be another's by now.
fn started(spaces: &[Space]) -> HashMap<u32, f64> {
    let members = spaces.iter().flat_map(Space::services).flat_map(|status| &status.members);
    let mut pids: Vec<u32> =
        members.filter(|member| member.state != MemberState::Gone).map(|it| it.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter().filter_map(|pid| Some((pid, start(pid)?))).collect()
}

#[allow(clippy::cast_precision_loss)] // hundredths of a second stay exact for centuries
fn start(pid: u32) -> Option<f64> {
    let ticks = Stat::from_file(format!("/proc/{pid}/stat")).ok()?.starttime as f64;
    // Read once: it does not move when the clock is set, which would look like a restart.
    let boot = procfs::boot_time_secs().ok()? as f64;
    Some(boot + ticks / procfs::ticks_per_second() as f64)
}
