//! Looking at what is: the sockets that workers hold become members, and stay so.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use overspill::Address;
use overspill::adopt::Adopted;

use crate::error::Result;
use crate::hand::Report;
use crate::instance::Instance;
use crate::instance_id::InstanceId;
use crate::log;
use crate::membership::{APART, LOOK};
use crate::seats::{Around, Present, Seat, listed};
use crate::sight::{Group, Held, Sight};
use crate::supervisor::{Leaving, Phase, Supervisor};

/// How often to look until all workers listen.
const BEGINNING: Duration = Duration::from_millis(50);
/// At the first start, how long the sockets of workers wait for those of workers with lower
/// numbers, so that worker N is member N.
const IN_ORDER: Duration = Duration::from_secs(1);
/// How long a worker listens nowhere until it is clear that it does not just listen anew.
const CLOSED: Duration = Duration::from_millis(500);
/// How long a worker that has started may take until it is clear where it listens.
const SETTLED: Duration = Duration::from_secs(10);

impl Supervisor {
    /// When to look, if nothing happens.
    pub(crate) fn next_sight(&self, now: Instant) -> Instant {
        let Some(looked) = self.members.looks.last else { return now };
        let sooner = match () {
            () if self.members.looks.hinted => looked + APART,
            // Those that have to wait for others do not wait for a hint.
            () if !self.begun => looked + BEGINNING,
            () => looked + LOOK,
        };
        let closed = self.instances.iter().filter(|it| self.serves(it)).filter_map(|it| it.closed);
        let closed = closed.map(|since| since + CLOSED).filter(|&at| at > looked);
        let sooner = closed.fold(sooner, Instant::min);
        let again = self.members.seats.next_attempt().filter(|_| !self.members.busy);
        again.map_or(sooner, |at| sooner.min(at.max(looked + APART)))
    }

    /// Looks, if it is time to, and does what follows from it.
    pub(crate) fn look(&mut self, now: Instant) {
        if now < self.next_sight(now) {
            return;
        }
        self.members.looks.begin(now);
        self.relay.tend();
        // What can't be seen now is seen later: nothing follows from it.
        let Some(fresh) = self.see(now) else { return };
        self.tell_alone(&fresh);
        self.succeed_closed(now);
        self.take_back();
        self.dismiss_strays();
        if !self.redirected {
            // Without a service a socket is the worker's own affair, as without overspill.
            self.tell_listening(&fresh);
            self.note_begun();
            return;
        }
        self.members.keep(fresh);
        if self.members.can_decide() {
            self.decide(now);
            self.members.give_job();
        }
        self.drop_copies();
    }

    /// Sees who holds what.
    fn see(&mut self, now: Instant) -> Option<Vec<Adopted>> {
        if self.plan.hands_over() {
            return Some(self.see_own());
        }
        let groups: Option<Vec<Group>> = self.instances.iter().map(Instance::group_now).collect();
        let (held, fresh) = self.members.sight.look(now, &groups?)?;
        for instance in &mut self.instances {
            let mut own = held.iter().filter(|it| it.owner == instance.id).peekable();
            instance.listened |= own.peek().is_some();
            if instance.listened && instance.listens_since.is_none() {
                instance.listens_since = Some(now);
            }
            let own: Vec<&Held> = own.collect();
            instance.ports.extend(own.iter().map(|it| it.address.port));
            let holds: Vec<Address> =
                own.into_iter().filter(|it| it.shares_port).map(|it| it.address).collect();
            instance.closed = match instance.closed {
                _ if !holds.is_empty() => None,
                None if !instance.holds.is_empty() => Some(now),
                since => since,
            };
            instance.holds = holds;
        }
        self.held = held;
        Some(fresh)
    }

    /// A worker that has closed all its sockets finishes what it has, and ends: its successor is
    /// started at once, and gets what comes meanwhile.
    fn succeed_closed(&mut self, now: Instant) {
        let replaced = self.restart.as_ref().and_then(|restart| restart.step);
        let is_closed = |it: &&Instance| {
            self.serves(it)
                && it.closed.is_some_and(|since| now >= since + CLOSED)
                && replaced.is_none_or(|step| step.worker != it.worker)
        };
        let closed = self.instances.iter().filter(is_closed);
        for (id, worker) in closed.map(|it| (it.id, it.worker)).collect::<Vec<_>>() {
            let told = self.instance(id).to_string();
            let pause = log::after(self.crew.server_ended(worker, now));
            log::line(format_args!("{told} has closed its sockets; next start {pause}"));
            self.current[worker] = None;
            // One of each worker takes what time it wants.
            let finishing = |it: &&Leaving| matches!(it.phase, Phase::Finishes);
            let before = self.leaving.iter().filter(finishing).map(|it| it.id);
            let before: Vec<InstanceId> =
                before.filter(|&id| self.find(id).is_some_and(|it| it.worker == worker)).collect();
            for id in before {
                self.take_leave(id);
            }
            self.leaving.push(Leaving { id, phase: Phase::Finishes, until: None, look: now });
        }
    }

    /// A worker that has closed its sockets and listens again serves on, if its successor does not
    /// yet; otherwise it is one too many.
    fn take_back(&mut self) {
        let finishes = |it: &&Leaving| matches!(it.phase, Phase::Finishes);
        let finishing: Vec<InstanceId> =
            self.leaving.iter().filter(finishes).map(|it| it.id).collect();
        for id in finishing {
            let Some(it) = self.find(id).filter(|it| !it.holds.is_empty()) else { continue };
            let worker = it.worker;
            let successor = self.current[worker].and_then(|id| self.find(id));
            if successor.is_some_and(|it| it.listened) {
                self.take_leave(id);
                continue;
            }
            let successor = successor.map(|it| it.id);
            self.leaving.retain(|it| it.id != id);
            self.current[worker] = Some(id);
            self.crew.started(worker, Instant::now());
            if let Some(successor) = successor {
                self.take_leave(successor);
            }
        }
    }

    /// Nobody runs that is not known to serve, to come or to leave.
    fn dismiss_strays(&mut self) {
        let step = self.restart.as_ref().and_then(|restart| restart.step);
        let known = |it: &&Instance| {
            self.serves(it)
                || self.leaving.iter().any(|leaving| leaving.id == it.id)
                || step.is_some_and(|step| step.successor == it.id || step.old == it.id)
                || it.believed.is_some()
        };
        let strays = self.instances.iter().filter(|it| !known(it)).map(|it| it.id);
        strays.collect::<Vec<_>>().into_iter().for_each(|id| self.take_leave(id));
    }

    /// The process that goes on with the sockets of an instance whose first process has ended as
    /// it should: servers replace their own binary in this way.
    pub(crate) fn heir(&mut self, id: InstanceId) -> Option<u32> {
        if self.plan.hands_over() || !self.instance_opt(id)?.ended_well() {
            return None;
        }
        let group = self.find(id)?.group_now()?;
        let (held, _) = Sight::default().look(Instant::now(), &[group])?;
        held.iter().find(|it| it.shares_port).map(|it| it.pid)
    }

    /// Of sockets that are handed over every worker has its own, whether it runs or not.
    fn see_own(&mut self) -> Vec<Adopted> {
        let pids: HashMap<usize, u32> = self
            .instances
            .iter()
            .filter(|it| self.serves(it))
            .map(|it| (it.worker, it.pid()))
            .collect();
        let (held, fresh) =
            self.sockets.held(&pids, |cookie| self.members.copies.contains_key(&cookie));
        self.held = held;
        fresh
    }

    /// The sockets that are to be members.
    fn present(&self, now: Instant) -> Vec<Present> {
        let worker = |owner: InstanceId| {
            if self.plan.hands_over() {
                return owner.worker(self.plan.workers);
            }
            self.find(owner).filter(|it| self.serves(it)).map(|it| it.worker)
        };
        let present = |it: &Held| {
            let Held { owner, pid, cookie, address, .. } = *it;
            Some(Present { cookie, address, worker: worker(owner)?, owner, pid })
        };
        let joins = |it: &&Held| {
            it.shares_port || self.plan.hands_over() || self.members.given.has(it.cookie)
        };
        let held = self.held.iter().filter(joins);
        let mut present: Vec<Present> =
            held.filter_map(present).filter(|it| self.is_in_order(now, it)).collect();
        // Services are made in the order in which a worker opens its sockets, and members join in
        // that of the workers.
        let mut first: HashMap<Address, i32> = HashMap::new();
        for it in &self.held {
            let first = first.entry(it.address).or_insert(it.descriptor);
            *first = it.descriptor.min(*first);
        }
        present.sort_by_key(|it| (first[&it.address], it.worker));
        present
    }

    fn tell_listening(&self, sockets: &[Adopted]) {
        let told = sockets.iter().filter(|socket| !self.plan.hands_over() && socket.shares_port());
        for cookie in told.filter_map(|socket| socket.cookie().ok()) {
            let Some(it) = self.held.iter().find(|it| it.cookie == cookie) else { continue };
            if let Some(instance) = self.find(it.owner) {
                log::line(format_args!("{instance} listens on {}", it.address));
            }
        }
    }

    /// At the first start workers join in the order of their numbers, if that takes no long wait.
    fn is_in_order(&self, now: Instant, own: &Present) -> bool {
        let listens = |id: &Option<InstanceId>| {
            let instance = id.and_then(|id| self.find(id));
            instance.is_none_or(|it| it.holds.iter().any(|at| at.port == own.address.port))
        };
        let since = self.current[own.worker].and_then(|id| self.find(id)?.listens_since);
        self.begun
            || self.plan.hands_over()
            || self.members.seats.by_cookie(own.cookie).is_some()
            || self.current[..own.worker].iter().all(listens)
            || since.is_some_and(|since| now >= since + IN_ORDER)
    }

    fn decide(&mut self, now: Instant) {
        let present = self.present(now);
        let drains = self.drains(now);
        let (current, instances) = (&self.current, &self.instances);
        let hands_over = self.plan.hands_over();
        // A worker that has just started may still come to listen where its predecessor did.
        let is_new = |id: InstanceId| {
            let instance = instances.iter().find(|it| it.id == id);
            instance.is_none_or(|it| it.started.elapsed() < SETTLED)
        };
        let awaited = |worker: usize| {
            hands_over || current.get(worker).is_some_and(|id| id.is_none_or(is_new))
        };
        let dismissed = |worker: usize| worker >= current.len();
        let is_leaving = |it: &&Held| {
            let holder = instances.iter().find(|instance| instance.id == it.owner);
            holder.is_some_and(|it| current.get(it.worker) != Some(&Some(it.id)))
        };
        let leaving: Vec<u64> = self.held.iter().filter(is_leaving).map(|it| it.cookie).collect();
        let around = Around {
            awaited: &awaited,
            dismissed: &dismissed,
            leaving: &leaving,
            peers: false,
            drains: &|worker| drains.get(worker).copied().flatten(),
            noted_is_new: hands_over,
        };
        self.members.decide(now, &present, &around);
    }

    /// Whether the members of each worker are to drain: those of workers that wait, where the
    /// sockets are handed over. Elsewhere a worker that waits has no socket that takes requests.
    /// Nothing is said of one that a person lets drain.
    fn drains(&mut self, now: Instant) -> Vec<Option<bool>> {
        if !self.plan.hands_over() {
            return Vec::new();
        }
        let listing = &self.members.listing;
        let is_drained = |seat: &Seat| listed(listing, seat.member?).map(|it| it.draining);
        let seats = self.members.seats.all();
        let is_drained = |worker: usize| {
            let own = seats.iter().filter(|seat| seat.worker == worker);
            own.filter_map(is_drained).any(|it| it)
        };
        let wanted = self.crew.draining(now);
        for (worker, &wanted) in wanted.iter().enumerate() {
            // What was drained here is resumed here, until it is.
            self.draining[worker] = wanted || self.draining[worker] && is_drained(worker);
        }
        let wanted = wanted.into_iter().zip(&self.draining);
        wanted.map(|(wanted, &own)| own.then_some(wanted)).collect()
    }

    /// Lets go of copies of no use: with them a socket outlives what closes it.
    fn drop_copies(&mut self) {
        let step = self.restart.as_ref().and_then(|restart| restart.step);
        let successor = step.map(|step| step.successor);
        let (seats, held) = (&self.members.seats, &self.held);
        self.members.copies.retain(|&cookie, _| {
            seats.by_cookie(cookie).is_some_and(|seat| seat.kept)
                || held.iter().any(|it| it.cookie == cookie && Some(it.owner) == successor)
        });
    }

    /// What the hand has done. An error that can't pass ends the first start.
    pub(crate) fn reported(&mut self, now: Instant, report: Report) -> Result<()> {
        let begun = self.begun;
        let (result, rules) = self.members.reported(now, report, |it| begun || it.may_pass());
        if let Some(result) = rules {
            self.rules_set(result);
        }
        self.note_begun();
        result
    }

    /// Whether the process of each worker that runs is noted at its members.
    pub(crate) fn is_noted(&self) -> bool {
        self.instances.iter().filter(|it| self.serves(it)).all(|it| {
            !self.redirected
                || self.members.seats.are_noted(it.worker, it.pid(), &self.members.listing)
        })
    }

    /// From when on nothing ends the supervisor but signals: each worker has listened, and what
    /// shares its port is a member.
    pub(crate) fn note_begun(&mut self) {
        if self.plan.hands_over() {
            return;
        }
        let ready = |id: &Option<InstanceId>| {
            let instance = id.and_then(|id| self.find(id));
            instance.is_some_and(|it| {
                let seated = |address| self.members.seats.addresses(it.id).contains(address);
                it.listened
                    && (!self.redirected
                        || it.holds.iter().all(seated) && self.members.seats.is_seated(it.id))
            })
        };
        self.begun = self.begun || self.current.iter().all(ready);
    }
}
