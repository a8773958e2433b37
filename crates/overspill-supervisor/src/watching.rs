//! Watching the workers' queues: who hangs gets no requests, and what waits for it moves.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use overspill::hang::{Sample, Watch};
use overspill::{Health, Looker, MemberId, Name, Queue, Service, empty_queue, wake};

use crate::hand::Copies;
use crate::log::{self, tell};
use crate::seats::{Member, Seat, Seats, ServiceNumber};

/// How many times as long it is between looks as long as no request comes.
const QUIET: u32 = 5;

/// A watch for each service.
#[derive(Debug)]
pub(crate) struct Watching {
    patience: Duration,
    /// What messages call who has a seat.
    noun: &'static str,
    watches: HashMap<ServiceNumber, (Watch, Option<Looker>)>,
    /// How many requests had come at the last look.
    placed: u64,
    /// None has come since the look before, and none waits.
    quiet: bool,
    /// The time of the last look.
    looked: Option<Instant>,
    /// Members that have another socket since: what was seen of them is of no use.
    forgotten: Vec<Member>,
}

impl Watching {
    /// Bears with a worker for that long; zero watches nothing.
    pub(crate) fn new(patience: Duration, noun: &'static str) -> Self {
        Self {
            patience,
            noun,
            watches: HashMap::new(),
            placed: 0,
            quiet: false,
            looked: None,
            forgotten: Vec::new(),
        }
    }

    /// Another socket has taken a member's place.
    pub(crate) fn forget(&mut self, member: Member) {
        self.forgotten.push(member);
    }

    /// When to look again, if there is anything to look at.
    pub(crate) fn next(
        &self,
        services: &[(ServiceNumber, Service)],
        now: Instant,
    ) -> Option<Instant> {
        if services.is_empty() || self.patience.is_zero() {
            return None;
        }
        let interval = Watch::new(self.patience).interval();
        let interval = if self.quiet { interval * QUIET } else { interval };
        Some(self.looked.map_or(now, |looked| looked + interval))
    }

    /// Looks at all queues, if it is time to.
    pub(crate) fn look(
        &mut self,
        services: &[(ServiceNumber, Service)],
        seats: &Seats,
        copies: &Copies,
    ) {
        let now = Instant::now();
        if self.next(services, now).is_none_or(|next| now < next) {
            return;
        }
        self.looked = Some(now);
        let (mut placed, mut waits) = (0, false);
        self.watches.retain(|number, _| services.iter().any(|(there, _)| there == number));
        for (number, service) in services {
            let watch = self.watches.entry(*number);
            let (watch, looker) = watch.or_insert_with(|| (Watch::new(self.patience), None));
            let Some(mut queues) = queues(service, looker) else { continue };
            // Who is left out of a look is unknown at the next one.
            let forgotten = |id| self.forgotten.contains(&Member { service: *number, id });
            queues.retain(|queue| !forgotten(queue.member));
            placed += queues.iter().map(|queue| queue.placed).sum::<u64>();
            let is_idle = |it: &Queue| it.queued == 0 && it.half_open == 0;
            waits |= !queues.iter().all(|it| is_idle(it) && it.health == Health::Well);
            let seats: Vec<(MemberId, &Seat)> = seats.of(*number).collect();
            let Some(looker) = looker else { continue };
            let (name, noun) = (service.name(), self.noun);
            Look { looker, name, watch, queues, seats, copies, noun }.act(now);
        }
        self.forgotten.clear();
        self.quiet = !waits && placed == self.placed;
        self.placed = placed;
    }
}

/// The queues of a service; nothing of one that was taken away with overspill rm.
fn queues(service: &Service, looker: &mut Option<Looker>) -> Option<Vec<Queue>> {
    let known = looker.as_ref().and_then(|looker| looker.queues().ok());
    if known.is_none() {
        // It was renamed, or made anew, or never looked at.
        *looker = service.looker().ok();
    }
    known.or_else(|| looker.as_ref()?.queues().ok())
}

/// A look at one service.
struct Look<'a> {
    looker: &'a Looker,
    name: &'a Name,
    watch: &'a mut Watch,
    queues: Vec<Queue>,
    seats: Vec<(MemberId, &'a Seat)>,
    copies: &'a Copies,
    noun: &'static str,
}

impl Look<'_> {
    fn act(&mut self, now: Instant) {
        let takes = |queue: &&Queue| !queue.gone && !queue.draining;
        let samples: Vec<Sample> = self
            .queues
            .iter()
            .filter(takes)
            .map(|queue| Sample {
                member: queue.member,
                head: queue.head,
                placed: queue.placed.saturating_sub(queue.half_open.into()),
                queued: queue.queued,
                awaited: queue.awaited,
                attended: queue.attended,
            })
            .collect();
        for change in self.watch.observe(now, &samples) {
            self.tell(change.member, change.health);
        }
        // Not only what has changed: a change of the list may have come in between, and
        // requests that were half open come into the queue of one that hangs.
        for queue in self.queues.clone().iter().filter(takes) {
            let health = self.watch.state(queue.member);
            // A mark runs out when it is not renewed.
            if queue.health != health || health != Health::Well {
                self.looker.set_health(queue.member, health).unwrap_or_else(tell);
            }
            if health == Health::Hung && queue.queued > 0 {
                self.relieve(queue);
            }
        }
    }

    /// Moves what waits at a member to its siblings, where there is one at its address.
    fn relieve(&mut self, queue: &Queue) {
        let seat = |id| self.seats.iter().find(|(member, _)| *member == id).map(|(_, seat)| *seat);
        let Some(Seat { address, cookie, .. }) = seat(queue.member) else { return };
        let Some(socket) = self.copies.get(cookie) else { return };
        let helps = |other: &&Queue| {
            other.member != queue.member
                && !other.gone
                && !other.draining
                && self.watch.state(other.member) == Health::Well
                && seat(other.member).is_some_and(|seat| seat.address == *address)
        };
        if !self.queues.iter().any(|other| helps(&other)) {
            return;
        }
        match empty_queue(socket, queue.backlog) {
            Ok(()) => self.watch.moved(queue.member),
            Err(error) => tell(error),
        }
        // Older kernels wake nobody for a connection that was moved.
        let siblings = self.seats.iter().filter(|(_, seat)| seat.address == *address);
        for socket in siblings.filter_map(|(_, seat)| self.copies.get(&seat.cookie)) {
            let _ = wake(socket);
        }
    }

    fn tell(&self, member: MemberId, health: Health) {
        let Some((_, seat)) = self.seats.iter().find(|(own, _)| *own == member) else { return };
        let worker = format!("{} {}", self.noun, seat.worker);
        let queue = self.queues.iter().find(|queue| queue.member == member);
        let (waiting, before) =
            queue.map_or((0, Health::Well), |queue| (queue.queued, queue.health));
        let name = self.name;
        // What drain takes, where it is another number.
        let own = match usize::try_from(member.0) {
            Ok(number) if number == seat.worker => String::new(),
            _ => format!(", member {member}"),
        };
        match health {
            // That a trial has failed is nothing new.
            Health::Hung if before != Health::Well => {}
            Health::Hung => log::line(format_args!(
                "{worker} hangs (service {name}{own}, {waiting} waiting): others take its requests"
            )),
            Health::Well => {
                log::line(format_args!("{worker} accepts again (service {name}{own})"));
            }
            Health::OnTrial => {}
        }
    }
}
