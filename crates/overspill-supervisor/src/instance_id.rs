//! What tells processes of workers apart.

use std::fmt;

/// An instance's number, which no other of this supervisor ever has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct InstanceId(u64);

impl InstanceId {
    /// Stands for whatever process a worker has: its sockets are handed from one to the next.
    pub(crate) fn of_worker(worker: usize) -> Self {
        Self(u64::MAX - worker as u64)
    }

    /// The worker that it stands for, if it stands for one of so many.
    pub(crate) fn worker(self, workers: usize) -> Option<usize> {
        usize::try_from(u64::MAX - self.0).ok().filter(|&worker| worker < workers)
    }

    /// By its number.
    pub(crate) fn numbered(number: u64) -> Self {
        Self(number)
    }

    /// Gives this number away, and becomes the next one.
    pub(crate) fn take(&mut self) -> Self {
        let own = *self;
        self.0 += 1;
        own
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
