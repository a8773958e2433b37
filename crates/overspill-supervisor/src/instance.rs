//! An instance of a worker: one process, and what it started.

use std::fmt;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgid};
use overspill::{Address, Cgroup};

use crate::error::Result;
use crate::instance_id::InstanceId;
use crate::log::{self, tell};
use crate::process::Process;
use crate::sight::Group;
use crate::threads::start_thread;

/// A process of a worker. There are two of a worker while one replaces the other.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) worker: usize,
    /// Nothing for one that a killed supervisor has left: it is no child of this process.
    child: Option<Process>,
    /// The process that has taken the place of the first one.
    successor: Option<u32>,
    cgroup: Option<Cgroup>,
    pub(crate) started: Instant,
    /// It has listened on a TCP port.
    pub(crate) listened: bool,
    /// A port that it has connected to before it listened, and on which a worker listens.
    pub(crate) connected: Option<u16>,
    /// Since when it is known to listen.
    pub(crate) listens_since: Option<Instant>,
    /// That it has not was told.
    pub(crate) told: bool,
    /// Where it listens now and others can, too.
    pub(crate) holds: Vec<Address>,
    /// Since when it listens nowhere where it has listened before.
    pub(crate) closed: Option<Instant>,
    /// It has ended, and that is believed from then on.
    pub(crate) believed: Option<Instant>,
}

impl Instance {
    pub(crate) fn new(
        id: InstanceId,
        worker: usize,
        child: Process,
        cgroup: Option<Cgroup>,
    ) -> Self {
        Self {
            id,
            worker,
            child: Some(child),
            successor: None,
            cgroup,
            started: Instant::now(),
            listened: false,
            connected: None,
            listens_since: None,
            told: false,
            holds: Vec::new(),
            closed: None,
            believed: None,
        }
    }

    /// What a killed supervisor has left.
    pub(crate) fn left(id: InstanceId, worker: usize, cgroup: Cgroup) -> Self {
        Self::inherited(id, worker, 0, None, Some(cgroup))
    }

    /// What the build before has left to this one: a child, or, where that is not known or has
    /// another process in its place, what has its number, 0 for none.
    pub(crate) fn inherited(
        id: InstanceId,
        worker: usize,
        pid: u32,
        child: Option<Process>,
        cgroup: Option<Cgroup>,
    ) -> Self {
        let successor = Some(pid).filter(|&pid| child.is_none() && pid != 0);
        Self {
            id,
            worker,
            child,
            successor,
            cgroup,
            started: Instant::now(),
            listened: true,
            connected: None,
            listens_since: None,
            told: false,
            holds: Vec::new(),
            closed: None,
            believed: None,
        }
    }

    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Its first process, or the one that has taken its place.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(self.successor.unwrap_or_default(), Process::id)
    }

    /// All its processes that are known; nothing if they can't be read now.
    pub(crate) fn group_now(&self) -> Option<Group> {
        let processes = match &self.cgroup {
            Some(cgroup) => match cgroup.processes() {
                Ok(processes) => processes,
                Err(_) if !cgroup.path().exists() => Vec::new(),
                Err(_) => return None,
            },
            None => vec![self.pid()],
        };
        Some(Group { id: self.id, processes })
    }

    /// All its processes, as far as they can be read.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.group_now().map(|group| group.processes).unwrap_or_default()
    }

    pub(crate) fn is_stranger(&self) -> bool {
        self.child.is_none()
    }

    /// Whether it is one that a killed supervisor has left, and has ended.
    pub(crate) fn has_left(&self) -> bool {
        self.child.is_none() && self.cgroup.as_ref().is_none_or(|it| it.is_empty().unwrap_or(true))
    }

    /// Whether its first process has ended, or, of one that is no child, all of them.
    pub(crate) fn has_ended(&self) -> bool {
        if self.child.is_none() {
            return self.has_left();
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        waitid(Id::Pid(self.group()), flags).is_ok_and(|status| status != WaitStatus::StillAlive)
    }

    /// Calls this when its process ends, and leaves it to be reaped.
    pub(crate) fn watch_end(&self, ended: impl FnOnce() + Send + 'static) -> Result<()> {
        let pid = self.group();
        start_thread(move || {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
            ended();
        })
    }

    /// The process group that it was started in: that of its first process.
    fn group(&self) -> Pid {
        Pid::from_raw(self.pid().try_into().expect("ids are positive"))
    }

    /// Sends a signal to it, once, and to its process group. Until it is reaped, its id can
    /// stand for no other process or group.
    pub(crate) fn send(&self, signal: Signal) {
        if self.child.is_none() {
            for pid in self.processes() {
                let _ = kill(Pid::from_raw(pid.try_into().expect("ids are positive")), signal);
            }
            return;
        }
        let id = self.group();
        let _ = killpg(id, signal);
        if getpgid(Some(id)) != Ok(id) {
            // It has left the group that it was started in.
            let _ = kill(id, signal);
        }
    }

    /// Kills it and all that it started.
    pub(crate) fn kill(&self) {
        self.send(Signal::SIGKILL);
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill().unwrap_or_else(tell);
        }
    }

    /// Whether its first process has ended by itself, as it should.
    pub(crate) fn ended_well(&mut self) -> bool {
        let child = self.child.as_mut();
        child.and_then(|child| child.try_wait().ok().flatten()).is_some_and(|it| it.success())
    }

    /// Another process of its control group is the worker from now on.
    pub(crate) fn hand_on(&mut self, pid: u32) {
        // It has ended, and is reaped.
        self.child = None;
        self.successor = Some(pid);
    }

    /// Ends it, if it runs, with what it started and left running, which would go on taking
    /// requests from its socket beside its successor. Says how it has ended.
    pub(crate) fn end(&mut self) -> String {
        self.kill();
        let ending = match &mut self.child {
            Some(child) => log::ending(child.wait().expect("it is our child, reaped once")),
            None => "ended".to_owned(),
        };
        if let Some(cgroup) = &self.cgroup {
            // What was killed may take a moment; the whole group is removed in the end.
            let _ = cgroup.remove();
            if self.child.is_none() {
                // With the last of them that of the killed supervisor.
                let _ = cgroup.parent().map(|parent| parent.remove());
            }
        }
        ending
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid() {
            0 => write!(f, "worker {} (taken over)", self.worker),
            pid => write!(f, "worker {} (pid {pid})", self.worker),
        }
    }
}
