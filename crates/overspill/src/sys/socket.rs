//! Making listening sockets, and telling what a descriptor is.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketType, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::descriptor::netns_of;
use crate::error::{Error, Result};
use crate::member::{Address, Families};
use crate::namespace::Namespace;

/// `IPPROTO_MPTCP` (`include/uapi/linux/in.h`).
const MPTCP: u32 = 262;

/// A socket that can be a member: TCP proper, listening, and bound to no device.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    pub(crate) cookie: u64,
    pub(crate) address: Address,
    /// The network namespace that it lives in.
    pub(crate) namespace: Namespace,
    /// How messages call it.
    pub(crate) name: String,
}

/// Tells what `fd` is, or why it can't be a member.
pub(crate) fn inspect(fd: BorrowedFd<'_>) -> Result<Listener> {
    let nameless = || format!("descriptor {}", fd.as_raw_fd());
    let failed = |error| Error::system("read the options of", nameless(), error);
    let domain = sockopt::socket_domain(fd).map_err(failed)?;
    let kind = sockopt::socket_type(fd).map_err(failed)?;
    let ip = domain == AddressFamily::INET || domain == AddressFamily::INET6;
    let protocol = sockopt::socket_protocol(fd).map_err(failed)?.map_or(0, |p| p.as_raw().get());
    if protocol == MPTCP {
        return Err(Error::Mptcp { socket: name(fd) });
    }
    if !ip || kind != SocketType::STREAM || protocol != rustix::net::ipproto::TCP.as_raw().get() {
        return Err(Error::NotTcp { socket: name(fd), kind: kind_name(domain, kind, protocol) });
    }
    if !sockopt::socket_acceptconn(fd).map_err(failed)? {
        return Err(Error::NotListening { socket: name(fd) });
    }
    let socket = SockRef::from(&fd);
    if let Some(device) =
        socket.device().map_err(|e| Error::system("read the device of", name(fd), e))?
    {
        let device = String::from_utf8_lossy(&device).trim_end_matches('\0').to_owned();
        return Err(Error::BoundToDevice { socket: name(fd), device });
    }
    let local = local_address(fd).ok_or_else(|| {
        Error::system("read the address of", nameless(), rustix::io::Errno::INVAL)
    })?;
    let families = match domain {
        AddressFamily::INET => Families::IPV4,
        _ if sockopt::ipv6_v6only(fd).map_err(failed)? => Families::IPV6,
        _ => Families::BOTH,
    };
    Ok(Listener {
        cookie: sockopt::socket_cookie(fd).map_err(failed)?,
        address: Address { ip: local.ip().to_canonical(), port: local.port(), families },
        namespace: netns_of(fd)
            .and_then(Namespace::of_file)
            .map_err(|error| Error::system("find the network namespace of", name(fd), error))?,
        name: name(fd),
    })
}

fn local_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    SockRef::from(&fd).local_addr().ok()?.as_socket()
}

fn name(fd: BorrowedFd<'_>) -> String {
    match local_address(fd) {
        Some(address) => {
            format!("socket {}", SocketAddr::new(address.ip().to_canonical(), address.port()))
        }
        None => format!("descriptor {}", fd.as_raw_fd()),
    }
}

fn kind_name(domain: AddressFamily, kind: SocketType, protocol: u32) -> String {
    match (domain, kind) {
        (AddressFamily::UNIX, _) => "Unix".to_owned(),
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => "UDP".to_owned(),
        (AddressFamily::NETLINK, _) => "netlink".to_owned(),
        _ => format!("family {}, type {}, protocol {protocol}", domain.as_raw(), kind.as_raw()),
    }
}

/// Makes a listening socket. `[::]` takes IPv4 as well, any other IPv6 address can't;
/// `share_port` sets `SO_REUSEPORT`, so that others may be bound to the same address.
pub(crate) fn listen(address: SocketAddr, backlog: u32, share_port: bool) -> Result<TcpListener> {
    let failed = |operation| move |error| Error::system(operation, address.to_string(), error);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
        .map_err(failed("make a socket for"))?;
    socket.set_reuse_address(true).map_err(failed("set SO_REUSEADDR for"))?;
    if share_port {
        socket.set_reuse_port(true).map_err(failed("set SO_REUSEPORT for"))?;
    }
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false).map_err(failed("clear IPV6_V6ONLY for"))?;
    }
    socket.bind(&address.into()).map_err(failed("bind to"))?;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    socket.listen(backlog).map_err(failed("listen on"))?;
    Ok(socket.into())
}

/// Empties a listening socket's queue: it stops to listen, whereupon the kernel moves all
/// that it holds to others of its `SO_REUSEPORT` group (`inet_csk_listen_stop`), and
/// listens again. The requests that arrive in between find it gone.
pub(crate) fn empty_queue(socket: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both)?;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    Ok(rustix::net::listen(socket, backlog)?)
}

/// Wakes the processes that wait for connections on a listening socket, and changes nothing else.
///
/// Stopping to send means nothing to a listening socket, but `inet_shutdown`
/// (`net/ipv4/af_inet.c`) calls `sk_state_change` in the end, whatever it was asked for. A socket
/// that does not listen at the moment is left alone: a server pauses one with `shutdown(SHUT_RD)`,
/// and connections accepted after it listens again would have inherited that they can't send.
pub(crate) fn wake(socket: BorrowedFd<'_>) -> io::Result<()> {
    if sockopt::socket_acceptconn(socket)? {
        rustix::net::shutdown(socket, rustix::net::Shutdown::Write)?;
    }
    Ok(())
}

/// Binds a socket to a port, with `SO_REUSEPORT`, unless it is bound to one already: at the
/// address that it has, which is the wildcard of its family if it was given none.
pub(crate) fn bind_unbound(socket: BorrowedFd<'_>, port: u16) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    let local = socket.local_addr()?.as_socket().ok_or(rustix::io::Errno::AFNOSUPPORT)?;
    if local.port() != 0 {
        return Ok(());
    }
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::new(local.ip(), port).into())
}
