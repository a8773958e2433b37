//! An instance of a worker: one process, and what it started.

use std::collections::HashSet;
use std::fmt;
use std::time::Instant;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};
use overspill::adopt::sockets_of;
use overspill::{Address, Cgroup, Connection, Namespace, connections, moved_connections};

use crate::child::Child;
use crate::error::Result;
use crate::instance_id::InstanceId;
use crate::log::{self, tell};
use crate::plan::KillMode;
use crate::process::parent;
use crate::sight::{Group, listeners_among};

/// A process of a worker. There are two of a worker while one replaces the other.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) worker: usize,
    /// Nothing for one that a killed supervisor has left: it is no child of this process.
    child: Option<Child>,
    /// The process that has taken the place of the first one.
    successor: Option<u32>,
    cgroup: Option<Cgroup>,
    part: Option<Part>,
    /// What was cut when it was killed.
    cut: Cut,
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
    /// The ports where it has listened.
    pub(crate) ports: HashSet<u16>,
    /// Since when it listens nowhere where it has listened before.
    pub(crate) closed: Option<Instant>,
    /// It has ended, and that is believed from then on.
    pub(crate) believed: Option<Instant>,
}

/// What an instance is that is not all that this supervisor has started for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A killed supervisor has left it.
    Left,
    /// Its first process, which has ended; the others are an instance of their own.
    First,
    /// Processes whose first one has ended: they finish the connections that they have.
    Rest,
}

/// What passes from one build to the next of an instance.
#[derive(Debug)]
pub(crate) struct Legacy {
    /// 0 where it is not known.
    pub(crate) pid: u32,
    pub(crate) kind: Kind,
    pub(crate) cgroup: Option<Cgroup>,
    /// The ports where it has listened.
    pub(crate) ports: HashSet<u16>,
}

/// What an instance is, in the words of the contract between builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its first process is a child of the supervisor.
    Child,
    /// Another process has taken the first one's place.
    Stranger,
    /// A killed supervisor has left it.
    Left,
    /// What finishes the connections of a first process that has ended.
    Rest,
}

impl Kind {
    const ALL: [(Self, &str); 4] = [
        (Self::Child, "child"),
        (Self::Stranger, "stranger"),
        (Self::Left, "left"),
        (Self::Rest, "rest"),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(own, _)| *own == self).map_or("", |(_, name)| name)
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, own)| *own == name).map(|(own, _)| own)
    }
}

/// What ends with the first process.
#[derive(Debug, Clone, Copy, Default)]
struct Cut {
    processes: usize,
    connections: usize,
}

impl Instance {
    pub(crate) fn new(id: InstanceId, worker: usize, child: Child, cgroup: Option<Cgroup>) -> Self {
        Self { child: Some(child), ..Self::of(id, worker, cgroup) }
    }

    /// What a killed supervisor has left.
    pub(crate) fn left(id: InstanceId, worker: usize, cgroup: Cgroup) -> Self {
        let part = Some(Part::Left);
        Self { part, listened: true, ..Self::of(id, worker, Some(cgroup)) }
    }

    /// What the build before has left to this one.
    pub(crate) fn inherited(id: InstanceId, worker: usize, legacy: Legacy) -> Self {
        let Legacy { pid, kind, cgroup, ports } = legacy;
        let child = Child::numbered(pid).filter(|_| kind == Kind::Child);
        let successor = Some(pid).filter(|&pid| child.is_none() && pid != 0);
        let part = match kind {
            Kind::Child | Kind::Stranger => None,
            Kind::Left => Some(Part::Left),
            Kind::Rest => Some(Part::Rest),
        };
        Self { child, successor, part, ports, listened: true, ..Self::of(id, worker, cgroup) }
    }

    /// What the next build has to know of it.
    pub(crate) fn legacy(&self) -> Legacy {
        let kind = match self.part {
            Some(Part::Left) => Kind::Left,
            Some(Part::Rest) => Kind::Rest,
            Some(Part::First) | None if self.child.is_some() => Kind::Child,
            Some(Part::First) | None => Kind::Stranger,
        };
        let (cgroup, ports) = (self.cgroup.clone(), self.ports.clone());
        Legacy { pid: self.pid(), kind, cgroup, ports }
    }

    fn of(id: InstanceId, worker: usize, cgroup: Option<Cgroup>) -> Self {
        Self {
            id,
            worker,
            child: None,
            successor: None,
            cgroup,
            part: None,
            cut: Cut::default(),
            started: Instant::now(),
            listened: false,
            connected: None,
            listens_since: None,
            told: false,
            holds: Vec::new(),
            ports: HashSet::new(),
            closed: None,
            believed: None,
        }
    }

    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Its first process, or the one that has taken its place.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(self.successor.unwrap_or_default(), Child::id)
    }

    /// All its processes that are known; nothing if they can't be read now.
    pub(crate) fn group_now(&self) -> Option<Group> {
        let mut processes = match &self.cgroup {
            Some(cgroup) => match cgroup.processes() {
                Ok(processes) => processes,
                Err(_) if !cgroup.path().exists() => Vec::new(),
                Err(_) => return None,
            },
            None => vec![self.pid()],
        };
        // Parents before their children, whatever the order of the control group.
        processes.sort_unstable();
        Some(Group { id: self.id, processes })
    }

    /// All its processes, as far as they can be read.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.group_now().map(|group| group.processes).unwrap_or_default()
    }

    /// All its processes but the first one, if that is a child of this process.
    fn others(&self) -> Vec<u32> {
        let first = self.child.as_ref().map(Child::id);
        self.processes().into_iter().filter(|&pid| Some(pid) != first).collect()
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
        self.child.as_ref().map_or_else(|| self.has_left(), Child::has_ended)
    }

    /// Calls this when its first process ends, if that is a child of this process.
    pub(crate) fn watch_end(&self, ended: impl FnOnce() + Send + 'static) -> Result<()> {
        self.child.as_ref().map_or(Ok(()), |child| child.watch_end(ended))
    }

    /// The process group that it was started in: that of its first process.
    fn group(&self) -> Pid {
        Pid::from_raw(self.pid().try_into().expect("ids are positive"))
    }

    /// Asks it to end.
    pub(crate) fn stop(&self, signal: Signal, mode: KillMode) {
        match mode {
            KillMode::Mixed => self.first_processes().into_iter().for_each(|it| send(it, signal)),
            KillMode::Group if self.cgroup.is_some() => {
                self.processes().into_iter().for_each(|it| send(it, signal));
            }
            KillMode::Group => self.send_to_group(signal),
        }
    }

    /// Its first process. Of one that is no child of this process, those that no other one of it
    /// has started.
    fn first_processes(&self) -> Vec<u32> {
        if self.child.is_some() {
            return vec![self.pid()];
        }
        let all: HashSet<u32> = self.processes().into_iter().collect();
        let is_first = |&&pid: &&u32| parent(pid).is_none_or(|parent: u32| !all.contains(&parent));
        all.iter().filter(is_first).copied().collect()
    }

    /// Sends a signal to its first process, once, and to its process group. Until it is reaped,
    /// its id can stand for no other process or group.
    fn send_to_group(&self, signal: Signal) {
        let id = self.group();
        let _ = killpg(id, signal);
        if getpgid(Some(id)) != Ok(id) {
            // It has left the group that it was started in.
            let _ = kill(id, signal);
        }
    }

    /// Kills it and all that it started.
    pub(crate) fn kill(&mut self) {
        self.note_cut();
        if self.child.is_some() {
            self.send_to_group(Signal::SIGKILL);
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill().unwrap_or_else(tell);
        }
    }

    /// Takes note of what else ends with its first process. What was killed has ended before.
    fn note_cut(&mut self) {
        let processes = self.others().len();
        if self.cgroup.is_none() || processes == 0 && self.has_ended() {
            return;
        }
        let connections = self.accepted().map_or(0, |all| all.flatten().count());
        self.cut.processes = self.cut.processes.max(processes);
        self.cut.connections = self.cut.connections.max(connections);
    }

    /// Its connections at the ports where it has listened, those that wait to be accepted among
    /// them: the ones of its control group. One that was moved is the process's that holds it.
    fn connections(
        &self,
    ) -> overspill::Result<impl Iterator<Item = overspill::Result<Connection>>> {
        let all = self.cgroup.as_ref().map(connections).transpose()?;
        let mut moved = moved_connections(&Namespace::current()?)?;
        let away: HashSet<u64> = moved.iter().map(|it| it.cookie).collect();
        if !moved.is_empty() {
            let sockets = self.processes().into_iter().flat_map(sockets_of).flatten();
            let sockets: HashSet<u64> = sockets.map(|(_, inode)| inode).collect();
            moved.retain(|it| sockets.contains(&it.inode));
        }
        let stayed = move |it: &overspill::Result<Connection>| {
            it.as_ref().map_or(true, |it| !away.contains(&it.cookie))
        };
        let is_served = |it: &overspill::Result<Connection>| {
            it.as_ref().map_or(true, |it| self.ports.contains(&it.port))
        };
        let all = all.into_iter().flatten().filter(stayed).chain(moved.into_iter().map(Ok));
        Ok(all.filter(is_served))
    }

    /// Its accepted connections. The queued ones migrate.
    fn accepted(&self) -> overspill::Result<impl Iterator<Item = overspill::Result<Connection>>> {
        let is_accepted =
            |it: &overspill::Result<Connection>| it.as_ref().map_or(true, |it| it.inode != 0);
        Ok(self.connections()?.filter(is_accepted))
    }

    /// Whether it has no connections, neither accepted nor waiting for it. What can't be read is no
    /// reason to end it early.
    pub(crate) fn is_idle(&self) -> bool {
        self.connections().is_ok_and(|mut all| all.next().is_none())
    }

    /// Whether it has accepted no connection that is still open.
    pub(crate) fn has_finished(&self) -> bool {
        self.accepted().is_ok_and(|mut all| all.next().is_none())
    }

    /// How many connections it has, to follow its name; nothing if it has none.
    pub(crate) fn has_connections(&self) -> Option<String> {
        let all = self.accepted().and_then(Iterator::collect::<overspill::Result<Vec<_>>>);
        match all {
            Ok(all) if all.is_empty() => None,
            Ok(all) => Some(log::connections(all.len())),
            Err(error) => Some(format!("unknown connections ({})", error.with_causes())),
        }
    }

    /// Its first process has ended: what finishes its connections becomes an instance of its own.
    /// Those of its processes that listen end, since they would go on taking requests beside its
    /// successor; so do all where nobody has connections.
    pub(crate) fn split_rest(&mut self, id: InstanceId) -> Option<Self> {
        let first = self.child.as_ref()?.id();
        let processes = self.others();
        if processes.is_empty() {
            return None;
        }
        let listeners = listeners_among(&processes)?;
        if listeners.len() == processes.len() || self.has_finished() {
            return None;
        }
        self.part = Some(Part::First);
        self.cut.processes = listeners.len();
        for pid in listeners {
            send(pid, Signal::SIGKILL);
        }
        let (part, successor) = (Some(Part::Rest), Some(first));
        let ports = std::mem::take(&mut self.ports);
        let own = Self::of(id, self.worker, self.cgroup.take());
        Some(Self { part, successor, ports, listened: true, ..own })
    }

    /// Whether it finishes the connections of a first process that has ended.
    pub(crate) fn is_rest(&self) -> bool {
        self.part == Some(Part::Rest)
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
    /// requests from its socket beside its successor. Says how it has ended, and what
    /// else with it.
    pub(crate) fn end(&mut self) -> (String, String) {
        if self.part != Some(Part::First) {
            self.kill();
        }
        let how = match &mut self.child {
            Some(child) => log::ending(child.wait().expect("it is our child, reaped once")),
            None => "ended".to_owned(),
        };
        if let Some(cgroup) = &self.cgroup {
            // What was killed may take a moment; the whole group is removed in the end.
            let _ = cgroup.remove();
            if self.part == Some(Part::Left) {
                // With the last of them that of the killed supervisor.
                let _ = cgroup.parent().map(|parent| parent.remove());
            }
        }
        (how, self.cut.told())
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid() {
            0 => write!(f, "worker {} (taken over)", self.worker),
            pid if self.is_rest() => write!(f, "what worker {} (pid {pid}) left", self.worker),
            pid => write!(f, "worker {} (pid {pid})", self.worker),
        }
    }
}

impl Cut {
    /// What else has ended, to follow how the first process has; nothing if that was all.
    fn told(self) -> String {
        let Self { processes, connections } = self;
        let parts = [
            (processes > 0).then(|| log::processes(processes)),
            (connections > 0).then(|| log::connections(connections)),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        match &parts[..] {
            [] => String::new(),
            parts => format!("; {} ended with it", parts.join(" and ")),
        }
    }
}

/// A process that has ended meanwhile needs no signal.
fn send(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid.try_into().expect("ids are positive")), signal);
}
