//! Taking the listening sockets of running processes, which notice nothing.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::error::{Error, Result};
use crate::member::Address;
use crate::sys;

/// A listening socket of another process: a duplicate of its descriptor.
#[derive(Debug)]
pub struct Adopted {
    socket: OwnedFd,
    pid: u32,
    descriptor: i32,
}

impl Adopted {
    /// A socket of this process that another one serves, under that descriptor there.
    #[must_use]
    pub fn new(socket: OwnedFd, pid: u32, descriptor: i32) -> Self {
        Self { socket, pid, descriptor }
    }

    /// The process that it was taken from.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The number of its descriptor there.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.descriptor
    }

    /// Its `SO_COOKIE`.
    ///
    /// # Errors
    ///
    /// The kernel refuses to tell it.
    pub fn cookie(&self) -> Result<u64> {
        sockopt::socket_cookie(&self.socket).map_err(|error| {
            let pid = self.pid.to_string();
            Error::system("read the cookie of a socket of process", pid, error)
        })
    }

    /// Whether it listens.
    #[must_use]
    pub fn listens(&self) -> bool {
        sockopt::socket_acceptconn(&self.socket) == Ok(true)
    }

    /// Whether it is bound to a port.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        let local = socket2::SockRef::from(&self.socket).local_addr().ok();
        local.and_then(|local| local.as_socket()).is_some_and(|local| local.port() != 0)
    }

    /// Binds it to a port if it is bound to none yet, with `SO_REUSEPORT`, so that others
    /// can share the port: at its own address, if that has been given without a port
    /// (`IP_BIND_ADDRESS_NO_PORT`), else at the wildcard of its family.
    ///
    /// # Errors
    ///
    /// The kernel refuses it: the address is in use, or the caller may not.
    pub fn bind(&self, port: u16) -> Result<()> {
        sys::bind_unbound(self.socket.as_fd(), port)
            .map_err(|error| Error::system("bind a socket of process", self.pid.to_string(), error))
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// It listens no more.
    pub fn address(&self) -> Result<Address> {
        Ok(sys::inspect(self.socket.as_fd())?.address)
    }

    /// Shuts the listening socket down: it stops listening, and `accept(2)` fails with `EINVAL`.
    /// Connections in its queue migrate to a sibling if
    /// [`Service::keep_requests`](crate::Service::keep_requests) is in effect; otherwise they are
    /// reset.
    ///
    /// # Errors
    ///
    /// The kernel refuses it: the socket does not listen.
    pub fn shut_down(&self) -> Result<()> {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Read).map_err(|error| {
            Error::system("shut down a socket of process", self.pid.to_string(), error)
        })
    }

    /// Whether others can be bound to its address (`SO_REUSEPORT`).
    #[must_use]
    pub fn shares_port(&self) -> bool {
        socket2::SockRef::from(&self.socket).reuse_port().unwrap_or(false)
    }

    /// Lets others be bound to its address, although it is bound already: those of the same user
    /// that set `SO_REUSEPORT` before they are (`inet_csk_bind_conflict`).
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn share_port(&self) -> Result<()> {
        socket2::SockRef::from(&self.socket).set_reuse_port(true).map_err(|error| {
            Error::system("set SO_REUSEPORT for a socket of process", self.pid.to_string(), error)
        })
    }
}

impl From<Adopted> for OwnedFd {
    fn from(adopted: Adopted) -> Self {
        adopted.socket
    }
}

impl AsFd for Adopted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Every TCP socket on `port` that the processes `pids` listen on, in the order of the
/// list and, within a process, of its descriptors. A socket that several of them hold
/// counts once, for the first.
///
/// The sockets are duplicated with `pidfd_getfd(2)`, which takes the permission to trace
/// the process (`PTRACE_MODE_ATTACH_REALCREDS`).
///
/// # Errors
///
/// [`Error::NoSuchProcess`], or [`Error::NoSuchSocket`] for a process without such a
/// socket, saying what it has instead. [`Error::Mptcp`], or why else it can't be a member,
/// where one of the sockets is unfit: left out, it would go on losing requests, and nobody
/// would know.
pub fn listeners(pids: &[u32], port: u16) -> Result<Vec<Adopted>> {
    let mut seen = HashSet::new();
    let mut adopted = Vec::new();
    for &pid in pids {
        let mut found = Found::default();
        each_socket(pid, |socket| found.sort(socket, port))?;
        if let Some(error) = found.refused.take() {
            return Err(error);
        }
        if found.listening.is_empty() {
            return Err(found.error(pid, port));
        }
        for socket in found.listening {
            let cookie = socket.cookie()?;
            if seen.insert(cookie) {
                adopted.push(socket);
            }
        }
    }
    Ok(adopted)
}

/// The listening socket with this cookie (`SO_COOKIE`) among the descriptors of a process,
/// or `None` if it has none such.
///
/// # Errors
///
/// As [`listeners`].
pub fn listener(pid: u32, cookie: u64) -> Result<Option<Adopted>> {
    let mut found = None;
    each_socket(pid, |socket| {
        if found.is_none() && sockopt::socket_cookie(&socket) == Ok(cookie) {
            found = Some(socket);
        }
    })?;
    Ok(found)
}

/// The socket behind a descriptor of a process, if it has that inode number.
///
/// # Errors
///
/// [`Error::System`] where the process can't be opened, or its sockets can't be taken.
pub fn at_descriptor(pid: u32, descriptor: i32, inode: u64) -> Result<Option<Adopted>> {
    match by_descriptor(pid, pid, &[(descriptor, inode)]) {
        Ok(mut taken) => Ok(taken.pop()),
        Err(Error::System { source, .. })
            if [libc::EBADF, libc::ESRCH].map(Some).contains(&source.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The sockets with these inode numbers behind these descriptors of a thread. One that is
/// closed, or another socket by now, is [`io::ErrorKind::NotFound`].
pub(crate) fn by_descriptor(pid: u32, tid: u32, wanted: &[(i32, u64)]) -> Result<Vec<Adopted>> {
    let failed =
        |error: io::Error| Error::system("take sockets of process", pid.to_string(), error);
    let open = |id: u32, flags: PidfdFlags| {
        let id = i32::try_from(id).ok().and_then(Pid::from_raw);
        rustix::process::pidfd_open(id.ok_or(Errno::SRCH)?, flags)
    };
    // A thread may have descriptors of its own; before Linux 6.9 none such is reached.
    let pidfd = open(tid, PidfdFlags::from_bits_retain(libc::O_EXCL as u32))
        .or_else(|_| open(pid, PidfdFlags::empty()))
        .map_err(|error| failed(error.into()))?;
    let take = |&(number, inode): &(i32, u64)| {
        let socket = rustix::process::pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())?;
        let found = rustix::fs::fstat(&socket)?.st_ino;
        if found == inode {
            Ok(Adopted { socket, pid, descriptor: number })
        } else {
            Err(Errno::BADF)
        }
    };
    wanted.iter().map(|it| take(it).map_err(|error| failed(error.into()))).collect()
}

/// The socket with this inode number among the descriptors of a thread, if it has it.
pub(crate) fn by_inode(pid: u32, tid: u32, inode: u64) -> Result<Option<Adopted>> {
    let name = format!("socket:[{inode}]");
    let Ok(listing) = fs::read_dir(format!("/proc/{pid}/task/{tid}/fd")) else { return Ok(None) };
    let named = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == name.as_str())
    };
    let found = listing.flatten().find(named);
    let number = found.and_then(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let Some(number) = number else { return Ok(None) };
    Ok(by_descriptor(pid, tid, &[(number, inode)])?.pop())
}

/// The descriptors of a process that are sockets, each with its inode number.
///
/// # Errors
///
/// [`Error::NoSuchProcess`]; or its descriptors can't be read.
pub fn sockets_of(pid: u32) -> Result<Vec<(i32, u64)>> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoSuchProcess { pid },
        _ => Error::system("read the descriptors of process", pid.to_string(), error),
    };
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A descriptor closed since is not there to be read: no socket of the process.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let inode = target.to_str().and_then(|it| it.strip_prefix("socket:[")?.strip_suffix(']'));
        let inode = inode.and_then(|inode| inode.parse().ok());
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        sockets.extend(number.zip(inode));
    }
    Ok(sockets)
}

/// Hands out a duplicate of each socket of a process, in the order of its descriptors; one
/// at a time, since a busy server holds more of them than we may have open.
fn each_socket(pid: u32, mut visit: impl FnMut(Adopted)) -> Result<()> {
    let mut numbers: Vec<i32> = sockets_of(pid)?.into_iter().map(|(number, _)| number).collect();
    numbers.sort_unstable();
    let no_process = Error::NoSuchProcess { pid };
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(no_process)?;
    let pidfd =
        rustix::process::pidfd_open(id, PidfdFlags::empty()).map_err(|error| match error {
            // The latter two for a thread, whose number /proc knows as well.
            Errno::SRCH | Errno::NOENT | Errno::INVAL => Error::NoSuchProcess { pid },
            _ => Error::system("open process", pid.to_string(), error),
        })?;
    for number in numbers {
        match rustix::process::pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => visit(Adopted { socket, pid, descriptor: number }),
            Err(Errno::BADF) => {}
            Err(Errno::PERM) => {
                let error = io::Error::from(io::ErrorKind::PermissionDenied);
                return Err(Error::system("take the sockets of process", pid.to_string(), error));
            }
            Err(error) => {
                return Err(Error::system("take the sockets of process", pid.to_string(), error));
            }
        }
    }
    Ok(())
}

/// The sockets of a process, sorted by what they are good for.
#[derive(Default)]
struct Found {
    listening: Vec<Adopted>,
    /// Why one that listens on the port can't be taken.
    refused: Option<Error>,
    /// Where it listens besides.
    elsewhere: Vec<String>,
    /// What it has on the port that is no listening TCP socket.
    unfit: Vec<String>,
}

impl Found {
    fn sort(&mut self, socket: Adopted, port: u16) {
        let local =
            socket2::SockRef::from(&socket.socket).local_addr().ok().and_then(|a| a.as_socket());
        let same_port = local.is_some_and(|local| local.port() == port);
        let listens = socket.listens();
        match sys::inspect(socket.as_fd()) {
            // What else may keep it out (a device, ...) is said when it is to join.
            Ok(_) | Err(Error::BoundToDevice { .. }) if same_port => self.listening.push(socket),
            Ok(listener) => self.elsewhere.push(listener.address.to_string()),
            Err(error) if same_port && !matches!(error, Error::NotTcp { .. }) && listens => {
                self.refused = Some(error);
            }
            Err(error) if same_port => self.unfit.push(error.to_string()),
            Err(_) => {}
        }
    }

    fn error(self, pid: u32, port: u16) -> Error {
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let found = enumerate("; ", &self.unfit) + &enumerate("; it listens on ", &self.elsewhere);
        Error::NoSuchSocket { pid, command: command.trim_end().to_owned(), port, found }
    }
}

/// The items behind some words, or nothing for none; no more than a message can bear.
fn enumerate(words: &str, items: &[String]) -> String {
    const NAMED: usize = 8;
    match items.get(..NAMED) {
        _ if items.is_empty() => String::new(),
        Some(first) if items.len() > NAMED => format!("{words}{}, ...", first.join(", ")),
        _ => format!("{words}{}", items.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_a_few_places() {
        let places: Vec<String> = (1..=9).map(|n| n.to_string()).collect();
        assert_eq!(enumerate("; on ", &places[..0]), "");
        assert_eq!(enumerate("; on ", &places[..2]), "; on 1, 2");
        assert_eq!(enumerate("; on ", &places[..8]), "; on 1, 2, 3, 4, 5, 6, 7, 8");
        assert_eq!(enumerate("; on ", &places), "; on 1, 2, 3, 4, 5, 6, 7, 8, ...");
    }
}
