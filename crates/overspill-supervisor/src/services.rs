//! The services that the workers' sockets make up: carries out what the seats ask for.
//!
//! All of it may wait, for the right to change or for the kernel; so it is done by a thread of
//! its own, [`hand.rs`](super::hand).

use std::collections::HashMap;
use std::path::PathBuf;

use overspill::adopt::Adopted;
use overspill::{
    Address, Capacity, Change, Error, Families, ListedSocket, MemberId, Name, Namespace, Result,
    Rules, Service,
};

use crate::control;
use crate::groups;
use crate::log::{self, tell};
use crate::plan::{Peers, Plan};
use crate::seats::{Listed, Listing, Member, ServiceNumber};
use crate::sight::runs;

/// What the kernel says where a socket is in no `SO_REUSEPORT` group (`reuseport_attach_prog`).
const INVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

/// The services.
#[derive(Debug)]
pub(crate) struct Services {
    name: Name,
    rules: Rules,
    dispatcher: Option<PathBuf>,
    capacity: Option<Capacity>,
    /// By number; one that was taken away keeps its number.
    made: Vec<Made>,
    /// The ports of peers, where the services are shared with others who keep peers in them.
    peers: Option<Vec<u16>>,
}

/// A service that is, or was, there.
#[derive(Debug)]
struct Made {
    service: Service,
    /// Where its first member has listened.
    address: Address,
    /// Its members as they were listed last.
    members: Vec<ListedSocket>,
    gone: bool,
}

impl Services {
    /// None yet.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            name: plan.name.clone(),
            rules: plan.rules,
            dispatcher: plan.dispatcher.clone(),
            capacity: plan.capacity,
            made: Vec::new(),
            peers: None,
        }
    }

    /// Those that peers join.
    pub(crate) fn of_peers(peers: &Peers) -> Self {
        Self {
            name: peers.name.clone(),
            rules: peers.rules,
            dispatcher: peers.dispatcher.clone(),
            capacity: peers.capacity,
            made: Vec::new(),
            peers: Some(peers.ports.clone()),
        }
    }

    /// Those that there are, each with its number.
    pub(crate) fn all(&self) -> Vec<(ServiceNumber, Service)> {
        let made = self.made.iter().enumerate().filter(|(_, made)| !made.gone);
        made.map(|(number, made)| (number, made.service.clone())).collect()
    }

    /// The members as they are now. What can't be read is left out: nothing is concluded from it.
    pub(crate) fn list(&mut self) -> Listing {
        let there = Namespace::current().and_then(|own| Service::sockets(&own));
        let Ok(mut there) = there.map(|all| all.into_iter().collect::<HashMap<_, _>>()) else {
            return Listing::new();
        };
        self.find(&there);
        for made in self.made.iter_mut().filter(|made| !made.gone) {
            let members = there.remove(made.service.name());
            made.gone = members.is_none();
            made.members = members.unwrap_or_default();
        }
        let listed = |made: &Made| made.members.iter().map(listed).collect();
        self.made.iter().map(listed).enumerate().collect()
    }

    /// Sets the rules of all of them, or of none.
    pub(crate) fn set_rules(&mut self, rules: Rules, dispatcher: Option<PathBuf>) -> Result<()> {
        let old = (self.rules, std::mem::replace(&mut self.dispatcher, dispatcher));
        self.rules = rules;
        let result = self.apply_rules();
        if result.is_err() {
            (self.rules, self.dispatcher) = old;
            // The cause is reported, not the trouble on the way back.
            let _ = self.apply_rules();
        }
        result
    }

    fn apply_rules(&self) -> Result<()> {
        self.all().iter().try_for_each(|(_, service)| self.apply_rules_to(service))
    }

    /// One that is gone, by `overspill rm`, has no rules.
    fn apply_rules_to(&self, service: &Service) -> Result<()> {
        let change = Change {
            policy: Some(self.rules.policy),
            dispatcher: self.dispatcher.clone(),
            on_full: Some(self.rules.on_full),
            redirect: Some(self.rules.redirect),
            spread: Some(self.rules.spread),
            ..Default::default()
        };
        match service.set(&change) {
            Err(Error::NoSuchService { .. }) => Ok(()),
            result => result,
        }
    }

    /// Uses a service that a predecessor has made. Those of the first port come first.
    pub(crate) fn take_over(&mut self, service: Service, address: Address) {
        self.add(service, address);
    }

    fn add(&mut self, service: Service, address: Address) -> ServiceNumber {
        self.made.push(Made { service, address, members: Vec::new(), gone: false });
        self.made.len() - 1
    }

    /// A predecessor of another build may have put the first port into the names of its services.
    pub(crate) fn name_first_port(&mut self) {
        let Some(first) = self.made.first().filter(|_| self.peers.is_none()) else { return };
        let port = first.address.port;
        for made in self.made.iter_mut().filter(|made| !made.gone && made.address.port == port) {
            let name = made.service.name().without_port();
            if *made.service.name() != name {
                // Where it can't be had now, the service goes on with the name that it has.
                let _ = made.service.rename(name.as_str());
            }
        }
    }

    /// Makes a socket a member in the place of another one, whose process has ended or is
    /// succeeded; where that is no member any more, at the end of the list.
    pub(crate) fn succeed(&mut self, old: Member, socket: &Adopted) -> Result<Member> {
        let service = &self.made[old.service].service;
        match service.replace_adopted(old.id, socket) {
            Ok(()) => {
                keep_requests(service, socket);
                Ok(old)
            }
            Err(Error::NoSuchMember { .. } | Error::NoSuchService { .. }) => self.join(socket),
            Err(error) => Err(error),
        }
    }

    /// Makes a socket a member of the service of its port.
    pub(crate) fn join(&mut self, socket: &Adopted) -> Result<Member> {
        self.join_all(&[socket]).map(|joined| joined[0])
    }

    /// Makes sockets at one address members of the service of its port, all or none.
    pub(crate) fn join_all(&mut self, sockets: &[&Adopted]) -> Result<Vec<Member>> {
        if let Some(several) = self.peers.as_ref().map(|ports| ports.len() > 1) {
            let joined = sockets.iter().map(|socket| self.join_peers(several, socket));
            return joined.collect();
        }
        let (number, ids) = self.join_own(sockets)?;
        self.made[number].service.count_starts(&ids).unwrap_or_else(tell);
        self.keep(number, sockets);
        Ok(ids.into_iter().map(|id| Member { service: number, id }).collect())
    }

    fn keep(&self, service: ServiceNumber, sockets: &[&Adopted]) {
        for socket in sockets {
            keep_requests(&self.made[service].service, socket);
        }
    }

    fn join_own(&mut self, sockets: &[&Adopted]) -> Result<(ServiceNumber, Vec<MemberId>)> {
        let address = sockets[0].address()?;
        if let Some(number) = self.service_for(address) {
            match self.made[number].service.join_adopted(sockets) {
                Ok(ids) => {
                    self.remember(number, &ids, address, sockets)?;
                    return Ok((number, ids));
                }
                Err(Error::NoSuchService { .. }) => self.made[number].gone = true,
                Err(error) => return Err(error),
            }
        }
        self.remove_gone()?;
        let service = self.found(&self.name_for(address)?, sockets)?;
        let ids = service.status()?.members.iter().map(|member| member.member).collect::<Vec<_>>();
        let number = self.add(service, address);
        self.remember(number, &ids, address, sockets)?;
        Ok((number, ids))
    }

    /// Notes members until they are listed.
    fn remember(
        &mut self,
        number: ServiceNumber,
        ids: &[MemberId],
        address: Address,
        sockets: &[&Adopted],
    ) -> Result<()> {
        for (&member, socket) in ids.iter().zip(sockets) {
            let (cookie, pid) = (socket.cookie()?, socket.pid());
            let listed =
                ListedSocket { member, cookie, address, pid, gone: false, draining: false };
            self.made[number].members.push(listed);
        }
        Ok(())
    }

    /// The service on the port whose members can take each other's requests and these.
    fn service_for(&self, address: Address) -> Option<ServiceNumber> {
        (0..self.made.len()).find(|&number| {
            let Made { members, gone, .. } = &self.made[number];
            !gone && fits(members, address)
        })
    }

    /// The name of a new service. A service that is made anew has the name that it had. The first
    /// port is not part of the name, so that it stays valid when there are more; where the
    /// families are apart, the second one is.
    fn name_for(&self, address: Address) -> Result<Name> {
        let mut before =
            self.made.iter().filter(|made| made.gone && share_requests(made.address, address));
        if let Some(before) = before.find(|made| self.number_of(made.service.name()).is_none()) {
            return Ok(before.service.name().clone());
        }
        let on_port = |made: &Made| made.address.port == address.port;
        let apart = self.made.iter().any(|made| !made.gone && on_port(made));
        let base = if apart { self.name.with_family(address.families)? } else { self.name.clone() };
        let is_first = self.made.first().is_none_or(on_port);
        Ok(if is_first { base } else { base.with_port(address.port) })
    }

    /// Lets a socket join the service of its port and family that peers share, or makes it.
    fn join_peers(&mut self, several: bool, socket: &Adopted) -> Result<Member> {
        let address = socket.address()?;
        let service = self.open_or_found(several, socket)?;
        let id = match service.join_adopted(std::slice::from_ref(socket)) {
            Ok(joined) => joined[0],
            // By another keeper of the same peers, or by the founding just now.
            Err(error @ Error::AlreadyMember { .. }) => service.member(socket)?.ok_or(error)?,
            Err(error) => return Err(error),
        };
        keep_requests(&service, socket);
        let known = self.number_of(service.name());
        let number = known.unwrap_or_else(|| self.add(service, address));
        Ok(Member { service: number, id })
    }

    /// The service of peers that a socket fits; where there is none, one that begins with it.
    fn open_or_found(&self, several: bool, socket: &Adopted) -> Result<Service> {
        let address = socket.address()?;
        loop {
            let all = Service::sockets(&Namespace::current()?)?;
            let name = match self.name_of_peers(several, address, &all)? {
                (name, true) => return Service::open(name.as_str()),
                (name, false) => name,
            };
            match self.found(&name, &[socket]) {
                // A peer has been faster.
                Err(Error::NameTaken { .. }) => {}
                founded => return founded,
            }
        }
    }

    /// The name of the service of peers that a socket with this address fits, and whether it is
    /// there. What it is called depends on who came first: its members say whether it fits.
    fn name_of_peers(
        &self,
        several: bool,
        address: Address,
        all: &[(Name, Vec<ListedSocket>)],
    ) -> Result<(Name, bool)> {
        // The family is part of the name of the second one where the two of them are apart.
        let there = all.iter().filter(|(name, members)| self.is_ours(name, address.port, members));
        let there: Vec<_> = there.collect();
        if let Some((name, _)) = there.iter().find(|(_, members)| fits(members, address)) {
            return Ok((name.clone(), true));
        }
        let both = |name: Name| [name.clone(), name.with_port(address.port)];
        let names = both(if there.is_empty() {
            self.name.clone()
        } else {
            self.name.with_family(address.families)?
        });
        // With several ports, that of a peer which has only this one.
        let free =
            names.into_iter().skip(several.into()).find(|name| !all.iter().any(|it| it.0 == *name));
        let free = free.ok_or_else(|| Error::NameTaken { name: self.name.to_string() })?;
        Ok((free, false))
    }

    /// Whether that is what a service of peers on a port may be called.
    fn is_ours(&self, name: &Name, port: u16, members: &[ListedSocket]) -> bool {
        let twins = [Families::IPV4, Families::IPV6].into_iter();
        let twins = twins.flat_map(|families| self.name.with_family(families));
        twins.chain([self.name.clone()]).any(|own| *name == own || *name == own.with_port(port))
            && members.iter().all(|it| it.address.port == port)
    }

    /// Adds services that were made before, or by others: those of peers, because a member whose
    /// process ended meanwhile has to leave; and those with workers of this supervisor, which a
    /// person made, or a predecessor whose services could not be read at the start.
    fn find(&mut self, there: &HashMap<Name, Vec<ListedSocket>>) {
        let belongs = |name: &Name, members: &[ListedSocket]| match &self.peers {
            Some(ports) => ports.iter().any(|&port| self.is_ours(name, port, members)),
            None => is_own(&self.name, name) && members.iter().any(|it| self.is_worker(it)),
        };
        let found = there
            .iter()
            .filter(|(name, members)| self.number_of(name).is_none() && belongs(name, members));
        let mut found: Vec<(Service, Address)> = found
            .filter_map(|(name, members)| {
                Some((Service::open(name.as_str()).ok()?, members.first()?.address))
            })
            .collect();
        // Those of the first port come first.
        found.sort_by_key(|(service, _)| *service.name() != service.name().without_port());
        for (service, address) in found {
            self.add(service, address);
        }
    }

    fn is_worker(&self, member: &ListedSocket) -> bool {
        groups::worker(member.pid, &self.name).is_some()
    }

    /// The number of the service of that name, if it is there.
    fn number_of(&self, name: &Name) -> Option<ServiceNumber> {
        self.made.iter().position(|made| !made.gone && made.service.name() == name)
    }

    /// A new service, of these sockets.
    fn found(&self, name: &Name, sockets: &[&Adopted]) -> Result<Service> {
        let service = self.builder(name).share_adopted(sockets)?;
        let Rules { policy, on_full, .. } = self.rules;
        let port = sockets[0].address()?.port;
        log::line(format_args!("service {name}: port {port}, policy {policy}, on full {on_full}"));
        Ok(service)
    }

    fn builder(&self, name: &Name) -> overspill::Builder {
        let builder = Service::builder(name.as_str()).rules(self.rules);
        let builder = match &self.dispatcher {
            Some(path) => builder.dispatcher(path),
            None => builder,
        };
        match self.capacity {
            Some(capacity) => builder.capacity(capacity),
            None => builder,
        }
    }

    /// Makes those of sockets that are handed to the workers, all or none. Each port has its own.
    pub(crate) fn make(&mut self, by_port: &[(u16, Vec<&Adopted>)]) -> Result<()> {
        let result = self.remove_gone().and_then(|()| {
            by_port.iter().try_for_each(|(_, sockets)| {
                let address = sockets[0].address()?;
                let service = self.builder(&self.name_for(address)?).share_adopted(sockets)?;
                for socket in sockets {
                    keep_requests(&service, socket);
                }
                self.add(service, address);
                Ok(())
            })
        });
        if result.is_err() {
            // The cause is reported, not the trouble on the way back.
            let _ = self.remove();
        }
        result
    }

    /// Takes a member out; with the last one its service, which nobody serves any more.
    pub(crate) fn leave(&mut self, member: Member) -> Result<()> {
        let made = &mut self.made[member.service];
        match made.service.leave(member.id) {
            Err(Error::NoMembers { .. }) => {
                made.gone = true;
                made.service.clone().remove()
            }
            Err(Error::NoSuchMember { .. } | Error::NoSuchService { .. }) => Ok(()),
            result => result,
        }
    }

    /// Notes which process serves a member; a new one is given requests, if it is to be.
    pub(crate) fn note(&self, member: Member, pid: u32, resume: bool) -> Result<()> {
        if resume {
            self.drain(member, false)?;
        }
        self.made[member.service].service.set_pid(member.id, pid)
    }

    /// Counts a start of a member's process. One that is gone has none.
    pub(crate) fn count_start(&self, member: Member) -> Result<()> {
        match self.made[member.service].service.count_start(member.id) {
            Err(Error::NoSuchService { .. } | Error::NoSuchMember { .. }) => Ok(()),
            result => result,
        }
    }

    /// Gives a member no new requests, or gives it some again.
    pub(crate) fn drain(&self, member: Member, drain: bool) -> Result<()> {
        let service = &self.made[member.service].service;
        if drain { service.drain(member.id) } else { service.resume(member.id) }
    }

    /// Puts the members of a service into this order.
    pub(crate) fn arrange(&self, service: ServiceNumber, order: &[MemberId]) -> Result<()> {
        self.made[service].service.arrange(order)
    }

    /// Removes services of this name that nobody serves any more: their supervisor was killed and
    /// its workers ended. A new service may need their names, or their ports. Any others stay.
    fn remove_gone(&self) -> Result<()> {
        for (name, members) in Service::sockets(&Namespace::current()?)? {
            let is_used = self.number_of(&name).is_some();
            if is_used || !members.iter().all(|it| it.gone) || !is_own(&self.name, &name) {
                continue;
            }
            log::line(format_args!(
                "service {name} exists, but all its members are gone; making it anew"
            ));
            match Service::open(name.as_str()).and_then(Service::remove) {
                Ok(()) | Err(Error::NoSuchService { .. }) => {}
                failed => return failed,
            }
        }
        Ok(())
    }

    /// Removes them all, and gives the first failure. One that is gone already, by
    /// `overspill rm`, is no failure.
    pub(crate) fn remove(&mut self) -> Result<()> {
        let mut result = Ok(());
        for made in self.made.drain(..).filter(|made| !made.gone) {
            match made.service.remove() {
                Ok(()) | Err(Error::NoSuchService { .. }) => {}
                failed => result = result.and(failed),
            }
        }
        result
    }
}

fn listed(it: &ListedSocket) -> Listed {
    let ListedSocket { member: id, cookie, address, pid, gone, draining } = *it;
    Listed { id, cookie, address, pid, gone, draining, served: runs(pid) }
}

/// Whether a socket with this address can take the members' requests, and they can take its own.
fn fits(members: &[ListedSocket], address: Address) -> bool {
    !members.is_empty() && members.iter().all(|it| share_requests(it.address, address))
}

/// Whether sockets at two addresses can take each other's requests: of one port and a family that
/// both have.
fn share_requests(one: Address, other: Address) -> bool {
    let (own, others) = (one.families, other.families);
    one.port == other.port && (own.ipv4 && others.ipv4 || own.ipv6 && others.ipv6)
}

/// Where several sockets have one address, what waits at one can move to another.
fn keep_requests(service: &Service, socket: &Adopted) {
    if !socket.shares_port() {
        return;
    }
    match service.keep_requests(socket) {
        // It shares the address only since it was bound: it is in no group until another one
        // comes, whose turn it then is, for both.
        Err(Error::System { source, .. }) if source.raw_os_error() == Some(INVAL) => {}
        result => result.unwrap_or_else(tell),
    }
}

/// Whether a supervisor of this name can have made a service, by the service's name.
pub(crate) fn is_own(name: &Name, service: &Name) -> bool {
    let base = service.without_port();
    let family = base.as_str().strip_prefix(name.as_str());
    // Another supervisor's name may begin in the same way.
    family.is_some_and(|it| it.is_empty() || ["-ipv4", "-ipv6"].contains(&it))
        && (base == *name || !control::names().contains(&base))
}
