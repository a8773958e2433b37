//! The socket option (`include/overspill.h`): servers that name the sockets that are to
//! join, and their order. The hooks have looked the sockets up; what is left to do may
//! sleep: binding them, and changing the service.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use overspill::adopt::Adopted;
use overspill::{Error, Hooks, MemberId, Name, Request};
use rustix::io::Errno;

use super::instance::InstanceId;
use super::log;
use super::services::{Services, tell};

/// How often it is looked at whether others have changed the services.
const LOOK: Duration = Duration::from_secs(1);
/// `CAP_NET_BIND_SERVICE` (`include/uapi/linux/capability.h`).
const BIND_SERVICE: u32 = 10;

/// The sockets that were given, in that order, and what their owners were told of them.
#[derive(Debug, Default)]
pub(crate) struct Given {
    sockets: Vec<Socket>,
    told: Vec<Told>,
    looked: Option<Instant>,
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

    /// Looks now and then for what others have changed.
    pub(crate) fn look(&mut self, services: &Services, hooks: &[&Hooks]) {
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            self.tend(services, hooks);
        }
    }

    /// Puts the members into the order given, and notes where each is.
    pub(crate) fn tend(&mut self, services: &Services, hooks: &[&Hooks]) {
        self.looked = Some(Instant::now());
        let told = std::mem::take(&mut self.told);
        for (number, service) in services.made().iter().enumerate() {
            // One that was taken away with overspill rm has no members any more.
            let mut list = members(service);
            let order = self.order(services, number);
            let places = order.iter().filter_map(|id| list.iter().position(|own| own == id));
            if !places.is_sorted() {
                service.arrange(&order).unwrap_or_else(tell);
                list = members(service);
            }
            for seat in services.members_of(number) {
                let (Some(socket), Some(cookie)) = (&seat.socket, seat.cookie()) else { continue };
                let position = list.iter().position(|&own| seat.member == Some((number, own)));
                let position = position.and_then(|position| u32::try_from(position).ok());
                let place = position.map(|position| (service.name().clone(), position));
                let new = Told { cookie, place };
                if !told.contains(&new) {
                    let place = new.place.as_ref().map(|(name, position)| (name, *position));
                    for hooks in hooks {
                        hooks.note(socket, place).unwrap_or_else(tell);
                    }
                }
                self.told.push(new);
            }
        }
    }

    /// The members of a service that were given, in that order.
    fn order(&self, services: &Services, service: usize) -> Vec<MemberId> {
        let seats: Vec<(u64, MemberId)> = services
            .members_of(service)
            .filter_map(|seat| Some((seat.cookie()?, seat.member?.1)))
            .collect();
        let member = |socket: &Socket| {
            seats.iter().find(|(cookie, _)| *cookie == socket.cookie).map(|&(_, member)| member)
        };
        self.sockets.iter().filter_map(member).collect()
    }
}

fn members(service: &overspill::Service) -> Vec<MemberId> {
    let queues = service.queues().unwrap_or_default();
    queues.into_iter().map(|queue| queue.member).collect()
}

/// Says what has become of a request.
pub(crate) fn answer(hooks: &Hooks, request: &Request, result: Result<(), Errno>) {
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
    log::line(format_args!("{}", error.with_causes()));
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
