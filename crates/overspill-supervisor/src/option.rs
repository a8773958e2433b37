//! The socket option (`include/overspill.h`): servers that name the sockets that are to
//! join, and their order. The hooks have looked the sockets up; what is left to do may
//! sleep: binding them, and changing the service.

use std::collections::HashSet;

use overspill::adopt::Adopted;
use overspill::{Error, Hooks, MemberId, Name, Request, Service};
use rustix::io::Errno;

use crate::hand::Copies;
use crate::instance_id::InstanceId;
use crate::log::{self, tell};
use crate::seats::{Action, Listing, Seats, ServiceNumber};

/// `CAP_NET_BIND_SERVICE` (`include/uapi/linux/capability.h`).
const BIND_SERVICE: u32 = 10;

/// The sockets that were given, in that order, and what their owners were told of them.
#[derive(Debug, Default)]
pub(crate) struct Given {
    sockets: Vec<Socket>,
    told: Vec<Told>,
}

/// A socket given; it may be no member yet.
#[derive(Debug)]
struct Socket {
    owner: InstanceId,
    cookie: u64,
}

/// Where `getsockopt(2)` says that a socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    service: ServiceNumber,
    cookie: u64,
    place: Option<(Name, u32)>,
}

impl Given {
    /// Binds what is unbound, and notes the order. Gives back the sockets that listen.
    pub(crate) fn accept(
        &mut self,
        owner: InstanceId,
        request: &Request,
    ) -> Result<Vec<Adopted>, Errno> {
        let port = request.port;
        let sockets = request.sockets().map_err(|error| errno(&error))?;
        let cookies = sockets.iter().map(Adopted::cookie).collect::<overspill::Result<Vec<_>>>();
        let cookies = cookies.map_err(|error| errno(&error))?;
        if cookies.iter().collect::<HashSet<_>>().len() < cookies.len() {
            return Err(Errno::INVAL);
        }
        for socket in &sockets {
            if !socket.is_bound() && !may_bind(request.pid, port) {
                return Err(Errno::ACCESS);
            }
            socket.bind(port).map_err(|error| errno(&error))?;
        }
        self.sockets.retain(|known| !cookies.contains(&known.cookie));
        self.sockets.extend(cookies.into_iter().map(|cookie| Socket { owner, cookie }));
        Ok(sockets.into_iter().filter(Adopted::listens).collect())
    }

    /// The sockets that were given, in their order, with their owners.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u64, InstanceId)> {
        self.sockets.iter().map(|it| (it.cookie, it.owner))
    }

    /// A socket was given, behind those that are known.
    pub(crate) fn add(&mut self, cookie: u64, owner: InstanceId) {
        self.sockets.push(Socket { owner, cookie });
    }

    /// Whether a socket was given.
    pub(crate) fn has(&self, cookie: u64) -> bool {
        self.sockets.iter().any(|socket| socket.cookie == cookie)
    }

    /// Other hooks have come: what was noted is to be noted again.
    pub(crate) fn renew(&mut self) {
        self.told.clear();
    }

    /// What an instance gave goes with it.
    pub(crate) fn forget(&mut self, owner: InstanceId) {
        self.sockets.retain(|socket| socket.owner != owner);
    }

    /// Notes where each member is, if it is time to, and gives the orders that services are to be
    /// put into.
    pub(crate) fn tend(
        &mut self,
        there: &There<'_>,
        hooks: &[&Hooks],
    ) -> Vec<(ServiceNumber, Vec<MemberId>)> {
        let told = std::mem::take(&mut self.told);
        let mut orders = Vec::new();
        for (number, service) in there.services {
            let list = there.listing.get(number);
            let list: Vec<MemberId> = list.into_iter().flatten().map(|it| it.id).collect();
            let order = self.order(there.seats, *number);
            let places = order.iter().filter_map(|id| list.iter().position(|own| own == id));
            if !places.is_sorted() {
                orders.push((*number, order));
                self.told.extend(told.iter().filter(|it| it.service == *number).cloned());
                continue;
            }
            for (id, seat) in there.seats.of(*number) {
                let Some(socket) = there.copies.get(&seat.cookie) else { continue };
                let position = list.iter().position(|&own| own == id);
                let position = position.and_then(|position| u32::try_from(position).ok());
                let place = position.map(|position| (service.name().clone(), position));
                let new = Told { service: *number, cookie: seat.cookie, place };
                if !told.contains(&new) {
                    let place = new.place.as_ref().map(|(name, position)| (name, *position));
                    for hooks in hooks {
                        hooks.note(socket, place).unwrap_or_else(tell);
                    }
                }
                self.told.push(new);
            }
        }
        orders
    }

    /// The members of a service that were given, in that order.
    fn order(&self, seats: &Seats, service: ServiceNumber) -> Vec<MemberId> {
        let seated: Vec<(u64, MemberId)> =
            seats.of(service).map(|(id, seat)| (seat.cookie, id)).collect();
        let member = |socket: &Socket| {
            seated.iter().find(|(cookie, _)| *cookie == socket.cookie).map(|&(_, member)| member)
        };
        self.sockets.iter().filter_map(member).collect()
    }
}

/// What is there to be noted.
pub(crate) struct There<'a> {
    pub(crate) services: &'a [(ServiceNumber, Service)],
    pub(crate) listing: &'a Listing,
    pub(crate) seats: &'a Seats,
    pub(crate) copies: &'a Copies,
}

/// Calls that are not answered yet: their sockets are bound, and are to be members.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    calls: Vec<(Request, Result<Vec<u64>, Errno>)>,
}

impl Asked {
    /// A call whose sockets that listen are these, or that has failed.
    pub(crate) fn begin(&mut self, request: &Request, listening: Result<Vec<Adopted>, Errno>) {
        let cookies = |sockets: &[Adopted]| {
            let fit = |socket: &Adopted| socket.address().and_then(|_| socket.cookie());
            sockets.iter().map(fit).collect::<overspill::Result<_>>().map_err(|error| errno(&error))
        };
        self.calls.push((request.clone(), listening.and_then(|sockets| cookies(&sockets))));
    }

    /// A socket could not be made a member.
    pub(crate) fn fail(&mut self, action: Action, error: &Error) {
        let Some(cookie) = action.joining() else { return };
        for (_, result) in &mut self.calls {
            if result.as_ref().is_ok_and(|cookies| cookies.contains(&cookie)) {
                *result = Err(errno(error));
            }
        }
    }

    /// Answers those whose sockets are all members, and those that have failed.
    pub(crate) fn answer(&mut self, seats: &Seats, hooks: &[&Hooks]) {
        let is_member =
            |&cookie: &u64| seats.by_cookie(cookie).is_some_and(|seat| seat.member.is_some());
        self.calls.retain(|(request, result)| {
            let result = match result {
                Ok(cookies) if !cookies.iter().all(is_member) => return true,
                Ok(_) => Ok(()),
                Err(errno) => Err(*errno),
            };
            for hooks in hooks {
                answer(hooks, request, result);
            }
            false
        });
    }
}

/// Says what has become of a request.
fn answer(hooks: &Hooks, request: &Request, result: Result<(), Errno>) {
    if let Err(errno) = result {
        let Request { pid, port, .. } = request;
        let errno = std::io::Error::from(errno);
        log::line(format_args!("cannot let sockets of process {pid} join port {port}: {errno}"));
    }
    hooks.answer(request, result).unwrap_or_else(tell);
}

/// Whether the process itself could bind a socket to the port: we could in any case.
fn may_bind(pid: u32, port: u16) -> bool {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
    port >= first || has_capability(pid, BIND_SERVICE)
}

fn has_capability(pid: u32, capability: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_some_and(|set| set >> capability & 1 == 1)
}

/// The errno that says the same to a program; people find the words in the log.
pub(crate) fn errno(error: &Error) -> Errno {
    if let Error::System { source, .. } | Error::Permission { source, .. } = error {
        return Errno::from_io_error(source).unwrap_or(Errno::IO);
    }
    match error {
        Error::AddressTaken { .. } | Error::NameTaken { .. } => Errno::ADDRINUSE,
        Error::AlreadyMember { .. } | Error::HeldElsewhere { .. } => Errno::BUSY,
        Error::GivenTwice { .. } => Errno::INVAL,
        Error::MixedFamilies { .. } => Errno::AFNOSUPPORT,
        Error::OverCapacity { .. } => Errno::NOSPC,
        Error::BoundToDevice { .. } => Errno::OPNOTSUPP,
        Error::OtherNamespace { .. } => Errno::XDEV,
        _ => Errno::IO,
    }
}
