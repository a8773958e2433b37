//! Whether this kernel wakes the process that waits where it moves a connection to.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketType, send, socket};

use crate::sys;

/// Clients until one is in the queue that is wanted: each goes to either with the same chance.
const CLIENTS: usize = 64;
/// A connection over loopback takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Whether the kernel wakes a process that waits with `epoll_wait(2)` when it moves a connection
/// to its socket; `None` if it moved none.
///
/// Two listening sockets share a port, with `migrate` attached to their group. One is closed while
/// it holds a connection. `close(2)` moves it before it returns, and kernels with the fix call
/// `sk_data_ready` there (`inet_csk_listen_stop`, `net/ipv4/inet_connection_sock.c`), so nothing
/// has to be waited for. It happens in a network namespace that ends with it: elsewhere the
/// connections would be counted, and the port could be somebody's.
///
/// # Errors
///
/// The kernel refuses the namespace or a socket.
pub(crate) fn wake(migrate: BorrowedFd<'_>) -> io::Result<Option<bool>> {
    let attempt = || {
        sys::enter_new_netns()?;
        set_loopback_up()?;
        move_one(migrate)
    };
    thread::scope(|scope| scope.spawn(attempt).join().expect("it does not panic"))
}

/// Brings up the interface `lo` of this thread's network namespace, by rtnetlink(7).
fn set_loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const LOOPBACK: u32 = 1; // its number in every namespace
    const IFF_UP: u32 = 1;
    // `struct nlmsghdr`: length, type and flags, sequence, port ...
    let mut bytes = 32_u32.to_ne_bytes().to_vec();
    bytes.extend([RTM_NEWLINK, NLM_F_REQUEST].iter().flat_map(|half| half.to_ne_bytes()));
    // ... and `struct ifinfomsg`: family and type, number, flags, which flags to change.
    let words = [0, 0, 0, LOOPBACK, IFF_UP, IFF_UP];
    bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    send(&socket, &bytes, SendFlags::empty())?;
    Ok(())
}

fn move_one(migrate: BorrowedFd<'_>) -> io::Result<Option<bool>> {
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
