//! Network namespaces: a service lives in one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};

/// `NSFS_MAGIC` (`include/uapi/linux/magic.h`): the file system of namespaces.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// A network namespace, known by the inode number that `lsns` and `readlink
/// /proc/PID/ns/net` show.
#[derive(Debug, Clone)]
pub struct Namespace {
    inode: u64,
    file: Option<Arc<File>>,
}

impl Namespace {
    /// The calling thread's.
    pub fn current() -> Result<Self> {
        Self::at("/proc/thread-self/ns/net")
    }

    /// That of a process.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchProcess`], also for one that has ended and is not waited for yet: it
    /// has no namespace any more.
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::at(format!("/proc/{pid}/ns/net")).map_err(|error| match error {
            Error::System { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Error::NoSuchProcess { pid }
            }
            other => other,
        })
    }

    /// The one that a file stands for: `/proc/PID/ns/net`, or `/run/netns/NAME` as
    /// `ip netns add` makes it.
    pub fn at(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed =
            |error| Error::system("open network namespace", path.display().to_string(), error);
        let file = File::open(path).map_err(failed)?;
        let system = rustix::fs::fstatfs(&file).map_err(|error| failed(error.into()))?;
        if system.f_type != NSFS_MAGIC {
            return Err(failed(io::Error::other("it is not a namespace")));
        }
        Self::of_file(file).map_err(failed)
    }

    pub(crate) fn of_file(file: File) -> io::Result<Self> {
        Ok(Self { inode: file.metadata()?.ino(), file: Some(Arc::new(file)) })
    }

    /// The one with this inode number. Its services can be looked at and changed; the
    /// first service of a namespace can't be made this way.
    #[must_use]
    pub fn numbered(inode: u64) -> Self {
        Self { inode, file: None }
    }

    /// The inode number.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

impl Eq for Namespace {}
