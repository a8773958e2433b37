//! What is measured side by side: ways to let several workers share the work at a port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use overspill::{Capacity, Cgroup, Policy, Service};
use socket2::{Domain, Protocol, Socket, Type};

use crate::arena::Arena;

/// The port of every service here.
pub(crate) const PORT: u16 = 8080;
/// Where a socket listens that belongs to no service.
pub(crate) const UNSERVED_BOUND: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8081);

/// A way to share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contestant {
    /// Sockets at one address, chosen by the kernel's hash.
    ReusePort,
    /// The same once more: what the measuring itself makes of no difference.
    Control,
    /// One socket that all workers accept from.
    Shared,
    /// Sockets that know nothing of each other.
    Apart,
    /// Sockets that overspill makes a service of.
    Overspill(Policy),
}

impl Contestant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReusePort => "SO_REUSEPORT",
            Self::Control => "SO_REUSEPORT again",
            Self::Shared => "one shared socket",
            Self::Apart => "plain sockets",
            Self::Overspill(policy) => policy.name(),
        }
    }
}

/// Where the members listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// All at one address.
    One,
    /// Each at its own.
    Own,
    /// Half of them at one address, a quarter at their own, a quarter at the wildcard.
    Mixed,
}

impl Layout {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "one address",
            Self::Own => "own addresses",
            Self::Mixed => "mixed addresses",
        }
    }

    /// Where the n-th member is bound.
    pub(crate) fn bound(self, n: u32) -> SocketAddr {
        match (self, n % 4) {
            (Self::Mixed, 3) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT),
            (Self::Own, _) | (Self::Mixed, 2) => at(n),
            _ => at(0),
        }
    }

    /// Where a client calls that means the n-th member.
    pub(crate) fn called(self, n: u32) -> SocketAddr {
        let bound = self.bound(n);
        // An address that no member is bound to.
        let other = || SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 100, 0, 1)), PORT);
        if bound.ip().is_unspecified() { other() } else { bound }
    }
}

fn at(n: u32) -> SocketAddr {
    SocketAddr::new(world::address(false, n), PORT)
}

/// A contestant's sockets, in an arena of their own.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) arena: Arena,
    /// One for each member; a single one where it is shared.
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) service: Option<Service>,
    _cell: Cell,
}

/// A control group for one contestant's sockets: what overspill attaches to that of its
/// members would otherwise be called for everybody's.
#[derive(Debug)]
struct Cell(Cgroup);

impl Cell {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("overspill-bench-{}-{number}", std::process::id());
        Ok(Self(Cgroup::own()?.make(&name)?))
    }

    /// Does something within. Sockets stay where they were made.
    fn inside<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = Cgroup::own()?;
        self.0.enter(std::process::id())?;
        let done = work();
        home.enter(std::process::id())?;
        done
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // Empty, but for a failure that is told otherwise.
        let _ = self.0.remove();
    }
}

impl Group {
    pub(crate) fn new(
        contestant: Contestant,
        layout: Layout,
        members: u32,
        backlog: u32,
    ) -> Result<Self> {
        let arena = Arena::new()?;
        let sockets = if contestant == Contestant::Shared { 1 } else { members };
        let cell = Cell::new()?;
        let (listeners, service) = arena.inside(|| {
            let listeners: Vec<TcpListener> =
                cell.inside(|| (0..sockets).map(|n| listen(layout.bound(n), backlog)).collect())?;
            let service = match contestant {
                Contestant::Overspill(policy) => {
                    let capacity = Capacity { services: 1, members };
                    Some(
                        Service::builder("bench")
                            .policy(policy)
                            .capacity(capacity)
                            .share(&listeners)?,
                    )
                }
                _ => None,
            };
            Ok((listeners, service))
        })?;
        Ok(Self { arena, listeners, service, _cell: cell })
    }

    /// Ends the service.
    pub(crate) fn remove(self) -> Result<()> {
        let Self { arena, service, .. } = self;
        arena.inside(|| Ok(service.map_or(Ok(()), Service::remove)?))
    }

    /// Where overspill keeps its program for this arena.
    pub(crate) fn program(&self) -> Option<PathBuf> {
        let inode = self.service.as_ref()?.namespace().inode();
        Some(format!("/sys/fs/bpf/overspill/{inode}/overspill").into())
    }
}

/// A listening socket that shares its port.
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into()).with_context(|| format!("bind to {address}"))?;
    socket.set_nonblocking(true)?;
    socket.listen(i32::try_from(backlog)?)?;
    Ok(socket.into())
}
