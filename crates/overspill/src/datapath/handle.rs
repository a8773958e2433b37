//! An open state: its maps, its programs, and what it says of itself.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libbpf_rs::{MapHandle, ProgramHandle};

use super::counters::{Counted, Counters};
use super::folder::{
    attached_to, check_privilege, inode, open_map, open_program, other_version, read_state, root,
};
use super::{layout, pin, swap};
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::sys::Shared;

/// How many services and members a network namespace can have.
///
/// Fixed when its first service is made, until its last one is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Services: 1 to 65,536.
    pub services: u32,
    /// Members of all services together: 1 to 65,536.
    pub members: u32,
}

impl Capacity {
    /// The largest number of services, and of members.
    pub const MAX: u32 = 65_536;
}

impl Default for Capacity {
    fn default() -> Self {
        Self { services: 1_024, members: 4_096 }
    }
}

macro_rules! maps {
    ($(#[$meta:meta])* $type:ident: $($name:ident),*) => {
        $(#[$meta])*
        #[derive(Debug)]
        pub(super) struct $type { $(pub(super) $name: MapHandle,)* }

        impl $type {
            pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];

            fn open(folder: &Path) -> Result<Self> {
                Ok(Self { $($name: open_map(folder, stringify!($name))?,)* })
            }
        }
    };
}

maps!(
    /// The maps of the contract between builds, each pinned under its name.
    Maps: services, sockets, service_counters, member_counters, exits, figures, exported,
    publications, loads,
    words, starts, origins, moved, dispatchers, requests, finish
);

maps!(
    /// The maps that are internal to a layout.
    OwnMaps: ports, endpoints, near, rows, settings, tracing, tracers
);

/// The programs that readers run. They are opened together with the maps. A program that is
/// opened later by its path may belong to a build that has upgraded the state since.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) reader: OwnedFd,
    pub(super) marker: OwnedFd,
    pub(super) exporter: OwnedFd,
    pub(super) locator: OwnedFd,
}

/// The state of one network namespace.
#[derive(Debug)]
pub(crate) struct Datapath {
    pub(super) folder: PathBuf,
    /// The inode number of the pin `link`. An upgrade makes a new pin.
    link: u64,
    pub(super) state: layout::State,
    pub(super) maps: Maps,
    /// `None` where the state is of another layout.
    pub(super) own: Option<OwnMaps>,
    pub(super) programs: Programs,
    pub(super) counters: Counters,
    pub(super) near: OnceLock<Shared>,
}

impl Datapath {
    /// The state of `namespace`, or `None` while it has none.
    pub(crate) fn open(namespace: &Namespace) -> Result<Option<Self>> {
        let main = root()?.join(namespace.inode().to_string());
        let link = main.join(pin::LINK);
        loop {
            let Some(before) = inode(&link)? else { return Ok(None) };
            let folder = swap::valid_folder(&main, namespace.inode());
            let own = inode(&folder.join(pin::LINK))?.unwrap_or(before);
            let opened = Self::open_folder(namespace, &folder, own);
            // Otherwise the folder was removed or replaced in between. What was opened may be
            // parts of two states.
            if inode(&link)? == Some(before) {
                return opened;
            }
        }
    }

    /// The state in a folder of this namespace, whose pin `link` has that inode number.
    pub(super) fn open_folder(
        namespace: &Namespace,
        folder: &Path,
        link: u64,
    ) -> Result<Option<Self>> {
        if attached_to(&folder.join(pin::LINK))? != namespace.inode() {
            // Its namespace has ended, and a new one has the number: nothing is ours.
            return Ok(None);
        }
        let state = read_state(folder)?;
        let maps = Maps::open(folder)?;
        check_privilege(&maps.services)?;
        let is_own = state.layout == layout::LAYOUT && state.connections == layout::CONNECTIONS;
        let own = is_own.then(|| OwnMaps::open(folder)).transpose()?;
        Ok(Some(Self {
            folder: folder.to_owned(),
            link,
            state,
            maps,
            own,
            programs: Programs {
                reader: open_program(folder, pin::READER)?,
                marker: open_program(folder, pin::MARKER)?,
                exporter: open_program(folder, pin::EXPORTER)?,
                locator: open_program(folder, pin::LOCATOR)?,
            },
            counters: Counters::default(),
            near: OnceLock::new(),
        }))
    }

    /// Whether the folder is still the one that was opened. An upgrade may have replaced it.
    pub(crate) fn is_current(&self) -> Result<bool> {
        Ok(inode(&self.folder.join(pin::LINK))? == Some(self.link))
    }

    /// Whether it is of the layout of this build.
    pub(crate) fn is_of_own_layout(&self) -> bool {
        self.own.is_some()
    }

    /// The maps that only builds of one layout understand.
    pub(super) fn own(&self) -> Result<&OwnMaps> {
        self.own.as_ref().ok_or_else(|| other_version(&self.folder, &self.state))
    }

    /// A pinned program, of those that are not attached but run or attached on demand.
    pub(super) fn program(&self, name: &str) -> Result<OwnedFd> {
        open_program(&self.folder, name)
    }

    /// The inode numbers of the namespaces that have a state.
    pub(crate) fn namespaces() -> Result<Vec<u64>> {
        let root = root()?;
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::system("read", root.display().to_string(), error)),
        };
        let mut inodes = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::system("read", root.display().to_string(), e))?;
            let Some(inode) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match attached_to(&entry.path().join(pin::LINK)) {
                Ok(actual) if actual == inode => inodes.push(inode),
                // One that is being removed, half made, or somebody else's.
                Ok(_) | Err(Error::Damaged { .. }) => {}
                Err(_) if self::inode(&entry.path().join(pin::LINK))?.is_none() => {}
                // A link that can't be opened is not the same as that there is none.
                Err(error) => return Err(error),
            }
        }
        inodes.sort_unstable();
        Ok(inodes)
    }

    /// The map that user space writes the members' words to.
    pub(crate) fn words(&self) -> BorrowedFd<'_> {
        self.maps.words.as_fd()
    }

    pub(crate) fn seed(&self) -> u32 {
        self.state.seed
    }

    pub(crate) fn capacity(&self) -> Capacity {
        let members = self.state.members.saturating_sub(self.state.spare);
        Capacity { services: self.state.services, members }
    }

    /// How many entries what is kept by slot has.
    pub(crate) fn slots(&self) -> u32 {
        self.state.members
    }

    /// Refuses to write to the state of another layout, and to one that is damaged.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.check_program()?;
        self.own().map(drop)
    }

    /// Refuses a state whose program is not the one that it was made with.
    pub(crate) fn check_program(&self) -> Result<()> {
        let program = self.folder.join(pin::PROGRAM);
        let tag = ProgramHandle::from_pinned_path(&program)
            .map_err(|error| Error::bpf("open", program.display().to_string(), error))?
            .tag();
        if tag != self.state.tag {
            let what = "the program is not the one that the state was made with".to_owned();
            return Err(Error::Damaged { path: self.folder.clone(), what });
        }
        Ok(())
    }

    /// Counters by service number.
    pub(super) fn service_counters(&self) -> Result<&Counted> {
        let map = &self.maps.service_counters;
        Counted::once(&self.counters.services, map, self.state.services)
    }

    /// Counters by slot.
    pub(super) fn member_counters(&self) -> Result<&Counted> {
        let map = &self.maps.member_counters;
        Counted::once(&self.counters.members, map, self.slots())
    }

    /// Counters at 0.
    pub(super) fn exit_counters(&self) -> Result<&Counted> {
        Counted::once(&self.counters.exits, &self.maps.exits, 1)
    }
}
