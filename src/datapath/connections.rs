//! Counting each member's connections: the user half of `bpf/connections.h`.
//!
//! The program `connections` is attached to the control groups of the members' sockets and
//! to no other, by a link each, pinned as `connections-ID`. It stays as long as a member
//! of any service has its socket there.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapFlags};
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{Figures, Load, Origin, Word};
use super::read::{Arguments, lookup};
use super::{Datapath, Joining, Snapshot, pin};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::roster::Member;
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
        let load = Load { cookie: if counted { cookie } else { 0 }, established: 0 };
        write(&self.maps.loads, &key, load.as_bytes())?;
        let origin = Origin { cookie, slot, counted: 0 };
        write(&self.maps.origins, &socket.as_raw_fd().to_ne_bytes(), origin.as_bytes())?;
        Ok(id)
    }

    /// From now on connections of these slots change no count: those that outlive their
    /// membership must not be taken off whoever gets the slot next. What comes after this
    /// and before that, the publishing of a roster, waits for the programs that have begun.
    pub(super) fn end_to_count(&self, slots: impl IntoIterator<Item = u32>) -> Result<()> {
        for slot in slots {
            self.maps
                .loads
                .update(&slot.to_ne_bytes(), Load::default().as_bytes(), MapFlags::ANY)
                .map_err(|error| Error::bpf("change", "the map loads", error))?;
        }
        Ok(())
    }

    /// Asks the kernel, which has no other interface for it than by the socket.
    fn cgroup_of(&self, slot: u32) -> Result<u64> {
        let finder = self.program(pin::FINDER)?;
        let arguments = Arguments { service: slot, ..Arguments::default() };
        sys::test_run(finder.as_fd(), &arguments.context())
            .map_err(|error| Error::system("run", "the program find_cgroup", error))?;
        let bytes = lookup(&self.maps.figures, slot)?;
        Ok(Figures::read_from_bytes(&bytes).expect("the size of the map's values").cgroup)
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

    /// Lets go of the control groups in which no member has its socket any more.
    pub(super) fn detach_from_others(&self, snapshot: &Snapshot) -> Result<()> {
        let members = snapshot.rosters().flat_map(|(_, roster)| &roster.members);
        let needed: HashSet<u32> = members.map(|member| member.cgroup).collect();
        if needed.contains(&0) {
            return Ok(()); // it does not say which one it needs
        }
        let failed = |error| Error::system("read", self.folder.display().to_string(), error);
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let cgroup = name.to_str().and_then(|name| name.strip_prefix(pin::COUNTED));
            if cgroup.is_some_and(|id| !id.parse().is_ok_and(|id: u32| needed.contains(&id))) {
                let object = entry.path().display().to_string();
                fs::remove_file(entry.path()).map_err(|e| Error::system("remove", object, e))?;
            }
        }
        Ok(())
    }
}

impl Load {
    /// How many connections this member has; `None` if they are not counted.
    pub(super) fn of(&self, member: &Member) -> Option<u32> {
        let counted = self.cookie == member.cookie;
        counted.then(|| u32::try_from(self.established).unwrap_or(u32::MAX))
    }
}
