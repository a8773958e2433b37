//! Clients: sockets whose close ends the connection at once, so that no port stays taken.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// Where clients come from: an address that no listener has.
pub(crate) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 200, 0, 1));

/// No client waits this long where somebody answers.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A client socket, with a source of its own or one of the kernel's choice.
fn socket(from: Option<SocketAddr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // Closing sends a RST: no TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO))?;
    if let Some(from) = from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    Ok(socket)
}

/// Connects, and waits for it.
pub(crate) fn connect(from: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(from)?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

/// Begins to connect.
pub(crate) fn begin(from: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(from)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Begins to connect from a random port.
pub(crate) fn begin_anywhere(random: &mut fastrand::Rng, to: SocketAddr) -> io::Result<TcpStream> {
    loop {
        let from = SocketAddr::new(ADDRESS, random.u16(1024..));
        match begin(Some(from), to) {
            // The port is taken, or has a connection to there.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
                ) => {}
            done => return done,
        }
    }
}

/// Whether a connection that was begun has come about within `patience`.
pub(crate) fn is_connected(client: &TcpStream, patience: Duration) -> io::Result<bool> {
    let mut waiting = [PollFd::new(client, PollFlags::OUT)];
    let patience = Timespec::try_from(patience).expect("a short time");
    poll(&mut waiting, Some(&patience))?;
    Ok(waiting[0].revents().contains(PollFlags::OUT))
}
