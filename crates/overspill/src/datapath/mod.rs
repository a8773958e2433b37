//! The state in the kernel: programs, maps and the link, pinned under bpffs.
//!
//! `BPFFS/overspill/INODE/` holds all of one network namespace. Nothing else in this
//! crate names libbpf. Reading needs no lock; every change holds [`Lock`].

mod change;
mod connections;
mod contract;
mod counters;
mod dispatcher;
mod hooks;
mod index;
pub(crate) mod layout;
mod lock;
mod make;
mod programs;
mod read;
mod rows;
mod swap;
mod trace;
mod upgrade;
mod verifier;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, Program, ProgramHandle};

pub(crate) use change::{Change, Joining, Snapshot};
use counters::Counters;
pub(crate) use dispatcher::Dispatcher;
pub use dispatcher::check_dispatcher;
pub use hooks::{Hooks, HooksEvent, HooksEvents, Listening, Request};
pub(crate) use lock::{Lock, leftovers};
pub(crate) use programs::reads_directly;
pub use programs::{ProgramReport, programs};
pub(crate) use trace::{Tracer, monotonic};
pub use upgrade::{Build, Upgrade};

use crate::error::{Error, Result};
use crate::mounts;
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

/// The digest of the object embedded in this build.
const BUILD: &str = env!("OVERSPILL_BUILD");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The names of the pins within a namespace's folder.
mod pin {
    pub(super) const LINK: &str = "link";
    pub(super) const PROGRAM: &str = "overspill";
    pub(super) const READER: &str = "read_queues";
    pub(super) const MARKER: &str = "mark";
    pub(super) const EXPORTER: &str = "export";
    pub(super) const RETIRER: &str = "retire";
    pub(super) const LOCATOR: &str = "locate";
    /// Attached to `SO_REUSEPORT` groups, and calls `MOVER` of the build at work.
    pub(super) const MIGRATE: &str = "migrate";
    pub(super) const MOVER: &str = "move_request";
    pub(super) const TAKER: &str = "take_answer";
    pub(super) const COUNTER: &str = "connections";
    pub(super) const FINDER: &str = "find_cgroup";
    /// Every program that is pinned.
    pub(super) const PROGRAMS: &[&str] = &[
        PROGRAM, READER, MARKER, EXPORTER, LOCATOR, RETIRER, MIGRATE, MOVER, TAKER, COUNTER, FINDER,
    ];
    /// Followed by the id of the control group that it is attached to.
    pub(super) const COUNTED: &str = "connections-";
    pub(super) const STATE: &str = "state";
    /// Maps that user space does not open in normal use. They are pinned for upgrades, and
    /// because user space must hold a program array, or the kernel empties it.
    pub(super) const MAPS: &[&str] = &[STATE, "rules", "movers", "any_moved", "cookies"];
}

macro_rules! maps {
    ($(#[$meta:meta])* $type:ident: $($name:ident),*) => {
        $(#[$meta])*
        #[derive(Debug)]
        struct $type { $($name: MapHandle,)* }

        impl $type {
            const NAMES: &[&str] = &[$(stringify!($name)),*];

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
struct Programs {
    reader: OwnedFd,
    marker: OwnedFd,
    exporter: OwnedFd,
    locator: OwnedFd,
}

/// The state of one network namespace.
#[derive(Debug)]
pub(crate) struct Datapath {
    folder: PathBuf,
    /// The inode number of the pin `link`. An upgrade makes a new pin.
    link: u64,
    state: layout::State,
    maps: Maps,
    /// `None` where the state is of another layout.
    own: Option<OwnMaps>,
    programs: Programs,
    counters: Counters,
    near: OnceLock<Shared>,
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
    fn open_folder(namespace: &Namespace, folder: &Path, link: u64) -> Result<Option<Self>> {
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
    fn own(&self) -> Result<&OwnMaps> {
        self.own.as_ref().ok_or_else(|| other_version(&self.folder, &self.state))
    }

    /// A pinned program, of those that are not attached but run or attached on demand.
    fn program(&self, name: &str) -> Result<OwnedFd> {
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
}

impl Error {
    fn bpf(operation: &'static str, object: impl Into<String>, source: libbpf_rs::Error) -> Self {
        let object = object.into();
        match source.kind() {
            libbpf_rs::ErrorKind::PermissionDenied => {
                let source = io::Error::new(io::ErrorKind::PermissionDenied, source);
                Self::Permission { operation, object, source }
            }
            _ => Self::Bpf { operation, object, source: source.into() },
        }
    }
}

/// Refuses who may not open maps by number (`CAP_SYS_ADMIN`): the privilege that reading takes on
/// every host, whatever `kernel.unprivileged_bpf_disabled` leaves to others.
fn check_privilege(services: &impl MapCore) -> Result<()> {
    let failed = |error| Error::bpf("open by its number", "the map services", error);
    let number = services.info().map_err(failed)?.info.id;
    MapHandle::from_map_id(number).map(drop).map_err(failed)
}

/// `BPFFS/overspill`, whether it exists or not.
pub(crate) fn root() -> Result<PathBuf> {
    Ok(bpffs()?.join("overspill"))
}

/// Where a BPF file system is mounted: /sys/fs/bpf before others.
pub(crate) fn bpffs() -> Result<PathBuf> {
    let usual = Path::new("/sys/fs/bpf");
    let mut points = mounts::points("bpf")?;
    if points.iter().any(|point| point == usual) {
        return Ok(usual.to_owned());
    }
    points.pop().ok_or(Error::NoBpffs)
}

/// The inode number of a file, or `None` where there is none.
fn inode(path: &Path) -> Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system("read", path.display().to_string(), error)),
    }
}

/// The namespace that a pinned link acts in; 0 when that has ended.
fn attached_to(link: &Path) -> Result<u64> {
    let failed = |error| Error::bpf("open", link.display().to_string(), error);
    verifier::hush();
    let info = Link::open(link).map_err(failed)?.info().map_err(failed)?;
    match info.info {
        libbpf_rs::query::LinkTypeInfo::NetNs(netns) => Ok(netns.ino.into()),
        _ => Err(Error::Damaged {
            path: link.to_owned(),
            what: "the link is not one to a network namespace".to_owned(),
        }),
    }
}

fn open_map(folder: &Path, name: &str) -> Result<MapHandle> {
    let path = folder.join(name);
    MapHandle::from_pinned_path(&path)
        .map_err(|error| Error::bpf("open", path.display().to_string(), error))
}

fn open_program(folder: &Path, name: &str) -> Result<OwnedFd> {
    let path = folder.join(name);
    Program::fd_from_pinned_path(&path)
        .map_err(|error| Error::bpf("open", path.display().to_string(), error))
}

/// Reads the state's own description, and refuses one from before builds shared a contract.
fn read_state(folder: &Path) -> Result<layout::State> {
    let map = open_map(folder, pin::STATE)?;
    let failed = |error| Error::bpf("read", folder.join(pin::STATE).display().to_string(), error);
    let bytes = map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).map_err(failed)?;
    let state: layout::State = layout::known_part(&bytes.unwrap_or_default());
    if state.layout < layout::FIRST_SHARED {
        return Err(other_version(folder, &state));
    }
    Ok(state)
}

fn other_version(folder: &Path, state: &layout::State) -> Error {
    Error::OtherVersion {
        path: folder.to_owned(),
        version: layout::text(&state.version),
        build: short(&state.build),
        layout: state.layout,
        own_version: VERSION,
        own_build: short(&digest()),
        own_layout: layout::LAYOUT,
    }
}

fn digest() -> [u8; 32] {
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(BUILD.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).expect("hexadecimal digits");
        *byte = u8::from_str_radix(pair, 16).expect("hexadecimal digits");
    }
    digest
}

fn short(digest: &[u8; 32]) -> String {
    format!("{:08x}", u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}
