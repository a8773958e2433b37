//! What there is to tell at one moment.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use overspill::{Exits, MemberState, Namespace, Service};
use overspill_supervisor::identity;

use crate::args::Places;
use crate::failure::Failure;
use crate::identified::{Identified, Identifier, seconds};

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
    pub(super) services: Vec<Identified>,
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
    pub(super) fn services(&self) -> &[Identified] {
        self.contents.as_ref().map_or(&[], |contents| &contents.services)
    }
}

/// A namespace's services, or `None` where it has none: the last one may have gone since
/// the namespace was found.
fn contents(namespace: &Namespace) -> Result<Option<Contents>, Failure> {
    let statuses = Service::statuses(namespace)?;
    let Some(exits) = namespace.exits()? else { return Ok(None) };
    let services = Identifier::new(namespace.clone()).identify(statuses);
    Ok(Some(Contents { services, exits }))
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
    let members = spaces.iter().flat_map(Space::services).flat_map(|it| &it.status.members);
    let mut pids: Vec<u32> =
        members.filter(|member| member.state != MemberState::Gone).map(|it| it.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    let start = |pid: u32| Some((pid, seconds(identity::started(pid)?)));
    pids.into_iter().filter_map(start).collect()
}
