//! Which worker a process is, and who supervises a service, as it can be seen from outside.
//!
//! Nothing of it is stored: a worker's number stands in the path of its control group, and a
//! supervisor holds a control socket ([`control`](crate::control)). What can't be seen, without
//! privilege or from another PID namespace, is not known; it is never guessed.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, SystemTime};

use overspill::Name;

use crate::control::{self, End};
use crate::groups;
use crate::process::stat;

/// The command that supervises a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    /// `overspill run`, which has started the workers.
    Run,
    /// `overspill allow`, which looks after what others have started.
    Allow,
}

impl Command {
    /// As it is typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Allow => "allow",
        }
    }
}

/// A process that supervises services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supervisor {
    /// Which command it is.
    pub command: Command,
    /// The name that it was given.
    pub name: Name,
    /// The process; not known in another PID namespace.
    pub pid: Option<u32>,
    /// When the process started.
    pub since: Option<SystemTime>,
}

/// Who supervises a service, and who its members are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its supervisor: `overspill run`, or the `overspill allow` that has run for longest.
    pub supervisor: Option<Supervisor>,
    /// The numbers of the members' workers, in the order of the members.
    pub workers: Vec<Option<usize>>,
}

/// The supervisors of a network namespace. It remembers them from look to look: each is asked for
/// once.
#[derive(Debug, Default)]
pub struct Supervisors {
    known: HashMap<End, Option<Supervisor>>,
}

impl Supervisors {
    /// Looks at those of the calling thread's network namespace.
    pub fn look(&mut self) {
        let mut before = std::mem::take(&mut self.known);
        for end in control::ends() {
            // Its process may be another one by now, which listens on the same socket.
            let same = before.remove(&end).filter(|known| known.as_ref().is_some_and(runs_on));
            let known = same.unwrap_or_else(|| supervisor(&end));
            self.known.insert(end, known);
        }
    }

    /// What is known of a service with these processes as its members'.
    #[must_use]
    pub fn identify(&self, service: &Name, pids: &[u32]) -> Identity {
        let mut own: Vec<&Supervisor> = control::bases(service)
            .flat_map(|base| self.known.values().flatten().filter(move |it| it.name == base))
            .collect();
        own.sort_by_key(|it| (it.command, it.since, it.pid));
        let parent = own.iter().find(|it| it.command == Command::Run).and_then(|it| it.pid);
        let processes: Vec<Process> =
            pids.iter().map(|&pid| Process::see(pid, service, parent)).collect();
        // A name can be held and the service be another's: of members that a person has added.
        let is_own = processes.iter().any(|it| matches!(it, Process::Worker(_)))
            || processes.iter().all(|it| matches!(it, Process::Ended));
        let supervises = |it: &&&Supervisor| it.command != Command::Run || is_own;
        Identity {
            supervisor: own.iter().find(supervises).map(|&it| it.clone()),
            workers: processes.into_iter().map(Process::worker).collect(),
        }
    }
}

/// The process noted at a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    /// A worker; its number is not known to those who may not read its environment, where workers
    /// have no control group.
    Worker(Option<usize>),
    /// Its number is another's, or nobody's, or it may not be seen.
    Ended,
    Other,
}

impl Process {
    /// `parent` is the process of `overspill run`, if that is known.
    fn see(pid: u32, service: &Name, parent: Option<u32>) -> Self {
        if let Some(number) = worker(pid, service) {
            return Self::Worker(Some(number));
        }
        match stat(pid) {
            None => Self::Ended,
            // Its sockets are made before its workers are.
            Some(_) if Some(pid) == parent => Self::Worker(None),
            Some(stat) if u32::try_from(stat.ppid).ok() == parent => Self::Worker(told(pid)),
            Some(_) => Self::Other,
        }
    }

    fn worker(self) -> Option<usize> {
        match self {
            Self::Worker(number) => number,
            _ => None,
        }
    }
}

/// The number of the worker that a process belongs to, if it is one of a supervisor that has made
/// the service: by the path of its control group.
#[must_use]
pub fn worker(pid: u32, service: &Name) -> Option<usize> {
    control::bases(service).find_map(|name| groups::worker(pid, &name))
}

/// What a child of the supervisor was told of its number.
fn told(pid: u32) -> Option<usize> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|&byte| byte == 0);
    let number = variables.find_map(|it| it.strip_prefix(b"OVERSPILL_WORKER="))?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

fn supervisor(end: &End) -> Option<Supervisor> {
    let pid = end.holder()?.pid;
    let command = if end.keeps { Command::Allow } else { Command::Run };
    Some(Supervisor { command, name: end.name.clone(), pid, since: pid.and_then(started) })
}

fn runs_on(known: &Supervisor) -> bool {
    known.pid.is_some_and(|pid| known.since.is_some() && started(pid) == known.since)
}

/// When a process started; nothing of one that is not there or may not be seen.
#[must_use]
pub fn started(pid: u32) -> Option<SystemTime> {
    let ticks = stat(pid)?.starttime;
    // Read once: it does not move when the clock is set, which would look like a restart.
    let boot = procfs::boot_time_secs().ok()?;
    let hertz = procfs::ticks_per_second();
    let part = Duration::from_nanos(ticks % hertz * 1_000_000_000 / hertz);
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(boot + ticks / hertz) + part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_started() {
        let since = started(std::process::id()).unwrap();
        assert!(since.elapsed().unwrap() < Duration::from_secs(3600));
        assert_eq!(started(u32::MAX), None);
    }
}
