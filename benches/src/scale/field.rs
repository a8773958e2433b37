//! Services of a shape, in the network namespace of the calling thread.

use std::fmt;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use overspill::{Capacity, Service};
use socket2::{Domain, Protocol, Socket, Type};

use crate::operation::{Clock, Operation};

/// How many services, of how many members each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) services: u32,
    pub(crate) members: u32,
}

impl Shape {
    pub(crate) const FULL: &'static [Self] =
        &[Self::of(1, 4), Self::of(100, 10), Self::of(1_000, 10), Self::of(1, 10_000)];
    pub(crate) const QUICK: &'static [Self] = &[Self::of(20, 10), Self::of(1, 1_000)];

    const fn of(services: u32, members: u32) -> Self {
        Self { services, members }
    }

    /// That of a namespace if it is enough, else one with room for what comes and goes.
    fn capacity(self) -> Capacity {
        let usual = Capacity::default();
        let all = self.services * self.members + 2 * GUESTS;
        let members = if all <= usual.members { usual.members } else { all.next_power_of_two() };
        Capacity { members, ..usual }
    }

    /// Where a member is bound: each service has a port, each member an address.
    fn address(self, service: u32, member: u32) -> SocketAddr {
        let port = u16::try_from(1_000 + service).expect("not that many services");
        SocketAddr::new(world::address(false, service * self.members + member), port)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.services, self.members)
    }
}

/// How many members a service has that comes and goes.
pub(crate) const GUESTS: u32 = 4;

pub(crate) struct Field {
    pub(crate) shape: Shape,
    pub(crate) services: Vec<Service>,
    /// Each service's, in the order of its members.
    pub(crate) sockets: Vec<Vec<TcpListener>>,
    /// In no service.
    pub(crate) guests: Vec<TcpListener>,
    pub(crate) random: fastrand::Rng,
}

impl Field {
    pub(crate) fn new(shape: Shape, clock: &mut Clock<'_>) -> Result<Self> {
        let mut field = Self {
            shape,
            services: Vec::new(),
            sockets: Vec::new(),
            guests: (0..GUESTS)
                .map(|guest| listen(shape.address(shape.services, guest)))
                .collect::<Result<_>>()?,
            random: fastrand::Rng::with_seed(1),
        };
        for service in 0..shape.services {
            let members = 0..shape.members;
            let sockets: Vec<TcpListener> = members
                .map(|member| listen(shape.address(service, member)))
                .collect::<Result<_>>()?;
            let builder =
                Service::builder(&format!("service-{service}")).capacity(shape.capacity());
            let operation = if service == 0 { Operation::First } else { Operation::Fill };
            field.services.push(clock.time(operation, || Ok(builder.share(&sockets)?))?);
            field.sockets.push(sockets);
        }
        Ok(field)
    }

    pub(crate) fn any_service(&mut self) -> u32 {
        self.random.u32(..self.shape.services)
    }

    pub(crate) fn any_member(&mut self) -> u32 {
        self.random.u32(..self.shape.members)
    }

    /// A socket like that of a member.
    pub(crate) fn successor(&self, service: u32, member: u32) -> Result<TcpListener> {
        listen(self.shape.address(service, member))
    }

    /// A socket for one more member.
    pub(crate) fn joiner(&self, service: u32) -> Result<TcpListener> {
        let address = world::address(false, self.shape.services * self.shape.members + GUESTS);
        listen(SocketAddr::new(address, self.shape.address(service, 0).port()))
    }

    pub(crate) fn remove(self) -> Result<()> {
        Ok(self.services.into_iter().try_for_each(Service::remove)?)
    }
}

/// A listening socket that shares its address with its successor.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into()).with_context(|| format!("bind to {address}"))?;
    socket.listen(16)?;
    Ok(socket.into())
}
