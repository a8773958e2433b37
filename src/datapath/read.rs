//! Reading rosters, queues and counters.

use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{Counters, ExitCounters, Figures, MemberCounters, ServiceCounters};
use super::{Datapath, pin};
use crate::error::{Error, Result};
use crate::member::Health;
use crate::policy::Policy;
use crate::roster::{Member, Roster, health_flags};
use crate::status::{Exits, MemberState, MemberStatus, Queue, Requests, Status};
use crate::sys;

/// How often a roster that is replaced while it is read is read again.
pub(super) const READS: usize = 16;

impl Datapath {
    /// The roster of service number `id`, or `None` where there is none.
    pub(crate) fn roster(&self, id: u32) -> Result<Option<Roster>> {
        for _ in 0..READS {
            let Some((map, extent)) = self.lies(id)? else { return Ok(None) };
            let rows = self.read_rows(&extent)?;
            // Replaced while it was read: the rows may be those of another by now.
            if self.lies(id)?.is_none_or(|(now, _)| now != map) {
                continue;
            }
            let roster = Roster::decode(&rows).ok_or_else(|| Error::Damaged {
                path: self.folder.clone(),
                what: format!("the roster of service number {id} can't be read"),
            })?;
            return Ok(Some(roster));
        }
        let what = format!("the roster of service number {id} can't be opened");
        Err(Error::Damaged { path: self.folder.clone(), what })
    }

    /// Every service's number and roster, in the order of the numbers.
    pub(crate) fn rosters(&self) -> Result<Vec<(u32, Roster)>> {
        let mut rosters = Vec::new();
        for id in 0..self.state.services {
            rosters.extend(self.roster(id)?.map(|roster| (id, roster)));
        }
        Ok(rosters)
    }

    /// Service number `id` with its figures, or `None` where there is none.
    pub(crate) fn status(&self, id: u32) -> Result<Option<Status>> {
        while let Some(roster) = self.roster(id)? {
            let status = self.status_by(id, &roster)?;
            // The figures are read by the list that is published then: another one says
            // nothing of the members of this.
            if self.publishes(id, &roster)? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// Whether service number `id` still is that roster, turns and marks aside.
    fn publishes(&self, id: u32, roster: &Roster) -> Result<bool> {
        let sockets = |roster: &Roster| -> Vec<_> {
            roster.members.iter().map(|member| (member.id, member.cookie)).collect()
        };
        let current = self.roster(id)?;
        Ok(current.is_some_and(|current| {
            current.name == roster.name && sockets(&current) == sockets(roster)
        }))
    }

    fn status_by(&self, id: u32, roster: &Roster) -> Result<Status> {
        self.refresh_figures(id)?;
        let members = roster
            .members
            .iter()
            .map(|member| self.member_status(member))
            .collect::<Result<_>>()?;
        let counters: ServiceCounters = counters(&self.maps.service_counters, id)?;
        Ok(Status {
            name: roster.name.clone(),
            policy: roster.rules.policy,
            dispatcher: match roster.rules.policy {
                Policy::Dispatcher => self.dispatcher_name(id)?,
                _ => None,
            },
            on_full: roster.rules.on_full,
            redirect: roster.rules.redirect,
            spread: roster.rules.spread,
            port: roster.port,
            members,
            requests: Requests {
                placed: counters.placed,
                redirected: counters.redirected,
                special: counters.special,
                dropped: counters.dropped,
                reset: counters.reset,
                fallback: counters.fallback,
                left: counters.left,
                crowded: counters.crowded,
                returned: counters.returned,
            },
        })
    }

    fn member_status(&self, member: &Member) -> Result<MemberStatus> {
        let figures = self.figures(member)?;
        let gone = figures.is_none();
        let figures = figures.unwrap_or_default();
        let counters: MemberCounters = counters(&self.maps.member_counters, member.slot)?;
        Ok(MemberStatus {
            member: member.id,
            address: member.address,
            pid: member.pid,
            state: match (gone, member.draining, member.health) {
                (true, ..) => MemberState::Gone,
                (false, true, _) => MemberState::Draining,
                (false, false, Health::Well) => MemberState::Active,
                (false, false, Health::Hung | Health::OnTrial) => MemberState::Hung,
            },
            weight: member.weight,
            queued: figures.queued,
            half_open: figures.half_open,
            capacity: if gone { 0 } else { figures.backlog.saturating_add(1) },
            established: self.established(member)?,
            placed: counters.placed,
            redirected_in: counters.redirected_in,
            redirected_out: counters.redirected_out,
            special: counters.special,
        })
    }

    /// Lets the kernel program fill the map `figures` for a service, and look up the
    /// sockets that it has not looked up yet.
    pub(super) fn refresh_figures(&self, id: u32) -> Result<()> {
        let reader = self.program(pin::READER)?;
        sys::test_run(reader.as_fd(), &Arguments { service: id, ..Arguments::default() }.context())
            .map(drop)
            .map_err(|error| Error::system("run", "the program read_queues", error))
    }

    /// The queues of service number `id`, or `None` where that has another name.
    pub(crate) fn queues(&self, id: u32, name: &str) -> Result<Option<Vec<Queue>>> {
        loop {
            let roster = self.roster(id)?.filter(|roster| roster.name == name);
            let Some(roster) = roster else { return Ok(None) };
            let queues = self.queues_of(id, &roster)?;
            // As in `status`: the figures of another list say nothing of this one's members.
            if self.publishes(id, &roster)? {
                return Ok(Some(queues));
            }
        }
    }

    fn queues_of(&self, id: u32, roster: &Roster) -> Result<Vec<Queue>> {
        // Before the queues: what is counted and not in its queue then was accepted.
        let counters = roster
            .members
            .iter()
            .map(|member| counters::<MemberCounters>(&self.maps.member_counters, member.slot));
        let counters = counters.collect::<Result<Vec<_>>>()?;
        self.refresh_figures(id)?;
        let queues = roster.members.iter().zip(&counters);
        queues.map(|(member, counters)| self.queue(member, counters)).collect()
    }

    fn queue(&self, member: &Member, counters: &MemberCounters) -> Result<Queue> {
        let figures = self.figures(member)?;
        Ok(Queue {
            member: member.id,
            health: member.health,
            draining: member.draining,
            gone: figures.is_none(),
            queued: figures.map_or(0, |figures| figures.queued),
            half_open: figures.map_or(0, |figures| figures.half_open),
            backlog: figures.map_or(0, |figures| figures.backlog),
            head: figures.map(|figures| figures.head).filter(|&head| head != 0),
            awaited: figures.is_some_and(|figures| figures.awaited != 0),
            placed: counters.placed + counters.redirected_in,
        })
    }

    /// What `read_queues` has found of a member; `None` for one whose socket is gone.
    fn figures(&self, member: &Member) -> Result<Option<Figures>> {
        let bytes = lookup(&self.maps.figures, member.slot)?;
        let figures = Figures::read_from_bytes(&bytes).expect("the size of the map's values");
        Ok((figures.cookie == member.cookie).then_some(figures))
    }

    /// Marks a member's health in the roster as published. False when the service's list
    /// has changed meanwhile.
    pub(crate) fn mark(&self, id: u32, position: usize, member: &Member) -> Result<bool> {
        let arguments = Arguments {
            service: id,
            position: u32::try_from(position).expect("the capacity is a u32"),
            cookie: member.cookie,
            marks: health_flags(member.health),
        };
        let marker = self.program(pin::MARKER)?;
        let verdict = sys::test_run(marker.as_fd(), &arguments.context())
            .map_err(|error| Error::system("run", "the program mark", error))?;
        Ok(verdict == SK_PASS)
    }

    /// The program that moves what waits at a socket that ends.
    pub(crate) fn mover(&self) -> Result<OwnedFd> {
        self.program(pin::MOVER)
    }

    pub(crate) fn exits(&self) -> Result<Exits> {
        let exits: ExitCounters = counters(&self.maps.exits, 0)?;
        Ok(Exits {
            not_tcp: exits.not_tcp,
            other_program: exits.other_program,
            unserved_port: exits.unserved_port,
            unserved_address: exits.unserved_address,
            no_roster: exits.no_roster,
            vanished: exits.vanished,
            refused: exits.refused,
            contended: exits.contended,
        })
    }
}

/// The verdict of a program that has done what was asked.
const SK_PASS: u32 = 1;

/// What the programs that user space runs are told.
#[derive(Default)]
pub(super) struct Arguments {
    pub(super) service: u32,
    pub(super) position: u32,
    pub(super) cookie: u64,
    pub(super) marks: u8,
}

impl Arguments {
    /// They stand in the `struct bpf_sk_lookup` of a TCP request over IPv6.
    pub(super) fn context(&self) -> Vec<u8> {
        let mut words = [0_u32; 18];
        words[2] = 10; // family: AF_INET6
        words[3] = 6; // protocol: IPPROTO_TCP
        let cookie = [self.cookie & u64::from(u32::MAX), self.cookie >> 32];
        let [low, high] = cookie.map(|half| u32::try_from(half).expect("a half"));
        words[5..7].copy_from_slice(&[low, high]); // remote_ip6
        words[11..13].copy_from_slice(&[self.service, self.position]); // local_ip6
        words[15] = self.marks.into(); // local_port
        words.as_bytes().to_vec()
    }
}

/// Every value of an array, in order.
pub(super) fn all(map: &MapHandle) -> Result<Vec<Vec<u8>>> {
    let name = map.name().to_string_lossy().into_owned();
    let count = map.max_entries();
    let batch = map
        .lookup_batch(count, MapFlags::ANY, MapFlags::ANY)
        .map_err(|error| Error::bpf("read", format!("the map {name}"), error))?;
    let values: Vec<Vec<u8>> = batch.map(|(_, value)| value).collect();
    // The iterator ends at an error as it does at the end.
    if values.len() < count as usize {
        let error = std::io::Error::last_os_error();
        return Err(Error::system("read all of", format!("the map {name}"), error));
    }
    Ok(values)
}

pub(super) fn lookup(map: &MapHandle, key: u32) -> Result<Vec<u8>> {
    let name = map.name().to_string_lossy().into_owned();
    let failed = |error| Error::bpf("read", format!("the map {name}"), error);
    let value = map.lookup(&key.to_ne_bytes(), MapFlags::ANY).map_err(failed)?;
    Ok(value.expect("an array has all its entries"))
}

fn counters<C: Counters>(map: &MapHandle, key: u32) -> Result<C> {
    let name = map.name().to_string_lossy().into_owned();
    let failed = |error| Error::bpf("read", format!("the map {name}"), error);
    let copies = map.lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY).map_err(failed)?;
    Ok(C::sum(&copies.expect("an array has all its entries")))
}
