//! The supervisor: starts the workers, makes services of the sockets that they listen on,
//! starts those again that end, and replaces them one after another when asked to.
//!
//! Threads wait for signals, for the ends of workers and for sockets that begin to listen,
//! and send what they see as [`Event`]s; all that is decided and done is done by one thread,
//! in [`Supervisor`].

pub mod allow;
pub mod control;
mod crew;
mod error;
pub mod ignored;
mod instance;
mod leaving;
mod log;
mod notify;
mod option;
mod plan;
pub mod relay;
mod reload;
mod restart;
pub mod services;
mod sockets;
mod threads;
mod watching;
pub mod worker;

use std::fs::File;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use overspill::adopt::Adopted;
use overspill::{Cgroup, Hooks, HooksEvent, Listening, Name, Namespace, Request, Rules, Words};
use rustix::io::Errno;

use control::{Control, Reply};
use crew::Crew;
pub use error::{Error, Result};
use ignored::Ignored;
use instance::{Instance, InstanceId};
use leaving::Leaving;
pub use leaving::stop_signal;
use option::Given;
pub use plan::{Peers, Plan};
use relay::Relay;
pub use reload::Reread;
pub use reload::keep;
use restart::Restart;
use services::Services;
use sockets::Sockets;
use threads::start_thread;
use worker::NotStarted;

/// A signal this soon after the first is the same one: `timeout`, for one, sends it to the
/// process and then to its group.
const ECHO: Duration = Duration::from_millis(100);
/// A worker that listens nowhere for this long is told of.
const SILENT: Duration = Duration::from_secs(10);

/// How long what was killed may take to end.
const ENDING: Duration = Duration::from_secs(5);
/// How often to look for sockets that their workers have closed.
const CLOSED: Duration = Duration::from_millis(500);

enum Event {
    Signal(Signal),
    /// The instance's process ended and is yet to be reaped.
    Ended(InstanceId),
    /// A worker's process has begun to listen, or gives sockets that are to join.
    Hooks(HooksEvent),
    /// Somebody asks for something.
    Asked(control::Request, Reply),
}

/// How the name of the control group begins that a supervisor makes for its workers.
fn cgroup_prefix(name: &Name) -> String {
    format!("overspill-{name}-")
}

/// Runs the workers until a signal ends them. Nothing is left behind, whatever happens. A
/// plan that can be read again is, at each restart.
///
/// # Errors
///
/// When what the workers need can't be had, at the beginning; and where a worker of the first
/// start ends before it listens.
pub fn run(plan: Plan, reread: Option<Reread>) -> Result<()> {
    let (sender, events) = channel();
    let ignored = Ignored::read()?;
    if ignored.contains(Signal::SIGCHLD) {
        return Err(Error::ChildrenIgnored);
    }
    watch_signals(&ignored, sender.clone())?;
    let user = plan.user.as_deref().map(worker::find_user).transpose()?;
    // Before the sockets: those of a second supervisor would take requests from the first.
    let control = Control::bind(&plan.name, plan.addresses.len() + usize::from(plan.words))?;
    // First of all descriptors: they fill the numbers from 3 on, which those of the workers
    // get, so that nothing that starting a worker needs can lie there.
    let sockets = Sockets::make(&plan.addresses, plan.backlog)?;
    // A lone worker's sockets leave the number free that the words get.
    let _place = plan
        .words
        .then(|| File::open("/dev/null"))
        .transpose()
        .map_err(|error| Error::helped("open /dev/null", error, "; mount /dev"))?;
    let asked = sender.clone();
    control.serve(move |request, reply| {
        // Nobody listens any more once the supervisor has ended.
        let _ = asked.send(Event::Asked(request, reply));
    })?;
    let relay = Relay::start(plan.output, plan.workers, user.map(|user| user.uid))?;
    let cgroup = (!plan.hands_over()).then(|| make_cgroup(&plan.name)).transpose()?;
    let mut supervisor = Supervisor {
        crew: Crew::new(plan.workers, Instant::now()),
        current: vec![None; plan.workers],
        services: Services::new(&plan),
        plan,
        reread,
        sockets,
        relay,
        cgroup,
        hooks: None,
        words: None,
        given: Given::default(),
        instances: Vec::new(),
        next_id: InstanceId::default(),
        leaving: Vec::new(),
        restart: None,
        looked_for_closed: Instant::now(),
        begun: false,
        told_ready: false,
        sender,
        events,
    };
    let ended = supervisor.supervise();
    let removed = supervisor.clean_up();
    ended.and(removed)
}

fn make_cgroup(name: &Name) -> Result<Cgroup> {
    let own = format!("{}{}", cgroup_prefix(name), std::process::id());
    Ok(Cgroup::own()?.make(&own)?)
}

struct Supervisor {
    plan: Plan,
    reread: Option<Reread>,
    /// Those that are handed to the workers.
    sockets: Sockets,
    relay: Relay,
    services: Services,
    /// Of all workers that make their sockets themselves, and the hooks on it.
    cgroup: Option<Cgroup>,
    hooks: Option<Hooks>,
    /// What the workers are given, if they are.
    words: Option<Words>,
    /// What the workers name by the socket option.
    given: Given,
    crew: Crew,
    /// All processes that run, those that are leaving too.
    instances: Vec<Instance>,
    next_id: InstanceId,
    /// The instance that serves, of each worker that runs.
    current: Vec<Option<InstanceId>>,
    leaving: Vec<Leaving>,
    restart: Option<Restart>,
    looked_for_closed: Instant,
    /// All workers have listened once: from then on nothing ends the supervisor but signals.
    begun: bool,
    /// Who has started the supervisor knows it.
    told_ready: bool,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Supervisor {
    fn supervise(&mut self) -> Result<()> {
        if let Err(failure) = self.begin() {
            self.stop(Signal::SIGTERM);
            return Err(failure);
        }
        loop {
            self.tell_ready();
            self.start_due();
            let now = Instant::now();
            if self.plan.hands_over() {
                // Elsewhere a worker that waits has no socket that takes requests.
                self.services.set_draining(self.crew.draining(now));
            }
            let signal = match self.next_event(self.next_change(now)) {
                Some(Event::Signal(Signal::SIGHUP)) => {
                    self.reload(None);
                    None
                }
                Some(Event::Signal(signal)) => Some(signal),
                event => self.handle(event).map(|()| None).inspect_err(|_| {
                    self.stop(Signal::SIGTERM);
                })?,
            };
            if let Some(signal) = signal {
                let running = log::workers(self.current.iter().flatten().count());
                log::line(format_args!("{signal}: ending {running}"));
                self.stop(signal);
                return Ok(());
            }
            self.services.watch();
            self.look_for_closed();
            if let Some(hooks) = &self.hooks {
                self.given.look(&self.services, &[hooks]);
            }
            self.tend_leaving();
            self.tend_restart();
        }
    }

    /// Makes what the workers need, and starts them.
    fn begin(&mut self) -> Result<()> {
        if self.plan.hands_over() {
            self.services.make(&self.sockets)?;
            if self.plan.words {
                self.words = Words::open(&Namespace::current()?)?;
            }
            self.start_all()?;
            self.begun = true;
            self.tell_services();
            return Ok(());
        }
        if let Some(cgroup) = &self.cgroup {
            let hooks = Hooks::attach(cgroup, &self.plan.private)?;
            hand_on(&hooks, self.sender.clone())?;
            self.hooks = Some(hooks);
        }
        if self.take_over()? {
            // Workers that had no predecessor are started like those that have ended.
            return Ok(());
        }
        if !self.plan.rules.redirect {
            self.tell_services();
        }
        self.start_all()
    }

    /// Takes over the workers of a supervisor of this name that was killed: they are replaced
    /// one after another. False where there are none.
    fn take_over(&mut self) -> Result<bool> {
        let next_id = &mut self.next_id;
        let left = self.services.take_over(|| next_id.take())?;
        if left.is_empty() {
            return Ok(false);
        }
        log::line(format_args!(
            "taking over {} of a supervisor that was killed",
            log::workers(left.len())
        ));
        self.begun = true;
        for (worker, services::Left { id, cgroup, serves }) in left.into_iter().enumerate() {
            self.instances.push(Instance::left(id, worker, cgroup));
            let current = self.current.get_mut(worker).filter(|_| serves);
            if let Some(current) = current {
                *current = Some(id);
                self.crew.started(worker, Instant::now());
            } else {
                // There are to be fewer workers than there were, or it was leaving.
                self.services.dismiss(id);
                self.take_leave(id);
            }
        }
        self.ask_restart(None, None);
        Ok(true)
    }

    fn tell_ready(&mut self) {
        if self.begun && !self.told_ready {
            notify::tell(notify::READY);
            self.told_ready = true;
        }
    }

    fn tell_services(&self) {
        let workers = log::workers(self.plan.workers);
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
    fn start_all(&mut self) -> Result<()> {
        (0..self.plan.workers)
            .try_for_each(|worker| self.start(worker).map_err(|not_started| not_started.error))
    }

    fn start_due(&mut self) {
        while let Some(worker) = self.crew.due(Instant::now()) {
            self.revive(worker);
            if let Err(NotStarted { pid, error }) = self.start(worker) {
                let pause = log::after(self.crew.ended(worker, Instant::now()));
                let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                log::line(format_args!("worker {worker}{pid}: {error}; next start {pause}"));
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
        let spawned = self.spawn(worker);
        // One that comes to nothing as well, and after it: a lock would be in its way.
        self.services.count_start(worker);
        let id = spawned?;
        self.current[worker] = Some(id);
        self.crew.started(worker, Instant::now());
        if self.plan.hands_over() {
            let pid = self.instance(id).pid();
            self.services.set_pid(worker, pid);
            let addresses: Vec<String> =
                self.sockets.of(worker).map(|(address, _)| address.to_string()).collect();
            let addresses = addresses.join(", ");
            log::line(format_args!("worker {worker} (pid {pid}) started on {addresses}"));
        }
        Ok(())
    }

    /// Starts a process of a worker.
    fn spawn(&mut self, worker: usize) -> Result<InstanceId, NotStarted> {
        let id = self.next_id.take();
        let cgroup = self.cgroup.as_ref().map(|all| all.make(&format!("{worker}.{id}")));
        let cgroup = cgroup.transpose().map_err(|error| NotStarted::new(error.into()))?;
        let outputs = self.relay.outputs(worker);
        let started = worker::Start {
            number: worker,
            user: self.plan.user.as_deref(),
            command: &self.plan.command,
            cgroup: cgroup.as_ref(),
            words: self.words.as_ref(),
        }
        .start(self.sockets.of(worker), outputs);
        let child = started.inspect_err(|_| {
            // It is empty: nothing has been started in it, or it has ended.
            let _ = cgroup.as_ref().map(Cgroup::remove);
        })?;
        let mut instance = Instance::new(id, worker, child, cgroup);
        if let Err(error) = instance.watch_end(self.sender.clone()) {
            // Unwatched, it would never be started again.
            let pid = Some(instance.pid());
            instance.end();
            return Err(NotStarted { pid, error });
        }
        self.instances.push(instance);
        Ok(id)
    }

    fn instance(&mut self, id: InstanceId) -> &mut Instance {
        self.instances.iter_mut().find(|it| it.id == id).expect("it runs")
    }

    /// Takes an ended instance out of the list.
    fn take_out(&mut self, id: InstanceId) -> Option<Instance> {
        let position = self.instances.iter().position(|it| it.id == id)?;
        Some(self.instances.remove(position))
    }

    fn handle(&mut self, event: Option<Event>) -> Result<()> {
        match event {
            Some(Event::Ended(id)) => self.ended(id)?,
            Some(Event::Hooks(HooksEvent::Listening(listening))) => {
                self.listening(listening)?;
                self.tend_given();
            }
            Some(Event::Hooks(HooksEvent::Request(request))) => self.requested(&request),
            Some(Event::Asked(control::Request::Restart, reply)) => self.reload(Some(reply)),
            Some(Event::Signal(_)) | None => {}
        }
        self.look_for_ended_strangers()?;
        self.tell_silent();
        Ok(())
    }

    /// The workers that were taken over are not children of this process: nothing tells
    /// when they end.
    fn look_for_ended_strangers(&mut self) -> Result<()> {
        let ended = self.instances.iter().filter(|it| it.has_left());
        for id in ended.map(|it| it.id).collect::<Vec<_>>() {
            self.ended(id)?;
        }
        Ok(())
    }

    /// A process ended.
    fn ended(&mut self, id: InstanceId) -> Result<()> {
        let Some(mut instance) = self.take_out(id) else { return Ok(()) };
        let worker = instance.worker;
        let told = instance.to_string();
        let ending = instance.end();
        self.services.vacate(id);
        self.given.forget(id);
        if self.leaving.iter().any(|it| it.id == id) {
            self.leaving.retain(|it| it.id != id);
            log::line(format_args!("{told} {ending}"));
            return Ok(());
        }
        if self.current[worker] != Some(id) {
            self.successor_ended(id, &format!("{told} {ending} before it was ready"));
            return Ok(());
        }
        self.current[worker] = None;
        if !self.begun && !instance.listened {
            return Err(Error::NeverListened { worker: told, ending });
        }
        let now = Instant::now();
        let pause = if instance.listened {
            self.crew.server_ended(worker, now)
        } else {
            self.crew.ended(worker, now)
        };
        log::line(format_args!("{told} {ending}; next start {}", log::after(pause)));
        Ok(())
    }

    /// A socket of a worker listens: it becomes a member.
    fn listening(&mut self, listening: Listening) -> Result<()> {
        let Some((id, socket)) = self.find_listener(listening) else { return Ok(()) };
        let worker = self.instance(id).worker;
        if !socket.shares_port() {
            // The kernel chose its port, for it alone.
            self.instance(id).listened = true;
            return Ok(());
        }
        if let Err(error) = self.take_in(id, socket) {
            let locked = matches!(error, overspill::Error::Locked { .. });
            let failure = Error::from(error);
            if !self.begun {
                return Err(failure);
            }
            log::line(format_args!("worker {worker}: {failure}"));
            if locked {
                // Behind all that waits, it is tried again.
                self.instance(id).cookies.retain(|&it| it != listening.cookie);
                let _ = self.sender.send(Event::Hooks(HooksEvent::Listening(listening)));
            }
        }
        Ok(())
    }

    /// A socket of an instance listens.
    fn take_in(&mut self, id: InstanceId, socket: Adopted) -> overspill::Result<()> {
        let worker = self.instance(id).worker;
        self.instance(id).listened = true;
        if self.current[worker] != Some(id) {
            // A successor: its sockets take over together, when all are there.
            self.instance(id).pending.push(socket);
            return Ok(());
        }
        self.services.seat(worker, id, None, socket)?;
        let all = |id: &Option<InstanceId>| {
            id.is_some_and(|id| self.instances.iter().any(|it| it.id == id && it.listened))
        };
        self.begun = self.begun || self.current.iter().all(all);
        Ok(())
    }

    /// Sockets are to join the service of a port, in the order given.
    fn requested(&mut self, request: &Request) {
        let result = self.fulfil(request);
        self.tend_given();
        if let Some(hooks) = &self.hooks {
            option::answer(hooks, request, result);
        }
    }

    fn fulfil(&mut self, request: &Request) -> Result<(), Errno> {
        let asks = |it: &&Instance| it.processes().contains(&request.pid);
        let id = self.instances.iter().find(asks).map(|it| it.id).ok_or(Errno::SRCH)?;
        for socket in self.given.accept(id, request)? {
            let cookie = socket.cookie().map_err(|error| option::errno(&error))?;
            let instance = self.instance(id);
            if !instance.cookies.contains(&cookie) {
                instance.cookies.push(cookie);
            } else if !instance.pending.is_empty() || !self.services.redirected() {
                continue;
            }
            if !self.services.has(cookie) {
                self.take_in(id, socket).map_err(|error| option::errno(&error))?;
            }
        }
        Ok(())
    }

    fn tend_given(&mut self) {
        if let Some(hooks) = &self.hooks {
            self.given.tend(&self.services, &[hooks]);
        }
    }

    /// The instance that a socket belongs to, and a copy of it; nothing where it is known
    /// already, or gone again.
    fn find_listener(&mut self, listening: Listening) -> Option<(InstanceId, Adopted)> {
        let Listening { pid, cookie, .. } = listening;
        if pid == std::process::id() || self.instances.iter().any(|it| it.cookies.contains(&cookie))
        {
            // It was shut down, by us or by its owner, and listens again.
            return None;
        }
        let processes = || self.instances.iter().flat_map(Instance::processes).collect();
        let socket = sockets::find(cookie, Some(pid), processes)?;
        let holds = |it: &&mut Instance| it.processes().contains(&socket.pid());
        let instance = self.instances.iter_mut().find(holds)?;
        instance.cookies.push(cookie);
        Some((instance.id, socket))
    }

    /// Looks for sockets that their workers have closed.
    fn look_for_closed(&mut self) {
        if self.plan.hands_over() || self.looked_for_closed.elapsed() < CLOSED {
            return;
        }
        self.looked_for_closed = Instant::now();
        let instances = &self.instances;
        self.services.release(|id| {
            let instance = instances.iter().find(|it| it.id == id);
            instance.map(Instance::processes).unwrap_or_default()
        });
    }

    /// Tells once of each worker that listens nowhere: it is of no use here.
    fn tell_silent(&mut self) {
        if self.plan.hands_over() {
            return;
        }
        for it in &mut self.instances {
            if !it.listened && !it.told && it.started.elapsed() > SILENT {
                it.told = true;
                let seconds = SILENT.as_secs();
                log::line(format_args!("{it} has not listened on a TCP port for {seconds} s"));
            }
        }
    }

    /// Passes a signal on to all workers, and what they started, and waits for them; what
    /// outlasts the grace time or a second signal is killed.
    fn stop(&mut self, signal: Signal) {
        notify::tell(notify::STOPPING);
        // With the last copy of its socket a worker closes it: new requests go to those
        // that still listen, and in the end they are refused.
        self.sockets.close();
        self.services.close();
        self.send_all(signal);
        let first = Instant::now();
        let mut patience = Some(first + self.plan.grace);
        while !self.instances.is_empty() {
            let look = Instant::now() + leaving::LOOK;
            match self.next_event(Some(patience.map_or(look, |until| until.min(look)))) {
                Some(Event::Ended(id)) => self.bury(id),
                Some(Event::Asked(_, reply)) => reply.failed("the supervisor is ending"),
                Some(Event::Signal(_)) if first.elapsed() < ECHO => {}
                Some(Event::Signal(signal)) => {
                    self.kill_all(&format!("{signal} again"));
                    patience = None;
                }
                None if patience.is_some_and(|until| until <= Instant::now()) => {
                    self.kill_all(&format!("{} s are over", self.plan.grace.as_secs()));
                    patience = None;
                }
                Some(Event::Hooks(_)) | None => {}
            }
            let ended = self.instances.iter().filter(|it| it.has_left()).map(|it| it.id);
            ended.collect::<Vec<_>>().into_iter().for_each(|id| self.bury(id));
        }
    }

    fn bury(&mut self, id: InstanceId) {
        if let Some(mut instance) = self.take_out(id) {
            let told = instance.to_string();
            log::line(format_args!("{told} {}", instance.end()));
        }
    }

    fn kill_all(&self, why: &str) {
        let running = log::workers(self.instances.len());
        log::line(format_args!("{why}: killing {running}"));
        self.instances.iter().for_each(Instance::kill);
    }

    /// Sends a signal to each worker and to what it started.
    fn send_all(&self, signal: Signal) {
        self.instances.iter().for_each(|instance| instance.send(signal));
    }

    /// Takes away all that was made for the workers.
    fn clean_up(&mut self) -> Result<()> {
        let services = self.services.remove();
        self.hooks = None;
        let cgroup = self.cgroup.as_ref().map_or(Ok(()), |cgroup| {
            // What was killed may take a moment to end.
            let until = Instant::now() + ENDING;
            while !cgroup.is_empty()? && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
            cgroup.remove()
        });
        Ok(services.and(cgroup)?)
    }

    /// When there is something to do even if nothing happens.
    fn next_change(&self, now: Instant) -> Option<Instant> {
        let leaving = (!self.leaving.is_empty()
            || self.restart.is_some()
            || self.instances.iter().any(Instance::is_stranger))
        .then(|| now + leaving::LOOK);
        let closed = (!self.plan.hands_over()).then(|| self.looked_for_closed + CLOSED);
        let silent = (!self.plan.hands_over())
            .then(|| self.instances.iter().filter(|it| !it.listened && !it.told))
            .and_then(|silent| silent.map(|it| it.started + SILENT).min());
        [self.crew.next_change(now), self.services.next_look(now), leaving, silent, closed]
            .into_iter()
            .flatten()
            .min()
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

/// Sends the signals that the supervisor acts on. They are blocked in all its threads and
/// taken one by one; one that is ignored (`nohup`) stays ignored.
fn watch_signals(ignored: &Ignored, sender: Sender<Event>) -> Result<()> {
    let known = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    // A blocked signal would be taken even where it is ignored.
    let signals: SigSet = known.into_iter().filter(|&it| !ignored.contains(it)).collect();
    signals.thread_block().map_err(|error| Error::system("block signals", error))?;
    let watch = move || {
        while let Ok(signal) = signals.wait() {
            if sender.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    };
    start_thread(watch)
}

/// Sends what the hooks tell of.
fn hand_on(hooks: &Hooks, sender: Sender<Event>) -> Result<()> {
    let events = hooks.events()?;
    start_thread(move || {
        events.each(|it| sender.send(Event::Hooks(it)).is_ok()).unwrap_or_else(services::tell);
    })
}
