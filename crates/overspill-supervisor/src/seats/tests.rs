//! The seats in a world of its own: workers that come, listen, close and die at random, steps
//! that fail, others who change the services, and supervisors that are killed.

use std::collections::{BTreeMap, BTreeSet};

use overspill::{Address, Families};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

const WORKERS: usize = 3;
/// How long a worker that has started is waited for.
const NEW: Duration = Duration::from_secs(10);

fn address(number: u8) -> Address {
    let families = Families { ipv4: true, ipv6: false };
    Address { ip: [10, 0, 0, 1 + number % 2].into(), port: 80 + u16::from(number / 2), families }
}

/// A socket, in the kernel.
#[derive(Debug, Clone)]
struct Socket {
    address: Address,
    /// The process that holds it, besides the supervisor with its copy.
    holder: Option<InstanceId>,
}

/// A process of a worker.
#[derive(Debug, Clone)]
struct Process {
    worker: usize,
    started: Instant,
    /// It is the one that serves.
    current: bool,
}

/// What there is, and the supervisor in it.
struct World {
    random: StdRng,
    now: Instant,
    sockets: BTreeMap<u64, Socket>,
    processes: BTreeMap<InstanceId, Process>,
    /// Members by service: one for each port.
    services: BTreeMap<ServiceNumber, BTreeMap<MemberId, u64>>,
    next: u64,
    ids: InstanceId,
    seats: Seats,
    copies: BTreeSet<u64>,
    /// Members that get no new requests, and whether each worker's are to.
    draining: BTreeSet<MemberId>,
    drains: [Option<bool>; WORKERS],
    /// Steps fail.
    trouble: bool,
    /// The numbers that a supervisor gives to services, by port.
    steps: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            now: Instant::now(),
            sockets: BTreeMap::new(),
            processes: BTreeMap::new(),
            services: BTreeMap::new(),
            next: 1,
            ids: InstanceId::default(),
            seats: Seats::default(),
            copies: BTreeSet::new(),
            draining: BTreeSet::new(),
            drains: [None; WORKERS],
            trouble: false,
            steps: 0,
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What happens to workers and services, one thing at a time.
    fn happens(&mut self) {
        self.steps += 1;
        match self.random.random_range(0..22) {
            0..5 => self.starts(),
            5..9 => self.listens(),
            9 => self.closes(),
            10 | 11 => self.dies(),
            12 => self.is_replaced(),
            13 => self.inherits(),
            14 => self.taken_out(),
            15 => self.supervisor_dies(),
            16 => self.trouble = !self.trouble,
            17 => self.waits(),
            18 => self.is_drained(),
            _ => self.now += Duration::from_millis(self.random.random_range(1..3000)),
        }
    }

    fn starts(&mut self) {
        let worker = self.random.random_range(0..WORKERS);
        if self.current(worker).is_none() {
            let id = self.ids.take();
            self.processes.insert(id, Process { worker, started: self.now, current: true });
        }
    }

    fn current(&self, worker: usize) -> Option<InstanceId> {
        let mut all = self.processes.iter();
        all.find(|(_, it)| it.worker == worker && it.current).map(|(&id, _)| id)
    }

    fn any_process(&mut self) -> Option<InstanceId> {
        let ids: Vec<InstanceId> = self.processes.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.random.random_range(0..ids.len())])
    }

    fn listens(&mut self) {
        let Some(holder) = self.any_process() else { return };
        let address = address(self.random.random_range(0..4));
        let has = |it: &Socket| it.holder == Some(holder) && it.address == address;
        if !self.sockets.values().any(has) {
            let cookie = self.fresh();
            self.sockets.insert(cookie, Socket { address, holder: Some(holder) });
        }
    }

    fn closes(&mut self) {
        let held: Vec<u64> =
            self.sockets.iter().filter(|it| it.1.holder.is_some()).map(|it| *it.0).collect();
        if !held.is_empty() {
            let cookie = held[self.random.random_range(0..held.len())];
            self.sockets.get_mut(&cookie).unwrap().holder = None;
            self.bury();
        }
    }

    fn dies(&mut self) {
        let Some(id) = self.any_process() else { return };
        self.processes.remove(&id);
        for socket in self.sockets.values_mut().filter(|it| it.holder == Some(id)) {
            socket.holder = None;
        }
        self.bury();
    }

    /// A successor has come up: its predecessor serves no more, and drains.
    fn is_replaced(&mut self) {
        let worker = self.random.random_range(0..WORKERS);
        let Some(old) = self.current(worker) else { return };
        self.processes.get_mut(&old).unwrap().current = false;
        let id = self.ids.take();
        self.processes.insert(id, Process { worker, started: self.now, current: true });
        let addresses: BTreeSet<u16> = self
            .sockets
            .values()
            .filter(|it| it.holder == Some(old))
            .map(|it| it.address.port)
            .collect();
        for socket in self.sockets.clone().into_values().filter(|it| it.holder == Some(old)) {
            let cookie = self.fresh();
            let socket = Socket { address: socket.address, holder: Some(id) };
            self.sockets.insert(cookie, socket);
        }
        drop(addresses);
    }

    /// A process hands its sockets to a child, and ends.
    fn inherits(&mut self) {
        let Some(old) = self.any_process() else { return };
        let process = self.processes.remove(&old).unwrap();
        let id = self.ids.take();
        self.processes.insert(id, process);
        for socket in self.sockets.values_mut().filter(|it| it.holder == Some(old)) {
            socket.holder = Some(id);
        }
    }

    /// Somebody removes a service by hand.
    fn taken_out(&mut self) {
        let all: Vec<ServiceNumber> = self.services.keys().copied().collect();
        if !all.is_empty() && self.random.random_bool(0.3) {
            let service = all[self.random.random_range(0..all.len())];
            self.services.insert(service, BTreeMap::new());
        }
    }

    /// Whether a worker waits for its start changes.
    fn waits(&mut self) {
        let worker = self.random.random_range(0..WORKERS);
        let drains = [None, Some(false), Some(true)];
        self.drains[worker] = drains[self.random.random_range(0..drains.len())];
    }

    /// Somebody drains a member by hand, or resumes it.
    fn is_drained(&mut self) {
        let all: Vec<MemberId> =
            self.services.values().flat_map(|members| members.keys().copied()).collect();
        if !all.is_empty() {
            let id = all[self.random.random_range(0..all.len())];
            if !self.draining.remove(&id) {
                self.draining.insert(id);
            }
        }
    }

    /// The next supervisor knows nothing, and has no copy.
    fn supervisor_dies(&mut self) {
        self.seats = Seats::default();
        self.copies.clear();
        self.bury();
    }

    /// A socket that nobody holds is gone.
    fn bury(&mut self) {
        let copies = &self.copies;
        self.sockets.retain(|cookie, it| it.holder.is_some() || copies.contains(cookie));
    }

    fn listing(&self) -> Listing {
        let listed = |(&id, &cookie): (&MemberId, &u64)| {
            let socket = self.sockets.get(&cookie);
            let known = self.seats.by_cookie(cookie).map(|seat| seat.address);
            Listed {
                id,
                cookie,
                address: socket.map(|it| it.address).or(known).unwrap_or(address(0)),
                pid: 1,
                gone: socket.is_none(),
                draining: self.draining.contains(&id),
                served: socket.is_some_and(|it| it.holder.is_some()),
            }
        };
        let all = self.services.iter();
        all.map(|(&number, members)| (number, members.iter().map(listed).collect())).collect()
    }

    /// Looks, and looks again as long as something was done.
    fn looks(&mut self) {
        const ENOUGH: usize = 8;
        let looks = (0..ENOUGH).take_while(|_| self.looks_once()).count();
        assert!(looks < ENOUGH, "it goes round in circles: {:#?}", self.seats);
    }

    /// One look, and what follows from it. Whether anything was done.
    fn looks_once(&mut self) -> bool {
        let present: Vec<Present> = self
            .sockets
            .iter()
            .filter_map(|(&cookie, socket)| {
                let owner = socket.holder?;
                let process = self.processes.get(&owner).filter(|it| it.current)?;
                let (address, worker) = (socket.address, process.worker);
                Some(Present { cookie, address, worker, owner, pid: 1 })
            })
            .collect();
        let (processes, now, drains) = (self.processes.clone(), self.now, self.drains);
        let awaited = |worker: usize| {
            let current = processes.values().find(|it| it.worker == worker && it.current);
            current.is_none_or(|it| now < it.started + NEW)
        };
        let leaves = |it: &&Socket| {
            let process = it.holder.and_then(|holder| self.processes.get(&holder));
            process.is_some_and(|it| !it.current)
        };
        let leaving = self.sockets.iter().filter(|it| leaves(&it.1)).map(|it| *it.0);
        let leaving: Vec<u64> = leaving.collect();
        let around = Around {
            awaited: &awaited,
            dismissed: &|_| false,
            leaving: &leaving,
            peers: false,
            drains: &|worker| drains[worker],
            noted_is_new: true,
        };
        let listing = self.listing();
        let actions = self.seats.decide(self.now, &present, &listing, &around);
        let acted = !actions.is_empty();
        for action in actions {
            let fails = self.trouble && self.random.random_bool(0.7);
            let result = if fails { Err("it fails".to_owned()) } else { self.acts(action) };
            self.seats.done(self.now, action, result);
        }
        let seats = &self.seats;
        self.copies = seats.all().iter().filter(|it| it.kept).map(|it| it.cookie).collect();
        self.bury();
        acted
    }

    fn acts(&mut self, action: Action) -> Result<Option<Member>, String> {
        match action {
            Action::Join { cookie } => {
                let port = self.sockets.get(&cookie).ok_or("closed")?.address.port;
                let taken = self.services.values().any(|it| it.values().any(|it| *it == cookie));
                assert!(!taken, "a socket is a member once");
                let id = MemberId(u32::try_from(self.fresh()).unwrap());
                self.services.entry(port.into()).or_default().insert(id, cookie);
                Ok(Some(Member { service: port.into(), id }))
            }
            Action::Succeed { cookie, member } => {
                let port = self.sockets.get(&cookie).ok_or("closed")?.address.port;
                assert_eq!(usize::from(port), member.service);
                let place =
                    self.services.get_mut(&member.service).and_then(|it| it.get_mut(&member.id));
                *place.ok_or("no such member")? = cookie;
                Ok(Some(member))
            }
            Action::Leave { member } => {
                if let Some(service) = self.services.get_mut(&member.service) {
                    service.remove(&member.id);
                }
                Ok(None)
            }
            Action::Drain { member, drain } => {
                if drain {
                    self.draining.insert(member.id);
                } else {
                    self.draining.remove(&member.id);
                }
                Ok(None)
            }
            Action::Release { .. } | Action::Note { .. } => Ok(None),
        }
    }

    /// Nothing happens for a while, and nothing fails.
    fn is_quiet(&mut self, seconds: u64) {
        self.trouble = false;
        for _ in 0..seconds {
            self.looks();
            self.now += Duration::from_secs(1);
        }
    }

    /// What is promised to hold a second after an obstacle has ended.
    fn serves_all(&self) {
        let members: BTreeMap<u64, Member> = self
            .services
            .iter()
            .flat_map(|(&service, all)| {
                all.iter().map(move |(&id, &cookie)| (cookie, Member { service, id }))
            })
            .collect();
        for (cookie, socket) in &self.sockets {
            let process = socket.holder.and_then(|holder| self.processes.get(&holder));
            match process {
                Some(process) if process.current => {
                    assert!(members.contains_key(cookie), "{cookie} of {socket:?} is no member");
                }
                // It drains.
                Some(_) => assert!(!members.contains_key(cookie), "{cookie} is a member still"),
                None => {
                    let serves = |it: &Socket| {
                        let process = it.holder.and_then(|holder| self.processes.get(&holder));
                        it.address == socket.address && process.is_some_and(|it| it.current)
                    };
                    assert!(
                        !self.sockets.values().any(serves),
                        "a copy of {cookie} is kept beside one that serves: {:#?}\n{:?}\n{:?}",
                        self.seats,
                        self.sockets,
                        self.processes
                    );
                }
            }
        }
        for seat in self.seats.all() {
            if let (Some(member), Some(drains)) = (seat.member, self.drains[seat.worker]) {
                assert_eq!(self.draining.contains(&member.id), drains, "{seat:?}");
            }
        }
        for (cookie, member) in &members {
            let seat = self.seats.by_cookie(*cookie);
            assert!(
                self.sockets.contains_key(cookie) || seat.is_some(),
                "{member:?} is gone, and nobody's seat"
            );
        }
    }

    /// What is promised once nobody is awaited any more.
    fn keeps_nothing(&self) {
        for seat in self.seats.all() {
            let worker = self.current(seat.worker);
            assert!(seat.owner.is_some() || worker.is_none(), "{seat:?}");
        }
    }
}

fn history(seed: u64, steps: usize) {
    let mut world = World::new(seed);
    while world.steps < steps {
        for _ in 0..world.random.random_range(1..12) {
            world.happens();
            if world.random.random_bool(0.6) {
                world.looks();
            }
        }
        world.is_quiet(3);
        world.serves_all();
        if world.random.random_bool(0.2) {
            world.is_quiet(NEW.as_secs() + 3);
            world.serves_all();
            world.keeps_nothing();
        }
    }
}

/// A million steps.
#[test]
fn whatever_happens_live_workers_are_served() {
    const HISTORIES: u64 = 1000;
    for seed in 0..HISTORIES {
        let run = std::panic::catch_unwind(|| history(seed, 1000));
        if let Err(panic) = run {
            eprintln!("the history of seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
