//! Who sits where: the workers' sockets, and the members that they are.
//!
//! At each look, [`Seats::decide`] compares the sockets that processes hold with the seats, and
//! these with the members that the services have, and gives what is to be done. What happened in
//! between is of no interest: an event that was missed, a step that failed, a change by somebody
//! else and a predecessor's death all look alike, as a difference. Nothing here touches a socket,
//! a service or a clock.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use overspill::{Address, MemberId};

use crate::instance_id::InstanceId;

/// The pause before the second attempt at something that failed; each later one is twice as long.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// How long the place of a closed socket is kept for a worker that runs and does not listen there.
const ABANDONED: Duration = Duration::from_secs(2);

/// A service of this supervisor, by the order in which they were made.
pub(crate) type ServiceNumber = usize;

/// A member of one of the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Member {
    pub(crate) service: ServiceNumber,
    pub(crate) id: MemberId,
}

/// A listening socket that a process holds now, whose worker serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) cookie: u64,
    pub(crate) address: Address,
    pub(crate) worker: usize,
    pub(crate) owner: InstanceId,
    pub(crate) pid: u32,
}

/// The members of a service as they are now, with the cookies of their sockets; nothing of one
/// that there is no more.
pub(crate) type Listing = HashMap<ServiceNumber, Vec<Listed>>;

/// A member as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: MemberId,
    pub(crate) cookie: u64,
    pub(crate) address: Address,
    pub(crate) pid: u32,
    /// Its socket is closed or shut down.
    pub(crate) gone: bool,
    /// It gets no new requests.
    pub(crate) draining: bool,
    /// Its process runs.
    pub(crate) served: bool,
}

/// The place of a worker's socket. It outlives the socket's process, for the successor.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    pub(crate) cookie: u64,
    pub(crate) address: Address,
    pub(crate) worker: usize,
    pub(crate) pid: u32,
    /// Whose socket it is; nobody's once that has ended, closed it, or been succeeded.
    pub(crate) owner: Option<InstanceId>,
    pub(crate) member: Option<Member>,
    /// A copy of the socket is held, so that what waits in its queue outlives its process.
    pub(crate) kept: bool,
    /// Since when it has had no owner.
    vacant: Option<Instant>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Makes a socket a member, in the place of one that has ended.
    Succeed { cookie: u64, member: Member },
    /// Makes a socket a member at the end of the list of its port's service.
    Join { cookie: u64 },
    /// Lets go of the copy of a socket.
    Release { cookie: u64 },
    /// Takes a member out.
    Leave { member: Member },
    /// Notes which process serves a member. It may drain on, or be given requests.
    Note { member: Member, pid: u32, resume: bool },
    /// Gives a member no new requests, or gives it some again.
    Drain { member: Member, drain: bool },
}

impl Action {
    /// The socket that it makes a member, if it makes one.
    pub(crate) fn joining(self) -> Option<u64> {
        match self {
            Self::Succeed { cookie, .. } | Self::Join { cookie } => Some(cookie),
            Self::Release { .. } | Self::Leave { .. } | Self::Note { .. } | Self::Drain { .. } => {
                None
            }
        }
    }
}

/// What is known beside the sockets.
pub(crate) struct Around<'a> {
    /// Whether a worker's next process may still come to take its seats.
    pub(crate) awaited: &'a dyn Fn(usize) -> bool,
    /// Whether there is no such worker any more.
    pub(crate) dismissed: &'a dyn Fn(usize) -> bool,
    /// The sockets of processes that finish what they have: they get no new requests.
    pub(crate) leaving: &'a [u64],
    /// A seat may be taken by any worker, not by its own alone: they are processes that nobody
    /// here starts.
    pub(crate) peers: bool,
    /// Whether a worker's members are to drain; nothing where that is left to others.
    pub(crate) drains: &'a dyn Fn(usize) -> Option<bool>,
    /// A process that is to be noted has just been started with a socket that its predecessor
    /// had: a drain that was meant for that one has ended.
    pub(crate) noted_is_new: bool,
}

/// Something that failed.
#[derive(Debug)]
struct Trouble {
    next: Instant,
    pause: Duration,
    told: String,
}

/// The seats.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    seats: Vec<Seat>,
    troubles: HashMap<Action, Trouble>,
}

impl Seats {
    pub(crate) fn all(&self) -> &[Seat] {
        &self.seats
    }

    pub(crate) fn by_cookie(&self, cookie: u64) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.cookie == cookie)
    }

    /// Those of a service's members, with their ids.
    pub(crate) fn of(&self, service: ServiceNumber) -> impl Iterator<Item = (MemberId, &Seat)> {
        let of = move |seat: &Seat| Some(seat.member?.id).filter(|_| seat.is_of(service));
        self.seats.iter().filter_map(move |seat| Some((of(seat)?, seat)))
    }

    /// Where an instance listens.
    pub(crate) fn addresses(&self, owner: InstanceId) -> Vec<Address> {
        let own = self.seats.iter().filter(|seat| seat.owner == Some(owner));
        own.map(|seat| seat.address).collect()
    }

    /// Whether each of a worker's members is noted as served by this process.
    pub(crate) fn are_noted(&self, worker: usize, pid: u32, listing: &Listing) -> bool {
        let own = self.seats.iter().filter(|seat| seat.worker == worker);
        own.filter_map(|seat| seat.member).all(|member| {
            let list = listing.get(&member.service).map(|list| &list[..]).unwrap_or_default();
            list.iter().any(|it| it.id == member.id && it.pid == pid)
        })
    }

    /// Whether each of an instance's sockets is a member.
    pub(crate) fn is_seated(&self, owner: InstanceId) -> bool {
        self.seats.iter().all(|seat| seat.owner != Some(owner) || seat.member.is_some())
    }

    /// Adds a socket of which the build before kept a copy. The next look finds its owner.
    pub(crate) fn keep(&mut self, cookie: u64, address: Address, worker: usize, pid: u32) {
        let seat = Seat {
            cookie,
            address,
            worker,
            pid,
            owner: None,
            member: None,
            kept: true,
            vacant: None,
        };
        self.seats.push(seat);
    }

    /// What is to be done now. A socket that is new gets a seat at once, and its copy is to be
    /// kept.
    pub(crate) fn decide(
        &mut self,
        now: Instant,
        present: &[Present],
        listing: &Listing,
        around: &Around<'_>,
    ) -> Vec<Action> {
        self.see(now, present);
        self.compare(listing);
        let mut actions = self.joins(around);
        actions.extend(self.releases(listing));
        actions.extend(farewells(&actions, listing, around));
        actions.extend(self.closures(now, around));
        actions.extend(self.sweeps(listing));
        actions.extend(self.notes(listing, around));
        actions.extend(self.drains(listing, around));
        let mut seen = HashSet::new();
        actions.retain(|action| seen.insert(*action));
        self.seats.retain(|seat| seat.owner.is_some() || seat.kept || seat.member.is_some());
        self.troubles.retain(|action, _| actions.contains(action));
        actions.retain(|action| self.troubles.get(action).is_none_or(|it| it.next <= now));
        actions
    }

    /// When something that failed is to be tried again.
    pub(crate) fn next_attempt(&self) -> Option<Instant> {
        self.troubles.values().map(|trouble| trouble.next).min()
    }

    /// Takes note of what has become of an action: which member a socket is now, or why not.
    /// Gives what is to be told of it, once.
    pub(crate) fn done(
        &mut self,
        now: Instant,
        action: Action,
        result: Result<Option<Member>, String>,
    ) -> Option<String> {
        match result {
            Ok(member) => {
                self.troubles.remove(&action);
                self.carried_out(action, member);
                None
            }
            Err(why) => {
                let before = self.troubles.remove(&action);
                let told = before.as_ref().is_some_and(|before| before.told == why);
                let pause = before.map_or(SHORTEST, |before| (before.pause * 2).min(LONGEST));
                let trouble = Trouble { next: now + pause, pause, told: why.clone() };
                self.troubles.insert(action, trouble);
                (!told).then_some(why)
            }
        }
    }

    fn carried_out(&mut self, action: Action, member: Option<Member>) {
        match action {
            Action::Succeed { cookie, .. } | Action::Join { cookie } => {
                for seat in &mut self.seats {
                    if seat.cookie == cookie {
                        seat.member = member;
                    } else if seat.member == member {
                        // It has lost its place to the successor.
                        seat.member = None;
                    }
                }
            }
            Action::Release { cookie } => {
                self.seats
                    .iter_mut()
                    .filter(|it| it.cookie == cookie)
                    .for_each(|it| it.kept = false);
            }
            Action::Leave { member } => {
                let own = self.seats.iter_mut().filter(|it| it.member == Some(member));
                own.for_each(|it| it.member = None);
            }
            Action::Note { .. } | Action::Drain { .. } => {}
        }
    }

    /// Who holds what.
    fn see(&mut self, now: Instant, present: &[Present]) {
        for seat in &mut self.seats {
            let held = present.iter().find(|it| it.cookie == seat.cookie);
            if held.is_none() && seat.vacant.is_none() {
                seat.vacant = Some(now);
            }
            if let Some(held) = held {
                (seat.worker, seat.pid, seat.vacant) = (held.worker, held.pid, None);
                seat.kept = true;
            }
            seat.owner = held.map(|it| it.owner);
        }
        for it in present {
            if self.by_cookie(it.cookie).is_none() {
                self.seats.push(Seat {
                    cookie: it.cookie,
                    address: it.address,
                    worker: it.worker,
                    pid: it.pid,
                    owner: Some(it.owner),
                    member: None,
                    kept: true,
                    vacant: None,
                });
            }
        }
    }

    /// Who is a member still. A service that was taken out and made again has other sockets.
    fn compare(&mut self, listing: &Listing) {
        for seat in &mut self.seats {
            if let Some(list) = seat.member.and_then(|member| listing.get(&member.service)) {
                let is_it = |it: &&Listed| it.cookie == seat.cookie;
                let id = list.iter().find(is_it).map(|it| it.id);
                seat.member = seat.member.filter(|member| Some(member.id) == id);
            }
            // It is one already: a predecessor, or a person, has made it one.
            seat.member = seat.member.or_else(|| find(listing, seat.cookie));
        }
    }

    /// Sockets that are no members take the places of those that have ended, of their own worker
    /// first, or new ones.
    fn joins(&self, around: &Around<'_>) -> Vec<Action> {
        let mut claimed = Vec::new();
        let mut claim = |seat: &Seat| {
            let vacant = |it: &&Seat| {
                it.owner.is_none()
                    && it.address == seat.address
                    && it.member.is_some_and(|member| !claimed.contains(&member))
                    && (it.worker == seat.worker || around.peers || !(around.awaited)(it.worker))
            };
            let mut vacant: Vec<&Seat> = self.seats.iter().filter(vacant).collect();
            vacant.sort_by_key(|it| it.worker != seat.worker);
            let member = vacant.first()?.member?;
            claimed.push(member);
            Some(member)
        };
        let new = self.seats.iter().filter(|it| it.owner.is_some() && it.member.is_none());
        new.map(|seat| match claim(seat) {
            Some(member) => Action::Succeed { cookie: seat.cookie, member },
            None => Action::Join { cookie: seat.cookie },
        })
        .collect()
    }

    /// What a vacant seat's socket holds can go to another one at its address: with the last
    /// copy the kernel moves it. Without one it waits.
    fn releases(&self, listing: &Listing) -> Vec<Action> {
        // One that is no seat here is somebody else's.
        let is_vacant =
            |it: &Listed| self.by_cookie(it.cookie).is_some_and(|seat| seat.owner.is_none());
        let listed = listing.values().flatten();
        let others = listed.filter(|it| it.served && !it.gone && !is_vacant(it));
        let seated = self.seats.iter().filter(|it| it.owner.is_some() && it.member.is_some());
        let served: Vec<Address> =
            others.map(|it| it.address).chain(seated.map(|it| it.address)).collect();
        let vacant = self.seats.iter().filter(|it| it.owner.is_none() && it.kept);
        let vacant = vacant.filter(|it| served.contains(&it.address));
        vacant.map(|seat| Action::Release { cookie: seat.cookie }).collect()
    }

    /// Seats that nobody will take any more.
    fn closures(&self, now: Instant, around: &Around<'_>) -> Vec<Action> {
        let given_up = |seat: &&Seat| {
            let for_long = seat.vacant.is_some_and(|since| now >= since + ABANDONED);
            seat.owner.is_none()
                && ((around.dismissed)(seat.worker) || for_long && !(around.awaited)(seat.worker))
        };
        let given_up = self.seats.iter().filter(given_up);
        given_up
            .flat_map(|seat| {
                let release = seat.kept.then_some(Action::Release { cookie: seat.cookie });
                release.into_iter().chain(seat.member.map(|member| Action::Leave { member }))
            })
            .collect()
    }

    /// Members that are gone and have no seat: a killed predecessor's.
    fn sweeps(&self, listing: &Listing) -> Vec<Action> {
        let seated = |member| self.seats.iter().any(|seat| seat.member == Some(member));
        let all =
            listing.iter().flat_map(|(&service, list)| list.iter().map(move |it| (service, it)));
        all.filter(|(_, it)| it.gone)
            .map(|(service, it)| Member { service, id: it.id })
            .filter(|&member| !seated(member))
            .map(|member| Action::Leave { member })
            .collect()
    }

    fn notes(&self, listing: &Listing, around: &Around<'_>) -> Vec<Action> {
        let noted = |member| listed(listing, member).map(|it| it.pid);
        let resume =
            |seat: &Seat| around.noted_is_new && (around.drains)(seat.worker) != Some(true);
        // A worker that waits for its start has no process.
        let seated = self.seats.iter().filter(|seat| seat.owner.is_some() && seat.pid != 0);
        seated
            .filter_map(|seat| Some((seat.member?, seat)))
            .filter(|&(member, seat)| noted(member).is_some_and(|noted| noted != seat.pid))
            .map(|(member, seat)| Action::Note { member, pid: seat.pid, resume: resume(seat) })
            .collect()
    }

    /// Members are given requests again before others drain, so that there is always one that
    /// takes them.
    fn drains(&self, listing: &Listing, around: &Around<'_>) -> Vec<Action> {
        let differs = |seat: &Seat| {
            let (member, drain) = (seat.member?, (around.drains)(seat.worker)?);
            let differs = listed(listing, member)?.draining != drain;
            differs.then_some(Action::Drain { member, drain })
        };
        let mut drains: Vec<Action> = self.seats.iter().filter_map(differs).collect();
        drains.sort_by_key(|it| matches!(it, Action::Drain { drain: true, .. }));
        drains
    }
}

/// Members whose processes are leaving, and that nobody succeeds now.
fn farewells(actions: &[Action], listing: &Listing, around: &Around<'_>) -> Vec<Action> {
    let succeeded = |own: Member| {
        let is_it = |it: &Action| matches!(it, Action::Succeed { member, .. } if *member == own);
        actions.iter().any(is_it)
    };
    let members = around.leaving.iter().filter_map(|&cookie| find(listing, cookie));
    let left = members.filter(|&member| !succeeded(member));
    left.map(|member| Action::Leave { member }).collect()
}

/// A member as it is listed.
pub(crate) fn listed(listing: &Listing, member: Member) -> Option<&Listed> {
    listing.get(&member.service)?.iter().find(|it| it.id == member.id)
}

/// Which member a socket is.
fn find(listing: &Listing, cookie: u64) -> Option<Member> {
    let among = |(&service, list): (&ServiceNumber, &Vec<Listed>)| {
        let id = list.iter().find(|it| it.cookie == cookie)?.id;
        Some(Member { service, id })
    };
    listing.iter().find_map(among)
}

impl Seat {
    fn is_of(&self, service: ServiceNumber) -> bool {
        self.member.is_some_and(|member| member.service == service)
    }
}

#[cfg(test)]
mod tests;
