//! Changing services: every change replaces one roster, and then its indexes follow.
//!
//! The order makes each step safe for the requests that arrive meanwhile:
//!
//! 1. new members' sockets enter `sockets`, in slots that no roster uses, and their
//!    connections are counted from then on;
//! 2. the program that the new roster asks, if it does, is put in its place
//!    (`dispatcher.rs`);
//! 3. the connections of members that leave are not counted any more;
//! 4. `near` leads to the new roster, whose rows have been written where nobody looks;
//!    endpoints that it does not have leave `endpoints` (their requests go to a wildcard's
//!    members or to the kernel's own look-up, as to any address that is not served); and
//!    `services` leads to it, in one step: the kernel returns when no program reads the old
//!    one any more (`maybe_wait_bpf_programs`), and its rows may be written over;
//! 5. `endpoints` and `ports` are made to agree with the rosters (`index.rs`);
//! 6. the members' sockets are looked up once, since the program `migrate` cannot do so;
//! 7. a program that is not asked any more is taken out of `dispatchers`, and sockets of
//!    members that left out of `sockets`; control groups in which there are none any more
//!    are let go of.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use zerocopy::IntoBytes as _;

use super::handle::Datapath;
use super::lock::Lock;
use super::maps::{ignore_absent, roster_map};
use super::roster::Roster;
use super::rows::Written;
use super::snapshot::{Published, Snapshot};
use super::transaction::{Change, Joining};
use crate::error::{Error, Result};

impl Datapath {
    /// All services, and their indexes in order.
    pub(crate) fn snapshot(&self, _lock: &Lock) -> Result<Snapshot> {
        let snapshot = self.services()?;
        self.reindex(&snapshot)?;
        Ok(snapshot)
    }

    /// All services as published.
    pub(super) fn services(&self) -> Result<Snapshot> {
        let mut services = BTreeMap::new();
        for id in self.numbers()? {
            if let Some((place, roster)) = self.published(id)? {
                services.insert(id, Published { roster, extent: place });
            }
        }
        Ok(Snapshot(services))
    }

    /// A number that no service has.
    pub(crate) fn free_id(&self, snapshot: &Snapshot) -> Result<u32> {
        (0..self.state.services).find(|id| !snapshot.0.contains_key(id)).ok_or_else(|| {
            Error::OverCapacity {
                what: "services",
                wanted: snapshot.0.len() as u64 + 1,
                capacity: self.state.services,
            }
        })
    }

    /// As many slots as wanted that no member has, for members that join.
    pub(crate) fn free_slots(&self, snapshot: &Snapshot, wanted: usize) -> Result<Vec<u32>> {
        self.slots_within(self.capacity().members, snapshot, wanted)
    }

    /// A slot that no member has, for a member's successor. The spare slot will do, since the
    /// member's own is free when the change is made.
    ///
    /// The successor does not get the member's own slot. Until the change takes effect,
    /// requests find the member's socket there by the roster before it, and a change that
    /// fails, or whose writer is killed, must leave that socket in its place: a writer has no
    /// descriptor to put it back with.
    pub(crate) fn successors_slot(&self, snapshot: &Snapshot) -> Result<u32> {
        Ok(self.slots_within(self.slots(), snapshot, 1)?[0])
    }

    /// Free slots, if there are no more members than `limit` with them.
    fn slots_within(&self, limit: u32, snapshot: &Snapshot, wanted: usize) -> Result<Vec<u32>> {
        let used: HashSet<u32> = snapshot
            .rosters()
            .flat_map(|(_, roster)| &roster.members)
            .map(|member| member.slot)
            .collect();
        if used.len() + wanted > limit as usize {
            return Err(Error::OverCapacity {
                what: "members",
                wanted: (used.len() + wanted) as u64,
                capacity: self.capacity().members,
            });
        }
        Ok((0..self.slots()).filter(|slot| !used.contains(slot)).take(wanted).collect())
    }

    /// Carries out a change, whole or not at all; gives the services after it.
    pub(crate) fn apply(&self, before: &Snapshot, change: &Change<'_>) -> Result<Snapshot> {
        let mut now = before.clone();
        // First what takes memory, and so may fail: nothing has changed then.
        let prepared = self.prepare(change, &mut now);
        let (new, map) = prepared.inspect_err(|_| self.forget(change, before))?.unzip();
        let asked = self.place_dispatcher(change).inspect_err(|_| self.forget(change, before))?;
        let after = now.after(change.id, new);
        if let Err(error) = self.replace(change, map.as_ref(), &now, &after) {
            // The cause is reported, not the trouble on the way back.
            let _ = self.restore(change);
            let _ = self.restore_dispatcher(change, asked.as_ref());
            self.forget(change, before);
            return Err(error);
        }
        self.drop_dispatcher(change)?;
        self.free(leaving(change.old, change.new));
        self.detach_from_others(&after)?;
        Ok(after)
    }

    /// Step 1, and what is to be published; `now` as it is after rosters were moved for that.
    fn prepare(
        &self,
        change: &Change<'_>,
        now: &mut Snapshot,
    ) -> Result<Option<(Published, MapHandle)>> {
        if change.old.is_none() {
            self.reset_counters(change.id)?;
        }
        let Some(mut roster) = change.new.cloned() else { return Ok(None) };
        for joining in &change.joining {
            self.insert(joining)?;
            let cgroup = self.begin_to_count(joining)?;
            let members = roster.members.iter_mut().filter(|member| member.slot == joining.slot);
            members.for_each(|member| member.cgroup = u32::try_from(cgroup).unwrap_or(0));
        }
        let Written { extent, map } = self.write_rows(change.id, &roster, now)?;
        Ok(Some((Published { roster, extent }, map)))
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
        map: Option<&MapHandle>,
        before: &Snapshot,
        after: &Snapshot,
    ) -> Result<()> {
        let leaving = leaving(change.old, change.new);
        self.end_to_count(leaving.iter().copied())?;
        self.publish(change.id, map, before, after)
            .and_then(|()| self.refresh_figures(change.id))
            .inspect_err(|_| {
                let _ = self.go_on_to_count(leaving);
            })
    }

    /// Back to what was before a change that failed on its way.
    fn restore(&self, change: &Change<'_>) -> Result<()> {
        let mut now = self.services()?;
        // First of all nobody is to be led to what was not published: it is written over.
        self.reindex(&now)?;
        // If the old roster is still there, making it anew must not fail the rest.
        if now.0.get(&change.id).map(|service| &service.roster) != change.old {
            let old = change.old.map(|old| {
                let Written { extent, map } = self.write_rows(change.id, old, &mut now)?;
                Ok::<_, Error>((Published { roster: old.clone(), extent }, map))
            });
            let (old, map) = old.transpose()?.unzip();
            let after = now.after(change.id, old);
            self.publish(change.id, map.as_ref(), &now, &after)?;
        }
        Ok(())
    }

    /// Steps 4 and 5: puts a roster, or none, in the place of the one before it.
    pub(super) fn publish(
        &self,
        id: u32,
        map: Option<&MapHandle>,
        before: &Snapshot,
        after: &Snapshot,
    ) -> Result<()> {
        let (is, wanted) = (self.index_of(before)?, self.index_of(after)?);
        self.lead(&is, &wanted)?;
        let published = self.give_up(&is, &wanted).and_then(|()| self.put_into_services(id, map));
        if let Err(error) = published {
            // The cause is reported, not the trouble on the way back.
            let _ = self.reindex(before);
            return Err(error);
        }
        self.follow(&is, &wanted)
    }

    pub(super) fn put_into_services(&self, id: u32, map: Option<&MapHandle>) -> Result<()> {
        let failed = |error| Error::bpf("change", "the map services", error);
        match map {
            None => ignore_absent(self.maps.services.delete(&id.to_ne_bytes())).map_err(failed),
            Some(map) => {
                let fd = map.as_fd().as_raw_fd().to_ne_bytes();
                self.maps.services.update(&id.to_ne_bytes(), &fd, MapFlags::ANY).map_err(failed)
            }
        }
    }

    /// Publishes several services for the first time, in one call.
    pub(super) fn put_all_into_services(&self, maps: &[(u32, MapHandle)]) -> Result<()> {
        if maps.is_empty() {
            return Ok(());
        }
        let keys: Vec<u32> = maps.iter().map(|(id, _)| *id).collect();
        let values: Vec<i32> = maps.iter().map(|(_, map)| map.as_fd().as_raw_fd()).collect();
        let count = u32::try_from(maps.len()).expect("the capacity is a u32");
        let (keys, values) = (keys.as_bytes(), values.as_bytes());
        self.maps
            .services
            .update_batch(keys, values, count, MapFlags::ANY, MapFlags::ANY)
            .map_err(|error| Error::bpf("change", "the map services", error))
    }

    /// Notes that nothing may be written over before somebody has waited: by the last entry of
    /// `services`, which is no service's.
    pub(super) fn owe_a_wait(&self) -> Result<()> {
        self.put_into_services(self.state.services, Some(&roster_map()?))
    }

    /// Waits, where that was noted, until no program reads what it has found before: each
    /// change of `services` does.
    pub(super) fn wait_if_owed(&self) -> Result<()> {
        match self.place(self.state.services)? {
            Some(_) => self.put_into_services(self.state.services, None),
            None => Ok(()),
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
    pub(super) fn free(&self, slots: impl IntoIterator<Item = u32>) {
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
