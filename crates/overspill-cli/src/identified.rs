//! Services with what their maps do not have: who supervises them, and which worker each member is.

use std::fs::File;
use std::thread;
use std::time::SystemTime;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use nix::sched::{CloneFlags, setns};
use overspill::{Name, Namespace, Status};
use overspill_supervisor::identity::{Command, Identity, Supervisor, Supervisors};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

/// A service, its supervisor, and the numbers of its workers.
#[derive(Debug)]
pub(crate) struct Identified {
    pub(crate) status: Status,
    pub(crate) identity: Identity,
}

impl Identified {
    pub(crate) fn supervisor(&self) -> Option<&Supervisor> {
        self.identity.supervisor.as_ref()
    }
}

/// Identifies the services of a network namespace, again and again.
#[derive(Debug)]
pub(crate) struct Identifier {
    namespace: Namespace,
    supervisors: Supervisors,
}

impl Identifier {
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self { namespace, supervisors: Supervisors::default() }
    }

    /// Finds out what can be seen from here. What can't is left out.
    pub(crate) fn identify(&mut self, statuses: Vec<Status>) -> Vec<Identified> {
        if Namespace::current().is_ok_and(|own| own == self.namespace) {
            self.supervisors.look();
        } else if let Some(file) = self.find(&statuses) {
            let supervisors = &mut self.supervisors;
            // The others of this process stay where they are.
            let look = move || {
                if setns(file, CloneFlags::CLONE_NEWNET).is_ok() {
                    supervisors.look();
                }
            };
            thread::scope(|scope| drop(thread::Builder::new().spawn_scoped(scope, look)));
        }
        let identify = |status: Status| {
            let pids: Vec<u32> = status.members.iter().map(|member| member.pid).collect();
            let name: Result<Name, _> = status.name.parse();
            let identity = name.map(|name| self.supervisors.identify(&name, &pids));
            Identified { status, identity: identity.unwrap_or_default() }
        };
        statuses.into_iter().map(identify).collect()
    }

    /// The namespace, as the process of a member has it.
    fn find(&self, statuses: &[Status]) -> Option<File> {
        let members = statuses.iter().flat_map(|status| &status.members);
        let in_it = |pid: &u32| Namespace::of_process(*pid).is_ok_and(|it| it == self.namespace);
        let pid = members.map(|member| member.pid).find(in_it)?;
        File::open(format!("/proc/{pid}/ns/net")).ok()
    }
}

/// "overspill run --name web (pid 4711)"
pub(crate) fn describe(supervisor: &Supervisor) -> String {
    let name = &supervisor.name;
    let command = match supervisor.command {
        Command::Run => format!("overspill run --name {name}"),
        Command::Allow => format!("overspill allow {name}"),
    };
    match supervisor.pid {
        Some(pid) => format!("{command} (pid {pid})"),
        None => format!("{command}, in another PID namespace"),
    }
}

/// "run 4711"
pub(crate) fn briefly(supervisor: &Supervisor) -> String {
    let command = supervisor.command.name();
    supervisor.pid.map_or_else(|| command.to_owned(), |pid| format!("{command} {pid}"))
}

/// By the local clock, to the second.
pub(crate) fn local(time: SystemTime) -> Option<String> {
    let zoned = |at: Timestamp| -> Zoned { at.to_zoned(TimeZone::system()) };
    Some(Timestamp::try_from(time).ok().map(zoned)?.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// Since 1970.
pub(crate) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What the library promises, and the keys `supervisor` and `worker` where they are known.
impl Serialize for Identified {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut service = object(&self.status).map_err(S::Error::custom)?;
        if let Some(supervisor) = self.supervisor() {
            let before = place(&service, "members");
            service.shift_insert(before, "supervisor".to_owned(), told(supervisor));
        }
        let members = service.get_mut("members").and_then(Value::as_array_mut);
        let workers = members.into_iter().flatten().zip(&self.identity.workers);
        for (member, worker) in workers {
            if let (Some(member), Some(worker)) = (member.as_object_mut(), worker) {
                let before = place(member, "pid");
                member.shift_insert(before, "worker".to_owned(), (*worker).into());
            }
        }
        service.serialize(serializer)
    }
}

fn object(status: &Status) -> Result<Map<String, Value>, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(status)?)
}

fn place(object: &Map<String, Value>, key: &str) -> usize {
    object.keys().position(|it| it == key).unwrap_or(object.len())
}

fn told(supervisor: &Supervisor) -> Value {
    let Supervisor { command, name, pid, since } = supervisor;
    let mut told = json!({ "command": command.name(), "name": name.as_str() });
    if let Some(pid) = pid {
        told["pid"] = (*pid).into();
    }
    if let Some(since) = since.and_then(|since| Timestamp::try_from(since).ok()) {
        told["since"] = since.to_string().into();
    }
    told
}
