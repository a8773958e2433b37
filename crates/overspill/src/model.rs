//! The executable model: where a request is placed.
//!
//! A pure function, and the judge of the kernel program: the tests hold the two
//! together over random histories. Six rules, tried in order:
//!
//! 1. *Called members*: those bound to the called address; if there are none, those
//!    bound to a wildcard that covers it. None of either: not ours. With
//!    [`Rules::spread`] every member that can take the request is a called one.
//! 2. *Room*: queued and half-open requests leave space for one more. A draining member
//!    has no room, nor has one that hangs ([`Health::Hung`]) but for one request while it
//!    has none, if it is on trial ([`Health::OnTrial`]); one whose socket is gone has
//!    nothing.
//! 3. The policy chooses among the called members with room, else among the others.
//! 4. Else a member whose accept queue is not full: only half-open requests stand in
//!    the way, as in a SYN flood, and SYN cookies do without their queue. Else one that
//!    hangs and whose accept queue is not full: it may accept again, or what waits there
//!    may be moved.
//! 5. Else the request is left with a full member, where the kernel drops it, or is
//!    refused ([`OnFull`]). It is also refused when no queue is full, because all that
//!    is left is draining: the kernel has no silent drop for that.
//! 6. Without [`Rules::redirect`] only the called members are considered, and of those
//!    the first by the flow's hash, full or not.
//!
//! Before all that, *SYN cookies*: where the kernel answers a SYN with a cookie it forgets
//! the request, and the ACK comes as a request of its own, which only a member that has sent
//! cookies can take (or another at its address). So, where requests are redirected between
//! addresses, a flow that was sent a cookie goes back to the member that sent it, as long as
//! that listens, be it draining, hung, or full, whereupon the kernel drops it; and as long as
//! its socket stands at the position where it stood, or does so again. One cookie is
//! remembered for each lower half of a hash; where it is another flow's, its member gets the
//! request if it is well, not draining, not full and may still send cookies.
//!
//! *Turns*. Where a policy takes turns, it does so apart for each called address and
//! for the requests that are redirected; a turn begins after the member chosen last.
//! With one turn for all, requests that alternate between two addresses would always
//! meet the same member of each.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::flow;
use crate::member::{Address, Health};
use crate::policy::{OnFull, Policy, Rules};

/// A member as the model sees it at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Which socket it is, by a number that no other has (`SO_COOKIE`). One that leaves and
    /// joins again is still that socket.
    pub socket: u64,
    /// Where it listens.
    pub address: Address,
    /// Its socket is closed or shut down.
    pub gone: bool,
    /// It gets no new requests.
    pub draining: bool,
    /// Whether it has stopped accepting, by a mark that has not run out.
    pub health: Health,
    /// Connections waiting to be accepted.
    pub queued: u32,
    /// Handshakes not yet completed.
    pub half_open: u32,
    /// The backlog given to `listen`; the queue holds one more.
    pub backlog: u32,
    /// Connections that are complete and not closed, those that wait among them.
    pub established: u32,
    /// Its share among members that hold as much: 1 and more.
    pub weight: u16,
}

/// A request for a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The address that the client called.
    pub called: IpAddr,
    /// The flow's hash ([`flow::hash`]).
    pub hash: u32,
}

/// Where the next turns begin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turns {
    called: HashMap<IpAddr, usize>,
    siblings: usize,
}

/// Which flows were sent a SYN cookie lately, and by which member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cookies {
    /// By the lower half of the flow's hash.
    sent: HashMap<u16, Cookie>,
    always: bool,
}

/// The flow that was sent a cookie, and the member that sent it: its position, and its socket,
/// since another may have come there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cookie {
    hash: u32,
    position: usize,
    socket: u64,
}

/// What becomes of a request. Members are given by their position in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No member is called: the kernel goes on as if overspill were not there.
    NotOurs,
    /// Put on a called member.
    Placed(Choice),
    /// Put on a sibling of the called member `from`.
    Redirected {
        /// The called member that the flow's hash gives.
        from: usize,
        /// Where it was put.
        to: Choice,
    },
    /// Left with this full member: the kernel drops it.
    Dropped(usize),
    /// Refused.
    Reset,
    /// Every member is gone: left to the kernel.
    Left,
}

/// The member chosen for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Its position.
    pub member: usize,
    /// It is bound to another address than the called one.
    pub special: bool,
    /// Half-open requests fill its queue (rule 4).
    pub crowded: bool,
    /// It has sent the flow a SYN cookie.
    pub returned: bool,
}

impl Cookies {
    /// None yet. The kernel sends them when half-open requests fill a queue, or for every
    /// request (`net.ipv4.tcp_syncookies=2`).
    #[must_use]
    pub fn new(always: bool) -> Self {
        Self { always, ..Self::default() }
    }

    /// Whether another flow's cookie is remembered where this one's would be.
    #[must_use]
    pub fn collides(&self, hash: u32) -> bool {
        self.sent.get(&lower_half(hash)).is_some_and(|cookie| cookie.hash != hash)
    }

    /// Whether the kernel may answer a request put there with a cookie. (Kernels differ by
    /// one in when half-open requests fill a queue.)
    fn may_send(&self, member: &Member) -> bool {
        self.always || member.half_open >= member.backlog
    }

    fn remember(&mut self, hash: u32, members: &[Member], position: usize) {
        let sender = &members[position];
        if self.may_send(sender) {
            let cookie = Cookie { hash, position, socket: sender.socket };
            self.sent.insert(lower_half(hash), cookie);
        }
    }

    /// The member that a flow goes back to.
    fn sender(&self, members: &[Member], request: Request) -> Option<usize> {
        let &Cookie { hash, position, socket } = self.sent.get(&lower_half(request.hash))?;
        let member = members.get(position).filter(|member| member.socket == socket)?;
        let stands_in = || {
            let willing = member.open() && member.health == Health::Well;
            willing && self.may_send(member)
        };
        let listens = !member.gone && member.address.families.take(request.called);
        (listens && (hash == request.hash || stands_in())).then_some(position)
    }
}

fn lower_half(hash: u32) -> u16 {
    u16::try_from(hash & u32::from(u16::MAX)).expect("masked")
}

impl Member {
    fn used(&self) -> u32 {
        self.queued + self.half_open
    }

    fn load(&self) -> u64 {
        u64::from(self.used()) + u64::from(self.established)
    }

    /// Whether it holds less than the other, each over its weight.
    fn is_lighter(&self, other: &Self) -> bool {
        self.load() * u64::from(other.weight) < other.load() * u64::from(self.weight)
    }

    fn active(&self) -> bool {
        !self.gone && !self.draining
    }

    fn room(&self) -> bool {
        let willing = match self.health {
            Health::Well => true,
            Health::Hung => false,
            Health::OnTrial => self.used() == 0,
        };
        self.active() && willing && self.used() <= self.backlog
    }

    fn open(&self) -> bool {
        self.active() && !self.full()
    }

    fn full(&self) -> bool {
        !self.gone && self.queued > self.backlog
    }
}

/// Where the members of a request begin to be looked at, and in which order.
struct Candidates<'a> {
    members: &'a [Member],
    /// Positions in list order.
    list: Vec<usize>,
    start: usize,
}

impl Candidates<'_> {
    /// Indexes into the list, from the start on, wrapping.
    fn from(&self, start: usize) -> impl Iterator<Item = usize> {
        let count = self.list.len();
        let start = if start < count { start } else { 0 };
        (0..count).map(move |i| (start + i) % count)
    }

    fn at(&self, index: usize) -> &Member {
        &self.members[self.list[index]]
    }

    fn first(&self, wanted: impl Fn(&Member) -> bool) -> Option<usize> {
        self.from(self.start).find(|&index| wanted(self.at(index)))
    }

    fn with_room(&self, start: usize) -> impl Iterator<Item = usize> {
        self.from(start).filter(|&index| self.at(index).room())
    }

    /// The first from `start` on, of those with room, than which none is lighter.
    fn lightest(&self, start: usize) -> Option<usize> {
        self.with_room(start).reduce(|best, index| self.lighter(best, index))
    }

    fn lighter(&self, one: usize, other: usize) -> usize {
        if self.at(other).is_lighter(self.at(one)) { other } else { one }
    }

    /// The lighter of the first two with room, from two starts.
    fn lighter_of_two(&self, (one, other): (usize, usize)) -> Option<usize> {
        let one = self.with_room(one).next()?;
        let other = self.with_room(other).find(|&index| index != one);
        Some(other.map_or(one, |other| self.lighter(one, other)))
    }

    /// The policy's choice among those with room.
    fn choose(&self, policy: Policy, turn: usize, two: (usize, usize)) -> Option<usize> {
        match policy {
            // A dispatcher that cannot choose leaves it to next-available.
            Policy::NextAvailable | Policy::Dispatcher => self.first(Member::room),
            Policy::RoundRobin => self.with_room(turn).next(),
            Policy::ShortestQueue => {
                self.with_room(turn).min_by_key(|&index| self.at(index).used())
            }
            Policy::LeastLoaded => self.lightest(turn),
            Policy::TwoChoices => self.lighter_of_two(two),
        }
    }

    /// The position that a dispatcher answers, if it answers one.
    fn ask(&self, dispatcher: &mut Dispatcher<'_>) -> Option<usize> {
        let candidates: Vec<usize> =
            self.with_room(self.start).map(|index| self.list[index]).collect();
        candidates.get(dispatcher(&candidates)?).copied()
    }

    /// The index of the first at or after a position, in the order of the list.
    fn index_at(&self, position: usize) -> usize {
        self.list.iter().position(|&listed| listed >= position).unwrap_or(0)
    }
}

/// The endpoint by which a request is called: its address, or a wildcard (rule 1).
fn endpoint(members: &[Member], called: IpAddr) -> Option<IpAddr> {
    let wildcard: IpAddr = match called {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    [called, wildcard]
        .into_iter()
        .find(|&ip| members.iter().any(|member| member.address.endpoints().any(|own| own == ip)))
}

/// Where `request` is placed among `members`, by `rules`. `turns` are moved on, and `cookies`
/// remember it where it may be answered with one.
///
/// By [`Policy::Dispatcher`], as if the dispatcher refused: see [`place_asking`].
#[must_use]
pub fn place(
    rules: Rules,
    members: &[Member],
    turns: &mut Turns,
    cookies: &mut Cookies,
    request: Request,
) -> Verdict {
    place_asking(rules, members, turns, cookies, request, &mut |_| None)
}

/// What is asked by [`Policy::Dispatcher`]: it gets the positions of the candidates, those
/// with room among the called members or, if there are none, among the others, in the order
/// of [`Policy::NextAvailable`]. Its answer is an index of these.
pub type Dispatcher<'a> = dyn FnMut(&[usize]) -> Option<usize> + 'a;

/// As [`place`], with a dispatcher. Where it answers `None`, or an index that there is not,
/// next-available chooses.
#[must_use]
pub fn place_asking(
    rules: Rules,
    members: &[Member],
    turns: &mut Turns,
    cookies: &mut Cookies,
    request: Request,
    dispatcher: &mut Dispatcher<'_>,
) -> Verdict {
    if !(rules.redirect && are_apart(members)) {
        return choose(rules, members, turns, None, request, dispatcher);
    }
    let sender = cookies.sender(members, request);
    let verdict = choose(rules, members, turns, sender, request, dispatcher);
    if let Verdict::Placed(to) | Verdict::Redirected { to, .. } = verdict {
        cookies.remember(request.hash, members, to.member);
    }
    verdict
}

/// Whether they are on several addresses: those on one check each other's cookies.
fn are_apart(members: &[Member]) -> bool {
    members.windows(2).any(|pair| pair[0].address != pair[1].address)
}

/// Where a request is placed whose flow was sent a cookie by `sender`, or by none.
fn choose(
    rules: Rules,
    members: &[Member],
    turns: &mut Turns,
    sender: Option<usize>,
    request: Request,
    dispatcher: &mut Dispatcher<'_>,
) -> Verdict {
    let Some(endpoint) = endpoint(members, request.called) else {
        return Verdict::NotOurs;
    };
    let takes = |position: &usize| members[*position].address.families.take(request.called);
    let calls = |position: &usize| {
        rules.spread || members[*position].address.endpoints().any(|own| own == endpoint)
    };
    let able: Vec<usize> = (0..members.len()).filter(takes).collect();
    let list: Vec<usize> = able.iter().copied().filter(calls).collect();
    if list.is_empty() {
        return Verdict::NotOurs;
    }
    let start = flow::index(request.hash, list.len());
    let from = list[start];
    let called = Candidates { members, list, start };
    let choice = |member: usize, crowded: bool| Choice {
        member,
        special: !members[member].address.is_wildcard()
            && members[member].address.ip != request.called,
        crowded,
        returned: false,
    };

    if let Some(sender) = sender {
        let to = Choice { returned: true, ..choice(sender, false) };
        return match members[sender].full() {
            true => Verdict::Dropped(sender),
            false if calls(&sender) => Verdict::Placed(to),
            false => Verdict::Redirected { from, to },
        };
    }
    if !rules.redirect {
        return match called.first(Member::active) {
            Some(index) if !called.at(index).full() => {
                Verdict::Placed(choice(called.list[index], false))
            }
            _ => no_room(rules.on_full, &[&called]),
        };
    }
    // A member of another family keeps its place in the list: order is by position.
    let mut siblings = Candidates { members, list: able, start: 0 };
    siblings.start = siblings.index_at(from);

    if rules.policy == Policy::Dispatcher {
        let has_room = |scope: &&Candidates<'_>| scope.first(Member::room).is_some();
        let scope = [&called, &siblings].into_iter().find(has_room);
        if let Some(position) = scope.and_then(|scope| scope.ask(dispatcher)) {
            let to = choice(position, false);
            let called = calls(&position);
            return if called { Verdict::Placed(to) } else { Verdict::Redirected { from, to } };
        }
    }
    let turn = turns.called.get(&endpoint).copied().unwrap_or(0);
    let two = flow::two_indexes(request.hash, called.list.len());
    if let Some(index) = called.choose(rules.policy, turn, two) {
        if rules.policy.takes_turns() {
            turns.called.insert(endpoint, index + 1);
        }
        return Verdict::Placed(choice(called.list[index], false));
    }
    let turn = siblings.index_at(turns.siblings);
    let (one, other) = flow::two_indexes(request.hash, members.len());
    let two = (siblings.index_at(one), siblings.index_at(other));
    if let Some(index) = siblings.choose(rules.policy, turn, two) {
        if rules.policy.takes_turns() {
            turns.siblings = siblings.list[index] + 1;
        }
        return Verdict::Redirected { from, to: choice(siblings.list[index], false) };
    }
    let well = |member: &Member| member.open() && member.health == Health::Well;
    for (crowded, wanted) in [(true, &well as &dyn Fn(&Member) -> bool), (false, &Member::open)] {
        if let Some(index) = called.first(wanted) {
            return Verdict::Placed(choice(called.list[index], crowded));
        }
        if let Some(index) = siblings.first(wanted) {
            return Verdict::Redirected { from, to: choice(siblings.list[index], crowded) };
        }
    }
    no_room(rules.on_full, &[&called, &siblings])
}

/// Rule 5 over the scopes given.
fn no_room(on_full: OnFull, scopes: &[&Candidates<'_>]) -> Verdict {
    let find = |wanted: fn(&Member) -> bool| {
        scopes.iter().find_map(|scope| Some(scope.list[scope.first(wanted)?]))
    };
    if on_full == OnFull::Drop
        && let Some(member) = find(Member::full)
    {
        return Verdict::Dropped(member);
    }
    if find(|member| !member.gone).is_some() { Verdict::Reset } else { Verdict::Left }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::Families;
    use proptest::prelude::*;

    fn member(ip: &str, used: u32, backlog: u32) -> Member {
        let ip: IpAddr = ip.parse().unwrap();
        let families = if ip.is_ipv4() { Families::IPV4 } else { Families::IPV6 };
        let address = Address { ip, port: 80, families };
        Member {
            socket: 0,
            address,
            gone: false,
            draining: false,
            health: Health::Well,
            queued: used,
            half_open: 0,
            backlog,
            established: 0,
            weight: 1,
        }
    }

    /// Where no cookies were sent.
    fn place(rules: Rules, members: &[Member], turns: &mut Turns, request: Request) -> Verdict {
        super::place(rules, members, turns, &mut Cookies::default(), request)
    }

    fn request(called: &str) -> Request {
        Request { called: called.parse().unwrap(), hash: 0 }
    }

    fn rules(policy: Policy) -> Rules {
        Rules { policy, ..Rules::default() }
    }

    fn member_of(verdict: Verdict) -> usize {
        match verdict {
            Verdict::Placed(to) | Verdict::Redirected { to, .. } => to.member,
            other => panic!("not placed: {other:?}"),
        }
    }

    #[test]
    fn the_figure_of_the_patent() {
        // Four sockets with queues of four; the called one is full.
        let members = [
            member("10.0.0.1", 4, 3),
            member("10.0.0.2", 1, 3),
            member("10.0.0.3", 0, 3),
            member("10.0.0.4", 2, 3),
        ];
        let called = request("10.0.0.1");
        for (policy, expected) in
            [(Policy::NextAvailable, 1), (Policy::ShortestQueue, 2), (Policy::RoundRobin, 1)]
        {
            let verdict = place(rules(policy), &members, &mut Turns::default(), called);
            let to = Choice { member: expected, special: true, crowded: false, returned: false };
            assert_eq!(verdict, Verdict::Redirected { from: 0, to }, "{policy}");
        }
    }

    #[test]
    fn exact_addresses_go_before_wildcards() {
        let mut dual = member("::", 0, 3);
        dual.address.families = Families::BOTH;
        let members = [dual, member("10.0.0.1", 0, 3)];
        let place =
            |called| place(Rules::default(), &members, &mut Turns::default(), request(called));
        assert_eq!(member_of(place("10.0.0.1")), 1);
        assert_eq!(member_of(place("10.0.0.9")), 0);
        assert_eq!(member_of(place("fd00::1")), 0);
    }

    #[test]
    fn an_address_that_nobody_serves_is_not_ours() {
        let members = [member("10.0.0.1", 0, 3)];
        let verdict = place(Rules::default(), &members, &mut Turns::default(), request("10.0.0.2"));
        assert_eq!(verdict, Verdict::NotOurs);
    }

    #[test]
    fn a_gone_member_keeps_its_address() {
        let mut members = [member("10.0.0.1", 0, 3), member("10.0.0.2", 0, 3)];
        members[0].gone = true;
        let mut turns = Turns::default();
        assert_eq!(
            member_of(place(Rules::default(), &members, &mut turns, request("10.0.0.1"))),
            1
        );
        members[1].gone = true;
        let verdict = place(Rules::default(), &members, &mut turns, request("10.0.0.1"));
        assert_eq!(verdict, Verdict::Left);
    }

    #[test]
    fn half_open_requests_count_until_nothing_else_is_left() {
        let mut members = [member("10.0.0.1", 0, 3), member("10.0.0.2", 0, 3)];
        members[0].half_open = 4;
        let mut turns = Turns::default();
        assert_eq!(
            member_of(place(Rules::default(), &members, &mut turns, request("10.0.0.1"))),
            1
        );
        members[1].half_open = 4;
        let verdict = place(Rules::default(), &members, &mut turns, request("10.0.0.1"));
        assert_eq!(
            verdict,
            Verdict::Placed(Choice { member: 0, special: false, crowded: true, returned: false })
        );
    }

    #[test]
    fn the_end_is_drop_or_reset() {
        let members = [member("10.0.0.1", 4, 3), member("10.0.0.2", 4, 3)];
        let end = |on_full| {
            let rules = Rules { on_full, ..Rules::default() };
            place(rules, &members, &mut Turns::default(), request("10.0.0.2"))
        };
        assert_eq!(end(OnFull::Drop), Verdict::Dropped(1));
        assert_eq!(end(OnFull::Reset), Verdict::Reset);
    }

    #[test]
    fn where_only_draining_members_are_left_the_request_is_refused() {
        let mut members = [member("10.0.0.1", 0, 3)];
        members[0].draining = true;
        for redirect in [true, false] {
            let rules = Rules { redirect, ..Rules::default() };
            let verdict = place(rules, &members, &mut Turns::default(), request("10.0.0.1"));
            assert_eq!(verdict, Verdict::Reset);
        }
    }

    #[test]
    fn turns_are_taken_apart_for_each_address() {
        let members = [
            member("10.0.0.1", 0, 9),
            member("10.0.0.1", 0, 9),
            member("10.0.0.2", 0, 9),
            member("10.0.0.2", 0, 9),
        ];
        let mut turns = Turns::default();
        let order: Vec<usize> = ["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2", "10.0.0.1"]
            .into_iter()
            .map(|called| {
                member_of(place(rules(Policy::RoundRobin), &members, &mut turns, request(called)))
            })
            .collect();
        assert_eq!(order, [0, 2, 1, 3, 0]);
    }

    #[test]
    fn a_member_that_hangs_is_the_last_resort() {
        let mut members = [member("10.0.0.1", 0, 3), member("10.0.0.1", 3, 3)];
        members[0].health = Health::Hung;
        let place = |members: &[Member]| {
            place(rules(Policy::NextAvailable), members, &mut Turns::default(), request("10.0.0.1"))
        };
        assert_eq!(member_of(place(&members)), 1, "one with room goes before it");
        (members[1].queued, members[1].half_open) = (3, 1);
        assert_eq!(member_of(place(&members)), 1, "so does one that half-open requests fill");
        members[1].queued = 4;
        assert_eq!(member_of(place(&members)), 0);
        members[0].queued = 4;
        assert_eq!(place(&members), Verdict::Dropped(0));
    }

    #[test]
    fn a_member_on_trial_gets_one_request() {
        let mut members = [member("10.0.0.1", 0, 3), member("10.0.0.1", 1, 3)];
        members[0].health = Health::OnTrial;
        let place = |members: &[Member]| {
            let mut turns = Turns::default();
            place(rules(Policy::ShortestQueue), members, &mut turns, request("10.0.0.1"))
        };
        assert_eq!(member_of(place(&members)), 0);
        members[0].half_open = 1;
        members[1].queued = 3;
        assert_eq!(member_of(place(&members)), 1);
    }

    #[test]
    fn a_flow_goes_back_to_who_sent_it_a_cookie() {
        let mut members = [member("10.0.0.1", 0, 1), member("10.0.0.2", 0, 1)];
        let mut cookies = Cookies::default();
        let mut place = |members: &[Member], hash: u32| {
            let request = Request { hash, ..request("10.0.0.1") };
            super::place(Rules::default(), members, &mut Turns::default(), &mut cookies, request)
        };
        for member in &mut members {
            member.half_open = 2;
        }
        assert_eq!(member_of(place(&members, 0x1_0007)), 0);
        // Another flow, with the same lower half, does as long as there is a flood.
        members[1].half_open = 0;
        assert_eq!(member_of(place(&members, 0x2_0007)), 0);
        assert_eq!(member_of(place(&members, 0x1_0008)), 1, "not remembered");
        members[0].half_open = 0;
        members[0].queued = 2;
        assert_eq!(place(&members, 0x2_0007), Verdict::Dropped(0));
        assert_eq!(member_of(place(&members, 0x1_0007)), 1, "no flood");
        (members[0].queued, members[0].draining) = (1, true);
        let to = Choice { member: 0, special: false, crowded: false, returned: true };
        assert_eq!(place(&members, 0x2_0007), Verdict::Placed(to));
        members[0].gone = true;
        assert_eq!(member_of(place(&members, 0x2_0007)), 1);
    }

    #[test]
    fn members_at_one_address_check_each_others_cookies() {
        let mut members = [member("10.0.0.1", 0, 1), member("10.0.0.1", 0, 1)];
        let mut cookies = Cookies::new(true);
        let policy = rules(Policy::RoundRobin);
        let mut turns = Turns::default();
        let mut place = |members: &[Member]| {
            super::place(policy, members, &mut turns, &mut cookies, request("10.0.0.1"))
        };
        assert_eq!([place(&members), place(&members)].map(member_of), [0, 1]);
        members[1].address = member("10.0.0.2", 0, 1).address;
        assert_eq!([place(&members), place(&members)].map(member_of), [0, 0]);
    }

    #[test]
    fn a_cookie_is_known_while_its_senders_socket_stands_in_its_place() {
        let numbered = |ip, socket| Member { socket, ..member(ip, 0, 1) };
        let [first, second] = [numbered("10.0.0.1", 1), numbered("10.0.0.2", 2)];
        let another = Member { socket: 3, ..first.clone() };
        let mut sent = Cookies::new(true);
        let mut turns = Turns::default();
        let mut place = |cookies: &mut Cookies, members: &[&Member]| {
            let members: Vec<Member> = members.iter().copied().cloned().collect();
            super::place(Rules::default(), &members, &mut turns, cookies, request("10.0.0.1"))
        };
        assert_eq!(member_of(place(&mut sent, &[&first, &second])), 0);
        for (members, expected) in [
            ([&second, &first], false),
            ([&another, &second], false),
            ([&another, &first], false),
            ([&first, &second], true),
        ] {
            let Verdict::Placed(to) = place(&mut sent.clone(), &members) else { panic!("room") };
            assert_eq!(to.returned, expected, "{members:?}");
        }
    }

    fn any_member() -> impl Strategy<Value = Member> {
        let ip = prop_oneof![r"10\.0\.0\.[1-3]", Just("0.0.0.0".to_owned())];
        let health = prop::sample::select(&[Health::Well, Health::Hung, Health::OnTrial][..]);
        (ip, any::<bool>(), any::<bool>(), health, 0..5_u32, 0..3_u32, 0..4_u32).prop_map(
            |(ip, gone, draining, health, queued, half_open, backlog)| Member {
                gone,
                draining,
                health,
                half_open,
                ..member(&ip, queued, backlog)
            },
        )
    }

    /// A list, and what becomes of it as members leave and move.
    fn any_change() -> impl Strategy<Value = (Vec<Member>, Vec<Member>)> {
        let members = prop::collection::vec(any_member(), 1..9).prop_map(|mut members| {
            for (member, socket) in members.iter_mut().zip(0..) {
                member.socket = socket;
            }
            members
        });
        let after = |members: Vec<Member>| {
            let count = members.len();
            let moved = Just(members.clone()).prop_shuffle();
            let left = prop::sample::subsequence(members.clone(), 1..=count);
            (Just(members), prop_oneof![moved, left])
        };
        members.prop_flat_map(after)
    }

    fn any_rules() -> impl Strategy<Value = Rules> {
        let policy = prop::sample::select(&Policy::ALL[..]);
        let on_full = prop::sample::select(&OnFull::ALL[..]);
        (policy, on_full, any::<bool>(), any::<bool>()).prop_map(
            |(policy, on_full, redirect, spread)| Rules { policy, on_full, redirect, spread },
        )
    }

    #[test]
    fn a_dispatcher_chooses_among_those_with_room() {
        let members = [
            member("10.0.0.1", 4, 3),
            member("10.0.0.1", 1, 3),
            member("10.0.0.2", 0, 3),
            member("10.0.0.1", 2, 3),
        ];
        let place = |members: &[Member], answer: Option<usize>| {
            let mut asked = Vec::new();
            let mut dispatcher = |candidates: &[usize]| {
                asked = candidates.to_vec();
                answer
            };
            let rules = rules(Policy::Dispatcher);
            let call = request("10.0.0.1");
            let (turns, cookies) = (&mut Turns::default(), &mut Cookies::default());
            let verdict = place_asking(rules, members, turns, cookies, call, &mut dispatcher);
            (asked, member_of(verdict))
        };
        assert_eq!(place(&members, Some(1)), (vec![1, 3], 3));
        assert_eq!(place(&members, Some(2)), (vec![1, 3], 1), "there is none at 2");
        assert_eq!(place(&members, None), (vec![1, 3], 1));
        let mut full = members.clone();
        (full[1].queued, full[3].queued) = (4, 4);
        assert_eq!(place(&full, Some(0)), (vec![2], 2), "siblings, where no called one has room");
        full[2].queued = 4;
        full[3].queued = 3;
        full[3].half_open = 1;
        assert_eq!(place(&full, Some(0)), (vec![], 3), "nothing to ask: crowded");
    }

    proptest! {
        #[test]
        fn no_request_is_lost_while_a_member_has_room(
            rules in any_rules(),
            members in prop::collection::vec(any_member(), 1..9),
            hash in any::<u32>(),
        ) {
            let rules = Rules { redirect: true, ..rules };
            let request = Request { called: "10.0.0.1".parse().unwrap(), hash };
            match place(rules, &members, &mut Turns::default(), request) {
                Verdict::NotOurs => {
                    prop_assert!(!rules.spread || endpoint(&members, request.called).is_none());
                }
                Verdict::Placed(to) | Verdict::Redirected { to, .. } => {
                    let chosen = &members[to.member];
                    prop_assert!(chosen.active() && !chosen.full());
                    prop_assert!(chosen.room() || !members.iter().any(Member::room));
                }
                Verdict::Dropped(member) => {
                    prop_assert!(members[member].full());
                    prop_assert!(!members.iter().any(|m| m.active() && !m.full()));
                }
                Verdict::Reset => {
                    prop_assert!(!members.iter().any(|m| m.active() && !m.full()));
                }
                Verdict::Left => prop_assert!(members.iter().all(|m| m.gone)),
            }
        }

        #[test]
        fn a_flow_goes_back_to_the_socket_that_sent_it_a_cookie_and_to_no_other(
            rules in any_rules(),
            (before, after) in any_change(),
            hash in any::<u32>(),
        ) {
            let request = Request { called: "10.0.0.1".parse().unwrap(), hash };
            let (turns, cookies) = (&mut Turns::default(), &mut Cookies::new(true));
            let mut place =
                |members: &[Member]| super::place(rules, members, turns, cookies, request);
            let sender = match place(&before) {
                Verdict::Placed(to) | Verdict::Redirected { to, .. } => to.member,
                _ => return Ok(()),
            };
            let back = match place(&after) {
                Verdict::NotOurs => return Ok(()),
                Verdict::Placed(to) | Verdict::Redirected { to, .. } if to.returned => {
                    Some(to.member)
                }
                _ => None,
            };
            let remembered = rules.redirect && are_apart(&before) && are_apart(&after);
            let stands = after.get(sender).is_some_and(|at| at.socket == before[sender].socket);
            prop_assert_eq!(back, (remembered && stands).then_some(sender));
        }

        #[test]
        fn the_shortest_queue_is_the_shortest(
            members in prop::collection::vec(any_member(), 1..9),
            hash in any::<u32>(),
        ) {
            let rules = Rules { spread: true, ..rules(Policy::ShortestQueue) };
            let request = Request { called: "10.0.0.1".parse().unwrap(), hash };
            if let Verdict::Placed(to) = place(rules, &members, &mut Turns::default(), request)
                && !to.crowded
            {
                let least = members.iter().filter(|m| m.room()).map(Member::used).min();
                // Where none has room, one that hangs was the last resort.
                prop_assert_eq!(least.map(|_| members[to.member].used()), least);
            }
        }
    }
}
