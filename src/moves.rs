//! Whether this kernel wakes who waits for a connection that is moved.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sys;

/// Clients until one is in the queue that is wanted: each goes to either with the same chance.
const CLIENTS: usize = 64;
/// A connection over loopback takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Whether a connection that the kernel moves to a sibling wakes who waits there with
/// `epoll_wait(2)`; `None` if it was not moved at all.
///
/// Two listening sockets on loopback share a port, with `migrate` attached to their group. One
/// is closed while it holds a connection. `close(2)` moves it before it returns, and kernels
/// with the fix call `sk_data_ready` there (`inet_csk_listen_stop`,
/// `net/ipv4/inet_connection_sock.c`), so nothing has to be waited for.
///
/// # Errors
///
/// Loopback is down, or the kernel refuses a socket.
pub(crate) fn wake(migrate: BorrowedFd<'_>) -> io::Result<Option<bool>> {
    let closing = listen(0)?;
    let port = closing.local_addr()?.port();
    let staying = listen(port)?;
    sys::attach_to_group(closing.as_fd(), migrate)?;
    let Some(_clients) = connect_to(&closing, &staying, port)? else { return Ok(None) };
    let waiting = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&waiting, &staying, EventData::new_u64(0), EventFlags::IN)?;
    if is_told(waiting.as_fd())? {
        return Ok(None); // somebody else has connected
    }
    drop(closing);
    let woken = is_told(waiting.as_fd())?;
    Ok(staying.accept().is_ok().then_some(woken))
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = sys::listen(address, 16, true).map_err(io::Error::other)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects until a client is in the queue of `wanted`; `other` is left with an empty one.
fn connect_to(
    wanted: &TcpListener,
    other: &TcpListener,
    port: u16,
) -> io::Result<Option<Vec<TcpStream>>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(TcpStream::connect_timeout(&address, PATIENCE)?);
        while other.accept().is_ok() {}
        if poll(&mut [PollFd::new(wanted, PollFlags::IN)], Some(&AT_ONCE))? > 0 {
            return Ok(Some(clients));
        }
    }
    Ok(None)
}

fn is_told(waiting: BorrowedFd<'_>) -> io::Result<bool> {
    let mut events = Vec::with_capacity(1);
    epoll::wait(waiting, rustix::buffer::spare_capacity(&mut events), Some(&AT_ONCE))?;
    Ok(!events.is_empty())
}
