//! The keeper of `overspill allow`: looks after sockets of processes that it has not started.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use overspill::{Cgroup, Hooks, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::control::Control;
use crate::error::Result;
use crate::hand::{Hand, Report};
use crate::ignored::Ignored;
use crate::instance_id::InstanceId;
use crate::log;
use crate::membership::{APART, LOOK, Membership, Nouns};
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
/// When the hooks can't be attached.
pub fn run(peers: Peers) -> Result<()> {
    let (sender, events) = channel();
    let signalled = sender.clone();
    Signals::watch(&Ignored::read()?, move |it| signalled.send(Event::Signal(it)).is_ok())?;
    crate::worker::raise_descriptors();
    let report = sender.clone();
    let hand = Hand::start(Services::of_peers(&peers), move |done| {
        let _ = report.send(Event::Done(done));
    })?;
    let grounds = peers.cgroups.into_iter().map(|cgroup| Ground { cgroup, hooked: None });
    let mut keeper = Keeper {
        grounds: grounds.collect(),
        ports: peers.ports,
        owners: Vec::new(),
        next_id: InstanceId::default(),
        members: Membership::new(
            Watching::new(peers.patience, "process"),
            Nouns {
                joined: Some(|seat| format!("process {}", seat.pid)),
                failed: |_| String::new(),
            },
        ),
        told: None,
        sender,
        events,
    };
    keeper.members.hand = Some(hand);
    keeper.attach()?;
    // It shows who keeps the service, and takes no requests.
    Control::bind_keeper(&peers.name)?.serve(|request, reply| {
        reply.failed(format_args!("overspill allow does not {request} what it has not started"));
    })?;
    log::line(format_args!("service {}: peers may join", peers.name));
    let kept = keeper.keep();
    if let Some(hand) = &keeper.members.hand {
        hand.leave(LEAVING);
    }
    log::flush();
    kept
}

/// A control group. That of a unit goes and comes with the unit.
struct Ground {
    cgroup: Cgroup,
    /// The hooks, and the inode number of the folder that they are attached to.
    hooked: Option<(u64, Hooks)>,
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
    ports: Vec<u16>,
    owners: Vec<Owner>,
    next_id: InstanceId,
    members: Membership,
    /// Why hooks could not be attached, as it was told.
    told: Option<String>,
    sender: Sender<Event>,
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
            if let Err(error) = self.attach() {
                // A unit goes at any moment. What stays is told once.
                let why = error.to_string();
                if self.told.as_ref() != Some(&why) {
                    log::line(format_args!("{why}; it is tried again"));
                }
                self.told = Some(why);
            }
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

    /// Attaches hooks where there are none: at first, and when a unit was started again.
    fn attach(&mut self) -> Result<()> {
        for ground in &mut self.grounds {
            let inode = ground.cgroup.path().metadata().map(|folder| folder.ino()).ok();
            if inode == ground.hooked.as_ref().map(|(inode, _)| *inode) {
                continue;
            }
            ground.hooked = None;
            let Some(inode) = inode else { continue };
            let hooks = Hooks::attach_sharing(&ground.cgroup, &self.ports)?;
            hand_on(
                &hooks,
                self.sender.clone(),
                Arc::clone(&self.members.looks.hint),
                &Arc::default(),
            )?;
            ground.hooked = Some((inode, hooks));
            self.members.given.renew();
            self.members.sight.hurry();
            self.members.looks.hinted = true;
        }
        Ok(())
    }

    /// Nothing if they can't be read now.
    fn processes(&self) -> Option<Vec<u32>> {
        let of = |it: &Ground| match it.cgroup.processes() {
            Err(_) if !it.cgroup.path().exists() => Some(Vec::new()),
            processes => processes.ok(),
        };
        Some(self.grounds.iter().map(of).collect::<Option<Vec<_>>>()?.concat())
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
        self.members.keep(fresh);
        let wanted =
            |it: &&Held| self.ports.contains(&it.address.port) || self.members.given.has(it.cookie);
        let present = |it: &Held| {
            let Held { owner, pid, cookie, address, .. } = *it;
            Present { cookie, address, worker: pid as usize, owner, pid }
        };
        let mut present: Vec<Present> = held.iter().filter(wanted).map(present).collect();
        present.sort_by_key(|it| (it.address.port, it.pid));
        self.decide(now, &present);
        let seats = &self.members.seats;
        self.members.copies.retain(|&cookie, _| seats.by_cookie(cookie).is_some_and(|it| it.kept));
    }

    fn decide(&mut self, now: Instant, present: &[Present]) {
        let owners = &self.owners;
        // Who runs and does not hold it any more has closed it.
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
        self.members.tend(&hooks(&self.grounds));
    }

    fn requested(&mut self, request: &Request) {
        self.meet(request.pid);
        let owner = self.owners.iter().find(|owner| owner.pid == request.pid).map(|it| it.id);
        let owner = owner.ok_or(rustix::io::Errno::SRCH);
        let listening = owner.and_then(|owner| self.members.given.accept(owner, request));
        self.members.asked.begin(request, listening);
        self.members.tend(&hooks(&self.grounds));
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

fn hooks(grounds: &[Ground]) -> Vec<&Hooks> {
    grounds.iter().filter_map(|ground| ground.hooked.as_ref()).map(|(_, hooks)| hooks).collect()
}
