//! What a decision costs.
//!
//! Two ways to measure it. *request*: real connections over loopback; the kernel's
//! run-time statistics tell what the attached program took for each. Caches are as a
//! request finds them, and the figure includes the reading of the clock. *test run*: the
//! kernel runs the program many times with the same context (`BPF_PROG_TEST_RUN`), caches
//! warm and without the clock: what the instructions cost. Nothing is subtracted from
//! either.
//!
//! One flow, whose client port never changes, calls one member. The states:
//! *empty*: nothing is queued; *full*: the called member is full, the others are empty, and
//! the request is redirected; *crowd*: the called member is full and every other one holds
//! the same, so that a scan for the shortest can't end early; *even*: every member holds
//! the same and has room.

use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::Program;
use overspill::trace::{Filter, Outcome, Trace};
use overspill::{Change, Namespace, Policy, Status};

use crate::client;
use crate::contestant::{Contestant, Group, Layout, UNSERVED_BOUND, listen};
use crate::peer::{Peer, Peers};
use crate::plan::Plan;
use crate::ready::Ready;
use crate::sample::{Case, Samples};
use crate::sys;

pub(crate) const SUBJECT: &str = "decision";
pub(crate) const COST: &str = "cost (ns)";
pub(crate) const REQUEST: &str = "request";
pub(crate) const TEST_RUN: &str = "test run";
pub(crate) const UNSERVED: &str = "unserved port";
pub(crate) const STATES: [&str; 4] = ["empty", "full", "crowd", "even"];
pub(crate) const LAYOUTS: [Layout; 2] = [Layout::One, Layout::Own];
const BACKLOG: u32 = 16;
/// Where the one flow comes from.
const CLIENT: SocketAddr = SocketAddr::new(client::ADDRESS, 40_000);

/// Who traces while `next-available` decides; a request is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracer {
    /// Who is told of every request, and reads.
    Reads,
    /// Who is told of every request, and does not read: its ring buffer is full.
    IsSlow,
    /// Who is told only of what is dropped.
    Filters,
}

impl Tracer {
    pub(crate) const ALL: [Self; 3] = [Self::Filters, Self::Reads, Self::IsSlow];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reads => "next-available, each request traced",
            Self::IsSlow => "next-available, traced into a full buffer",
            Self::Filters => "next-available, drops traced",
        }
    }

    fn begin(self) -> Result<Trace> {
        let outcomes = if self == Self::Filters { vec![Outcome::Dropped] } else { Vec::new() };
        Ok(Trace::begin(&Namespace::current()?, &Filter { service: None, outcomes })?)
    }
}

/// Every policy; `dispatcher` with a program that answers its first candidate.
pub(crate) fn policies() -> impl Iterator<Item = Policy> {
    Policy::ALL.into_iter().chain([Policy::Dispatcher])
}

pub(crate) fn case(
    contestant: &'static str,
    members: u32,
    layout: Layout,
    state: &'static str,
    way: &'static str,
) -> Case {
    let layout = layout.name();
    Case { subject: SUBJECT, contestant, members, layout, state, way, ..Case::default() }
}

/// All is made anew for each round: where in memory its maps come to lie makes more of a
/// difference to a program than most of what is done in one.
pub(crate) fn measure(plan: &Plan, samples: &mut Samples) -> Result<()> {
    for &members in plan.decision_sizes {
        for layout in LAYOUTS {
            for round in 0..plan.decision_rounds {
                let mut memory = MaybeUninit::uninit();
                let peers = Peers::new(&mut memory, BACKLOG)?;
                let mut scene = Scene::new(plan, &peers, members, layout)?;
                for state in STATES {
                    let place = || format!("{members} members, {}, {state}", layout.name());
                    scene.prepare(state).with_context(place)?;
                    scene.round(state, round, samples).with_context(place)?;
                }
                scene.group.remove()?;
            }
        }
    }
    Ok(())
}

/// A service of one size and layout, and the peers beside it.
struct Scene<'a> {
    plan: &'a Plan,
    peers: &'a Peers<'a>,
    peers_ready: Ready,
    members: u32,
    layout: Layout,
    group: Group,
    ready: Ready,
    program: OwnedFd,
    /// The member that the flow calls.
    called: usize,
}

impl<'a> Scene<'a> {
    fn new(plan: &'a Plan, peers: &'a Peers<'a>, members: u32, layout: Layout) -> Result<Self> {
        let contestant = Contestant::Overspill(Policy::NextAvailable);
        let mut group = Group::new(contestant, layout, members, BACKLOG)?;
        let path = group.program().context("a service has a program")?;
        let program = group.arena.inside(|| Ok(Program::fd_from_pinned_path(path)?))?;
        group.listeners.push(group.arena.inside(|| listen(UNSERVED_BOUND, BACKLOG))?);
        let ready = Ready::new(&group.listeners)?;
        let called = group.arena.inside(|| {
            let client = client::connect(Some(CLIENT), layout.called(0))?;
            let called = ready.accept(&group.listeners)?;
            drop(client);
            Ok(called)
        })?;
        let service = group.service.as_ref().context("a service")?;
        let placed = group.arena.inside(|| Ok(service.status()?.requests.placed))?;
        ensure!(placed == 1, "{members} members, {}: not placed by overspill", layout.name());
        let peers_ready = Ready::new(&peers.listeners)?;
        Ok(Self { plan, peers, peers_ready, members, layout, group, ready, program, called })
    }

    /// Fills queues on; the states come in their order.
    fn prepare(&mut self, state: &str) -> Result<()> {
        match state {
            "full" => {
                self.set_policy(Policy::NextAvailable)?;
                self.queue(self.layout.called(0))?;
                self.set_backlog(0)?;
                self.check(|queued, called| queued == u32::from(called))
            }
            "crowd" => {
                self.set_policy(Policy::ShortestQueue)?;
                for n in 1..self.members {
                    self.queue(self.layout.called(n))?;
                }
                self.check(|queued, _| queued == 1)
            }
            "even" => self.set_backlog(BACKLOG),
            _ => self.check(|queued, _| queued == 0),
        }
    }

    /// Leaves a connection in the queue of a member. It ends at once and stays there.
    fn queue(&self, called: SocketAddr) -> Result<()> {
        self.group.arena.inside(|| {
            drop(client::connect(Some(CLIENT), called)?);
            self.ready.wait()?;
            Ok(())
        })
    }

    fn set_backlog(&self, backlog: u32) -> Result<()> {
        let listener = &self.group.listeners[self.called];
        Ok(rustix::net::listen(listener, i32::try_from(backlog)?)?)
    }

    fn set_policy(&self, policy: Policy) -> Result<()> {
        let service = self.group.service.as_ref().expect("a service");
        let first = || concat!(env!("OUT_DIR"), "/first.bpf.o").into();
        let dispatcher = (policy == Policy::Dispatcher).then(first);
        let change = Change { policy: Some(policy), dispatcher, ..Change::default() };
        self.group.arena.inside(|| Ok(service.set(&change)?))
    }

    /// That the queues are what the state promises.
    fn check(&self, expected: impl Fn(u32, bool) -> bool) -> Result<()> {
        let service = self.group.service.as_ref().expect("a service");
        let status: Status = self.group.arena.inside(|| Ok(service.status()?))?;
        for (n, member) in status.members.iter().enumerate() {
            let queued = member.queued;
            ensure!(expected(queued, n == self.called), "member {n} holds {queued}");
        }
        Ok(())
    }

    /// Every contestant once, in both ways.
    fn round(&self, state: &'static str, round: u32, samples: &mut Samples) -> Result<()> {
        let mut add = |contestant, state, [test_run, request]: [f64; 2]| {
            let case = |way| case(contestant, self.members, self.layout, state, way);
            samples.add(case(TEST_RUN), round, COST, test_run);
            samples.add(case(REQUEST), round, COST, request);
        };
        let called = self.layout.called(0);
        let unserved = SocketAddr::new(called.ip(), UNSERVED_BOUND.port());
        for policy in policies() {
            // With a single member that is full, nothing is left to choose from.
            if self.members > 1 || !matches!(state, "full" | "crowd") {
                self.set_policy(policy)?;
                add(policy.name(), state, self.cost(called)?);
            }
        }
        if state == "empty" {
            self.set_policy(Policy::NextAvailable)?;
            for tracer in Tracer::ALL {
                add(tracer.name(), state, self.traced_cost(tracer, called)?);
            }
        }
        for peer in Peer::ALL {
            add(peer.name(), state, self.peer_cost(peer, called)?);
        }
        if state == "empty" {
            add("overspill", UNSERVED, self.cost(unserved)?);
            for peer in Peer::ALL {
                add(peer.name(), UNSERVED, self.peer_cost(peer, unserved)?);
            }
        }
        Ok(())
    }

    /// The cost by test run and by request, in nanoseconds.
    fn cost(&self, called: SocketAddr) -> Result<[f64; 2]> {
        let program = self.program.as_fd();
        self.group.arena.inside(|| {
            world::pin_to_cpu(0);
            let flow = Flow { called, listeners: &self.group.listeners, ready: &self.ready };
            Ok([flow.test_run(program, self.plan)?, flow.requests(program, self.plan)?])
        })
    }

    /// The same, while somebody traces.
    fn traced_cost(&self, tracer: Tracer, called: SocketAddr) -> Result<[f64; 2]> {
        /// What a ring buffer has room for, at least.
        const ROOM: u32 = 4_000;
        let program = self.program.as_fd();
        self.group.arena.inside(|| {
            world::pin_to_cpu(0);
            let flow = Flow { called, listeners: &self.group.listeners, ready: &self.ready };
            let context = context(CLIENT, called);
            let trace = tracer.begin()?;
            sys::test_run(program, &context, if tracer == Tracer::IsSlow { 2 * ROOM } else { 16 })?;
            let read = || -> Result<()> {
                while tracer == Tracer::Reads && !trace.wait(Duration::ZERO)?.is_empty() {}
                Ok(())
            };
            read()?;
            let test_run = sys::test_run(program, &context, ROOM / 2)?.into();
            read()?;
            let lost = trace.lost();
            let requests = flow.requests(program, self.plan)?;
            ensure!((trace.lost() > lost) == (tracer == Tracer::IsSlow), "{}", tracer.name());
            Ok([test_run, requests])
        })
    }

    fn peer_cost(&self, peer: Peer, called: SocketAddr) -> Result<[f64; 2]> {
        let program = self.peers.program(peer);
        let _link = self.peers.attach(peer)?;
        self.peers.arena.inside(|| {
            world::pin_to_cpu(0);
            let flow = Flow { called, listeners: &self.peers.listeners, ready: &self.peers_ready };
            Ok([flow.test_run(program, self.plan)?, flow.requests(program, self.plan)?])
        })
    }
}

/// The one flow, within an arena.
struct Flow<'a> {
    called: SocketAddr,
    listeners: &'a [TcpListener],
    ready: &'a Ready,
}

impl Flow<'_> {
    fn test_run(&self, program: BorrowedFd<'_>, plan: &Plan) -> Result<f64> {
        let context = context(CLIENT, self.called);
        // The first runs find members' sockets and fill the caches.
        let once = sys::test_run(program, &context, 16)?.max(1);
        let wanted = plan.decision_repeat.as_nanos() / u128::from(once);
        let repeat = u32::try_from(wanted)?.max(16);
        Ok(sys::test_run(program, &context, repeat)?.into())
    }

    fn requests(&self, program: BorrowedFd<'_>, plan: &Plan) -> Result<f64> {
        let _kept = sys::enable_statistics()?;
        let before = sys::run_time(program)?;
        for _ in 0..plan.decision_requests {
            let client = client::connect(Some(CLIENT), self.called)?;
            self.ready.accept(self.listeners)?;
            drop(client);
        }
        let after = sys::run_time(program)?;
        let runs = after.runs - before.runs;
        ensure!(runs >= plan.decision_requests.into(), "the program ran {runs} times only");
        Ok((after.nanoseconds - before.nanoseconds) as f64 / runs as f64)
    }
}

/// `struct bpf_sk_lookup` of a TCP request over IPv4.
fn context(client: SocketAddr, called: SocketAddr) -> Vec<u8> {
    const AF_INET: u32 = 2;
    const TCP: u32 = 6;
    let word = |address: SocketAddr| match address {
        SocketAddr::V4(address) => u32::from_ne_bytes(address.ip().octets()),
        SocketAddr::V6(_) => unreachable!("the arenas' clients use IPv4"),
    };
    let mut words = [0_u32; 18];
    words[2] = AF_INET;
    words[3] = TCP;
    words[4] = word(client);
    words[9] = u32::from(client.port().to_be()); // remote_port, in network order
    words[10] = word(called);
    words[15] = called.port().into(); // local_port, in host order
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}
