//! The folder of a namespace's state: where it is, what is pinned in it, and who made it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, Program};

use super::{layout, pin, verifier};
use crate::error::{Error, FIRST_SHARED, Result};
use crate::mounts;

/// The digest of the object embedded in this build.
const BUILD: &str = env!("OVERSPILL_BUILD");
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The prefix of the name of a folder in which a state is being made.
pub(super) const ASIDE: &str = "new-";

/// Refuses who may not open maps by number (`CAP_SYS_ADMIN`): the privilege that reading takes on
/// every host, whatever `kernel.unprivileged_bpf_disabled` leaves to others.
pub(super) fn check_privilege(services: &impl MapCore) -> Result<()> {
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
pub(super) fn inode(path: &Path) -> Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system("read", path.display().to_string(), error)),
    }
}

/// The namespace that a pinned link acts in; 0 when that has ended.
pub(super) fn attached_to(link: &Path) -> Result<u64> {
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

pub(super) fn open_map(folder: &Path, name: &str) -> Result<MapHandle> {
    let path = folder.join(name);
    MapHandle::from_pinned_path(&path)
        .map_err(|error| Error::bpf("open", path.display().to_string(), error))
}

pub(super) fn open_program(folder: &Path, name: &str) -> Result<OwnedFd> {
    let path = folder.join(name);
    Program::fd_from_pinned_path(&path)
        .map_err(|error| Error::bpf("open", path.display().to_string(), error))
}

/// Reads the state's own description, and refuses one from before builds shared a contract.
pub(super) fn read_state(folder: &Path) -> Result<layout::State> {
    let map = open_map(folder, pin::STATE)?;
    let failed = |error| Error::bpf("read", folder.join(pin::STATE).display().to_string(), error);
    let bytes = map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).map_err(failed)?;
    let state: layout::State = layout::known_part(&bytes.unwrap_or_default());
    if state.layout < FIRST_SHARED {
        return Err(other_version(folder, &state));
    }
    Ok(state)
}

pub(super) fn other_version(folder: &Path, state: &layout::State) -> Error {
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

pub(super) fn digest() -> [u8; 32] {
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(BUILD.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).expect("hexadecimal digits");
        *byte = u8::from_str_radix(pair, 16).expect("hexadecimal digits");
    }
    digest
}

pub(super) fn short(digest: &[u8; 32]) -> String {
    format!("{:08x}", u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

/// Returns the namespace of a folder `new-INODE`, in which an upgrade or a first service is
/// prepared; `None` for other folders.
pub(super) fn namespace_of(aside: &Path) -> Option<u64> {
    aside.file_name()?.to_str()?.strip_prefix(ASIDE)?.parse().ok()
}

/// Removes a namespace's folder: the link first, so that nothing redirects while the
/// rest goes.
pub(super) fn remove_folder(folder: &Path) -> Result<()> {
    let failed = |path: &Path, error| Error::system("remove", path.display().to_string(), error);
    let link = folder.join(pin::LINK);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&link, error)),
        _ => {}
    }
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| failed(folder, error))?,
    };
    for entry in entries {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        fs::remove_file(&path).map_err(|error| failed(&path, error))?;
    }
    fs::remove_dir(folder).map_err(|error| failed(folder, error))
}
