//! The state in the kernel: programs, maps and the link, pinned under bpffs.
//!
//! `BPFFS/overspill/INODE/` holds all of one network namespace. Nothing else in this
//! crate names libbpf. Reading needs no lock; every change holds [`Lock`].

mod change;
mod connections;
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
mod trace;
mod verifier;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libbpf_rs::{Link, MapCore as _, MapFlags, MapHandle, Program, ProgramHandle};
use zerocopy::FromBytes;

pub(crate) use change::{Change, Joining, Snapshot};
use counters::Counters;
pub(crate) use dispatcher::Dispatcher;
pub use dispatcher::check_dispatcher;
pub use hooks::{Hooks, HooksEvent, HooksEvents, Listening, Request};
pub(crate) use lock::{Lock, leftovers};
pub use programs::{ProgramReport, programs};
pub(crate) use trace::{Tracer, monotonic};

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
    pub(super) const MOVER: &str = "migrate";
    pub(super) const COUNTER: &str = "connections";
    pub(super) const FINDER: &str = "find_cgroup";
    /// Followed by the id of the control group that it is attached to.
    pub(super) const COUNTED: &str = "connections-";
    pub(super) const STATE: &str = "state";
    /// Programs leave an array that nobody holds.
    pub(super) const RULES: &str = "rules";
}

macro_rules! maps {
    ($($name:ident),*) => {
        /// The maps that user space reads and writes, each pinned under its name.
        #[derive(Debug)]
        struct Maps { $($name: MapHandle,)* }

        impl Maps {
            const NAMES: &[&str] = &[$(stringify!($name)),*];

            fn open(folder: &Path) -> Result<Self> {
                Ok(Self { $($name: open_map(folder, stringify!($name))?,)* })
            }
        }
    };
}

maps!(
    ports,
    endpoints,
    near,
    services,
    rows,
    sockets,
    service_counters,
    member_counters,
    exits,
    figures,
    loads,
    words,
    starts,
    origins,
    moved,
    dispatchers,
    requests,
    finish,
    settings,
    tracing,
    tracers
);

/// The state of one network namespace.
#[derive(Debug)]
pub(crate) struct Datapath {
    folder: PathBuf,
    state: layout::State,
    maps: Maps,
    counters: Counters,
    near: OnceLock<Shared>,
}

impl Datapath {
    /// The state of `namespace`, or `None` while it has none.
    pub(crate) fn open(namespace: &Namespace) -> Result<Option<Self>> {
        let folder = root()?.join(namespace.inode().to_string());
        let link = folder.join(pin::LINK);
        loop {
            let Some(before) = inode(&link)? else { return Ok(None) };
            match Self::open_folder(namespace, &folder) {
                // It was removed meanwhile, or another was made in its place.
                Err(_) if inode(&link)? != Some(before) => {}
                opened => return opened,
            }
        }
    }

    fn open_folder(namespace: &Namespace, folder: &Path) -> Result<Option<Self>> {
        if attached_to(&folder.join(pin::LINK))? != namespace.inode() {
            // Its namespace has ended, and a new one has the number: nothing is ours.
            return Ok(None);
        }
        let state = read_state(folder)?;
        Ok(Some(Self {
            folder: folder.to_owned(),
            state,
            maps: Maps::open(folder)?,
            counters: Counters::default(),
            near: OnceLock::new(),
        }))
    }

    /// A pinned program, of those that are not attached but run or attached on demand.
    fn program(&self, name: &str) -> Result<OwnedFd> {
        let path = self.folder.join(name);
        Program::fd_from_pinned_path(&path)
            .map_err(|error| Error::bpf("open", path.display().to_string(), error))
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
                // Not to be allowed to look is not the same as that there is nothing.
                Err(error @ Error::Permission { .. }) => return Err(error),
                _ => {}
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
        Capacity { services: self.state.services, members: self.state.members }
    }

    /// Refuses to write to what another build has made: only its own programs and maps
    /// are known to mean what this build thinks they mean.
    pub(crate) fn check_writable(&self) -> Result<()> {
        let program = self.folder.join(pin::PROGRAM);
        let tag = ProgramHandle::from_pinned_path(&program)
            .map_err(|error| Error::bpf("open", program.display().to_string(), error))?
            .tag();
        if tag != self.state.tag {
            let what = "the program is not the one that the state was made with".to_owned();
            return Err(Error::Damaged { path: self.folder.clone(), what });
        }
        if self.state.build != digest() {
            return Err(other_version(&self.folder, &self.state));
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

/// Reads the state's own description, and refuses a layout that this build can't read.
fn read_state(folder: &Path) -> Result<layout::State> {
    let map = open_map(folder, pin::STATE)?;
    let failed = |error| Error::bpf("read", folder.join(pin::STATE).display().to_string(), error);
    let bytes =
        map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).map_err(failed)?.unwrap_or_default();
    let damaged = |what: &str| Error::Damaged { path: folder.to_owned(), what: what.to_owned() };
    // The layout's number comes first in every layout; the rest may be shorter.
    let (number, _) = u32::read_from_prefix(&bytes).map_err(|_| damaged("no layout number"))?;
    match layout::State::read_from_bytes(&bytes) {
        Ok(state) if number == layout::LAYOUT => Ok(state),
        Ok(state) => Err(other_version(folder, &state)),
        Err(_) => Err(Error::OtherVersion {
            path: folder.to_owned(),
            version: format!("of layout {number}"),
            build: "unknown".to_owned(),
            own_version: VERSION,
            own_build: short(&digest()),
        }),
    }
}

fn other_version(folder: &Path, state: &layout::State) -> Error {
    let version = String::from_utf8_lossy(&state.version);
    Error::OtherVersion {
        path: folder.to_owned(),
        version: version.trim_end_matches('\0').to_owned(),
        build: short(&state.build),
        own_version: VERSION,
        own_build: short(&digest()),
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
