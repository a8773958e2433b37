//! What a writer wants changed.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::roster::Roster;

/// A dispatcher that the kernel has taken.
#[derive(Debug)]
pub(crate) struct Dispatcher(pub(super) OwnedFd);

/// A socket that joins, with the slot and the name for messages.
pub(crate) struct Joining<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) slot: u32,
    pub(crate) cookie: u64,
    pub(crate) pid: u32,
    /// How often its process was started, as far as that is counted.
    pub(crate) starts: u64,
    pub(crate) name: String,
}

/// A service's roster before and after; `None` is a service that does not exist.
pub(crate) struct Change<'a> {
    pub(crate) id: u32,
    pub(crate) old: Option<&'a Roster>,
    pub(crate) new: Option<&'a Roster>,
    pub(crate) joining: Vec<Joining<'a>>,
    /// The program to be asked from now on; `None` leaves the one that is, if the policy does.
    pub(crate) dispatcher: Option<&'a Dispatcher>,
}
