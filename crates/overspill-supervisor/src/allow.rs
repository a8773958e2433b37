//! The keeper of `overspill allow`: looks after sockets of processes that it has not started.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use overspill::adopt::Adopted;
use overspill::{Hooks, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::control::Control;
use crate::error::Result;
use crate::ground::{Ground, Watch};
use crate::hand::{Hand, Report};
use crate::ignored::Ignored;
use crate::instance_id::InstanceId;
use crate::log::{self, tell};
use crate::membership::{APART, LOOK, Membership, Nouns};
use crate::notify;
use crate::plan::Peers;
use crate::seats::{Around, Present};
use crate::services::Services;
use crate::sight::{Group, Held};
use crate::signals::Signals;
use crate::supervisor::{Event, hand_on};
use crate::watching::Watching;

/// How often it is looked at who has ended.
const ENDED: Duration = Duration::from_millis(50);
/// How long it may take in the end until a change is done that is under way.
const LEAVING: Duration = Duration::from_secs(15);

/// Keeps them until a signal comes. What serves then is left as it is.
///
/// # Errors
///
/// When the hooks can't be loaded.
pub fn run(peers: Peers) -> Result<()> {
    let (sender, events) = channel();
    let signalled = sender.clone();
    Signals::watch(&Ignored::read()?, move |it| signalled.send(Event::Signal(it)).is_ok())?;
    crate::worker::raise_descriptors();
    let report = sender.clone();
    let hand = Hand::start(Services::of_peers(&peers), move |done| {
        let _ = report.send(Event::Done(done));
    })?;
    let nouns =
        Nouns { joined: Some(|seat| format!("process {}", seat.pid)), failed: |_| String::new() };
    let mut members = Membership::new(Watching::new(peers.patience, "process"), nouns);
    members.hand = Some(hand);
    let hooks = Hooks::sharing(&peers.ports)?;
    hand_on(&hooks, sender.clone(), Arc::clone(&members.looks.hint), &Arc::default())?;
    let mut keeper = Keeper {
        grounds: peers.places.into_iter().map(Ground::new).collect(),
        grounds_seen: None,
        watch: Watch::start({
            let (hint, sender) = (Arc::clone(&members.looks.hint), sender.clone());
            move || hint.swap(true, Ordering::AcqRel) || sender.send(Event::Hint).is_ok()
        }),
        hooks,
        ports: peers.ports,
        owners: Vec::new(),
        next_id: InstanceId::default(),
        members,
        _sender: sender,
        events,
    };
    // It shows who keeps the service, and takes no requests.
    Control::bind_keeper(&peers.name)?.serve(|request, reply| {
        reply.failed(format_args!("overspill allow does not {request} what it has not started"));
    })?;
    keeper.look_at_grounds();
    log::line(format_args!("service {}: peers may join", peers.name));
    notify::tell(notify::READY);
    let kept = keeper.keep();
    if let Some(hand) = &keeper.members.hand {
        hand.leave(LEAVING);
    }
    log::flush();
    kept
}

/// A process of a control group.
struct Owner {
    id: InstanceId,
    pid: u32,
    pidfd: OwnedFd,
}

impl Owner {
    fn has_ended(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|it| it > 0)
    }
}

struct Keeper {
    grounds: Vec<Ground>,
    grounds_seen: Option<Instant>,
    watch: Watch,
    hooks: Hooks,
    ports: Vec<u16>,
    owners: Vec<Owner>,
    next_id: InstanceId,
    members: Membership,
    /// Without it the queue of events would end.
    _sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Keeper {
    fn keep(&mut self) -> Result<()> {
        loop {
            match self.events.recv_timeout(self.next_wait()) {
                Ok(Event::Signal(signal)) => {
                    log::line(format_args!("{signal}: the service stays as it is"));
                    return Ok(());
                }
                Ok(Event::Hint) => self.members.looks.hinted = true,
                Ok(Event::Given(request)) => self.requested(&request),
                Ok(Event::Done(report)) => self.reported(report),
                Ok(
                    Event::Ended(_) | Event::Asked(..) | Event::Tried(..) | Event::Connects { .. },
                )
                | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the keeper holds a sender"),
            }
            self.bury();
            self.look_at_grounds();
            self.look();
            self.members.watch();
        }
    }

    fn next_wait(&self) -> Duration {
        let now = Instant::now();
        let watching = self.members.next_watch(now);
        let hinted = self.members.looks.hinted.then_some(now + APART);
        let next = [watching, hinted].into_iter().flatten().min();
        next.map_or(ENDED, |next| next.saturating_duration_since(now).min(ENDED))
    }

    /// Sees which control groups have come and gone, if it is time to.
    fn look_at_grounds(&mut self) {
        let now = Instant::now();
        if !self.members.looks.hinted && self.grounds_seen.is_some_and(|seen| now < seen + LOOK) {
            return;
        }
        self.grounds_seen = Some(now);
        for ground in &mut self.grounds {
            if ground.look(&self.hooks, &self.watch) {
                self.members.sight.hurry();
                self.members.looks.hinted = true;
            }
        }
    }

    /// Nothing if they can't be read now.
    fn processes(&self) -> Option<Vec<u32>> {
        Some(self.grounds.iter().map(Ground::processes).collect::<Option<Vec<_>>>()?.concat())
    }

    /// Looks at what processes hold, if it is time to, and does what follows from it.
    fn look(&mut self) {
        let now = Instant::now();
        let wait = match self.members.seats.next_attempt() {
            _ if self.members.looks.hinted => APART,
            Some(_) if !self.members.busy => ENDED,
            _ => LOOK,
        };
        if self.members.busy || self.members.looks.last.is_some_and(|looked| now < looked + wait) {
            return;
        }
        self.members.looks.begin(now);
        // What can't be seen now is seen later: nothing follows from it.
        let Some(processes) = self.processes() else { return };
        for &pid in &processes {
            self.meet(pid);
        }
        let group = |it: &Owner| Group { id: it.id, processes: vec![it.pid] };
        let groups: Vec<Group> = self.owners.iter().map(group).collect();
        let Some((held, fresh)) = self.members.sight.look(now, &groups) else { return };
        self.share_ports(&fresh);
        self.members.keep(fresh);
        let wanted =
            |it: &&Held| self.ports.contains(&it.address.port) || self.members.given.has(it.cookie);
        let present = |it: &Held| {
            let Held { owner, pid, cookie, address, .. } = *it;
            Present { cookie, address, worker: self.server(it), owner, pid }
        };
        // IPv4 first: where IPv6 is apart from it, its service has the longer name.
        let order =
            |it: &&Held| (it.address.port, !it.address.families.ipv4, it.pid, it.descriptor);
        let mut wanted: Vec<&Held> = held.iter().filter(wanted).collect();
        wanted.sort_by_key(order);
        let present: Vec<Present> = wanted.into_iter().map(present).collect();
        self.decide(now, &present);
        let seats = &self.members.seats;
        self.members.copies.retain(|&cookie, _| seats.by_cookie(cookie).is_some_and(|it| it.kept));
    }

    /// The process that is asked whether a socket was closed, or its process has ended: the first
    /// one that was seen to have it, while that runs. A master that closes a socket means it,
    /// although a worker that finishes has it for a while yet.
    fn server(&self, held: &Held) -> usize {
        let before = self.members.seats.by_cookie(held.cookie).map(|seat| seat.worker);
        before.filter(|&pid| self.runs(pid)).unwrap_or(held.pid as usize)
    }

    fn runs(&self, pid: usize) -> bool {
        self.owners.iter().any(|owner| owner.pid as usize == pid)
    }

    /// Lets peers bind the address of a socket that was bound without the hooks.
    fn share_ports(&self, fresh: &[Adopted]) {
        let is_ours =
            |it: &&Adopted| it.address().is_ok_and(|address| self.ports.contains(&address.port));
        for socket in fresh.iter().filter(is_ours).filter(|it| !it.shares_port()) {
            socket.share_port().unwrap_or_else(tell);
        }
    }

    fn decide(&mut self, now: Instant, present: &[Present]) {
        let owners = &self.owners;
        // A process that runs and no longer holds the socket has closed it.
        let closed = |pid: usize| owners.iter().any(|it| it.pid as usize == pid);
        let around = Around {
            awaited: &|_| true,
            dismissed: &closed,
            leaving: &[],
            peers: true,
            drains: &|_| None,
            noted_is_new: false,
        };
        self.members.decide(now, present, &around);
        self.members.give_job();
    }

    /// A process of a control group; it is looked after until it ends.
    fn meet(&mut self, pid: u32) {
        if self.owners.iter().any(|owner| owner.pid == pid) {
            return;
        }
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = number.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(pidfd) = pidfd {
            let id = self.next_id.take();
            self.owners.push(Owner { id, pid, pidfd });
            self.members.sight.hurry();
        }
    }

    fn reported(&mut self, report: Report) {
        // No failure is fatal here.
        let _ = self.members.reported(Instant::now(), report, |_| true);
        self.members.tend(&[&self.hooks]);
    }

    fn requested(&mut self, request: &Request) {
        self.meet(request.pid);
        let owner = self.owners.iter().find(|owner| owner.pid == request.pid).map(|it| it.id);
        let owner = owner.ok_or(rustix::io::Errno::SRCH);
        let listening = owner.and_then(|owner| self.members.given.accept(owner, request));
        self.members.asked.begin(request, listening);
        self.members.tend(&[&self.hooks]);
        self.members.looks.hinted = true;
        self.members.sight.hurry();
    }

    /// Sees who has ended. A socket that another process has as well is that one's at the next
    /// look; any other waits for a successor.
    fn bury(&mut self) {
        let (ended, owners): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.owners).into_iter().partition(Owner::has_ended);
        self.owners = owners;
        let seated: HashSet<InstanceId> =
            self.members.seats.all().iter().filter_map(|seat| seat.owner).collect();
        for Owner { id, pid, .. } in ended {
            if seated.contains(&id) {
                log::line(format_args!("process {pid} has ended"));
            }
            self.members.given.forget(id);
            self.members.sight.hurry();
            self.members.looks.hinted = true;
        }
    }
}
