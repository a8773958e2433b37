//! What becomes of each request, as it happens.
//!
//! The kernel program tells those who trace, each in a ring buffer of its own
//! (`BPF_MAP_TYPE_RINGBUF`), for as long as they live. While nobody does, a request reads one
//! word for it.
//!
//! ```no_run
//! # fn main() -> overspill::Result<()> {
//! use overspill::trace::{Filter, Trace};
//!
//! let trace = Trace::begin(&overspill::Namespace::current()?, &Filter::default())?;
//! while trace.is_on()? {
//!     for event in trace.wait(std::time::Duration::from_secs(1))? {
//!         println!("{} called {}: {}", event.client, event.called, event.outcome);
//!     }
//! }
//! # Ok(()) }
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::datapath::{Datapath, Tracer, layout};
use crate::error::{Error, Result};
use crate::member::MemberId;
use crate::name::Name;
use crate::namespace::Namespace;
use crate::policy::Policy;
use crate::service::Service;
use crate::status::MemberState;
use crate::sys;

/// How often the ring buffer is looked at: the kernel wakes nobody, which would cost it more
/// than to tell.
const LOOK: Duration = Duration::from_millis(20);

/// Which requests are to be told.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this service only.
    pub service: Option<Name>,
    /// With these outcomes only; with none given, all.
    pub outcomes: Vec<Outcome>,
}

/// One who traces the requests of a network namespace; ends when it is dropped.
#[derive(Debug)]
pub struct Trace {
    tracer: Tracer,
    /// The service that is traced alone, and its number.
    service: Option<(Name, u32)>,
    namespace: Namespace,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// Put on a member that it called.
    Placed,
    /// Put on a sibling of the called members.
    Redirected,
    /// Left with a full member, where the kernel drops it.
    Dropped,
    /// Refused (RST).
    Reset,
    /// Left to the kernel, because every member was gone.
    Left,
    /// The kernel refused the chosen socket, and serves the request as ever.
    Refused,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Placed, Self::Redirected, Self::Dropped, Self::Reset, Self::Left, Self::Refused];

    /// The name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Redirected => "redirected",
            Self::Dropped => "dropped",
            Self::Reset => "reset",
            Self::Left => "left",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a request went where it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Why {
    /// The policy chose among members with room.
    Policy,
    /// The called member is full, of queued and half-open requests.
    Full,
    /// The called member drains.
    Draining,
    /// The called member hangs.
    Hung,
    /// The called member's socket is closed.
    Gone,
    /// Only half-open requests stand in the way of another at the member.
    Crowded,
    /// The member hangs, but no other can take the request.
    NoOther,
    /// The member has answered the flow with a SYN cookie.
    Cookie,
    /// The policy gave no usable answer; next-available did.
    Fallback,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Policy,
        Self::Full,
        Self::Draining,
        Self::Hung,
        Self::Gone,
        Self::Crowded,
        Self::NoOther,
        Self::Cookie,
        Self::Fallback,
    ];

    /// The name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Full => "full",
            Self::Draining => "draining",
            Self::Hung => "hung",
            Self::Gone => "gone",
            Self::Crowded => "crowded",
            Self::NoOther => "no-other",
            Self::Cookie => "cookie",
            Self::Fallback => "fallback",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A member as it was when a request was placed: before the kernel has queued that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Glimpse {
    /// Its number within the service.
    pub member: MemberId,
    /// Whether it gets requests.
    pub state: MemberState,
    /// Connections that wait to be accepted.
    pub queued: u32,
    /// Handshakes not yet completed.
    pub half_open: u32,
    /// How many connections the queue holds: the backlog and one more; 0 if it is gone.
    pub capacity: u32,
}

/// A request, and what became of it. Its JSON is a promise: fields may be added, none change;
/// the time is left to who knows how it is to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When it was placed.
    #[serde(skip)]
    pub time: SystemTime,
    /// The service.
    pub service: String,
    /// Who asked.
    pub client: SocketAddr,
    /// The address that was called.
    pub called: SocketAddr,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it did.
    pub why: Why,
    /// By which policy.
    pub policy: Policy,
    /// The member called: the chosen one, where that is among the called members; else the
    /// one of them that the flow's hash gives.
    pub member: Option<Glimpse>,
    /// The member whose socket it got, full or not; none where it was refused or left.
    pub chosen: Option<Glimpse>,
}

impl Trace {
    /// Begins to trace.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`]: there is no such service, or none at all;
    /// [`Error::TooManyTracers`]; [`Error::OtherVersion`]: who traces writes that down; those
    /// of looking at a service, which takes the same privilege.
    pub fn begin(namespace: &Namespace, filter: &Filter) -> Result<Self> {
        let datapath = Datapath::open(namespace)?.ok_or(Error::NoServices)?;
        datapath.check_writable()?;
        let service = match &filter.service {
            Some(name) => {
                let service = Service::open_in(name.as_str(), namespace)?;
                Some((service.name().clone(), service.find(&datapath)?))
            }
            None => None,
        };
        let outcomes = filter.outcomes.iter().fold(0, |all, &outcome| all | 1 << outcome as u32);
        let outcomes = if outcomes == 0 { u32::MAX } else { outcomes };
        let tracer = datapath.trace(service.as_ref().map(|(_, id)| *id), outcomes)?;
        Ok(Self { tracer, service, namespace: namespace.clone() })
    }

    /// Waits until something is told, but no longer than `at_most`; then nothing is.
    ///
    /// # Errors
    ///
    /// The kernel refuses to have the ring buffer read.
    pub fn wait(&self, at_most: Duration) -> Result<Vec<Event>> {
        let begun = Instant::now();
        loop {
            let events = self.tracer.take()?;
            if !events.is_empty() {
                let clock = Clock::now();
                let events = events.iter().map(|event| clock.read(event));
                let events: Vec<Event> = events.filter(|event| self.is_of(event)).collect();
                if !events.is_empty() {
                    return Ok(events);
                }
            }
            let left = at_most.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(Vec::new());
            }
            thread::sleep(left.min(LOOK));
        }
    }

    /// The kernel knows a service by its number, which another may have by now.
    fn is_of(&self, event: &Event) -> bool {
        self.service.as_ref().is_none_or(|(name, _)| name.as_str() == event.service)
    }

    /// How many requests were not told, because the ring buffer was full; 0 once another has
    /// the place ([`Trace::is_displaced`]).
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.tracer.lost()
    }

    /// For how long no request was told, because this process was stopped: after five
    /// seconds the kernel takes it for gone.
    #[must_use]
    pub fn paused(&self) -> Duration {
        self.tracer.paused()
    }

    /// Whether another traces in this one's place, which was free when this process had been
    /// stopped for five seconds.
    #[must_use]
    pub fn is_displaced(&self) -> bool {
        self.tracer.is_displaced()
    }

    /// Whether more may be told. Not so when the service was removed, or the last one of
    /// the namespace, or when this process was stopped so long that another has its place, or when
    /// a build with another layout has taken the state over.
    ///
    /// # Errors
    ///
    /// As those of looking at a service.
    pub fn is_on(&self) -> Result<bool> {
        if !self.tracer.is_on()? {
            return Ok(false);
        }
        let Some((name, id)) = &self.service else { return Ok(true) };
        let Some(datapath) = Datapath::open(&self.namespace)? else { return Ok(false) };
        Ok(datapath.name(*id)?.as_deref() == Some(name.as_str()))
    }
}

/// What the time was by both clocks at one moment.
struct Clock {
    time: SystemTime,
    monotonic: u64,
}

impl Clock {
    fn now() -> Self {
        Self { time: SystemTime::now(), monotonic: sys::monotonic() }
    }

    fn read(&self, event: &layout::Event) -> Event {
        let client = layout::address_from(event.remote);
        let called = layout::address_from(event.address);
        let member = glimpse(&event.called);
        let outcome = outcome(event.outcome);
        Event {
            time: self.time - Duration::from_nanos(self.monotonic.saturating_sub(event.time)),
            service: layout::text(&event.service),
            client: SocketAddr::new(client, event.remote_port),
            called: SocketAddr::new(called, event.port),
            outcome,
            why: why(event.why, outcome, member),
            policy: Policy::from_number(event.policy).expect("the kernel program has no other"),
            member,
            chosen: glimpse(&event.chosen),
        }
    }
}

fn outcome(number: u8) -> Outcome {
    let named = Outcome::ALL.into_iter().find(|&outcome| outcome as u8 == number);
    named.expect("the kernel program has no other")
}

/// What the kernel says of one that a member got, and else what the called member's figures
/// say.
fn why(number: u8, outcome: Outcome, called: Option<Glimpse>) -> Why {
    let got = matches!(outcome, Outcome::Placed | Outcome::Redirected | Outcome::Refused);
    match number {
        layout::CROWDED if got => return Why::Crowded,
        layout::NO_OTHER if got => return Why::NoOther,
        layout::COOKIE if got => return Why::Cookie,
        layout::FALLBACK if got => return Why::Fallback,
        _ => {}
    }
    let Some(called) = called else { return Why::Policy };
    match (outcome, called.state) {
        (Outcome::Placed | Outcome::Refused, _) => Why::Policy,
        (Outcome::Dropped, _) => Why::Full,
        (_, MemberState::Gone) => Why::Gone,
        (_, MemberState::Draining) => Why::Draining,
        (_, MemberState::Hung) => Why::Hung,
        _ if called.queued.saturating_add(called.half_open) >= called.capacity => Why::Full,
        _ => Why::Policy,
    }
}

fn glimpse(of: &layout::Glimpse) -> Option<Glimpse> {
    let gone = of.gone != 0;
    let is = |flag| of.flags & flag != 0;
    (of.id != layout::NO_MEMBER).then_some(Glimpse {
        member: MemberId(of.id),
        state: MemberState::of(gone, is(layout::DRAINING), is(layout::HUNG)),
        queued: of.queued,
        half_open: of.half_open,
        capacity: if gone { 0 } else { of.backlog.saturating_add(1) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(state: MemberState, queued: u32, half_open: u32) -> Glimpse {
        Glimpse { member: MemberId(0), state, queued, half_open, capacity: 5 }
    }

    #[test]
    fn outcomes_are_numbered_as_in_the_kernel() {
        for (number, expected) in (0..).zip(Outcome::ALL) {
            assert_eq!(outcome(number), expected);
        }
    }

    #[test]
    fn the_called_member_says_why() {
        let why = |number, outcome, called| why(number, outcome, Some(called));
        let redirected = |called| why(0, Outcome::Redirected, called);
        assert_eq!(redirected(called(MemberState::Active, 3, 2)), Why::Full);
        assert_eq!(redirected(called(MemberState::Active, 3, 1)), Why::Policy);
        assert_eq!(redirected(called(MemberState::Draining, 5, 0)), Why::Draining);
        assert_eq!(redirected(called(MemberState::Hung, 5, 0)), Why::Hung);
        assert_eq!(redirected(called(MemberState::Gone, 0, 0)), Why::Gone);
        assert_eq!(why(0, Outcome::Placed, called(MemberState::Active, 0, 0)), Why::Policy);
        assert_eq!(why(0, Outcome::Dropped, called(MemberState::Draining, 0, 0)), Why::Full);
        let cookie = why(layout::COOKIE, Outcome::Placed, called(MemberState::Active, 0, 0));
        assert_eq!(cookie, Why::Cookie);
        let refused = called(MemberState::Active, 5, 0);
        assert_eq!(why(layout::FALLBACK, Outcome::Redirected, refused), Why::Fallback);
        assert_eq!(why(layout::FALLBACK, Outcome::Dropped, refused), Why::Full);
        assert_eq!(why(layout::FALLBACK, Outcome::Reset, refused), Why::Full);
    }
}
