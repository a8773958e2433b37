//! The keeper of `overspill allow`: looks after sockets of processes that it has not started.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use overspill::adopt::{self, Adopted};
use overspill::{Cgroup, Error, Hooks, HooksEvent, Listening, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::ignored::Ignored;
use super::instance::InstanceId;
use super::option::{self, Given};
use super::services::{Services, tell};
use super::{Event, hand_on, log, sockets, watch_signals};
use crate::error::Result;
use crate::plan::Peers;

/// How often it is looked at who has ended.
const LOOK: Duration = Duration::from_millis(50);

/// Keeps them until a signal comes. What serves then is left as it is.
///
/// # Errors
///
/// When the hooks can't be attached.
pub fn run(peers: Peers) -> Result<()> {
    let (sender, events) = channel();
    watch_signals(&Ignored::read()?, sender.clone())?;
    let grounds =
        peers.cgroups.iter().map(|cgroup| Ground { cgroup: cgroup.clone(), hooked: None });
    let mut keeper = Keeper {
        grounds: grounds.collect(),
        services: Services::of_peers(&peers),
        ports: peers.ports,
        given: Given::default(),
        owners: Vec::new(),
        next_id: InstanceId::default(),
        sender,
        events,
    };
    keeper.keep()
}

/// A control group. That of a unit goes and comes with the unit.
struct Ground {
    cgroup: Cgroup,
    /// The hooks, and the inode number of the folder that they are attached to.
    hooked: Option<(u64, Hooks)>,
}

/// A process that has a member.
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
    services: Services,
    ports: Vec<u16>,
    given: Given,
    owners: Vec<Owner>,
    next_id: InstanceId,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Keeper {
    fn keep(&mut self) -> Result<()> {
        self.attach()?;
        log::line(format_args!("service {}: peers may join", self.services.name()));
        loop {
            match self.events.recv_timeout(LOOK) {
                Ok(Event::Signal(signal)) => {
                    log::line(format_args!("{signal}: the service stays as it is"));
                    return Ok(());
                }
                Ok(Event::Hooks(HooksEvent::Listening(it))) => {
                    self.listening(it);
                    self.tend();
                }
                Ok(Event::Hooks(HooksEvent::Request(request))) => self.requested(&request),
                Ok(Event::Ended(_) | Event::Asked(..)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the keeper holds a sender"),
            }
            self.bury();
            self.attach()?;
            self.services.watch();
            self.given.look(&self.services, &hooks(&self.grounds));
        }
    }

    /// Attaches hooks where there are none: at first, and when a unit was started again.
    fn attach(&mut self) -> Result<()> {
        let mut new = Vec::new();
        for ground in &mut self.grounds {
            let inode = ground.cgroup.path().metadata().map(|folder| folder.ino()).ok();
            if inode == ground.hooked.as_ref().map(|(inode, _)| *inode) {
                continue;
            }
            ground.hooked = None;
            let Some(inode) = inode else { continue };
            let hooks = Hooks::attach_sharing(&ground.cgroup, &self.ports)?;
            hand_on(&hooks, self.sender.clone())?;
            ground.hooked = Some((inode, hooks));
            self.given.renew();
            new.push(ground.cgroup.clone());
        }
        // What listens from now on is told of; what listens already is looked for.
        for pid in new.iter().flat_map(|cgroup| cgroup.processes().unwrap_or_default()) {
            self.take_from(pid);
        }
        if !new.is_empty() {
            self.tend();
        }
        Ok(())
    }

    /// Takes what a process listens on already.
    fn take_from(&mut self, pid: u32) {
        for port in self.ports.clone() {
            // It has none there, or ends.
            let Ok(sockets) = adopt::fit_listeners(&[pid], port) else { continue };
            for socket in sockets {
                self.welcome(socket, port);
            }
        }
    }

    fn processes(&self) -> Vec<u32> {
        self.grounds.iter().flat_map(|it| it.cgroup.processes().unwrap_or_default()).collect()
    }

    fn listening(&mut self, Listening { pid, cookie, port }: Listening) {
        let wanted = self.ports.contains(&port) || self.given.has(cookie);
        if pid == std::process::id() || !wanted || self.services.has(cookie) {
            return;
        }
        if let Some(socket) = sockets::find(cookie, Some(pid), || self.processes()) {
            self.welcome(socket, port);
        }
    }

    /// Takes a socket in; if another writer stands in the way, again behind all that waits.
    fn welcome(&mut self, socket: Adopted, port: u16) {
        let (pid, cookie) = (socket.pid(), socket.cookie());
        let Err(error) = self.take_in(socket) else { return };
        if let (Error::Locked { .. }, Ok(cookie)) = (&error, cookie) {
            let again = HooksEvent::Listening(Listening { pid, cookie, port });
            let _ = self.sender.send(Event::Hooks(again));
        }
        tell(error);
    }

    /// A socket listens: it becomes a member.
    fn take_in(&mut self, socket: Adopted) -> overspill::Result<()> {
        if self.services.has(socket.cookie()?) {
            return Ok(());
        }
        let pid = socket.pid();
        let owner = self.owner(pid)?;
        self.services.seat(usize::try_from(pid).unwrap_or(usize::MAX), owner, None, socket)
    }

    fn owner(&mut self, pid: u32) -> overspill::Result<InstanceId> {
        if let Some(owner) = self.owners.iter().find(|owner| owner.pid == pid) {
            return Ok(owner.id);
        }
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = number.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let pidfd = pidfd.ok_or(Error::NoSuchProcess { pid })?;
        let id = self.next_id.take();
        self.owners.push(Owner { id, pid, pidfd });
        Ok(id)
    }

    fn requested(&mut self, request: &Request) {
        let result = self.fulfil(request);
        self.tend();
        for hooks in hooks(&self.grounds) {
            option::answer(hooks, request, result);
        }
    }

    fn fulfil(&mut self, request: &Request) -> Result<(), Errno> {
        let owner = self.owner(request.pid).map_err(|_| Errno::SRCH)?;
        for socket in self.given.accept(owner, request)? {
            self.take_in(socket).map_err(|error| option::errno(&error))?;
        }
        Ok(())
    }

    fn tend(&mut self) {
        self.given.tend(&self.services, &hooks(&self.grounds));
    }

    /// Sees who has ended. A socket that another process has as well is that one's now;
    /// any other waits for a successor.
    fn bury(&mut self) {
        let (ended, owners): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.owners).into_iter().partition(Owner::has_ended);
        self.owners = owners;
        for Owner { id, pid, .. } in ended {
            log::line(format_args!("process {pid} has ended"));
            for cookie in self.services.cookies(id) {
                let heir = sockets::find(cookie, None, || self.processes());
                let heir = heir.map(|socket| socket.pid());
                if let Some(heir) = heir.and_then(|pid| Some((pid, self.owner(pid).ok()?))) {
                    self.services.inherit(cookie, heir);
                }
            }
            self.services.vacate(id);
            self.given.forget(id);
        }
    }
}

fn hooks(grounds: &[Ground]) -> Vec<&Hooks> {
    grounds.iter().filter_map(|ground| ground.hooked.as_ref()).map(|(_, hooks)| hooks).collect()
}
