//! The rosters of a namespace, read under the lock.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::layout::Extent;
use super::roster::Roster;
use crate::member::MemberId;

/// All services of a namespace, by number, while the lock is held.
#[derive(Clone, Default)]
pub(crate) struct Snapshot(pub(super) BTreeMap<u32, Published>);

/// A service's roster, and where it lies.
#[derive(Clone)]
pub(super) struct Published {
    pub(super) roster: Roster,
    pub(super) extent: Extent,
}

/// Rows in use, and the service whose they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) extent: Extent,
    pub(super) id: u32,
}

impl Snapshot {
    pub(crate) fn find(&self, name: &str) -> Option<(u32, &Roster)> {
        self.rosters().find(|(_, roster)| roster.name == name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.rosters().map(|(_, roster)| roster.name.as_str())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The service that a socket is a member of, and which one.
    pub(crate) fn membership(&self, cookie: u64) -> Option<(&Roster, MemberId)> {
        self.rosters().find_map(|(_, roster)| {
            let member = roster.members.iter().find(|member| member.cookie == cookie)?;
            Some((roster, member.id))
        })
    }

    /// The service, other than number `id`, that serves an address.
    pub(crate) fn serving(&self, address: SocketAddr, id: u32) -> Option<&str> {
        self.rosters()
            .filter(|&(other, roster)| other != id && roster.port == address.port())
            .find(|(_, roster)| roster.endpoints().any(|(ip, _)| ip == address.ip()))
            .map(|(_, roster)| roster.name.as_str())
    }

    /// Every service's number and roster.
    pub(super) fn rosters(&self) -> impl Iterator<Item = (u32, &Roster)> {
        self.services().map(|(id, service)| (id, &service.roster))
    }

    /// The same, with their places.
    pub(super) fn services(&self) -> impl Iterator<Item = (u32, &Published)> {
        self.0.iter().map(|(&id, service)| (id, service))
    }

    /// The rows in use, in their order.
    pub(super) fn runs(&self) -> Vec<Run> {
        let run = |(id, service): (u32, &Published)| Run { extent: service.extent, id };
        let mut runs: Vec<Run> = self.services().map(run).collect();
        runs.sort_unstable_by_key(|run| run.extent.first);
        runs
    }

    /// Adds a service that nothing leads to yet.
    pub(super) fn insert(&mut self, id: u32, service: Published) {
        self.0.insert(id, service);
    }

    /// What it will be after a change.
    pub(super) fn after(&self, id: u32, new: Option<Published>) -> Self {
        let mut after = self.clone();
        match new {
            Some(new) => after.0.insert(id, new),
            None => after.0.remove(&id),
        };
        after
    }

    /// What it will be when a roster lies elsewhere.
    pub(super) fn moved(&self, id: u32, extent: Extent) -> Self {
        let mut moved = self.clone();
        moved.0.get_mut(&id).expect("one of them").extent = extent;
        moved
    }
}
