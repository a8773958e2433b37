//! The TCP connections of a control group.

use std::io;

use crate::cgroup::Cgroup;
use crate::datapath::Datapath;
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::sock_diag::{CONNECTED, Found, Sockets};

/// A TCP connection that is complete and not closed by its own side (`ESTABLISHED`, `CLOSE_WAIT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Its local port.
    pub port: u16,
    /// Its socket's `SO_COOKIE`.
    pub cookie: u64,
    /// Its socket's inode number; 0 until it is accepted.
    pub inode: u64,
}

/// The connections of a control group and those below it, in the network namespace of the calling
/// thread: those that its processes have made, and those to the sockets on which they listen, those
/// that wait to be accepted among them. It does not matter which process or thread holds them.
///
/// The kernel selects them ([`sock_diag(7)`], since Linux 5.9), and they are read as the iterator
/// goes on. A connection that was moved to another process's socket counts where it came from
/// ([`moved_connections`] has those). A control group that does not exist has none.
///
/// # Errors
///
/// The kernel lacks `tcp_diag`, or the control group cannot be read.
///
/// [`sock_diag(7)`]: https://man7.org/linux/man-pages/man7/sock_diag.7.html
pub fn connections(cgroup: &Cgroup) -> Result<impl Iterator<Item = Result<Connection>> + use<>> {
    let lists = cgroup.ids()?.into_iter().map(|id| Sockets::list(CONNECTED, Some(id)));
    let lists: Vec<Sockets> = lists.collect::<Result<_, _>>().map_err(failed)?;
    Ok(lists.into_iter().flatten().map(read))
}

/// The connections that the kernel has moved from the socket of a member that ended or hung to
/// another's, and that are not closed yet.
///
/// # Errors
///
/// The state of the network namespace cannot be read, or the kernel lacks `tcp_diag`.
pub fn moved_connections(namespace: &Namespace) -> Result<Vec<Connection>> {
    let moved = Datapath::open(namespace)?.map(|datapath| datapath.moved()).transpose()?;
    let Some(moved) = moved.filter(|moved| !moved.is_empty()) else { return Ok(Vec::new()) };
    let all = Sockets::list(CONNECTED, None).map_err(failed)?.map(read);
    all.filter(|it| it.as_ref().map_or(true, |it| moved.contains(&it.cookie))).collect()
}

fn read(found: io::Result<Found>) -> Result<Connection> {
    let Found { port, cookie, inode } = found.map_err(failed)?;
    Ok(Connection { port, cookie, inode })
}

fn failed(error: io::Error) -> Error {
    Error::system("list", "TCP connections", error)
}
