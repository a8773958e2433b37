//! Reading rosters, queues and counters.

use std::os::fd::AsFd;

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use zerocopy::{FromBytes, IntoBytes};

use super::Datapath;
use super::layout::{Counters, ExitCounters, Figures, MemberCounters, ROW_SIZE, ServiceCounters};
use crate::error::{Error, Result};
use crate::roster::{Member, Roster, Row};
use crate::status::{Exits, MemberState, MemberStatus, Requests, Status};
use crate::sys;

/// How often a roster that is replaced while it is read is read again.
const READS: usize = 16;

impl Datapath {
    /// The roster of service number `id`, or `None` where there is none.
    pub(super) fn roster(&self, id: u32) -> Result<Option<Roster>> {
        let failed = |error| Error::bpf("read", "the map services", error);
        for _ in 0..READS {
            let inner =
                self.maps.services.lookup(&id.to_ne_bytes(), MapFlags::ANY).map_err(failed)?;
            let Some(inner) = inner else { return Ok(None) };
            let inner = u32::from_ne_bytes(inner.try_into().expect("the number of a map"));
            let map = match MapHandle::from_map_id(inner) {
                Ok(map) => map,
                // Replaced, and therefore gone, between the two steps: the next look sees
                // its successor.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::bpf("open", "a roster", error)),
            };
            let roster = Roster::decode(&rows(&map)?).ok_or_else(|| Error::Damaged {
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

    /// Whether service number `id` still is that roster, turns aside.
    fn publishes(&self, id: u32, roster: &Roster) -> Result<bool> {
        let current = self.roster(id)?;
        Ok(current.is_some_and(|current| {
            current.name == roster.name && current.members == roster.members
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
            },
        })
    }

    fn member_status(&self, member: &Member) -> Result<MemberStatus> {
        let bytes = lookup(&self.maps.figures, member.slot)?;
        let figures = Figures::read_from_bytes(&bytes).expect("the size of the map's values");
        let gone = figures.cookie != member.cookie;
        let figures = if gone { Figures::default() } else { figures };
        let counters: MemberCounters = counters(&self.maps.member_counters, member.slot)?;
        Ok(MemberStatus {
            member: member.id,
            address: member.address,
            pid: member.pid,
            state: match (gone, member.draining) {
                (true, _) => MemberState::Gone,
                (false, true) => MemberState::Draining,
                (false, false) => MemberState::Active,
            },
            weight: member.weight,
            queued: figures.queued,
            half_open: figures.half_open,
            capacity: if gone { 0 } else { figures.backlog.saturating_add(1) },
            established: None,
            placed: counters.placed,
            redirected_in: counters.redirected_in,
            redirected_out: counters.redirected_out,
            special: counters.special,
        })
    }

    /// Lets the kernel program fill the map `figures` for a service.
    fn refresh_figures(&self, id: u32) -> Result<()> {
        sys::test_run(self.reader.as_fd(), &reader_context(id))
            .map(drop)
            .map_err(|error| Error::system("run", "the program read_queues", error))
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

/// `struct bpf_sk_lookup` of a TCP request over IPv4 whose local address is the service's
/// number: what the program `read_queues` expects.
fn reader_context(id: u32) -> Vec<u8> {
    let mut words = [0_u32; 18];
    words[2] = 2; // family: AF_INET
    words[3] = 6; // protocol: IPPROTO_TCP
    words[10] = id; // local_ip4
    words.as_bytes().to_vec()
}

/// The rows of a roster, in order.
fn rows(map: &MapHandle) -> Result<Vec<Row>> {
    let mut rows = vec![[0; ROW_SIZE]; map.max_entries() as usize];
    let batch = map
        .lookup_batch(map.max_entries(), MapFlags::ANY, MapFlags::ANY)
        .map_err(|error| Error::bpf("read", "a roster", error))?;
    let mut read = 0;
    for (key, row) in batch {
        let key = u32::from_ne_bytes(key.try_into().expect("an array's index"));
        rows[key as usize] = row.try_into().expect("a row's size");
        read += 1;
    }
    // The iterator ends at an error as it does at the end.
    if read < rows.len() {
        let error = std::io::Error::last_os_error();
        return Err(Error::system("read all of", "a roster", error));
    }
    Ok(rows)
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
