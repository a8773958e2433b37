//! Which members hang: decided from the accept queues alone.
//!
//! A process that hangs still has its listening socket, and the kernel goes on to fill
//! the socket's queue. From the outside a hang shows in one way only: the connection at
//! the head of the queue stays where it is, while siblings accept theirs. A [`Watch`] is
//! shown the heads of all queues again and again, every fifth of the *patience*, and
//! says which members hang. It is pure: it asks no clock and no kernel.
//!
//! # Words
//!
//! A member *accepts* when its head is gone from one sample to the next, or when its
//! queue is empty although requests were put on it in between. The time for which one
//! connection was seen at the head is a *stint*; the longest one of the last 10 s to
//! 20 s in which it had any is the member's *pace*.
//!
//! # A member hangs
//!
//! when both hold:
//!
//! 1. Its head has stood for the *threshold*: the patience, or twice its own pace, or
//!    twice the median of its siblings' paces, whichever is longest.
//! 2. Meanwhile one sibling has accepted *twice*; once is enough after four times the
//!    threshold.
//!
//! and another member is well: the last one is never declared, and when the last one
//! leaves, all that are left are taken for well.
//!
//! Twice, because once proves little: a sibling that was idle accepts at once, however
//! long it then works. With its second acceptance it has done a whole request, or does
//! not let one keep it from accepting, in less time than this member's head has stood.
//! So a service whose members all need longer than the patience for a request is left
//! alone before any pace is known; and where siblings are busy and fast, two
//! acceptances come as soon as one. If there is too little traffic for the second, the
//! first one must do in the end. With nobody accepting nobody hangs: everything is
//! slow, or the machine stands still.
//!
//! # And is well again
//!
//! as soon as it accepts. It gets no requests, so it must be given one to see that.
//! After a pause it is *on trial*, as soon as its queue is empty: it is to be given one
//! request. If that one stands for the patience, the member hangs again. The first pause
//! is as long as the patience, each further one twice as long as the one before, and
//! none longer than a second.
//!
//! A member that accepts again soon, within a second or eight times the patience, was
//! slow rather than hung. That time counts for its pace, so that it is not declared for
//! the same slowness again. A longer absence does not count: it would put off the
//! discovery of the next.
//!
//! # What this promises
//!
//! With samples every fifth of the patience:
//!
//! - A member that stops accepting is declared, after a request has come to the head of
//!   its queue, within the patience and two samples, if its stints and those of its
//!   siblings were shorter than half the patience, and a sibling stays busy.
//! - After it has begun to accept again it is well within one pause, the time until a
//!   request comes that it can be given, and a sample.
//! - A member that needs longer for a request than others, but never twice as long as
//!   its pace, is never declared once its pace is known. Before that it may be: during
//!   its first slow request nothing tells it from a member that hangs. Its requests then
//!   wait elsewhere, for a shorter time. What takes longer than a second and eight times
//!   the patience is always taken for a hang.
//! - *A stall is not a hang.* When the watcher itself was stopped, or the whole machine
//!   with it, then nobody can say what members could have done in the meantime. Of the
//!   time between two samples at most two fifths of the patience count. A head that
//!   stood before and after a stall of any length must still stand for the rest of the
//!   threshold under watch, with siblings that accept in two different samples. As all
//!   times are measured so, in a machine that stalls all the time the paces grow as the
//!   stints do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::member::{Health, MemberId};

/// The longest pause between two trials.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Who accepts again within this time was slow, and so it is within `SLOW` × patience.
const SOON: Duration = Duration::from_secs(1);
const SLOW: u32 = 8;

/// After this many thresholds a single acceptance of a sibling is enough.
const LONG: u32 = 4;

/// How long a pace stays in one of its two buckets.
const RECENT: Duration = Duration::from_secs(10);

/// A member's queue at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Whose queue it is.
    pub member: MemberId,
    /// The connection to be accepted next, by a number that no other one ever has;
    /// nothing when the queue is empty.
    pub head: Option<u64>,
    /// The requests ever put on the member that are no longer half open. To be read
    /// *before* the head: what is counted here and is not in the queue was accepted.
    pub placed: u64,
}

/// A member whose health is another one now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The member.
    pub member: MemberId,
    /// Its health from now on.
    pub health: Health,
}

/// Watches the members of one service.
#[derive(Debug, Clone)]
pub struct Watch {
    patience: Duration,
    /// When it was last shown the queues.
    seen: Option<Instant>,
    /// The time under watch; all other times are by this clock.
    clock: Duration,
    members: BTreeMap<MemberId, Member>,
}

#[derive(Debug, Clone)]
struct Member {
    head: Option<Head>,
    /// The highest count of requests so far.
    placed: u64,
    /// What waited at it was moved since the last sample.
    moved: bool,
    /// When it accepted last, and the time before.
    accepted: [Option<Duration>; 2],
    pace: Pace,
    absence: Option<Absence>,
}

/// The connection at the head of a queue.
#[derive(Debug, Clone, Copy)]
struct Head {
    connection: u64,
    /// When it was first seen there.
    since: Duration,
    /// And last.
    until: Duration,
}

/// A member's longest recent stint.
#[derive(Debug, Clone, Default)]
struct Pace {
    began: Duration,
    current: Option<Duration>,
    previous: Option<Duration>,
}

/// The time in which a member is not well.
#[derive(Debug, Clone, Copy)]
struct Absence {
    /// When the head was first seen that it did not accept.
    since: Duration,
    /// Until the next trial, and when that is due.
    pause: Duration,
    due: Duration,
    on_trial: bool,
}

impl Watch {
    /// A watch that bears with a standing head for as long as `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self { patience, seen: None, clock: Duration::ZERO, members: BTreeMap::new() }
    }

    /// How often to observe: five times in the patience.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.patience / 5
    }

    /// Looks at the queues of all members, and says whose health has changed.
    ///
    /// Members join and leave by being in `samples` or not; who comes back is unknown
    /// and well. Those that get no requests for another reason are to be left out: they
    /// would be taken for a member that can take what the others cannot.
    #[must_use]
    pub fn observe(&mut self, now: Instant, samples: &[Sample]) -> Vec<Change> {
        let before: BTreeMap<_, _> = self.healths().collect();
        self.pass(now);
        self.members.retain(|id, _| samples.iter().any(|sample| sample.member == *id));
        let soon = SOON.max(self.patience * SLOW);
        for sample in samples {
            let member = self.members.entry(sample.member);
            member.or_insert_with(|| Member::new(sample)).see(sample, self.clock, soon);
        }
        self.declare();
        for member in self.members.values_mut() {
            member.try_again(self.clock, self.patience);
        }
        self.keep_one_well();
        self.healths()
            .filter(|(id, health)| *health != before.get(id).copied().unwrap_or(Health::Well))
            .map(|(member, health)| Change { member, health })
            .collect()
    }

    /// The health of a member; one that was never seen is well.
    #[must_use]
    pub fn state(&self, member: MemberId) -> Health {
        self.members.get(&member).map_or(Health::Well, Member::health)
    }

    /// What waited at the member was moved away, so that an empty queue in the next
    /// sample is no sign of life.
    pub fn moved(&mut self, member: MemberId) {
        if let Some(member) = self.members.get_mut(&member) {
            member.moved = true;
        }
    }

    fn healths(&self) -> impl Iterator<Item = (MemberId, Health)> {
        self.members.iter().map(|(id, member)| (*id, member.health()))
    }

    /// Moves the clock on: by no more than two intervals, see "A stall is not a hang".
    fn pass(&mut self, now: Instant) {
        let passed = self.seen.map_or(Duration::ZERO, |seen| now.saturating_duration_since(seen));
        self.clock += passed.min(self.interval() * 2);
        self.seen = Some(now);
    }

    /// Declares those that hang, but never the last one.
    fn declare(&mut self) {
        let hanging: Vec<(MemberId, Head)> = self
            .members
            .iter()
            .filter_map(|(id, member)| Some((*id, member.head.filter(|_| member.is_well())?)))
            .filter(|(id, head)| self.hangs(*id, head))
            .collect();
        let mut well = self.members.values().filter(|member| member.is_well()).count();
        for (id, head) in hanging {
            if well > 1
                && let Some(member) = self.members.get_mut(&id)
            {
                member.absence = Some(Absence::new(head.since, self.clock, self.patience));
                well -= 1;
            }
        }
    }

    /// Whether a member that is well hangs, by its head.
    fn hangs(&self, id: MemberId, head: &Head) -> bool {
        let stood = self.clock.saturating_sub(head.since);
        if stood < self.patience {
            return false;
        }
        let threshold = self.threshold(id);
        let enough = usize::from(stood < threshold * LONG);
        stood >= threshold && self.siblings(id).any(|s| s.accepted[enough] > Some(head.since))
    }

    /// For how long a member's head may stand.
    fn threshold(&self, id: MemberId) -> Duration {
        let own = self.members.get(&id).and_then(|member| member.pace.longest());
        let mut paces: Vec<_> = self.siblings(id).filter_map(|s| s.pace.longest()).collect();
        paces.sort_unstable();
        // Of two in the middle the slower one.
        let median = paces.get(paces.len() / 2).copied();
        self.patience.max(own.max(median).unwrap_or_default() * 2)
    }

    fn siblings(&self, id: MemberId) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |(other, _)| **other != id).map(|(_, member)| member)
    }

    /// When the last one that was well has left, the others are all there is.
    fn keep_one_well(&mut self) {
        if self.members.values().any(Member::is_well) {
            return;
        }
        for member in self.members.values_mut() {
            member.absence = None;
            if let Some(head) = &mut member.head {
                head.since = self.clock;
            }
        }
    }
}

impl Member {
    fn new(sample: &Sample) -> Self {
        Self {
            head: None,
            placed: sample.placed,
            moved: false,
            accepted: [None; 2],
            pace: Pace::default(),
            absence: None,
        }
    }

    fn is_well(&self) -> bool {
        self.absence.is_none()
    }

    fn health(&self) -> Health {
        match self.absence {
            None => Health::Well,
            Some(Absence { on_trial: false, .. }) => Health::Hung,
            Some(Absence { on_trial: true, .. }) => Health::OnTrial,
        }
    }

    /// Takes in a sample of its queue.
    fn see(&mut self, sample: &Sample, now: Duration, soon: Duration) {
        let gone = self.head.filter(|head| sample.head != Some(head.connection));
        let unseen = sample.head.is_none() && sample.placed > self.placed;
        if !self.moved && (gone.is_some() || unseen) {
            self.accept(
                gone.map_or(Duration::ZERO, |head| head.until.saturating_sub(head.since)),
                now,
                soon,
            );
        }
        let stays = self.head.filter(|_| gone.is_none());
        self.head = sample.head.map(|connection| Head {
            connection,
            since: stays.map_or(now, |head| head.since),
            until: now,
        });
        self.placed = self.placed.max(sample.placed);
        self.moved = false;
    }

    /// It has accepted, the last one after the given stint: it is well.
    fn accept(&mut self, stint: Duration, now: Duration, soon: Duration) {
        self.accepted = [Some(now), self.accepted[0]];
        match self.absence.take().map(|absence| now.saturating_sub(absence.since)) {
            None => self.pace.add(stint, now),
            Some(away) if away <= soon => self.pace.add(away, now),
            Some(_) => {}
        }
    }

    /// Begins a trial that is due, and ends one that has failed.
    fn try_again(&mut self, now: Duration, patience: Duration) {
        let Some(absence) = &mut self.absence else { return };
        match self.head {
            None if now >= absence.due => absence.on_trial = true,
            Some(head) if absence.on_trial && now.saturating_sub(head.since) >= patience => {
                absence.go_on(now)
            }
            _ => {}
        }
    }
}

impl Absence {
    fn new(since: Duration, now: Duration, patience: Duration) -> Self {
        let pause = patience.min(LONGEST_PAUSE);
        Self { since, pause, due: now + pause, on_trial: false }
    }

    /// A trial has failed.
    fn go_on(&mut self, now: Duration) {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.due = now + self.pause;
        self.on_trial = false;
    }
}

impl Pace {
    /// Forgets only when there is something newer: an idle time teaches nothing.
    fn add(&mut self, stint: Duration, now: Duration) {
        if self.current.is_none() || now.saturating_sub(self.began) >= RECENT {
            self.previous = self.current.take();
            self.began = now;
        }
        self.current = self.current.max(Some(stint));
    }

    fn longest(&self) -> Option<Duration> {
        self.current.max(self.previous)
    }
}
