//! A service as published: the one truth about it.
//!
//! A roster holds all that the kernel program and user space need to know of a
//! service. It is encoded into rows of an array (`bpf/overspill.h`) and never
//! changed in its list: a change makes a new one, which replaces the old in one step.
//! Everything else in the maps (endpoints, near, ports, sockets) is an index of the rosters.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{self, EndpointRow, Header, POSITIONS_PER_ROW, ROW_ENDPOINTS, ROW_SIZE};
use crate::member::{Address, Families, Health, MemberId};
use crate::policy::{OnFull, Policy, Rules};
use crate::sys;

pub(crate) type Row = [u8; ROW_SIZE];

/// A service, its rules and its members in list order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roster {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) rules: Rules,
    pub(crate) members: Vec<Member>,
    /// By number; `None` is one that was given up and may be given out again. A number
    /// stands in the map `endpoints` and so must not move while its address is served.
    endpoints: Vec<Option<Endpoint>>,
    next_id: u32,
    turn: u32,
    /// When a SYN cookie was sent last for any of its endpoints, in cookie ticks; 0 if none
    /// was lately.
    cookie: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) pid: u32,
    /// Of the socket (`SO_COOKIE`): its identity for as long as the machine is up.
    pub(crate) cookie: u64,
    /// Where the socket lies in the map `sockets`.
    pub(crate) slot: u32,
    pub(crate) weight: u16,
    pub(crate) draining: bool,
    pub(crate) health: Health,
    /// When its health was marked last, in mark ticks.
    pub(crate) marked: u32,
    /// The id of the socket's control group, through which its connections are counted; 0
    /// if it does not fit.
    pub(crate) cgroup: u32,
    pub(crate) address: Address,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Endpoint {
    ip: IpAddr,
    turn: u32,
}

/// The called members of one endpoint, as positions.
#[derive(Clone, Copy)]
struct Called {
    first: u32,
    count: u32,
    direct: bool,
}

impl Roster {
    pub(crate) fn new(name: String, port: u16, rules: Rules) -> Self {
        Self {
            name,
            port,
            rules,
            members: Vec::new(),
            endpoints: Vec::new(),
            next_id: 0,
            turn: 0,
            cookie: 0,
        }
    }

    /// A service exported by a build of another layout, or `None` if its policy is unknown.
    /// Round-robin cursors start again. A SYN cookie may have been sent for it just before.
    pub(crate) fn imported(
        name: String,
        service: &layout::ExportedService,
        members: Vec<Member>,
    ) -> Option<Self> {
        let rules = rules_from(service.policy, service.flags)?;
        let cookie = sys::monotonic() >> layout::COOKIE_TICK_SHIFT;
        let next_id = service.next_id;
        let new = Self::new(name, service.port, rules);
        let mut roster = Self { members, next_id, cookie, ..new };
        roster.renew_endpoints();
        Some(roster)
    }

    /// Adds members at the end of the list and gives them their ids.
    pub(crate) fn join(&mut self, members: impl IntoIterator<Item = Member>) {
        for mut member in members {
            member.id = MemberId(self.next_id);
            self.next_id += 1;
            self.members.push(member);
        }
        self.renew_endpoints();
    }

    /// Takes the member at `position` out of the list.
    pub(crate) fn leave(&mut self, position: usize) -> Member {
        let member = self.members.remove(position);
        self.renew_endpoints();
        member
    }

    /// Puts another socket at the same address into the place of the member at `position`,
    /// whose number and weight it takes over; of the same process also whether it drains.
    pub(crate) fn replace(&mut self, position: usize, new: &Member) {
        let old = &mut self.members[position];
        let draining = old.draining && old.pid == new.pid;
        *old = Member { id: old.id, weight: old.weight, draining, ..new.clone() };
    }

    /// Lets the members named stand in this order, in the places that they hold together.
    pub(crate) fn arrange(&mut self, order: &[MemberId]) {
        let mut places: Vec<usize> = order.iter().filter_map(|&id| self.position(id)).collect();
        if places.is_sorted() {
            return;
        }
        let arranged: Vec<Member> =
            places.iter().map(|&place| self.members[place].clone()).collect();
        places.sort_unstable();
        for (place, member) in places.into_iter().zip(arranged) {
            self.members[place] = member;
        }
        self.renew_endpoints();
    }

    pub(crate) fn position(&self, id: MemberId) -> Option<usize> {
        self.members.iter().position(|member| member.id == id)
    }

    /// The addresses at which clients call the service, each with its number.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (IpAddr, u32)> + '_ {
        self.endpoints
            .iter()
            .zip(0..)
            .filter_map(|(endpoint, number)| Some((endpoint.as_ref()?.ip, number)))
    }

    /// After a change of the list: endpoints come and go, and all turns begin anew,
    /// since they are positions in a list that is no more.
    fn renew_endpoints(&mut self) {
        self.turn = 0;
        let mut wanted: HashSet<IpAddr> = HashSet::new();
        for endpoint in self.endpoints.iter_mut().flatten() {
            endpoint.turn = 0;
        }
        let order: Vec<IpAddr> = self
            .members
            .iter()
            .flat_map(|member| member.address.endpoints())
            .filter(|&ip| wanted.insert(ip))
            .collect();
        for slot in &mut self.endpoints {
            // What is left in `wanted` afterwards has no number yet.
            *slot = slot.filter(|old| wanted.remove(&old.ip));
        }
        let mut free = 0;
        for ip in order.into_iter().filter(|ip| wanted.contains(ip)) {
            while self.endpoints.get(free).is_some_and(Option::is_some) {
                free += 1;
            }
            let new = Some(Endpoint { ip, turn: 0 });
            match self.endpoints.get_mut(free) {
                Some(slot) => *slot = new,
                None => self.endpoints.push(new),
            }
        }
        while self.endpoints.last().is_some_and(Option::is_none) {
            self.endpoints.pop();
        }
    }

    /// The positions that a request to each endpoint calls, in list order.
    fn called(&self) -> HashMap<IpAddr, Vec<u32>> {
        let mut called: HashMap<IpAddr, Vec<u32>> = HashMap::new();
        for (member, position) in self.members.iter().zip(0..) {
            for ip in self.called_at(member.address) {
                called.entry(ip).or_default().push(position);
            }
        }
        called
    }

    /// Where a member is called: in a spread service at a stand-in for each family.
    fn called_at(&self, address: Address) -> Vec<IpAddr> {
        if !self.rules.spread {
            return address.endpoints().collect();
        }
        [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
            .into_iter()
            .filter(|&family| address.families.take(family))
            .collect()
    }

    /// The key in `called` for an endpoint.
    fn key(&self, ip: IpAddr) -> IpAddr {
        match ip {
            _ if !self.rules.spread => ip,
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// Every endpoint's called members. Those that are a run of the list are given by
    /// it; the others lie in the called table, endpoints of one key sharing their part.
    fn called_table(&self) -> (Vec<Option<Called>>, Vec<u32>) {
        let lists = self.called();
        let mut table: Vec<u32> = Vec::new();
        let mut parts: HashMap<IpAddr, Called> = HashMap::new();
        let called = self
            .endpoints
            .iter()
            .map(|endpoint| {
                let key = self.key(endpoint.as_ref()?.ip);
                let list = lists.get(&key).map_or(&[][..], Vec::as_slice);
                let called = parts.entry(key).or_insert_with(|| {
                    let direct = list.windows(2).all(|pair| pair[1] == pair[0] + 1);
                    let first = if direct { list.first().copied() } else { Some(count(&table)) };
                    if !direct {
                        table.extend(list);
                    }
                    Called { first: first.unwrap_or(0), count: count(list), direct }
                });
                Some(*called)
            })
            .collect();
        (called, table)
    }

    pub(crate) fn encode(&self) -> Vec<Row> {
        let (called, table) = self.called_table();
        let mut rows = vec![self.header_row()];
        rows.extend(name_rows(&self.name));
        rows.extend(self.endpoints.iter().zip(&called).map(|(endpoint, called)| {
            let row = endpoint.as_ref().zip(called.as_ref());
            row.map_or([0; ROW_SIZE], |(endpoint, called)| self.endpoint_row(endpoint, called))
        }));
        rows.extend(self.members.iter().map(member_row));
        // The kernel program fills in its sockets' addresses.
        let addresses = self.members.len().div_ceil(layout::ADDRESSES_PER_ROW);
        rows.extend(std::iter::repeat_n([0; ROW_SIZE], addresses));
        rows.extend(table.chunks(POSITIONS_PER_ROW).map(|chunk| {
            let mut positions = [0_u32; POSITIONS_PER_ROW];
            positions[..chunk.len()].copy_from_slice(chunk);
            to_row(&positions)
        }));
        rows
    }

    fn flags(&self) -> u8 {
        let mut flags = 0;
        flags |= if self.rules.redirect { layout::REDIRECT } else { 0 };
        flags |= if self.rules.on_full == OnFull::Reset { layout::RESET } else { 0 };
        flags |= if self.rules.spread { layout::SPREAD } else { 0 };
        flags |= if self.rules.redirect && self.is_apart() { layout::APART } else { 0 };
        flags
    }

    /// Whether its members are on several addresses. Those on one address are one
    /// `SO_REUSEPORT` group, and any of them checks the SYN cookies of all.
    fn is_apart(&self) -> bool {
        self.members.windows(2).any(|pair| pair[0].address != pair[1].address)
    }

    fn endpoint_row(&self, endpoint: &Endpoint, called: &Called) -> Row {
        to_row(&EndpointRow {
            address: layout::address_bytes(endpoint.ip),
            first: called.first,
            count: called.count,
            direct: called.direct.into(),
            turn: endpoint.turn,
            members: count(&self.members),
            endpoints: count(&self.endpoints),
            policy: self.rules.policy.number(),
            flags: self.flags(),
            cookie: self.cookie,
            port: self.port,
            mark: layout::ENDPOINT_MARK,
            ..EndpointRow::default()
        })
    }

    fn header_row(&self) -> Row {
        to_row(&Header {
            members: count(&self.members),
            endpoints: count(&self.endpoints),
            turn: self.turn,
            port: self.port,
            policy: self.rules.policy.number(),
            flags: self.flags(),
            next_id: self.next_id,
            zero: [0; 11],
        })
    }

    /// The roster in `rows`, or `None` if they are not one.
    pub(crate) fn decode(rows: &[Row]) -> Option<Self> {
        let header = Header::read_from_bytes(rows.first()?).ok()?;
        if header.members == 0 {
            return None;
        }
        let endpoints = rows.get(ROW_ENDPOINTS..)?.get(..header.endpoints as usize)?;
        let members = rows[ROW_ENDPOINTS + endpoints.len()..].get(..header.members as usize)?;
        let endpoints: Vec<EndpointRow> = endpoints
            .iter()
            .map(|row| EndpointRow::read_from_bytes(row).ok())
            .collect::<Option<_>>()?;
        Some(Self {
            name: name_from(rows.get(1..ROW_ENDPOINTS)?)?,
            port: header.port,
            rules: rules_from(header.policy, header.flags)?,
            members: members
                .iter()
                .map(|row| member_from(row, header.port))
                .collect::<Option<_>>()?,
            // Carried over to every endpoint: an address may be called by another one, the
            // wildcard, after a change.
            cookie: endpoints.iter().map(|row| row.cookie).max().unwrap_or(0),
            endpoints: endpoints
                .iter()
                .map(|row| {
                    let ip = layout::address_from(row.address);
                    let in_use = row.mark == layout::ENDPOINT_MARK;
                    in_use.then_some(Endpoint { ip, turn: row.turn })
                })
                .collect(),
            next_id: header.next_id,
            turn: header.turn,
        })
    }
}

fn rules_from(policy: u8, flags: u8) -> Option<Rules> {
    Some(Rules {
        policy: Policy::from_number(policy)?,
        on_full: if flags & layout::RESET == 0 { OnFull::Drop } else { OnFull::Reset },
        redirect: flags & layout::REDIRECT != 0,
        spread: flags & layout::SPREAD != 0,
    })
}

fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).expect("the capacity is a u32")
}

fn to_row(value: &(impl IntoBytes + zerocopy::Immutable)) -> Row {
    value.as_bytes().try_into().expect("every row has the size of a row")
}

fn name_rows(name: &str) -> Vec<Row> {
    let mut bytes = [0; layout::NAME_ROWS as usize * ROW_SIZE];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes.as_chunks::<ROW_SIZE>().0.to_vec()
}

/// The name in those rows of a roster that hold it.
pub(crate) fn name_from(rows: &[Row]) -> Option<String> {
    let mut name = rows.concat();
    name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
    String::from_utf8(name).ok()
}

pub(crate) fn health_flags(health: Health) -> u8 {
    match health {
        Health::Well => 0,
        Health::Hung => layout::HUNG,
        Health::OnTrial => layout::HUNG | layout::TRIAL,
    }
}

/// What a mark says; one that nobody has renewed says nothing.
fn health_from(flags: u8, marked: u32) -> Health {
    let now = sys::monotonic() >> layout::MARK_TICK_SHIFT;
    let now = u32::try_from(now & u64::from(u32::MAX)).expect("masked");
    match (flags & layout::HUNG != 0, flags & layout::TRIAL != 0) {
        (true, _) if now.wrapping_sub(marked) > layout::MARK_TICKS => Health::Well,
        (true, false) => Health::Hung,
        (true, true) => Health::OnTrial,
        (false, _) => Health::Well,
    }
}

fn member_row(member: &Member) -> Row {
    let mut flags = 0;
    flags |= if member.address.families.ipv4 { layout::TAKES_IPV4 } else { 0 };
    flags |= if member.address.families.ipv6 { layout::TAKES_IPV6 } else { 0 };
    flags |= if member.address.is_wildcard() { layout::WILDCARD } else { 0 };
    flags |= if member.draining { layout::DRAINING } else { 0 };
    flags |= health_flags(member.health);
    to_row(&layout::Member {
        cookie: member.cookie,
        slot: member.slot,
        weight: member.weight,
        flags,
        address: layout::address_bytes(member.address.ip),
        id: member.id.0,
        pid: member.pid,
        marked: member.marked,
        cgroup: member.cgroup,
        ..Default::default()
    })
}

fn families_from(flags: u8) -> Families {
    Families { ipv4: flags & layout::TAKES_IPV4 != 0, ipv6: flags & layout::TAKES_IPV6 != 0 }
}

/// A member exported by a build of another layout.
pub(crate) fn imported_member(member: &layout::ExportedMember, port: u16) -> Member {
    let ip = layout::address_from(member.address);
    Member {
        id: MemberId(member.id),
        pid: member.pid,
        cookie: member.cookie,
        slot: member.slot,
        weight: member.weight,
        draining: member.flags & layout::DRAINING != 0,
        health: health_from(member.flags, member.marked),
        marked: member.marked,
        cgroup: member.cgroup,
        address: Address { ip, port, families: families_from(member.flags) },
    }
}

fn member_from(row: &Row, port: u16) -> Option<Member> {
    let row = layout::Member::read_from_bytes(row).ok()?;
    let families = families_from(row.flags);
    Some(Member {
        id: MemberId(row.id),
        pid: row.pid,
        cookie: row.cookie,
        slot: row.slot,
        weight: row.weight,
        draining: row.flags & layout::DRAINING != 0,
        health: health_from(row.flags, row.marked),
        marked: row.marked,
        cgroup: row.cgroup,
        address: Address { ip: layout::address_from(row.address), port, families },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> Address {
        let (ip, families) = match text.strip_suffix('*') {
            Some(ip) => (ip, Families::BOTH),
            None if text.contains(':') => (text, Families::IPV6),
            None => (text, Families::IPV4),
        };
        Address { ip: ip.parse().unwrap(), port: 80, families }
    }

    fn member(text: &str) -> Member {
        Member {
            id: MemberId(0),
            pid: 7,
            cookie: 99,
            slot: 3,
            weight: 1,
            draining: false,
            health: Health::Well,
            marked: 0,
            cgroup: 1,
            address: address(text),
        }
    }

    fn roster(addresses: &[&str]) -> Roster {
        let mut roster = Roster::new("web".to_owned(), 80, Rules::default());
        roster.join(addresses.iter().map(|text| member(text)));
        roster
    }

    fn rows_called(roster: &Roster, ip: &str) -> Vec<u32> {
        let key = roster.key(ip.parse().unwrap());
        roster.called().remove(&key).unwrap_or_default()
    }

    #[test]
    fn an_endpoint_keeps_its_number_while_its_address_is_served() {
        let mut roster = roster(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        roster.leave(1);
        let endpoints: Vec<_> =
            roster.endpoints().map(|(ip, number)| (ip.to_string(), number)).collect();
        assert_eq!(endpoints, [("10.0.0.1".to_owned(), 0), ("10.0.0.3".to_owned(), 2)]);
        roster.join([member("10.0.0.4")]);
        assert_eq!(roster.endpoints().find(|(ip, _)| ip.to_string() == "10.0.0.4").unwrap().1, 1);
    }

    #[test]
    fn a_dual_socket_is_called_at_both_wildcards() {
        let roster = roster(&["0.0.0.0", "::*", "10.0.0.1"]);
        assert_eq!(rows_called(&roster, "0.0.0.0"), [0, 1]);
        assert_eq!(rows_called(&roster, "::"), [1]);
        assert_eq!(rows_called(&roster, "10.0.0.1"), [2]);
    }

    #[test]
    fn a_spread_service_calls_all_that_take_the_family() {
        let mut roster = roster(&["10.0.0.1", "::*", "10.0.0.2"]);
        roster.rules.spread = true;
        assert_eq!(rows_called(&roster, "10.0.0.1"), [0, 1, 2]);
        assert_eq!(rows_called(&roster, "::"), [1]);
    }

    #[test]
    fn rows_that_are_no_roster_are_refused() {
        let mut rows = roster(&["10.0.0.1"]).encode();
        assert!(Roster::decode(&rows[..2]).is_none());
        rows[0][14] = 99;
        assert!(Roster::decode(&rows).is_none());
    }

    fn any_roster() -> impl Strategy<Value = Roster> {
        const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "0.0.0.0", "::*", "fd00::1", "::"];
        let joins = prop::collection::vec(prop::sample::select(&ADDRESSES[..]), 1..60);
        (joins, prop::collection::vec(any::<prop::sample::Index>(), 0..9), any::<bool>()).prop_map(
            |(joins, leaves, spread)| {
                let mut roster = roster(&joins);
                for index in leaves {
                    if roster.members.len() > 1 {
                        roster.leave(index.index(roster.members.len()));
                    }
                }
                roster.rules.spread = spread;
                roster
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(roster in any_roster()) {
            prop_assert_eq!(Roster::decode(&roster.encode()), Some(roster));
        }

        #[test]
        fn every_endpoint_leads_to_its_members(roster in any_roster()) {
            let (called, table) = roster.called_table();
            for (ip, number) in roster.endpoints() {
                let part = called[number as usize].as_ref().unwrap();
                let range = part.first..part.first + part.count;
                let read: Vec<u32> = if part.direct {
                    range.collect()
                } else {
                    range.map(|at| table[at as usize]).collect()
                };
                prop_assert_eq!(read, rows_called(&roster, &ip.to_string()));
            }
        }
    }
}
