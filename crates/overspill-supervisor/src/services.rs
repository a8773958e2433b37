//! The services that the workers' sockets make up, and the sockets themselves: each has a
//! seat, which stays when the socket's process ends, for its successor.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::stat::fstat;
use overspill::adopt::Adopted;
use overspill::{Address, Cgroup, Error, MemberId, MemberState, Name, Namespace, Rules, Service};
use procfs::process::Process;

use super::sockets::{Sockets, sockets_of};
use super::watching::Watching;
use super::{InstanceId, log};
use crate::error;
use crate::plan::Peers;
use crate::plan::Plan;

/// The services, and whose sockets their members are.
#[derive(Debug)]
pub(crate) struct Services {
    name: Name,
    rules: Rules,
    /// There are services at all: redirection was on at the start.
    redirected: bool,
    dispatcher: Option<PathBuf>,
    capacity: Option<overspill::Capacity>,
    made: Vec<Service>,
    seats: Vec<Seat>,
    /// The workers whose members drain because they wait.
    draining: Vec<bool>,
    watching: Watching,
    /// The services are shared with peers, which are processes that nobody here has started;
    /// and whether there are several ports.
    peers: Option<bool>,
}

/// The place of one of a worker's sockets.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(super) worker: usize,
    pub(super) address: Address,
    /// Which member of which service it is; nothing where nothing is to be redirected.
    pub(super) member: Option<(usize, MemberId)>,
    /// A copy of the socket, so that what waits in its queue outlives its process.
    pub(super) socket: Option<OwnedFd>,
    /// Where it was last seen: a process and its descriptor. Nothing for one that is handed
    /// over.
    holder: Option<(u32, i32)>,
    /// Whose socket it is; nobody's once that has ended.
    pub(super) owner: Option<InstanceId>,
}

impl Seat {
    /// Of the socket, where a copy of it is held.
    pub(super) fn cookie(&self) -> Option<u64> {
        rustix::net::sockopt::socket_cookie(self.socket.as_ref()?).ok()
    }
}

/// A worker of a supervisor that was killed.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) id: InstanceId,
    pub(crate) cgroup: Cgroup,
    /// Whether a seat is its.
    pub(crate) serves: bool,
}

impl Services {
    /// None yet.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            name: plan.name.clone(),
            rules: plan.rules,
            redirected: plan.rules.redirect,
            dispatcher: plan.dispatcher.clone(),
            capacity: plan.capacity,
            made: Vec::new(),
            seats: Vec::new(),
            draining: vec![false; plan.workers],
            watching: Watching::new(plan.patience, "worker"),
            peers: None,
        }
    }

    /// Those that peers join. A seat's worker is the process.
    pub(crate) fn of_peers(peers: &Peers) -> Self {
        Self {
            name: peers.name.clone(),
            rules: peers.rules,
            redirected: peers.rules.redirect,
            dispatcher: peers.dispatcher.clone(),
            capacity: peers.capacity,
            made: Vec::new(),
            seats: Vec::new(),
            draining: Vec::new(),
            watching: Watching::new(peers.patience, "process"),
            peers: Some(peers.ports.len() > 1),
        }
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Whether there are services at all.
    pub(crate) fn redirected(&self) -> bool {
        self.redirected
    }

    /// Sets the rules of all of them, or of none.
    pub(crate) fn set_rules(
        &mut self,
        rules: Rules,
        dispatcher: Option<&PathBuf>,
    ) -> overspill::Result<()> {
        let old = (self.rules, self.dispatcher.take());
        (self.rules, self.dispatcher) = (rules, dispatcher.cloned());
        let result = self.made.iter().try_for_each(|service| self.apply_rules(service));
        if result.is_err() {
            (self.rules, self.dispatcher) = old;
            // The cause is reported, not the trouble on the way back.
            let _ = self.made.iter().try_for_each(|service| self.apply_rules(service));
        }
        result
    }

    /// One that is gone, by `overspill rm`, has no rules.
    fn apply_rules(&self, service: &Service) -> overspill::Result<()> {
        let change = overspill::Change {
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

    /// Bears with a worker for that long from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.watching = Watching::new(patience, "worker");
    }

    /// The sockets of an owner.
    pub(crate) fn cookies(&self, owner: InstanceId) -> Vec<u64> {
        self.seats.iter().filter(|it| it.owner == Some(owner)).filter_map(Seat::cookie).collect()
    }

    /// Another process serves a socket now.
    pub(crate) fn inherit(&mut self, cookie: u64, (pid, owner): (u32, InstanceId)) {
        let Some(seat) = self.seats.iter_mut().find(|it| it.cookie() == Some(cookie)) else {
            return;
        };
        seat.owner = Some(owner);
        seat.worker = pid as usize;
        if let Some((service, member)) = seat.member {
            self.made[service].set_pid(member, pid).unwrap_or_else(tell);
        }
    }

    /// Lets a socket join the service of the name, on its port, or makes it.
    fn place_peer(
        &mut self,
        several: bool,
        address: Address,
        socket: &Adopted,
    ) -> overspill::Result<(usize, MemberId)> {
        // Longer than a name may be where NAME is long; seldom wanted.
        let family: overspill::Result<Name> =
            format!("{}{}", self.name, if address.families.ipv4 { "-ipv4" } else { "-ipv6" })
                .parse();
        let with_port = |name: Name| name.with_port(address.port);
        // With several ports, that of a peer which has only this one.
        let names = [
            (Ok(self.name.clone()), !several),
            (Ok(with_port(self.name.clone())), true),
            (family.map(with_port), true),
        ];
        for (name, makes) in names {
            let Some(service) = self.open_or_found(&name?, makes, socket)? else { continue };
            let status = service.status()?;
            if status.port != address.port {
                continue;
            }
            let member = match service.member(socket)? {
                Some(member) => member,
                None => match service.join_adopted(std::slice::from_ref(socket)) {
                    Ok(joined) => joined[0],
                    Err(Error::MixedFamilies { .. }) => continue,
                    Err(error) => return Err(error),
                },
            };
            // Their place is filled.
            for gone in status.members.iter().filter(|it| it.state == MemberState::Gone) {
                if gone.address == address {
                    let _ = service.leave(gone.member);
                }
            }
            let known = self.made.iter().position(|made| *made == service);
            let number = known.unwrap_or_else(|| {
                self.made.push(service);
                self.made.len() - 1
            });
            return Ok((number, member));
        }
        Err(Error::NameTaken { name: self.name.to_string() })
    }

    /// The service of that name; where there is none, one that begins with this socket, or
    /// none still.
    fn open_or_found(
        &self,
        name: &Name,
        makes: bool,
        socket: &Adopted,
    ) -> overspill::Result<Option<Service>> {
        match Service::open(name.as_str()) {
            Err(Error::NoSuchService { .. }) if !makes => Ok(None),
            Err(Error::NoSuchService { .. }) => match self.found(name, socket) {
                // A peer has been faster.
                Err(Error::NameTaken { .. }) => Service::open(name.as_str()).map(Some),
                founded => founded.map(Some),
            },
            opened => opened.map(Some),
        }
    }

    /// A new service, of this socket.
    fn found(&self, name: &Name, socket: &Adopted) -> overspill::Result<Service> {
        let service = self.builder(name).share_adopted(std::slice::from_ref(socket))?;
        let Rules { policy, on_full, .. } = self.rules;
        let port = socket.address()?.port;
        log::line(format_args!("service {name}: port {port}, policy {policy}, on full {on_full}"));
        Ok(service)
    }

    /// Makes those of the sockets that are handed to the workers, all or none.
    pub(crate) fn make(&mut self, sockets: &Sockets) -> overspill::Result<()> {
        let result = self.make_all(sockets);
        if result.is_err() {
            // The cause is reported, not the trouble on the way back.
            let _ = self.remove();
        }
        result
    }

    fn make_all(&mut self, sockets: &Sockets) -> overspill::Result<()> {
        if !self.redirected {
            return Ok(());
        }
        let ports = sockets.ports();
        for &port in &ports {
            let name = if ports.len() == 1 { self.name.clone() } else { self.name.with_port(port) };
            remove_gone(&name)?;
            let (workers, listeners): (Vec<_>, Vec<_>) = sockets.on(port).unzip();
            let service = self.builder(&name).share(&listeners)?;
            let members = service.status()?.members;
            self.made.push(service);
            for ((member, worker), listener) in members.iter().zip(workers).zip(listeners) {
                let socket = listener.try_clone().map_err(|error| no_descriptor(&error))?;
                self.seats.push(Seat {
                    worker,
                    address: member.address,
                    member: Some((self.made.len() - 1, member.member)),
                    socket: Some(socket.into()),
                    holder: None,
                    owner: None,
                });
            }
        }
        self.keep_requests();
        Ok(())
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

    /// Where several sockets have one address, what waits at one can move to another.
    fn keep_requests(&self) {
        for seat in &self.seats {
            if let (Some((service, _)), Some(socket)) = (seat.member, &seat.socket)
                && self.seats.iter().filter(|other| other.address == seat.address).count() > 1
            {
                self.made[service].keep_requests(socket).unwrap_or_else(tell);
            }
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.made.iter().map(Service::name)
    }

    /// Where an instance listens.
    pub(crate) fn addresses(&self, owner: InstanceId) -> Vec<Address> {
        let own = self.seats.iter().filter(|seat| seat.owner == Some(owner));
        own.map(|seat| seat.address).collect()
    }

    /// A worker's socket has begun to listen: it takes the seat of its predecessor, which
    /// has ended or is to be succeeded, or a new one.
    pub(crate) fn seat(
        &mut self,
        worker: usize,
        owner: InstanceId,
        succeeds: Option<InstanceId>,
        socket: Adopted,
    ) -> overspill::Result<()> {
        let address = socket.address()?;
        let vacant = self.seats.iter().position(|seat| {
            (seat.worker == worker || self.peers.is_some())
                && seat.address == address
                && (seat.owner.is_none() || seat.owner == succeeds)
        });
        let (pid, holder) = (socket.pid(), Some((socket.pid(), socket.descriptor())));
        let old = vacant.and_then(|seat| self.seats[seat].member);
        let member = if self.redirected { Some(self.place(old, address, &socket)?) } else { None };
        // Of a member that was there before, a worker's start is counted as it begins; of a
        // new one, and where a successor takes over, here.
        if let Some((service, id)) = member
            && self.peers.is_none()
            && (member != old || succeeds.is_some())
        {
            self.made[service].count_start(id).unwrap_or_else(tell);
        }
        if let Some((service, _)) = member
            && socket.shares_port()
        {
            self.made[service].keep_requests(&socket).unwrap_or_else(tell);
        }
        // Without a service the socket is the worker's own affair, as without overspill.
        let socket = member.is_some().then(|| socket.into());
        let seat = Seat { worker, address, member, socket, holder, owner: Some(owner) };
        match vacant {
            Some(vacant) => {
                self.seats[vacant] = seat;
                self.wake(&[address]);
            }
            None => self.seats.push(seat),
        }
        self.sweep();
        let place = member.map_or_else(String::new, |(service, member)| {
            format!(": member {member} of {}", self.made[service].name())
        });
        match self.peers {
            Some(_) => log::line(format_args!("process {pid} listens on {address}{place}")),
            None => {
                log::line(format_args!("worker {worker} (pid {pid}) listens on {address}{place}"));
            }
        }
        Ok(())
    }

    /// Puts a socket into a member's place, or at the end of the list of its service.
    fn place(
        &mut self,
        old: Option<(usize, MemberId)>,
        address: Address,
        socket: &Adopted,
    ) -> overspill::Result<(usize, MemberId)> {
        if let Some((service, member)) = old {
            match self.made[service].replace_adopted(member, socket) {
                Ok(()) => {
                    self.watching.forget((service, member));
                    return Ok((service, member));
                }
                // Taken out meanwhile, by overspill rm.
                Err(Error::NoSuchMember { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(several) = self.peers {
            return self.place_peer(several, address, socket);
        }
        if let Some(service) = self.service_for(address) {
            let joined = self.made[service].join_adopted(std::slice::from_ref(socket))?;
            return Ok((service, joined[0]));
        }
        let name = self.name_for(address)?;
        remove_gone(&name)?;
        let service = self.found(&name, socket)?;
        let member = service.status()?.members[0].member;
        self.made.push(service);
        Ok((self.made.len() - 1, member))
    }

    /// The service on the port whose members can take each other's requests and these.
    fn service_for(&self, address: Address) -> Option<usize> {
        (0..self.made.len()).find(|&service| {
            let mut members = self.members_of(service).peekable();
            members.peek().is_some()
                && members.all(|seat| {
                    let (own, other) = (address.families, seat.address.families);
                    seat.address.port == address.port
                        && (own.ipv4 && other.ipv4 || own.ipv6 && other.ipv6)
                })
        })
    }

    pub(super) fn made(&self) -> &[Service] {
        &self.made
    }

    /// Whether a socket has a seat.
    pub(crate) fn has(&self, cookie: u64) -> bool {
        self.seats.iter().any(|seat| seat.cookie() == Some(cookie))
    }

    pub(super) fn members_of(&self, service: usize) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(move |seat| seat.member.is_some_and(|(own, _)| own == service))
    }

    /// The name of a new service: the port is part of it once there are several, and the
    /// family where the two of them are apart.
    fn name_for(&mut self, address: Address) -> overspill::Result<Name> {
        let ports: Vec<u16> = (0..self.made.len())
            .filter_map(|service| Some(self.members_of(service).next()?.address.port))
            .collect();
        let apart = ports.contains(&address.port);
        let family = if address.families.ipv6 { "-ipv6" } else { "-ipv4" };
        let base: Name = format!("{}{}", self.name, if apart { family } else { "" }).parse()?;
        if ports.iter().all(|&port| port == address.port) {
            return Ok(base);
        }
        for (service, port) in self.made.iter_mut().zip(ports) {
            let name = service.name().with_port(port);
            if *service.name() != name {
                service.rename(name.as_str())?;
            }
        }
        Ok(base.with_port(address.port))
    }

    /// An instance has ended: its seats are nobody's until a successor comes.
    pub(crate) fn vacate(&mut self, owner: InstanceId) {
        for seat in self.seats.iter_mut().filter(|seat| seat.owner == Some(owner)) {
            seat.owner = None;
        }
        self.sweep();
    }

    /// Lets go of sockets that nobody serves where others at the same address can take what
    /// they hold: with the last copy the kernel moves it. Without one it waits.
    fn sweep(&mut self) {
        let own = self.seats.iter().filter(|it| it.owner.is_some()).map(|it| it.address);
        let served: Vec<Address> = own.chain(self.served_by_peers()).collect();
        let mut moved = Vec::new();
        for seat in &mut self.seats {
            if seat.owner.is_none() && served.contains(&seat.address) && seat.socket.is_some() {
                seat.socket = None;
                moved.push(seat.address);
            }
        }
        self.wake(&moved);
    }

    /// Wakes the workers at these addresses: connections may have been moved to them, and older
    /// kernels wake nobody for that.
    fn wake(&self, addresses: &[Address]) {
        let seats = self.seats.iter().filter(|seat| addresses.contains(&seat.address));
        for socket in seats.filter_map(|seat| seat.socket.as_ref()) {
            // What fails here costs a client time, no more: the next request wakes the worker.
            let _ = overspill::wake(socket);
        }
    }

    /// Lets go of the sockets that their workers have closed: with these copies they would
    /// go on taking requests. A worker that has no process left has ended, or will be told
    /// to have.
    pub(crate) fn release(&mut self, processes: impl Fn(InstanceId) -> Vec<u32>) {
        let mut closed = Vec::new();
        for seat in &mut self.seats {
            let (Some(owner), Some(socket), Some(holder)) = (seat.owner, &seat.socket, seat.holder)
            else {
                continue;
            };
            let Ok(inode) = fstat(socket).map(|status| status.st_ino) else { continue };
            if holds(holder, inode) {
                continue;
            }
            let pids = processes(owner);
            if pids.is_empty() {
                continue;
            }
            seat.holder = pids.iter().find_map(|&pid| Some((pid, descriptor_of(pid, inode)?)));
            if seat.holder.is_none() {
                log::line(format_args!("worker {} has closed {}", seat.worker, seat.address));
                (seat.socket, seat.owner) = (None, None);
                closed.push(seat.address);
            }
        }
        self.wake(&closed);
    }

    /// Where processes that other keepers look after serve.
    fn served_by_peers(&self) -> Vec<Address> {
        let vacant = |service, member| {
            self.seats.iter().any(|it| it.owner.is_none() && it.member == Some((service, member)))
        };
        // Only for a seat that is vacant it matters.
        if self.peers.is_none() || self.seats.iter().all(|seat| seat.owner.is_some()) {
            return Vec::new();
        }
        let statuses =
            self.made.iter().enumerate().filter_map(|it| Some((it.0, it.1.status().ok()?)));
        let members = statuses.flat_map(|(at, it)| it.members.into_iter().map(move |it| (at, it)));
        members
            .filter(|(service, it)| !vacant(*service, it.member) && it.state == MemberState::Active)
            // Another keeper's may be vacant as well.
            .filter(|(_, it)| std::path::Path::new(&format!("/proc/{}", it.pid)).exists())
            .map(|(_, it)| it.address)
            .collect()
    }

    /// Takes over the services of this name whose supervisor was killed, with the workers
    /// that still serve them; none where there are none. Where that fails they are left
    /// alone.
    pub(crate) fn take_over(
        &mut self,
        mut new_id: impl FnMut() -> InstanceId,
    ) -> overspill::Result<Vec<Left>> {
        let left = self.take_over_all(&mut new_id);
        if left.is_err() {
            self.made.clear();
            self.seats.clear();
        }
        left
    }

    fn take_over_all(
        &mut self,
        new_id: &mut impl FnMut() -> InstanceId,
    ) -> overspill::Result<Vec<Left>> {
        let mut left: Vec<Left> = Vec::new();
        for service in Service::all(&Namespace::current()?)? {
            let name = service.name().as_str();
            let base = name.split(':').next().unwrap_or_default();
            let own = [
                self.name.as_str().to_owned(),
                format!("{}-ipv4", self.name),
                format!("{}-ipv6", self.name),
            ];
            if !self.redirected || !own.iter().any(|own| own == base) {
                continue;
            }
            let status = service.status()?;
            let alive = |member: &&overspill::MemberStatus| member.state != MemberState::Gone;
            if !status.members.iter().any(|member| alive(&member)) {
                continue;
            }
            self.made.push(service);
            for member in &status.members {
                self.take_over_member(member, &mut left, new_id)?;
            }
            self.apply_rules(&self.made[self.made.len() - 1])?;
        }
        self.take_over_seatless(&mut left, new_id);
        Ok(left)
    }

    /// Adds those that had no seat any more, or none yet, when their supervisor, or one
    /// before it, was killed: they were leaving, or were to succeed others.
    fn take_over_seatless(&self, left: &mut Vec<Left>, new_id: &mut impl FnMut() -> InstanceId) {
        let run = left.first().and_then(|it| it.cgroup.parent());
        let Some(beside) = run.and_then(|run| run.parent()) else { return };
        let killed = |run: &Cgroup| {
            let pid = run.name().strip_prefix(&super::cgroup_prefix(&self.name));
            pid.and_then(|pid| pid.parse().ok()).is_some_and(|pid| Process::new(pid).is_err())
        };
        // One of that name in another network namespace is another one.
        let own = Namespace::current().ok();
        let is_here = |pid: &u32| Namespace::of_process(*pid).ok() == own;
        for run in beside.children().unwrap_or_default().iter().filter(|run| killed(run)) {
            let processes = run.processes().unwrap_or_default();
            if processes.is_empty() {
                let _ = run.remove();
            }
            if !processes.iter().all(is_here) {
                continue;
            }
            for cgroup in run.children().unwrap_or_default() {
                if left.iter().all(|known| known.cgroup != cgroup) {
                    left.push(Left { id: new_id(), cgroup, serves: false });
                }
            }
        }
    }

    fn take_over_member(
        &mut self,
        member: &overspill::MemberStatus,
        left: &mut Vec<Left>,
        new_id: &mut impl FnMut() -> InstanceId,
    ) -> overspill::Result<()> {
        let service = self.made.len() - 1;
        let gone = member.state == MemberState::Gone;
        let cgroup = if gone { None } else { worker_cgroup(member.pid, &self.name) };
        let Some(cgroup) = cgroup else {
            if gone {
                return self.made[service].leave(member.member);
            }
            // Not the work of a supervisor: overspill share has made it.
            return Err(Error::NameTaken { name: self.made[service].name().to_string() });
        };
        let worker = left.iter().position(|it| it.cgroup == cgroup).unwrap_or_else(|| {
            left.push(Left { id: new_id(), cgroup, serves: true });
            left.len() - 1
        });
        let sockets = overspill::adopt::fit_listeners(&[member.pid], member.address.port)?;
        let socket = sockets
            .into_iter()
            .find(|socket| socket.address().is_ok_and(|address| address == member.address));
        self.seats.push(Seat {
            worker,
            address: member.address,
            member: Some((service, member.member)),
            holder: socket.as_ref().map(|socket| (socket.pid(), socket.descriptor())),
            socket: socket.map(OwnedFd::from),
            owner: Some(left[worker].id),
        });
        Ok(())
    }

    /// Takes out the members of workers that there are to be no more.
    pub(crate) fn dismiss(&mut self, owner: InstanceId) {
        let (leaving, seats) =
            std::mem::take(&mut self.seats).into_iter().partition(|seat| seat.owner == Some(owner));
        self.seats = seats;
        let leaving: Vec<Seat> = leaving;
        for (service, member) in leaving.iter().filter_map(|seat| seat.member) {
            self.made[service].leave(member).unwrap_or_else(tell);
        }
        let addresses: Vec<Address> = leaving.iter().map(|seat| seat.address).collect();
        drop(leaving); // the kernel moves a queue when the last copy of its socket is closed
        self.wake(&addresses);
    }

    /// Notes which process serves a worker's sockets now.
    pub(crate) fn set_pid(&self, worker: usize, pid: u32) {
        self.each_member(worker, |service, member| service.set_pid(member, pid));
    }

    /// Counts a start of a worker, at each of its members that `overspill rm` has left.
    pub(crate) fn count_start(&self, worker: usize) {
        self.each_member(worker, |service, member| match service.count_start(member) {
            Err(Error::NoSuchService { .. } | Error::NoSuchMember { .. }) => Ok(()),
            result => result,
        });
    }

    /// Lets the members of exactly these workers drain.
    pub(crate) fn set_draining(&mut self, draining: Vec<bool>) {
        // Resumed before others drain, so that there is always one that takes requests.
        for drain in [false, true] {
            for (worker, &wanted) in draining.iter().enumerate() {
                if wanted == drain && wanted != self.draining[worker] {
                    self.each_member(worker, |service, member| {
                        if drain { service.drain(member) } else { service.resume(member) }
                    });
                }
            }
        }
        self.draining = draining;
    }

    /// Looks for members that hang, and helps those that wait for them.
    pub(crate) fn watch(&mut self) {
        self.watching.look(&self.made, &self.seats);
    }

    /// When to look again.
    pub(crate) fn next_look(&self, now: Instant) -> Option<Instant> {
        self.watching.next(&self.made, now)
    }

    /// Lets go of the sockets: each is now closed with its worker.
    pub(crate) fn close(&mut self) {
        for seat in &mut self.seats {
            seat.socket = None;
        }
    }

    /// Removes them all, and gives the first failure. One that is gone already, by
    /// `overspill rm`, is no failure.
    pub(crate) fn remove(&mut self) -> overspill::Result<()> {
        let mut result = Ok(());
        self.seats.clear();
        for service in self.made.drain(..) {
            match service.remove() {
                Ok(()) | Err(Error::NoSuchService { .. }) => {}
                failed => result = result.and(failed),
            }
        }
        result
    }

    /// Does something to a worker's members. What fails is told, no more: the worker serves
    /// its sockets either way.
    fn each_member(
        &self,
        worker: usize,
        act: impl Fn(&Service, MemberId) -> overspill::Result<()>,
    ) {
        let own = self.seats.iter().filter(|seat| seat.worker == worker);
        for (service, member) in own.filter_map(|seat| seat.member) {
            act(&self.made[service], member).unwrap_or_else(tell);
        }
    }
}

pub(super) fn tell(error: Error) {
    log::line(format_args!("{}", error::Error::from(error)));
}

/// Whether a process's descriptor is the socket with that inode number.
fn holds((pid, descriptor): (u32, i32), inode: u64) -> bool {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
    link.is_ok_and(|link| link.as_os_str() == format!("socket:[{inode}]").as_str())
}

/// A process's descriptor of the socket with that inode number.
fn descriptor_of(pid: u32, inode: u64) -> Option<i32> {
    let found = sockets_of(pid).into_iter().find(|&(_, own)| own == inode);
    found.map(|(descriptor, _)| descriptor)
}

fn no_descriptor(error: &std::io::Error) -> Error {
    Error::System {
        operation: "duplicate",
        object: "a socket".to_owned(),
        source: std::io::Error::from(error.kind()),
    }
}

/// The control group of a worker: the one that a supervisor of that name has made.
#[must_use]
pub fn worker_cgroup(pid: u32, name: &Name) -> Option<Cgroup> {
    let prefix = super::cgroup_prefix(name);
    let mut cgroup = Cgroup::of_process(pid).ok()?;
    loop {
        let parent = cgroup.parent()?;
        if parent.name().starts_with(&prefix) {
            return Some(cgroup);
        }
        cgroup = parent;
    }
}

/// Removes a service of that name that nobody serves any more: its supervisor was killed
/// and its workers ended. Any other keeps its name.
fn remove_gone(name: &Name) -> overspill::Result<()> {
    let old = match Service::open(name.as_str()) {
        Ok(old) => old,
        Err(Error::NoSuchService { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    if old.status()?.members.iter().any(|member| member.state != MemberState::Gone) {
        return Ok(());
    }
    log::line(format_args!("service {name} exists, but all its members are gone; making it anew"));
    old.remove()
}
