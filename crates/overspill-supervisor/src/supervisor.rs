//! What a supervisor knows and has, and what all that it does is made of.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::sys::signal::Signal;
use overspill::{Cgroup, Hooks, HooksEvent, Name, Request, Words};

use crate::control::{self, Reply};
use crate::crew::Crew;
use crate::error::{Error, Result};
use crate::groups;
use crate::hand::Report;
use crate::instance::Instance;
use crate::instance_id::InstanceId;
use crate::log;
use crate::membership::Membership;
use crate::plan::Plan;
use crate::relay::Relay;
use crate::sight::Held;
use crate::sockets::Sockets;
use crate::threads::start_thread;
use crate::worker::{self, NotStarted};

/// What the thread that decides is told. Signals come by a way of their own.
pub(crate) enum Event {
    Signal(Signal),
    /// The instance's process ended and is yet to be reaped.
    Ended(InstanceId),
    /// A socket of some worker has begun to listen: a reason to look sooner.
    Hint,
    /// A process gives sockets that are to join.
    Given(Request),
    /// The hand has done a job.
    Done(Report),
    /// A process connects to a port on which a socket of some worker has listened.
    Connects {
        pid: u32,
        port: u16,
    },
    /// Somebody asks for something.
    Asked(control::Request, Reply),
    /// Whether the build that has replaced this one's file can take over.
    Tried(HandOver, Result<(), String>),
}

/// How a worker is started.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) command: Vec<std::ffi::OsString>,
    pub(crate) user: Option<String>,
}

/// A restart under way.
#[derive(Default)]
pub(crate) struct Restart {
    /// Those who have asked for it, in that order.
    pub(crate) wishes: Vec<Wish>,
    /// The worker that is being replaced.
    pub(crate) step: Option<Step>,
    /// How workers were started before, until one is replaced.
    pub(crate) before: Option<Recipe>,
}

/// That all workers are replaced by ones that are started from now on.
pub(crate) struct Wish {
    /// The workers yet to be replaced.
    pub(crate) workers: BTreeSet<usize>,
    pub(crate) replaced: usize,
    /// Those who want to know.
    pub(crate) replies: Vec<Reply>,
}

/// Another build is to go on in this process.
pub(crate) struct HandOver {
    pub(crate) program: PathBuf,
    /// Who wants to know.
    pub(crate) reply: Option<Reply>,
    /// Whether it is to replace the workers then.
    pub(crate) restarts: bool,
}

/// A worker that is being replaced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) worker: usize,
    pub(crate) old: InstanceId,
    pub(crate) successor: InstanceId,
    /// How many wishes there were when its successor was started: later ones want another.
    pub(crate) wishes: usize,
    /// When its predecessor stays.
    pub(crate) until: Instant,
    /// It listens, and its sockets take the places of its predecessor's.
    pub(crate) takes_over: bool,
}

/// An instance that is to end.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) id: InstanceId,
    pub(crate) phase: Phase,
    /// When the time is over in which it may finish what it has; without end if there is none.
    pub(crate) until: Option<Instant>,
    /// When to look next whether it has connections.
    pub(crate) look: Instant,
}

/// A plan that is to take the place of the one there is.
pub(crate) struct Reload {
    pub(crate) plan: Plan,
    /// The keys of what has changed in it and can't be.
    pub(crate) kept: Vec<&'static str>,
    /// Those who want to know.
    pub(crate) replies: Vec<Reply>,
}

/// How far it is with that.
#[derive(Debug)]
pub(crate) enum Phase {
    /// It has closed its sockets by itself, and takes what time it wants.
    Finishes,
    /// It gets no new requests, and may finish what it has.
    Drains,
    /// It was told to end, and may take until then.
    Ends(Instant),
    Killed,
}

/// Some of the processes that have begun to listen.
pub(crate) type Listened = Arc<Mutex<HashSet<u32>>>;

/// The workers, their sockets and services.
pub(crate) struct Supervisor {
    pub(crate) plan: Plan,
    /// Those that are handed to the workers.
    pub(crate) sockets: Sockets,
    pub(crate) relay: Relay,
    /// The socket of the control socket's thread, for the next build.
    pub(crate) control: OwnedFd,
    /// The build that is to take over, as soon as nothing is under way.
    pub(crate) hand_over: Option<HandOver>,
    /// How many descriptors a worker may have open, if not as many as this process.
    pub(crate) descriptors: Option<u64>,
    /// Whether there are services at all: redirection was on at the start.
    pub(crate) redirected: bool,
    pub(crate) members: Membership,
    /// What was seen at the last look.
    pub(crate) held: Vec<Held>,
    /// Of all workers that make their sockets themselves, and the hooks on it.
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) hooks: Option<Hooks>,
    /// The hooks on what a predecessor has left.
    pub(crate) left_hooks: Vec<Hooks>,
    /// Processes that have begun to listen, as far as the hooks tell.
    pub(crate) listened: Listened,
    /// Ports of which it was told why workers can't share them.
    pub(crate) told_ports: HashSet<u16>,
    /// What the workers are given, if they are.
    pub(crate) words: Option<Words>,
    pub(crate) crew: Crew,
    /// The workers whose members drain because they wait, or have waited.
    pub(crate) draining: Vec<bool>,
    /// All processes that run, those that are leaving too.
    pub(crate) instances: Vec<Instance>,
    pub(crate) next_id: InstanceId,
    /// The instance that serves, of each worker that runs.
    pub(crate) current: Vec<Option<InstanceId>>,
    pub(crate) leaving: Vec<Leaving>,
    pub(crate) restart: Option<Restart>,
    /// The services are being given its rules.
    pub(crate) reload: Option<Reload>,
    /// All workers have listened once: from then on nothing ends the supervisor but signals.
    pub(crate) begun: bool,
    pub(crate) sender: Sender<Event>,
    pub(crate) events: Receiver<Event>,
}

/// Makes the control group of all workers.
pub(crate) fn make_cgroup(name: &Name) -> Result<Cgroup> {
    Ok(Cgroup::own()?.make(&groups::own_name(name))?)
}

impl Supervisor {
    pub(crate) fn instance(&mut self, id: InstanceId) -> &mut Instance {
        self.instance_opt(id).expect("it runs")
    }

    pub(crate) fn instance_opt(&mut self, id: InstanceId) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|it| it.id == id)
    }

    pub(crate) fn find(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.iter().find(|it| it.id == id)
    }

    /// Takes an ended instance out of the list.
    pub(crate) fn take_out(&mut self, id: InstanceId) -> Option<Instance> {
        let position = self.instances.iter().position(|it| it.id == id)?;
        Some(self.instances.remove(position))
    }

    /// Whether an instance is its worker's current one.
    pub(crate) fn serves(&self, instance: &Instance) -> bool {
        self.current.get(instance.worker) == Some(&Some(instance.id))
    }

    /// Starts a process of a worker, and makes it the worker's current one.
    pub(crate) fn start(&mut self, worker: usize) -> Result<(), NotStarted> {
        let spawned = self.spawn(worker);
        let id = spawned?;
        self.current[worker] = Some(id);
        self.crew.started(worker, Instant::now());
        if self.plan.hands_over() {
            let pid = self.instance(id).pid();
            let addresses: Vec<String> =
                self.sockets.of(worker).map(|(address, _)| address.to_string()).collect();
            let addresses = addresses.join(", ");
            log::line(format_args!("worker {worker} (pid {pid}) started on {addresses}"));
            self.members.looks.hinted = true;
        }
        Ok(())
    }

    /// Starts a process of a worker. It is counted, even if it comes to nothing.
    pub(crate) fn spawn(&mut self, worker: usize) -> Result<InstanceId, NotStarted> {
        let members = self.members.seats.all().iter().filter(|seat| seat.worker == worker);
        self.members.job.starts.extend(members.filter_map(|seat| seat.member));
        let id = self.next_id.take();
        let cgroup = self.worker_cgroup(worker, id).map_err(NotStarted::new)?;
        let outputs = self.relay.outputs(worker);
        let started = worker::Start {
            number: worker,
            user: self.plan.user.as_deref(),
            command: &self.plan.command,
            cgroup: cgroup.as_ref(),
            words: self.words.as_ref(),
            descriptors: self.descriptors,
        }
        .start(self.sockets.of(worker), outputs);
        let child = started.inspect_err(|_| {
            // It is empty: nothing has been started in it, or it has ended.
            let _ = cgroup.as_ref().map(Cgroup::remove);
        })?;
        let mut instance = Instance::new(id, worker, child.into(), cgroup);
        if let Err(error) = self.watch_end_of(&instance) {
            // Unwatched, it would never be started again.
            let pid = Some(instance.pid());
            instance.end();
            return Err(NotStarted { pid, error });
        }
        self.instances.push(instance);
        self.members.sight.hurry();
        Ok(id)
    }

    /// Has the end of a child told.
    pub(crate) fn watch_end_of(&self, instance: &Instance) -> Result<()> {
        let (sender, id) = (self.sender.clone(), instance.id);
        instance.watch_end(move || {
            // Nobody listens any more once the supervisor has ended.
            let _ = sender.send(Event::Ended(id));
        })
    }

    /// The control group of a new instance, where workers have some. Somebody may have removed
    /// that of all workers.
    fn worker_cgroup(&mut self, worker: usize, id: InstanceId) -> Result<Option<Cgroup>> {
        let Some(all) = &self.cgroup else { return Ok(None) };
        let name = format!("{worker}.{id}");
        if let Ok(own) = all.make(&name) {
            return Ok(Some(own));
        }
        let all = make_cgroup(&self.plan.name)?;
        let hooks = Hooks::attach(&all, &self.plan.private)?;
        hand_on(&hooks, self.sender.clone(), Arc::clone(&self.members.looks.hint), &self.listened)?;
        let own = all.make(&name)?;
        (self.cgroup, self.hooks) = (Some(all), Some(hooks));
        self.members.given.renew();
        Ok(Some(own))
    }
}

/// How many processes that have begun to listen, or have connected, are remembered.
const REMEMBERED: usize = 4096;

/// Sends what the hooks tell of. A worker that listens again and again is one hint at a time.
pub(crate) fn hand_on(
    hooks: &Hooks,
    sender: Sender<Event>,
    hint: Arc<AtomicBool>,
    listened: &Listened,
) -> Result<()> {
    let events = hooks.events()?;
    let listened = Arc::clone(listened);
    let mut connecting = HashSet::new();
    start_thread(move || {
        let told = |event| match event {
            HooksEvent::Listening(it) => {
                let mut listened = listened.lock().unwrap_or_else(PoisonError::into_inner);
                // Of use at the first start alone.
                if listened.len() < REMEMBERED {
                    listened.insert(it.pid);
                }
                drop(listened);
                hint.swap(true, Ordering::AcqRel) || sender.send(Event::Hint).is_ok()
            }
            // One event for each process and port.
            HooksEvent::Connecting { pid, port } => {
                if connecting.len() >= REMEMBERED {
                    connecting.clear();
                }
                !connecting.insert((pid, port))
                    || sender.send(Event::Connects { pid, port }).is_ok()
            }
            HooksEvent::Request(request) => sender.send(Event::Given(request)).is_ok(),
        };
        events.each(told).map_err(Error::from).unwrap_or_else(|error| {
            log::line(format_args!("{error}"));
        });
    })
}
