//! Changing services: every change replaces one roster, and then its indexes follow.
//!
//! The order makes each step safe for the requests that arrive meanwhile:
//!
//! 1. new members' sockets enter `sockets`, in slots that no roster uses, and their
//!    connections are counted from then on;
//! 2. the program that the new roster asks, if it does, is put in its place
//!    (`dispatcher.rs`);
//! 3. endpoints that the new roster does not have leave `endpoints` (their requests
//!    go to the kernel's own look-up, as to any address that is not served), and the
//!    connections of members that leave are not counted any more;
//! 4. the new roster, whose rows have been written where nobody looks, replaces the old in
//!    `services`, in one step; the kernel returns when no program reads the old one any more
//!    (`maybe_wait_bpf_programs`), and its rows may be written over;
//! 5. `endpoints`, `near` and `ports` are made to agree with the rosters (`index.rs`);
//! 6. the members' sockets are looked up once, since the program `migrate` cannot do so;
//! 7. a program that is not asked any more is taken out of `dispatchers`, and sockets of
//!    members that left out of `sockets`; control groups in which there are none any more
//!    are let go of.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use zerocopy::IntoBytes;

use super::layout::EndpointKey;
use super::rows::Run;
use super::{Datapath, Dispatcher, Lock, index};
use crate::error::{Error, Result};
use crate::member::MemberId;
use crate::roster::Roster;

/// All services of a namespace at the moment that the lock was taken.
#[derive(Clone)]
pub(crate) struct Snapshot {
    rosters: BTreeMap<u32, Roster>,
    /// Where they lay at that moment.
    runs: Vec<Run>,
}

/// A socket that joins, with the slot and the name for messages.
pub(crate) struct Joining<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) slot: u32,
    pub(crate) cookie: u64,
    pub(crate) pid: u32,
    /// How often its process was started, as far as that is counted.
    pub(crate) starts: u64,
    pub(crate) name: String,
}

/// A service's roster before and after; `None` is a service that does not exist.
pub(crate) struct Change<'a> {
    pub(crate) id: u32,
    pub(crate) old: Option<&'a Roster>,
    pub(crate) new: Option<&'a Roster>,
    pub(crate) joining: Vec<Joining<'a>>,
    /// The program to be asked from now on; `None` leaves the one that is, if the policy does.
    pub(crate) dispatcher: Option<&'a Dispatcher>,
}

impl Snapshot {
    pub(crate) fn find(&self, name: &str) -> Option<(u32, &Roster)> {
        self.rosters
            .iter()
            .find(|(_, roster)| roster.name == name)
            .map(|(&id, roster)| (id, roster))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.rosters.values().map(|roster| roster.name.as_str())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rosters.is_empty()
    }

    /// The service that a socket is a member of, and which one.
    pub(crate) fn membership(&self, cookie: u64) -> Option<(&Roster, MemberId)> {
        self.rosters.values().find_map(|roster| {
            let member = roster.members.iter().find(|member| member.cookie == cookie)?;
            Some((roster, member.id))
        })
    }

    /// The service, other than number `id`, that serves an address.
    pub(crate) fn serving(&self, address: SocketAddr, id: u32) -> Option<&str> {
        self.rosters
            .iter()
            .filter(|&(&other, roster)| other != id && roster.port == address.port())
            .find(|(_, roster)| roster.endpoints().any(|(ip, _)| ip == address.ip()))
            .map(|(_, roster)| roster.name.as_str())
    }

    /// Every service's number and roster.
    pub(super) fn rosters(&self) -> impl Iterator<Item = (u32, &Roster)> {
        self.rosters.iter().map(|(&id, roster)| (id, roster))
    }

    /// What it will be after a change.
    fn after(&self, id: u32, new: Option<Roster>) -> Self {
        let mut after = self.clone();
        match new {
            Some(new) => after.rosters.insert(id, new),
            None => after.rosters.remove(&id),
        };
        after
    }
}

impl Datapath {
    /// All services, and their indexes in order.
    pub(crate) fn snapshot(&self, _lock: &Lock) -> Result<Snapshot> {
        let mut snapshot = Snapshot { rosters: BTreeMap::new(), runs: Vec::new() };
        for id in 0..self.state.services {
            if let Some((place, roster)) = self.published(id)? {
                snapshot.rosters.insert(id, roster);
                snapshot.runs.push(Run { extent: place.extent, id });
            }
        }
        snapshot.runs.sort_unstable_by_key(|run| run.extent.first);
        self.reindex(&snapshot)?;
        Ok(snapshot)
    }

    /// A number that no service has.
    pub(crate) fn free_id(&self, snapshot: &Snapshot) -> Result<u32> {
        (0..self.state.services).find(|id| !snapshot.rosters.contains_key(id)).ok_or_else(|| {
            Error::OverCapacity {
                what: "services",
                wanted: snapshot.rosters.len() as u64 + 1,
                capacity: self.state.services,
            }
        })
    }

    /// As many slots as wanted that no member has.
    pub(crate) fn free_slots(&self, snapshot: &Snapshot, wanted: usize) -> Result<Vec<u32>> {
        let used: HashSet<u32> = snapshot
            .rosters
            .values()
            .flat_map(|roster| &roster.members)
            .map(|member| member.slot)
            .collect();
        let free: Vec<u32> =
            (0..self.state.members).filter(|slot| !used.contains(slot)).take(wanted).collect();
        if free.len() < wanted {
            return Err(Error::OverCapacity {
                what: "members",
                wanted: (used.len() + wanted) as u64,
                capacity: self.state.members,
            });
        }
        Ok(free)
    }

    /// Carries out a change, whole or not at all; gives the services after it.
    pub(crate) fn apply(&self, before: &Snapshot, change: &Change<'_>) -> Result<Snapshot> {
        let mut new = change.new.cloned();
        // First what takes memory, and so may fail: nothing has changed then.
        let rows = self
            .prepare(change, new.as_mut(), &before.runs)
            .inspect_err(|_| self.forget(change, before))?;
        let asked = self.place_dispatcher(change).inspect_err(|_| self.forget(change, before))?;
        let after = before.after(change.id, new);
        if let Err(error) = self.replace(change, rows.as_ref(), before, &after) {
            // The cause is reported, not the trouble on the way back.
            let _ = self.restore(change, before);
            let _ = self.restore_dispatcher(change, asked.as_ref());
            self.forget(change, before);
            return Err(error);
        }
        self.drop_dispatcher(change)?;
        self.free(leaving(change.old, change.new));
        self.detach_from_others(&after)?;
        Ok(after)
    }

    /// Step 1, and the rows to be published.
    fn prepare(
        &self,
        change: &Change<'_>,
        new: Option<&mut Roster>,
        runs: &[Run],
    ) -> Result<Option<MapHandle>> {
        if change.old.is_none() {
            self.reset_counters(change.id)?;
        }
        let Some(new) = new else { return Ok(None) };
        for joining in &change.joining {
            self.insert(joining)?;
            let cgroup = self.begin_to_count(joining)?;
            let members = new.members.iter_mut().filter(|member| member.slot == joining.slot);
            members.for_each(|member| member.cgroup = u32::try_from(cgroup).unwrap_or(0));
        }
        self.write_rows(new, runs).map(Some)
    }

    /// Undoes step 1.
    fn forget(&self, change: &Change<'_>, before: &Snapshot) {
        let slots = || change.joining.iter().map(|joining| joining.slot);
        let _ = self.end_to_count(slots());
        self.free(slots());
        let _ = self.detach_from_others(before);
    }

    /// Steps 3 to 6.
    fn replace(
        &self,
        change: &Change<'_>,
        rows: Option<&MapHandle>,
        before: &Snapshot,
        after: &Snapshot,
    ) -> Result<()> {
        let failed = |error| Error::bpf("change", "the map endpoints", error);
        let kept: HashSet<EndpointKey> =
            change.new.iter().flat_map(|new| index::keys(new)).map(|(key, _)| key).collect();
        let old = change.old.iter().flat_map(|old| index::keys(old));
        for (key, _) in old.filter(|(key, _)| !kept.contains(key)) {
            self.maps.endpoints.delete(key.as_bytes()).map_err(failed)?;
        }
        let leaving = leaving(change.old, change.new);
        self.end_to_count(leaving.iter().copied())?;
        self.publish(change.id, rows)
            .and_then(|()| self.reindex_after(before, after))
            .and_then(|()| self.refresh_figures(change.id))
            .inspect_err(|_| {
                let _ = self.go_on_to_count(leaving);
            })
    }

    /// Back to what was before a change that failed on its way.
    fn restore(&self, change: &Change<'_>, before: &Snapshot) -> Result<()> {
        // If the old roster is still there, making it anew must not fail the rest.
        if self.roster(change.id)?.as_ref() != change.old {
            let runs = self.runs()?;
            let rows = change.old.map(|old| self.write_rows(old, &runs)).transpose()?;
            self.publish(change.id, rows.as_ref())?;
        }
        self.reindex(before)
    }

    /// Puts a roster, or none, in the place of the one before it.
    pub(super) fn publish(&self, id: u32, rows: Option<&MapHandle>) -> Result<()> {
        let failed = |error| Error::bpf("change", "the map services", error);
        match rows {
            None => ignore_absent(self.maps.services.delete(&id.to_ne_bytes())).map_err(failed),
            Some(rows) => {
                let fd = rows.as_fd().as_raw_fd().to_ne_bytes();
                self.maps.services.update(&id.to_ne_bytes(), &fd, MapFlags::ANY).map_err(failed)
            }
        }
    }

    fn insert(&self, joining: &Joining<'_>) -> Result<()> {
        self.member_counters()?.clear(joining.slot);
        self.set_starts(joining.slot, joining.starts)?;
        let fd = u64::try_from(joining.socket.as_raw_fd()).expect("an open descriptor");
        let slot = joining.slot.to_ne_bytes();
        self.maps.sockets.update(&slot, &fd.to_ne_bytes(), MapFlags::ANY).map_err(|error| {
            // libbpf-rs keeps the number to itself; libbpf leaves it in errno.
            let errno = std::io::Error::last_os_error().raw_os_error();
            match errno {
                // sock_map_link (net/core/sock_map.c): a map of the other kind has it.
                Some(libc::EBUSY) => Error::HeldElsewhere { socket: joining.name.clone() },
                // sock_map_sk_state_allowed: it has stopped listening since it was looked at.
                Some(libc::EOPNOTSUPP) => Error::NotListening { socket: joining.name.clone() },
                _ => Error::bpf("put into the map sockets", joining.name.clone(), error),
            }
        })
    }

    /// Notes how often the process of the member in that slot was started.
    pub(crate) fn set_starts(&self, slot: u32, starts: u64) -> Result<()> {
        self.maps
            .starts
            .update(&slot.to_ne_bytes(), &starts.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| Error::bpf("change", "the map starts", error))
    }

    /// Takes sockets out; one that was closed has left by itself.
    fn free(&self, slots: impl IntoIterator<Item = u32>) {
        for slot in slots {
            let _ = self.maps.sockets.delete(&slot.to_ne_bytes());
        }
    }

    fn reset_counters(&self, id: u32) -> Result<()> {
        self.service_counters()?.clear(id);
        Ok(())
    }
}

/// The slots of members that the new roster does not have.
fn leaving(old: Option<&Roster>, new: Option<&Roster>) -> Vec<u32> {
    let slots = |roster: Option<&Roster>| -> HashSet<u32> {
        roster.iter().flat_map(|roster| &roster.members).map(|member| member.slot).collect()
    };
    slots(old).difference(&slots(new)).copied().collect()
}

pub(super) fn ignore_absent(result: libbpf_rs::Result<()>) -> libbpf_rs::Result<()> {
    match result {
        Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
