//! The sockets of workers or peers, and the members that they are: what `overspill run` and
//! `overspill allow` have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use overspill::adopt::Adopted;
use overspill::{Hooks, Service, wake};

use crate::error::{Error, Result};
use crate::hand::{Copies, Hand, Job, Report};
use crate::log;
use crate::option::{Asked, Given, There};
use crate::seats::{Action, Around, Listing, Member, Present, Seat, Seats, ServiceNumber};
use crate::sight::Sight;
use crate::watching::Watching;

/// The time after which the next look comes by itself.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Looks do not follow one another faster, however many hints come.
pub(crate) const APART: Duration = Duration::from_millis(5);

/// When to look at what is.
#[derive(Debug)]
pub(crate) struct Looks {
    pub(crate) last: Option<Instant>,
    /// Something has happened that is worth a look.
    pub(crate) hinted: bool,
    /// A hint is in the queue of events: many are one.
    pub(crate) hint: Arc<AtomicBool>,
    /// The last look found the hand at work: what is to be done was not decided.
    overdue: bool,
}

impl Looks {
    /// A look begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        (self.last, self.hinted) = (Some(now), false);
        self.hint.store(false, Ordering::Release);
    }
}

/// How log lines name the process of a seat.
#[derive(Debug)]
pub(crate) struct Nouns {
    /// Before " listens on ADDRESS"; nothing where that is not logged.
    pub(crate) joined: Option<fn(&Seat) -> String>,
    /// Before the reason for which it has not joined.
    pub(crate) failed: fn(&Seat) -> String,
}

/// The seats, the services, and the hand that changes them.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) looks: Looks,
    pub(crate) sight: Sight,
    pub(crate) seats: Seats,
    pub(crate) copies: Copies,
    pub(crate) listing: Listing,
    pub(crate) services: Vec<(ServiceNumber, Service)>,
    pub(crate) watching: Watching,
    /// The order that processes ask for by the socket option.
    pub(crate) given: Given,
    /// Calls of the socket option whose sockets are not members yet.
    pub(crate) asked: Asked,
    pub(crate) hand: Option<Hand>,
    /// The hand works; what it is to do next gathers in `job`.
    pub(crate) busy: bool,
    pub(crate) job: Job,
    nouns: Nouns,
}

impl Membership {
    pub(crate) fn new(watching: Watching, nouns: Nouns) -> Self {
        Self {
            looks: Looks { last: None, hinted: true, hint: Arc::default(), overdue: false },
            sight: Sight::default(),
            seats: Seats::default(),
            copies: Copies::new(),
            listing: Listing::new(),
            services: Vec::new(),
            watching,
            given: Given::default(),
            asked: Asked::default(),
            hand: None,
            busy: false,
            job: Job::default(),
            nouns,
        }
    }

    /// Keeps copies of sockets.
    pub(crate) fn keep(&mut self, sockets: Vec<Adopted>) {
        for socket in sockets {
            if let Ok(cookie) = socket.cookie() {
                self.copies.insert(cookie, Arc::new(socket));
            }
        }
    }

    /// Whether the hand is free, so that it can be decided what to do.
    pub(crate) fn can_decide(&mut self) -> bool {
        self.looks.overdue = self.busy;
        !self.busy
    }

    /// Lets the seats decide. What they ask for gathers in the job; copies are released at once.
    pub(crate) fn decide(&mut self, now: Instant, present: &[Present], around: &Around<'_>) {
        let mut emptied = Vec::new();
        for action in self.seats.decide(now, present, &self.listing, around) {
            match action {
                Action::Release { cookie } => {
                    emptied.extend(self.seats.by_cookie(cookie).map(|seat| seat.address));
                    self.copies.remove(&cookie);
                    self.seats.done(now, action, Ok(None));
                    continue;
                }
                Action::Succeed { cookie, .. } | Action::Join { cookie } => {
                    // Without a copy it waits for the next look.
                    let Some(copy) = self.copies.get(&cookie) else { continue };
                    self.job.copies.insert(cookie, Arc::clone(copy));
                }
                Action::Leave { .. } | Action::Note { .. } | Action::Drain { .. } => {}
            }
            self.job.actions.push(action);
        }
        for seat in self.seats.all() {
            match self.copies.get(&seat.cookie) {
                // Older kernels wake nobody for a connection that was moved.
                Some(copy) if emptied.contains(&seat.address) => drop(wake(copy)),
                None if seat.owner.is_some() => {
                    // The next look takes a copy again.
                    self.sight.forget(seat.cookie);
                    self.looks.hinted = true;
                }
                _ => {}
            }
        }
    }

    /// Gives the hand what has gathered, if it is free.
    pub(crate) fn give_job(&mut self) {
        if let Some(hand) = &self.hand
            && !self.busy
        {
            hand.give(std::mem::take(&mut self.job));
            self.busy = true;
        }
    }

    /// Takes note of what the hand has done. What failed and `may_fail` is logged, and tried
    /// again; the first other failure is the error. The result of setting rules is handed back.
    pub(crate) fn reported(
        &mut self,
        now: Instant,
        report: Report,
        may_fail: impl Fn(&Error) -> bool,
    ) -> (Result<()>, Option<Result<(), String>>) {
        let Report { outcomes, rules, troubles, listing, services } = report;
        self.busy = false;
        (self.listing, self.services) = (listing, services);
        self.looks.hinted |= self.looks.overdue || !outcomes.is_empty();
        let mut fatal = None;
        for (action, result) in outcomes {
            let error = match result {
                Ok(member) => {
                    self.seats.done(now, action, Ok(member));
                    self.log_joined(action, member);
                    continue;
                }
                Err(error) => error,
            };
            self.asked.fail(action, &error);
            let error = Error::from(error);
            let told = self.seats.done(now, action, Err(error.to_string()));
            if !may_fail(&error) {
                fatal = fatal.or(Some(error));
            } else if let Some(told) = told {
                let seat = action.joining().and_then(|cookie| self.seats.by_cookie(cookie));
                let who = seat.map(self.nouns.failed).unwrap_or_default();
                log::line(format_args!("{who}{told}; it is tried again"));
            }
        }
        for why in &troubles {
            log::trouble(why);
        }
        (fatal.map_or(Ok(()), Err), rules)
    }

    fn log_joined(&mut self, action: Action, member: Option<Member>) {
        let (Some(cookie), Some(member)) = (action.joining(), member) else { return };
        self.watching.forget(member);
        let seat = self.seats.by_cookie(cookie);
        let service = self.services.iter().find(|it| it.0 == member.service);
        if let (Some(seat), Some((_, service))) = (seat, service)
            && let Some(who) = self.nouns.joined.map(|who| who(seat))
        {
            let (address, id, name) = (seat.address, member.id, service.name());
            log::line(format_args!("{who} listens on {address}: member {id} of {name}"));
        }
    }

    /// Notes where members are, has them put into the order asked for, and answers the calls of
    /// the socket option that are done.
    pub(crate) fn tend(&mut self, hooks: &[&Hooks]) {
        let there = There {
            services: &self.services,
            listing: &self.listing,
            seats: &self.seats,
            copies: &self.copies,
        };
        let orders = self.given.tend(&there, hooks);
        if orders.is_empty() {
            self.asked.answer(&self.seats, hooks);
        } else {
            self.job.orders = orders;
            self.give_job();
        }
    }

    /// Looks for members that hang, if it is time to.
    pub(crate) fn watch(&mut self) {
        self.watching.look(&self.services, &self.seats, &self.copies);
    }

    /// When to do that next.
    pub(crate) fn next_watch(&self, now: Instant) -> Option<Instant> {
        self.watching.next(&self.services, now)
    }
}
