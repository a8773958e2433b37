//! What several subjects need: sockets of every kind, and the kernel's own counters.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use overspill::{Service, Status};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// A listening socket as a server might make it.
#[derive(Clone, Copy)]
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    pub(crate) backlog: i32,
    pub(crate) reuse_port: bool,
    /// `IPV6_V6ONLY`, where it matters.
    pub(crate) v6_only: bool,
}

impl Listening {
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { address, backlog: 16, reuse_port: false, v6_only: false }
    }

    pub(crate) fn backlog(self, backlog: i32) -> Self {
        Self { backlog, ..self }
    }

    pub(crate) fn reuse_port(self) -> Self {
        Self { reuse_port: true, ..self }
    }

    pub(crate) fn v6_only(self) -> Self {
        Self { v6_only: true, ..self }
    }

    /// The socket, bound but not listening yet.
    pub(crate) fn bind(self) -> Socket {
        let domain = Domain::for_address(self.address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(self.reuse_port).unwrap();
        if self.address.is_ipv6() {
            socket.set_only_v6(self.v6_only).unwrap();
        }
        socket.bind(&self.address.into()).unwrap();
        socket
    }

    pub(crate) fn open(self) -> TcpListener {
        let socket = self.bind();
        socket.listen(self.backlog).unwrap();
        socket.into()
    }
}

/// A listening socket with a backlog of 16.
pub(crate) fn listener(address: SocketAddr) -> TcpListener {
    Listening::at(address).open()
}

/// Connects, and fails where the kernel gives no answer; reading fails where no server
/// gives one.
pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let client = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
    client.set_read_timeout(Some(world::deadline()))?;
    Ok(client)
}

/// Begins to connect and does not wait for the answer.
pub(crate) fn begin_to_connect(address: SocketAddr) -> TcpStream {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_nonblocking(true).unwrap();
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
            panic!("connect {address}: {error}")
        }
        _ => socket.into(),
    }
}

/// Whether the client has been told that it is connected.
pub(crate) fn is_connected(client: &TcpStream) -> bool {
    client.peer_addr().is_ok()
}

/// Lets the process have as many descriptors as it may.
pub(crate) fn many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

pub(crate) fn queued(status: &Status) -> u32 {
    status.members.iter().map(|member| member.queued).sum()
}

pub(crate) fn half_open(status: &Status) -> u32 {
    status.members.iter().map(|member| member.half_open).sum()
}

pub(crate) fn total_queued(service: &Service) -> u32 {
    queued(&service.status().unwrap())
}

/// How many connection requests the kernel has dropped for want of a place, SYNs and
/// the ACKs that end a handshake together.
pub(crate) fn overflows() -> u64 {
    world::netstat("ListenOverflows")
}
