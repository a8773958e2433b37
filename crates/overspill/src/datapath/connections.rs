//! Counting each member's connections: the user half of `bpf/connections.h`.
//!
//! The program `connections` is attached to the control groups of the members' sockets and
//! to no other, by a link each, pinned as `connections-ID`. It stays as long as a member
//! of any service has its socket there.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapFlags};
use zerocopy::IntoBytes;

use super::arguments::Arguments;
use super::handle::Datapath;
use super::layout::{Figures, Load, Moved, Origin, Word, known_part};
use super::maps::lookup;
use super::roster::Member;
use super::snapshot::Snapshot;
use super::transaction::Joining;
use super::{pin, swap};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::sys;

impl Datapath {
    /// Prepares a slot for a socket that joins: its connections are counted from now on.
    /// Gives the id of its control group. Where that can't be reached, since it was removed
    /// or is not mounted here, they are not counted.
    pub(super) fn begin_to_count(&self, joining: &Joining<'_>) -> Result<u64> {
        let Joining { socket, slot, cookie, pid, .. } = *joining;
        let id = self.cgroup_of(slot)?;
        let counted = self.attach_to_cgroup(id, pid)?;
        let failed = |error| Error::bpf("count the connections of", joining.name.clone(), error);
        let write = |map: &libbpf_rs::MapHandle, key: &[u8], value: &[u8]| {
            map.update(key, value, MapFlags::ANY).map_err(failed)
        };
        let key = slot.to_ne_bytes();
        write(&self.maps.words, &key, Word { cookie, word: 0 }.as_bytes())?;
        let era = self.load_in(slot)?.era.wrapping_add(1).max(1);
        let load = Load { cookie: if counted { cookie } else { 0 }, era, established: 0 };
        write(&self.maps.loads, &key, load.as_bytes())?;
        let place = u16::try_from(slot).expect("a slot is below the greatest capacity");
        let origin = Origin { era: if counted { era } else { 0 }, slot: place, counted: 0 };
        write(&self.maps.origins, &socket.as_raw_fd().to_ne_bytes(), origin.as_bytes())?;
        Ok(id)
    }

    /// From now on connections of these slots change no count: those that outlive their
    /// membership must not be taken off whoever gets the slot next. What comes after this
    /// and before that, the publishing of a roster, waits for the programs that have begun.
    pub(super) fn end_to_count(&self, slots: impl IntoIterator<Item = u32>) -> Result<()> {
        self.turn_eras(slots, |era| era.wrapping_add(1))
    }

    /// Undoes that, for members that have not left after all. What came and went meanwhile
    /// is missed.
    pub(super) fn go_on_to_count(&self, slots: impl IntoIterator<Item = u32>) -> Result<()> {
        self.turn_eras(slots, |era| era.wrapping_sub(1))
    }

    fn turn_eras(
        &self,
        slots: impl IntoIterator<Item = u32>,
        turn: impl Fn(u32) -> u32,
    ) -> Result<()> {
        for slot in slots {
            let mut load = self.load_in(slot)?;
            load.era = turn(load.era);
            self.maps
                .loads
                .update(&slot.to_ne_bytes(), load.as_bytes(), MapFlags::ANY)
                .map_err(|error| Error::bpf("change", "the map loads", error))?;
        }
        Ok(())
    }

    fn load_in(&self, slot: u32) -> Result<Load> {
        let bytes = lookup(&self.maps.loads, slot)?;
        Ok(known_part(&bytes))
    }

    /// Asks the kernel, which has no other interface for it than by the socket.
    fn cgroup_of(&self, slot: u32) -> Result<u64> {
        let finder = self.program(pin::FINDER)?;
        let arguments = Arguments { service: slot, ..Arguments::default() };
        sys::test_run(finder.as_fd(), &arguments.context())
            .map_err(|error| Error::system("run", "the program find_cgroup", error))?;
        let bytes = lookup(&self.maps.figures, slot)?;
        Ok(known_part::<Figures>(&bytes).cgroup)
    }

    /// False where the control group can't be reached.
    fn attach_to_cgroup(&self, id: u64, pid: u32) -> Result<bool> {
        let path = self.folder.join(format!("{}{id}", pin::COUNTED));
        if path.exists() {
            return Ok(true);
        }
        let Some(cgroup) = Cgroup::by_id(id, pid) else { return Ok(false) };
        let folder = cgroup.open()?;
        let program = self.program(pin::COUNTER)?;
        let link = sys::attach_to_cgroup(program.as_fd(), folder.as_fd()).map_err(|error| {
            let name = cgroup.path().display().to_string();
            Error::system("attach a program to the cgroup", name, error)
        })?;
        sys::pin(link.as_fd(), &path)
            .map_err(|error| Error::system("pin", path.display().to_string(), error))?;
        Ok(true)
    }

    /// Lets go of the control groups in which no member has its socket any more, nor a
    /// connection that was moved to another's: its end would not be told.
    pub(super) fn detach_from_others(&self, snapshot: &Snapshot) -> Result<()> {
        let members = snapshot.rosters().flat_map(|(_, roster)| &roster.members);
        let needed: HashSet<u32> = members.map(|member| member.cgroup).collect();
        if needed.contains(&0) {
            return Ok(()); // it does not say which one it needs
        }
        let mut links = swap::counted(&self.folder)?;
        links.retain(|(id, _)| !u32::try_from(*id).is_ok_and(|id| needed.contains(&id)));
        if links.is_empty() {
            return Ok(());
        }
        let moved_from = self.moved_from()?;
        for (_, path) in links.iter().filter(|(id, _)| !moved_from.contains(id)) {
            let object = path.display().to_string();
            fs::remove_file(path).map_err(|error| Error::system("remove", object, error))?;
        }
        Ok(())
    }

    /// The cookies of the connections that have been moved and are not closed yet.
    pub(crate) fn moved(&self) -> Result<HashSet<u64>> {
        let keys = self.maps.moved.keys();
        let cookie = |key: Vec<u8>| key.try_into().ok().map(u64::from_ne_bytes);
        let unfit = || {
            let what = "the map moved has keys of another kind".to_owned();
            Error::Damaged { path: self.folder.clone(), what }
        };
        keys.map(|key| cookie(key).ok_or_else(unfit)).collect()
    }

    /// The control groups of the connections that have been moved and are not closed yet.
    fn moved_from(&self) -> Result<HashSet<u64>> {
        let mut groups = HashSet::new();
        for key in self.maps.moved.keys() {
            let value = self.maps.moved.lookup(&key, MapFlags::ANY);
            let value = value.map_err(|error| Error::bpf("read", "the map moved", error))?;
            // Closed meanwhile, if there is none.
            groups.extend(value.map(|bytes| known_part::<Moved>(&bytes).cgroup));
        }
        Ok(groups)
    }
}

impl Load {
    /// How many connections this member has; `None` if they are not counted.
    pub(super) fn of(&self, member: &Member) -> Option<u32> {
        let counted = self.cookie == member.cookie;
        counted.then_some(self.established)
    }
}
