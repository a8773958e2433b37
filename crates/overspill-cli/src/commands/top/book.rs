//! What was read: of each service and member the figures as they are, what they come to a
//! second since the reading before, and what the queues held lately.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use overspill::{MemberId, MemberState, MemberStatus, Status};
use overspill_supervisor::identity::{Identity, Supervisor};

/// How many readings are kept of what a queue held: the widest that is shown of them.
pub(super) const LATELY: usize = 40;

/// The services of a network namespace, by name.
#[derive(Debug, Default)]
pub(super) struct Book {
    services: Vec<Service>,
    /// When the last reading was taken, since the first.
    read: Duration,
}

/// A service as it was read last.
#[derive(Debug)]
pub(super) struct Service {
    /// With an empty list of members: they are in `members`.
    pub(super) status: Status,
    pub(super) supervisor: Option<Supervisor>,
    /// `None` while it is not known: there is no reading to compare with.
    pub(super) rates: Option<Rates>,
    /// In list order.
    pub(super) members: Vec<Member>,
    pub(super) held: u64,
    pub(super) capacity: u64,
    pub(super) active: usize,
    /// `None` where no member's connections are counted.
    pub(super) established: Option<u64>,
}

/// Requests a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    pub(super) placed: f64,
    pub(super) redirected: f64,
    pub(super) dropped: f64,
    pub(super) reset: f64,
    pub(super) fallback: f64,
    pub(super) left: f64,
}

/// A member as it was read last.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) status: MemberStatus,
    /// The number of its worker, where it is known.
    pub(super) worker: Option<usize>,
    pub(super) rates: Option<MemberRates>,
    pub(super) lately: Lately,
}

/// Requests a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct MemberRates {
    pub(super) placed: f64,
    pub(super) redirected_in: f64,
    pub(super) redirected_out: f64,
}

/// How full a queue was at the last readings, in eighths: the newest last.
#[derive(Debug, Default)]
pub(super) struct Lately(VecDeque<u8>);

impl Book {
    pub(super) fn services(&self) -> &[Service] {
        &self.services
    }

    /// Takes in a reading, taken that long after the first.
    pub(super) fn note(&mut self, when: Duration, statuses: Vec<Status>) {
        let seconds = when.saturating_sub(self.read).as_secs_f64();
        let before = self.services.drain(..).map(|service| (service.status.name.clone(), service));
        let mut before: HashMap<String, Service> = before.collect();
        let next = |status: Status| {
            let past = before.remove(&status.name);
            Service::read(status, past, seconds)
        };
        self.services = statuses.into_iter().map(next).collect();
        self.read = when;
    }

    /// Takes in who serves and supervises the services of the last reading, in their order.
    pub(super) fn identify(&mut self, identities: Vec<Identity>) {
        for (service, identity) in self.services.iter_mut().zip(identities) {
            service.supervisor = identity.supervisor;
            for (member, worker) in service.members.iter_mut().zip(identity.workers) {
                member.worker = worker;
            }
        }
    }
}

impl Service {
    fn read(mut status: Status, past: Option<Self>, seconds: f64) -> Self {
        let now = counted(&status);
        let rates = past.as_ref().and_then(|past| rates(counted(&past.status), now, seconds));
        // One whose counters have gone back is another of the same name: what was known of
        // the members' numbers says nothing of its members.
        let past = past.filter(|_| rates.is_some()).map(|past| past.members);
        let past = past.into_iter().flatten().map(|member| (member.status.member, member));
        let mut past: HashMap<MemberId, Member> = past.collect();
        let members = std::mem::take(&mut status.members).into_iter().map(|status| {
            let past = past.remove(&status.member);
            Member::read(status, past, seconds)
        });
        let members: Vec<Member> = members.collect();
        let sum = |figure: fn(&Member) -> u64| members.iter().map(figure).sum();
        Self {
            rates: rates.map(|[placed, redirected, dropped, reset, fallback, left]| Rates {
                placed,
                redirected,
                dropped,
                reset,
                fallback,
                left,
            }),
            held: sum(Member::held),
            capacity: sum(|member| member.status.capacity.into()),
            active: members.iter().filter(|it| it.status.state == MemberState::Active).count(),
            established: members
                .iter()
                .filter_map(|member| member.status.established.map(u64::from))
                .reduce(|sum, established| sum + established),
            members,
            supervisor: None,
            status,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.status.name
    }
}

impl Member {
    fn read(status: MemberStatus, past: Option<Self>, seconds: f64) -> Self {
        let counted =
            |status: &MemberStatus| [status.placed, status.redirected_in, status.redirected_out];
        let rates =
            past.as_ref().and_then(|past| rates(counted(&past.status), counted(&status), seconds));
        let lately = past.map(|past| past.lately).unwrap_or_default();
        let mut member = Self {
            rates: rates.map(|[placed, redirected_in, redirected_out]| MemberRates {
                placed,
                redirected_in,
                redirected_out,
            }),
            status,
            worker: None,
            lately,
        };
        member.lately.push(member.eighths());
        member
    }

    pub(super) fn id(&self) -> MemberId {
        self.status.member
    }

    /// What its queue holds: what waits and what is half open.
    pub(super) fn held(&self) -> u64 {
        u64::from(self.status.queued) + u64::from(self.status.half_open)
    }

    /// How full its queue is: 0 for nothing, at least 1 for something, 8 for full alone.
    fn eighths(&self) -> u8 {
        let capacity = u64::from(self.status.capacity);
        match self.held() {
            0 => 0,
            held if held >= capacity => 8,
            held => u8::try_from((held * 8 / capacity).max(1)).expect("below 8"),
        }
    }
}

impl Lately {
    fn push(&mut self, eighths: u8) {
        if self.0.len() == LATELY {
            self.0.pop_front();
        }
        self.0.push_back(eighths);
    }

    pub(super) fn sum(&self) -> u32 {
        self.0.iter().copied().map(u32::from).sum()
    }

    /// The last `count` of them, or as many as there are.
    pub(super) fn last(&self, count: usize) -> impl Iterator<Item = u8> + '_ {
        self.0.iter().skip(self.0.len().saturating_sub(count)).copied()
    }
}

fn counted(status: &Status) -> [u64; 6] {
    let it = &status.requests;
    [it.placed, it.redirected, it.dropped, it.reset, it.fallback, it.left]
}

/// What the counters have grown by, a second. `None` where one of them has gone back: then
/// they were begun anew, nobody knows when.
#[allow(clippy::cast_precision_loss)] // they are for people
fn rates<const N: usize>(before: [u64; N], now: [u64; N], seconds: f64) -> Option<[f64; N]> {
    let mut rates = [0.0; N];
    for ((rate, before), now) in rates.iter_mut().zip(before).zip(now) {
        *rate = now.checked_sub(before)? as f64 / seconds;
    }
    (seconds > 0.0).then_some(rates)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use overspill::{Address, Families, OnFull, Policy, Requests};
    use overspill_supervisor::identity::Command;
    use std::cmp::Ordering::Equal;

    /// A member with that number that holds so much.
    pub(crate) fn member(id: u32, queued: u32, half_open: u32, capacity: u32) -> MemberStatus {
        let ip = std::net::Ipv4Addr::from_bits((10 << 24) + id + 1).into();
        MemberStatus {
            member: MemberId(id),
            address: Address { ip, port: 80, families: Families::IPV4 },
            pid: 100 + id,
            state: MemberState::Active,
            weight: 1,
            queued,
            half_open,
            capacity,
            established: Some(queued),
            placed: 0,
            redirected_in: 0,
            redirected_out: 0,
            special: 0,
            starts: 0,
        }
    }

    /// What is known of a service of so many workers.
    pub(crate) fn identity(name: &str, workers: usize) -> Identity {
        let supervisor = Supervisor {
            command: Command::Run,
            name: name.parse().unwrap(),
            pid: Some(4711),
            since: None,
        };
        Identity { supervisor: Some(supervisor), workers: (0..workers).map(Some).collect() }
    }

    pub(crate) fn service(name: &str, members: Vec<MemberStatus>) -> Status {
        Status {
            name: name.to_owned(),
            policy: Policy::LeastLoaded,
            dispatcher: None,
            on_full: OnFull::Drop,
            redirect: true,
            spread: false,
            port: 80,
            members,
            requests: Requests::default(),
        }
    }

    fn with(mut status: Status, placed: u64, redirected: u64) -> Status {
        status.requests.placed = placed;
        status.requests.redirected = redirected;
        for member in &mut status.members {
            member.placed = placed;
            member.redirected_in = redirected;
        }
        status
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn placed(book: &Book) -> Vec<Option<f64>> {
        book.services().iter().map(|it| it.rates.map(|rates| rates.placed)).collect()
    }

    #[test]
    fn rates_are_between_two_readings() {
        let web = || service("web", vec![member(0, 0, 0, 17)]);
        let mut book = Book::default();
        book.note(Duration::ZERO, vec![with(web(), 100, 10)]);
        assert_eq!(placed(&book), [None]);
        book.note(2 * SECOND, vec![with(web(), 150, 13)]);
        assert_eq!(placed(&book), [Some(25.0)]);
        let member = book.services()[0].members[0].rates.unwrap();
        assert_eq!((member.placed, member.redirected_in).partial_cmp(&(25.0, 1.5)), Some(Equal));
        // Twice at the same moment is no time to divide by.
        book.note(2 * SECOND, vec![with(web(), 150, 13)]);
        assert_eq!(placed(&book), [None]);
    }

    #[test]
    fn counters_that_go_back_give_no_rates() {
        let web = |queued| service("web", vec![member(0, queued, 0, 8)]);
        let mut book = Book::default();
        book.note(Duration::ZERO, vec![with(web(8), 100, 0)]);
        book.note(SECOND, vec![with(web(8), 200, 0)]);
        // Removed and made again, between two readings: all of it begins anew.
        book.note(2 * SECOND, vec![with(web(1), 3, 0)]);
        assert_eq!(placed(&book), [None]);
        let member = &book.services()[0].members[0];
        assert!(member.rates.is_none());
        assert_eq!(member.lately.last(9).collect::<Vec<_>>(), [1]);
        book.note(3 * SECOND, vec![with(web(1), 5, 0)]);
        assert_eq!(placed(&book), [Some(2.0)]);
    }

    #[test]
    fn a_member_whose_socket_was_replaced_keeps_its_past() {
        let mut book = Book::default();
        let status = |placed| {
            let mut status = service("web", vec![member(0, 8, 0, 8), member(1, 0, 0, 8)]);
            status.requests.placed = 100;
            status.members[0].placed = placed;
            status
        };
        book.note(Duration::ZERO, vec![status(70)]);
        book.note(SECOND, vec![status(2)]);
        let [first, second] = &book.services()[0].members[..] else { panic!() };
        assert!(first.rates.is_none() && second.rates.is_some());
        assert_eq!(first.lately.last(9).collect::<Vec<_>>(), [8, 8]);
    }

    #[test]
    fn services_and_members_are_known_by_name_and_number() {
        let mut book = Book::default();
        let [one, two] = [member(1, 1, 0, 8), member(2, 8, 0, 8)];
        book.note(
            Duration::ZERO,
            vec![
                with(service("api", vec![]), 1, 0),
                with(service("web", vec![member(0, 0, 0, 8), one.clone(), two.clone()]), 10, 0),
            ],
        );
        // The first of each is gone: nobody takes its place.
        book.note(SECOND, vec![with(service("web", vec![two, one]), 12, 0)]);
        assert_eq!(placed(&book), [Some(2.0)]);
        let lately = |at: usize| book.services()[0].members[at].lately.last(2).collect::<Vec<_>>();
        assert_eq!([lately(0), lately(1)], [[8, 8], [1, 1]]);
        book.note(2 * SECOND, vec![]);
        assert!(book.services().is_empty());
    }

    #[test]
    fn the_past_is_bounded_and_something_is_never_shown_as_nothing() {
        let mut book = Book::default();
        for reading in 0..100 {
            let statuses = vec![service("web", vec![member(0, reading % 2, 0, 4097)])];
            book.note(SECOND * reading, statuses);
        }
        let lately = &book.services()[0].members[0].lately;
        assert_eq!(lately.last(usize::MAX).count(), LATELY);
        assert_eq!(lately.last(3).collect::<Vec<_>>(), [1, 0, 1]);
        // Full is full alone, and a member that is gone holds nothing of nothing.
        let eighths = [(16, 0, 17), (16, 1, 17), (17, 9, 17), (0, 0, 0)].map(|(q, h, c)| {
            Member::read(member(0, q, h, c), None, 1.0).lately.last(1).next().unwrap()
        });
        assert_eq!(eighths, [7, 8, 8, 0]);
    }
}
