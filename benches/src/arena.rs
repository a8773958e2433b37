//! A network namespace for one contestant, gone with the last that lives in it.

use std::fs::File;
use std::io;
use std::thread;

use anyhow::Result;
use nix::sched::{CloneFlags, setns, unshare};

/// Network and mount namespaces of their own ([`world::enter_namespaces`]). A contestant's
/// sockets meet no other contestant's program there.
#[derive(Debug)]
pub(crate) struct Arena {
    network: File,
    mounts: File,
}

impl Arena {
    pub(crate) fn new() -> Result<Self> {
        in_thread(|| {
            world::enter_namespaces();
            Ok(Self {
                network: File::open("/proc/thread-self/ns/net")?,
                mounts: File::open("/proc/thread-self/ns/mnt")?,
            })
        })
    }

    /// Runs `work` in a thread inside. What it leaves behind, sockets or threads, stays
    /// inside.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(|| {
            // A mount namespace can't be entered while the working directory is shared.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
            setns(&self.network, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// The network namespace.
    pub(crate) fn network(&self) -> &File {
        &self.network
    }
}

fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().spawn_scoped(scope, work)?;
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Lets this process have as many descriptors as it may.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
