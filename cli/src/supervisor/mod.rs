//! The supervisor: makes the sockets and their services, starts the workers, and starts
//! those again that end.
//!
//! Threads wait for signals and for the ends of workers, and send what they see as
//! [`Event`]s; all that is decided and done is done by one thread, in [`Supervisor`].

mod crew;
mod ignored;
mod log;
pub(crate) mod relay;
mod services;
mod sockets;
pub(crate) mod worker;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpgid};
use overspill::{Capacity, Name, Rules};

use crate::failure::{Failure, Outcome};
use crew::Crew;
use ignored::Ignored;
use relay::{Output, Relay};
use services::Services;
use sockets::Sockets;
use worker::NotStarted;

/// A signal this soon after the first is the same one: `timeout`, for one, sends it to the
/// process and then to its group.
const ECHO: Duration = Duration::from_millis(100);

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: Name,
    /// For each socket of a worker, the address that it has in each worker.
    pub(crate) addresses: Vec<Vec<SocketAddr>>,
    pub(crate) backlog: u32,
    pub(crate) rules: Rules,
    pub(crate) capacity: Option<Capacity>,
    pub(crate) user: Option<String>,
    pub(crate) grace: Duration,
    pub(crate) output: Output,
    pub(crate) command: Vec<OsString>,
}

enum Event {
    Signal(Signal),
    /// The worker's process ended and is yet to be reaped.
    Ended(usize),
}

/// Runs the workers until a signal ends them. Nothing is left behind, whatever happens.
pub(crate) fn run(plan: Plan) -> Outcome {
    let (sender, events) = channel();
    let ignored = Ignored::read()?;
    if ignored.contains(Signal::SIGCHLD) {
        return Err(Failure::new(
            "cannot wait for workers: SIGCHLD is ignored; start overspill with env \
             --default-signal=CHLD",
        ));
    }
    watch_signals(&ignored, sender.clone())?;
    let user = plan.user.as_deref().map(worker::find_user).transpose()?;
    // First of all descriptors: they fill the numbers from 3 on, which those of the workers
    // get, so that nothing that starting a worker needs can lie there.
    let sockets = Sockets::make(&plan.addresses, plan.backlog)?;
    let workers = sockets.workers();
    let relay = Relay::start(plan.output, workers, user.map(|user| user.uid))?;
    let services = Services::make(&plan, &sockets)?;
    let mut supervisor = Supervisor {
        crew: Crew::new(workers, Instant::now()),
        children: std::iter::repeat_with(|| None).take(workers).collect(),
        plan,
        sockets,
        relay,
        services,
        sender,
        events,
    };
    let ended = supervisor.supervise();
    let removed = supervisor.services.remove();
    ended.and(removed.map_err(Failure::from))
}

struct Supervisor {
    plan: Plan,
    sockets: Sockets,
    relay: Relay,
    services: Services,
    crew: Crew,
    /// The running process of each worker.
    children: Vec<Option<Child>>,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Supervisor {
    fn supervise(&mut self) -> Outcome {
        if let Err(failure) = self.start_all() {
            self.stop(Signal::SIGTERM);
            return Err(failure);
        }
        self.tell_services();
        loop {
            self.start_due();
            let now = Instant::now();
            self.services.set_draining(&self.sockets, self.crew.draining(now));
            match self.next_event(self.crew.next_change(now)) {
                Some(Event::Ended(worker)) => self.lost(worker),
                Some(Event::Signal(signal)) => {
                    let running = log::workers(self.children.iter().flatten().count());
                    log::line(format_args!("{signal}: ending {running}"));
                    self.stop(signal);
                    return Ok(());
                }
                None => {}
            }
        }
    }

    fn tell_services(&self) {
        let workers = log::workers(self.sockets.workers());
        let Rules { policy, on_full, .. } = self.plan.rules;
        if !self.plan.rules.redirect {
            log::line(format_args!("no service: redirection is off for {workers}"));
        }
        for name in self.services.names() {
            log::line(format_args!(
                "service {name}: {workers}, policy {policy}, on full {on_full}"
            ));
        }
    }

    /// The first start of all workers, which must succeed.
    fn start_all(&mut self) -> Outcome {
        (0..self.sockets.workers())
            .try_for_each(|worker| self.start(worker).map_err(|not_started| not_started.failure))
    }

    fn start_due(&mut self) {
        while let Some(worker) = self.crew.due(Instant::now()) {
            self.revive(worker);
            if let Err(NotStarted { pid, failure }) = self.start(worker) {
                let pause = log::after(self.crew.ended(worker, Instant::now()));
                let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                log::line(format_args!("worker {worker}{pid}: {failure}; next start {pause}"));
            }
        }
    }

    /// Mends what the last process may have done to the worker's sockets.
    fn revive(&mut self, worker: usize) {
        for position in self.sockets.positions(worker) {
            let address = self.sockets.address(position);
            match self.sockets.revive(position) {
                None => {}
                Some(Ok(())) => log::line(format_args!(
                    "worker {worker} had shut {address} down; listening again"
                )),
                Some(Err(error)) => {
                    log::line(format_args!("worker {worker} had shut {address} down: {error}"));
                }
            }
        }
    }

    fn start(&mut self, worker: usize) -> Result<(), NotStarted> {
        let sockets = self.sockets.of(worker);
        let Plan { user, command, .. } = &self.plan;
        let outputs = self.relay.outputs(worker);
        let mut child = worker::start(worker, user.as_deref(), command, sockets, outputs)?;
        let pid = child.id();
        if let Err(failure) = watch_end(worker, id_of(&child), self.sender.clone()) {
            // Unwatched, it would never be started again.
            end(&mut child);
            return Err(NotStarted { pid: Some(pid), failure });
        }
        self.children[worker] = Some(child);
        self.crew.started(worker, Instant::now());
        self.services.set_pid(&self.sockets, worker, pid);
        let addresses: Vec<String> =
            self.sockets.of(worker).map(|(address, _)| address.to_string()).collect();
        let addresses = addresses.join(", ");
        log::line(format_args!("worker {worker} (pid {pid}) started on {addresses}"));
        Ok(())
    }

    /// A worker ended without being asked.
    fn lost(&mut self, worker: usize) {
        let (pid, status) = self.reap(worker);
        let pause = log::after(self.crew.ended(worker, Instant::now()));
        let ending = log::ending(status);
        log::line(format_args!("worker {worker} (pid {pid}) {ending}; next start {pause}"));
    }

    /// Passes a signal on to all workers, and what they started, and waits for them; what
    /// outlasts the grace time or a second signal is killed. A lost terminal (SIGHUP) is passed on as SIGTERM: to many
    /// servers SIGHUP means to read their settings anew.
    fn stop(&mut self, signal: Signal) {
        // With the last copy of its socket a worker closes it: new requests go to those
        // that still listen, and in the end they are refused.
        self.sockets.close();
        let signal = if signal == Signal::SIGHUP { Signal::SIGTERM } else { signal };
        self.send_all(signal);
        let first = Instant::now();
        let mut patience = Some(first + self.plan.grace);
        while self.children.iter().any(Option::is_some) {
            match self.next_event(patience) {
                Some(Event::Ended(worker)) => {
                    let (pid, status) = self.reap(worker);
                    log::line(format_args!("worker {worker} (pid {pid}) {}", log::ending(status)));
                }
                Some(Event::Signal(_)) if first.elapsed() < ECHO => {}
                Some(Event::Signal(signal)) => {
                    self.kill_all(&format!("{signal} again"));
                    patience = None;
                }
                None => {
                    self.kill_all(&format!("{} s are over", self.plan.grace.as_secs()));
                    patience = None;
                }
            }
        }
    }

    fn kill_all(&self, why: &str) {
        let running = log::workers(self.children.iter().flatten().count());
        log::line(format_args!("{why}: killing {running}"));
        self.send_all(Signal::SIGKILL);
    }

    /// Sends a signal to each worker and to what it started.
    fn send_all(&self, signal: Signal) {
        self.children.iter().flatten().for_each(|child| send(child, signal));
    }

    /// Takes leave of a worker that ended, and of what it started and left running, which
    /// would go on taking requests from its socket beside its successor.
    fn reap(&mut self, worker: usize) -> (u32, ExitStatus) {
        let mut child = self.children[worker].take().expect("each process ends once");
        (child.id(), end(&mut child))
    }

    /// The next event, or `None` when there is none until then.
    fn next_event(&self, until: Option<Instant>) -> Option<Event> {
        let connected = "the supervisor holds a sender";
        match until {
            None => Some(self.events.recv().expect(connected)),
            Some(until) => {
                match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(event) => Some(event),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => unreachable!("{connected}"),
                }
            }
        }
    }
}

/// Sends a signal to a worker, once, and to its process group. Until the worker is reaped,
/// its id can stand for no other process or group.
fn send(child: &Child, signal: Signal) {
    let id = id_of(child);
    let _ = killpg(id, signal);
    if getpgid(Some(id)) != Ok(id) {
        // It has left the group that it was started in.
        let _ = kill(id, signal);
    }
}

/// Ends a worker, if it runs, and its process group, and reaps it.
fn end(child: &mut Child) -> ExitStatus {
    send(child, Signal::SIGKILL);
    child.wait().expect("it is our child, reaped once")
}

fn id_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().expect("ids are positive"))
}

/// Sends the signals that end the supervisor. They are blocked in all its threads and taken
/// one by one; one that is ignored (`nohup`) stays ignored.
fn watch_signals(ignored: &Ignored, sender: Sender<Event>) -> Outcome {
    let ending = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    // A blocked signal would be taken even where it is ignored.
    let signals: SigSet = ending.into_iter().filter(|&it| !ignored.contains(it)).collect();
    signals
        .thread_block()
        .map_err(|error| Failure::new(format!("cannot block signals: {error}")))?;
    let watch = move || {
        while let Ok(signal) = signals.wait() {
            if sender.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    };
    start_thread(watch)
}

/// Sends word when a worker's process ends, and leaves it to be reaped.
fn watch_end(worker: usize, pid: Pid, sender: Sender<Event>) -> Outcome {
    start_thread(move || {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
        // Nobody listens any more once the supervisor has ended.
        let _ = sender.send(Event::Ended(worker));
    })
}

fn start_thread(body: impl FnOnce() + Send + 'static) -> Outcome {
    let started = thread::Builder::new().spawn(body);
    started.map(drop).map_err(|error| {
        Failure::new(format!("cannot start a thread: {error}; raise the limit of processes"))
    })
}
