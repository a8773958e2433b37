//! Reading rosters, queues and counters.

use std::os::fd::{AsFd, OwnedFd};

use super::arguments::{Arguments, SK_PASS};
use super::handle::Datapath;
use super::layout::{
    AWAITED, CONNECTIONS, DRAINING, ExitCounters, Extent, Figures, HUNG, Load, MemberCounters,
    NAME_ROWS, ROW_NAME, ServiceCounters, TRIAL, UNATTENDED,
};
use super::maps::values;
use super::pin;
use super::roster::{self, Member, Roster, Row, health_flags};
use crate::error::{Error, Result};
use crate::member::Health;
use crate::policy::Policy;
use crate::status::{Exits, ListedSocket, MemberState, MemberStatus, Queue, Requests, Status};
use crate::sys;

/// How often a roster that is replaced while it is read is read again.
pub(super) const READS: usize = 16;

impl Datapath {
    /// The roster of service number `id`, or `None` where there is none.
    pub(crate) fn roster(&self, id: u32) -> Result<Option<Roster>> {
        Ok(self.published(id)?.map(|(_, roster)| roster))
    }

    /// The same, with the place where it lies.
    pub(super) fn published(&self, id: u32) -> Result<Option<(Extent, Roster)>> {
        if !self.is_of_own_layout() {
            return self.exported(id);
        }
        let all = |extent: &Extent| (extent.first, extent.count);
        let Some((place, rows)) = self.read(id, all)? else { return Ok(None) };
        let roster = Roster::decode(&rows).ok_or_else(|| self.unreadable(id))?;
        Ok(Some((place, roster)))
    }

    /// Some rows of a roster: of what its extent is, the first and how many.
    fn read(
        &self,
        id: u32,
        part: impl Fn(&Extent) -> (u32, u32),
    ) -> Result<Option<(Extent, Vec<Row>)>> {
        for _ in 0..READS {
            let Some(place) = self.place(id)? else { return Ok(None) };
            let (first, count) = part(&place);
            let rows = self.read_rows(first, count)?;
            // Otherwise it was replaced while it was read, and the rows may be those of
            // another by now.
            if self.place(id)? == Some(place) {
                return Ok(Some((place, rows)));
            }
        }
        Err(self.unopenable(id))
    }

    fn unreadable(&self, id: u32) -> Error {
        let what = format!("the roster of service number {id} can't be read");
        Error::Damaged { path: self.folder.clone(), what }
    }

    /// Every service's number and name, in the order of the numbers.
    pub(crate) fn names(&self) -> impl Iterator<Item = Result<(u32, String)>> + '_ {
        let numbers = self.numbers();
        let numbers =
            numbers.map_or_else(|error| vec![Err(error)], |ids| ids.into_iter().map(Ok).collect());
        numbers.into_iter().filter_map(|id| match id {
            Ok(id) => Some(self.name(id).transpose()?.map(|name| (id, name))),
            Err(error) => Some(Err(error)),
        })
    }

    /// The name of service number `id`, or `None` where there is none: of the roster, that
    /// alone is read.
    pub(crate) fn name(&self, id: u32) -> Result<Option<String>> {
        if !self.is_of_own_layout() {
            return self.exported_name(id);
        }
        let name = |extent: &Extent| (extent.first + ROW_NAME, NAME_ROWS);
        let Some((_, rows)) = self.read(id, name)? else { return Ok(None) };
        roster::name_from(&rows).map(Some).ok_or_else(|| self.unreadable(id))
    }

    pub(crate) fn is_empty(&self) -> Result<bool> {
        Ok(self.names().next().transpose()?.is_none())
    }

    /// Every service with its figures, in the order of the numbers.
    pub(crate) fn statuses(&self) -> Result<Vec<Status>> {
        self.numbers()?.into_iter().filter_map(|id| self.status(id).transpose()).collect()
    }

    /// Service number `id` with its figures, or `None` where there is none.
    pub(crate) fn status(&self, id: u32) -> Result<Option<Status>> {
        while let Some((place, roster)) = self.published(id)? {
            let status = self.status_by(id, &roster)?;
            // The figures are read by the list that is published then: another one says
            // nothing of the members of this.
            if self.still_published(id, &place, &roster)? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// Whether service number `id` still is that roster, turns and marks aside.
    fn still_published(&self, id: u32, place: &Extent, roster: &Roster) -> Result<bool> {
        let sockets = |roster: &Roster| -> Vec<_> {
            roster.members.iter().map(|member| (member.id, member.cookie)).collect()
        };
        if self.place(id)? == Some(*place) {
            return Ok(true);
        }
        let current = self.roster(id)?;
        Ok(current.is_some_and(|current| {
            current.name == roster.name && sockets(&current) == sockets(roster)
        }))
    }

    fn status_by(&self, id: u32, roster: &Roster) -> Result<Status> {
        let figures = self.figures(id, roster)?;
        let counted = self.counters_of(roster)?;
        let loads = self.loads(roster)?;
        let starts: Vec<u64> = values(&self.maps.starts, &slots(roster))?;
        let members = roster.members.iter().zip(figures).zip(&counted).zip(&loads).zip(starts);
        let members = members.map(|((((member, figures), counters), load), starts)| {
            member_status(member, figures, counters, load, starts)
        });
        let counters: ServiceCounters = self.service_counters()?.sum(id);
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
            members: members.collect(),
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

    /// The connections of each member, in list order; empty if another build counts them
    /// differently.
    fn loads(&self, roster: &Roster) -> Result<Vec<Load>> {
        if self.state.connections == CONNECTIONS {
            values(&self.maps.loads, &slots(roster))
        } else {
            Ok(vec![Load::default(); roster.members.len()])
        }
    }

    /// What was counted of each member, in list order.
    fn counters_of(&self, roster: &Roster) -> Result<Vec<MemberCounters>> {
        let counters = self.member_counters()?;
        Ok(roster.members.iter().map(|member| counters.sum(member.slot)).collect())
    }

    /// How often the process of the member in that slot was started.
    pub(crate) fn starts(&self, slot: u32) -> Result<u64> {
        Ok(values(&self.maps.starts, &[slot])?[0])
    }

    /// What `read_queues` finds of each member, in list order; `None` for one whose socket is
    /// gone.
    fn figures(&self, id: u32, roster: &Roster) -> Result<Vec<Option<Figures>>> {
        self.refresh_figures(id)?;
        let figures: Vec<Figures> = values(&self.maps.figures, &slots(roster))?;
        let members = figures.into_iter().zip(&roster.members);
        let of = |(figures, member): (Figures, &Member)| {
            (figures.cookie == member.cookie).then_some(figures)
        };
        Ok(members.map(of).collect())
    }

    /// Lets the kernel program fill the map `figures` for a service, and look up the
    /// sockets that it has not looked up yet.
    pub(super) fn refresh_figures(&self, id: u32) -> Result<()> {
        let reader = self.programs.reader.as_fd();
        sys::test_run(reader, &Arguments { service: id, ..Arguments::default() }.context())
            .map(drop)
            .map_err(|error| Error::system("run", "the program read_queues", error))
    }

    /// The queues of service number `id`, or `None` where that has another name.
    pub(crate) fn queues(&self, id: u32, name: &str) -> Result<Option<Vec<Queue>>> {
        loop {
            let published = self.published(id)?.filter(|(_, roster)| roster.name == name);
            let Some((place, roster)) = published else { return Ok(None) };
            // Before the queues: what is counted and not in its queue then was accepted.
            let counters = self.counters_of(&roster)?;
            let figures = self.figures(id, &roster)?;
            // As in `status`: the figures of another list say nothing of this one's members.
            if self.still_published(id, &place, &roster)? {
                let members = roster.members.iter().zip(figures).zip(&counters);
                let queue = |((member, figures), counters): ((&Member, _), _)| {
                    queue(member, figures, counters)
                };
                return Ok(Some(members.map(queue).collect()));
            }
        }
    }

    /// The members' sockets of all services, with the services' names.
    pub(crate) fn sockets(&self) -> Result<Vec<(String, Vec<ListedSocket>)>> {
        let mut all = Vec::new();
        for id in self.numbers()? {
            while let Some((place, roster)) = self.published(id)? {
                let figures = self.figures(id, &roster)?;
                if self.still_published(id, &place, &roster)? {
                    let members = roster.members.iter().zip(figures);
                    all.push((roster.name.clone(), members.map(listed).collect()));
                    break;
                }
            }
        }
        Ok(all)
    }

    /// Marks a member's health in the published snapshot. False if the member moved.
    pub(crate) fn mark(&self, id: u32, position: usize, member: &Member) -> Result<bool> {
        self.set_flags(id, position, member, [health_flags(member.health), HUNG | TRIAL])
    }

    /// Starts or stops draining a member in the published snapshot. False if the member moved.
    pub(super) fn mark_draining(&self, id: u32, position: usize, member: &Member) -> Result<bool> {
        let draining = if member.draining { DRAINING } else { 0 };
        self.set_flags(id, position, member, [draining, DRAINING])
    }

    /// Sets the flags of a member that are in the mask. False if the member moved.
    fn set_flags(
        &self,
        id: u32,
        position: usize,
        member: &Member,
        flags_and_mask: [u8; 2],
    ) -> Result<bool> {
        let arguments = Arguments {
            service: id,
            position: u32::try_from(position).expect("the capacity is a u32"),
            wide: member.cookie,
            port: u16::from_le_bytes(flags_and_mask),
        };
        let verdict = sys::test_run(self.programs.marker.as_fd(), &arguments.context())
            .map_err(|error| Error::system("run", "the program mark", error))?;
        Ok(verdict == SK_PASS)
    }

    /// The program that moves what waits at a socket that ends.
    pub(crate) fn mover(&self) -> Result<OwnedFd> {
        self.program(pin::MIGRATE)
    }

    pub(crate) fn exits(&self) -> Result<Exits> {
        let exits: ExitCounters = self.exit_counters()?.sum(0);
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

fn member_status(
    member: &Member,
    figures: Option<Figures>,
    counters: &MemberCounters,
    load: &Load,
    starts: u64,
) -> MemberStatus {
    let gone = figures.is_none();
    let figures = figures.unwrap_or_default();
    MemberStatus {
        member: member.id,
        address: member.address,
        pid: member.pid,
        state: MemberState::of(gone, member.draining, member.health != Health::Well),
        weight: member.weight,
        queued: figures.queued,
        half_open: figures.half_open,
        capacity: if gone { 0 } else { figures.backlog.saturating_add(1) },
        established: load.of(member),
        placed: counters.placed,
        redirected_in: counters.redirected_in,
        redirected_out: counters.redirected_out,
        special: counters.special,
        starts,
    }
}

fn listed((member, figures): (&Member, Option<Figures>)) -> ListedSocket {
    ListedSocket {
        member: member.id,
        cookie: member.cookie,
        address: member.address,
        pid: member.pid,
        gone: figures.is_none(),
        draining: member.draining,
    }
}

fn queue(member: &Member, figures: Option<Figures>, counters: &MemberCounters) -> Queue {
    Queue {
        member: member.id,
        health: member.health,
        draining: member.draining,
        gone: figures.is_none(),
        queued: figures.map_or(0, |figures| figures.queued),
        half_open: figures.map_or(0, |figures| figures.half_open),
        backlog: figures.map_or(0, |figures| figures.backlog),
        head: figures.map(|figures| figures.head).filter(|&head| head != 0),
        awaited: figures.is_some_and(|figures| figures.awaited != 0),
        attended: figures
            .is_some_and(|figures| figures.awaited & (AWAITED | UNATTENDED) == AWAITED),
        placed: counters.placed + counters.redirected_in,
    }
}

fn slots(roster: &Roster) -> Vec<u32> {
    roster.members.iter().map(|member| member.slot).collect()
}
