//! Starts the workers of a server, makes services of the sockets that they listen on, starts
//! those again that end, and replaces them one after another when asked to.
//!
//! Threads wait for signals, for the ends of workers and for sockets that begin to listen, and
//! send what they see as [`Event`]s. One thread decides. It waits for nothing but events: what
//! may take time is done by others (`hand.rs`, `log.rs`).

use std::collections::HashSet;
use std::fs::File;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use overspill::{Hooks, Namespace, Request, Rules, Words};
use rustix::io::Errno;

use crate::control::{self, Control, Reply};
use crate::crew::Crew;
use crate::error::{Error, Result};
use crate::hand::{Hand, Job};
use crate::handover::{self, Estate};
use crate::ignored::Ignored;
use crate::inheritance;
use crate::instance::Instance;
use crate::instance_id::InstanceId;
use crate::leaving;
use crate::log;
use crate::membership::{Membership, Nouns};
use crate::notify;
use crate::plan::Plan;
use crate::relay::{self, Relay};
use crate::reload::{self, Reread};
use crate::seats::Seat;
use crate::services::Services;
use crate::sight::runs;
use crate::signals::Signals;
use crate::sockets::Sockets;
use crate::supervisor::{Event, HandOver, Supervisor, hand_on, make_cgroup};
use crate::threads::start_thread;
use crate::watching::Watching;
use crate::worker::{self, NotStarted};

/// A signal this soon after the first is the same one: `timeout`, for one, sends it to the
/// process and then to its group.
const ECHO: Duration = Duration::from_millis(100);
/// After this time, the log reports a worker that does not listen.
const SILENT: Duration = Duration::from_secs(10);
/// How long the word of a `listen()` may be under way.
const BELIEVED: Duration = Duration::from_millis(100);
/// How long what was killed may take to end.
const ENDING: Duration = Duration::from_secs(5);
/// How long it may take to remove the services in the end: somebody else may be changing some.
const REMOVING: Duration = Duration::from_secs(2);

/// Runs the workers until a signal ends them. Nothing is left behind, whatever happens. A
/// plan that can be read again is, at each restart.
///
/// # Errors
///
/// When what the workers need can't be had, at the beginning; and where a worker of the first
/// start ends before it listens.
pub fn run(plan: Plan, reread: Option<Reread>) -> Result<()> {
    let Some(mut estate) = Estate::take()? else {
        return Run::prepare(plan, reread, None)?.supervise_and_clean_up();
    };
    match Run::prepare(plan, reread, Some(&estate)) {
        Ok(mut run) => {
            run.settle(&mut estate);
            drop(estate);
            run.supervise_and_clean_up()
        }
        // The workers are not to go without a supervisor: that of before goes on.
        Err(error) if estate.refused().is_none() => {
            let failed = estate.give_back(&error);
            Err(Error::system(format!("go on ({error}), or give back to the build before"), failed))
        }
        Err(error) => Err(error),
    }
}

/// Whether a plan can be run here, as far as that shows before anything is started.
///
/// # Errors
///
/// What is missing.
pub fn check(plan: &Plan) -> Result<()> {
    plan.user.as_deref().map(worker::find_user).transpose().map(drop)
}

/// A run of a supervisor.
struct Run {
    supervisor: Supervisor,
    /// Until the hand has them.
    services: Option<Services>,
    reread: Option<Reread>,
    signals: Signals,
    /// Who has started the supervisor knows that all workers serve.
    told_ready: bool,
    /// A descriptor of no use at the number that workers get their words at.
    _place: Option<File>,
}

impl Run {
    /// Makes what a supervisor needs, before it starts workers; and goes on with what the build
    /// before has left, if there is such a thing.
    fn prepare(mut plan: Plan, reread: Option<Reread>, estate: Option<&Estate>) -> Result<Self> {
        let kept = estate.map(|estate| inheritance::keep_plan(estate, &mut plan));
        if let Some(what) = kept.as_deref().and_then(reload::left_as_before) {
            log::line(format_args!("{what}"));
        }
        let (sender, events) = channel();
        let ignored = Ignored::read()?;
        if ignored.contains(Signal::SIGCHLD) {
            return Err(Error::ChildrenIgnored);
        }
        let signalled = sender.clone();
        let signals =
            Signals::watch(&ignored, move |it| signalled.send(Event::Signal(it)).is_ok())?;
        let user = plan.user.as_deref().map(worker::find_user).transpose()?;
        // Before the sockets: those of a second supervisor would take requests from the first.
        let reserved = plan.addresses.len() + usize::from(plan.words);
        let control = hold_name(&plan, estate, reserved)?;
        // First of all descriptors: they fill the numbers from 3 on, which those of the workers
        // get, so that nothing that starting a worker needs can lie there.
        let sockets = match estate {
            None => Sockets::make(&plan.addresses, plan.backlog)?,
            Some(estate) => inheritance::sockets(estate, &plan)?,
        };
        // A lone worker's sockets leave the number free that the words get.
        let place = plan
            .words
            .then(|| File::open("/dev/null"))
            .transpose()
            .map_err(|error| Error::helped("open /dev/null", error, "; mount /dev"))?;
        let socket = control.socket()?;
        serve(control, sender.clone())?;
        let ended = sender.clone();
        let relay_ended: relay::Ended = Arc::new(move || {
            let _ = ended.send(Event::Hint);
        });
        let relay =
            Relay::start(plan.output, plan.workers, user.map(|user| user.uid), relay_ended)?;
        let cgroup = match estate {
            None => (!plan.hands_over()).then(|| make_cgroup(&plan.name)).transpose()?,
            Some(estate) => inheritance::cgroup(estate),
        };
        let services = Services::new(&plan);
        let supervisor = Supervisor {
            crew: Crew::new(plan.workers, Instant::now()),
            draining: vec![false; plan.workers],
            current: vec![None; plan.workers],
            redirected: plan.rules.redirect,
            members: Membership::new(
                Watching::new(plan.patience, "worker"),
                Nouns {
                    joined: (!plan.hands_over()).then_some(worker_and_pid),
                    failed: |seat| format!("worker {}: ", seat.worker),
                },
            ),
            plan,
            sockets,
            relay,
            control: socket,
            hand_over: None,
            descriptors: worker::raise_descriptors(),
            held: Vec::new(),
            cgroup,
            hooks: None,
            left_hooks: Vec::new(),
            words: None,
            listened: Arc::default(),
            told_ports: HashSet::new(),
            instances: Vec::new(),
            next_id: InstanceId::default(),
            leaving: Vec::new(),
            restart: None,
            reload: None,
            begun: false,
            sender,
            events,
        };
        let mut run = Self {
            supervisor,
            services: Some(services),
            reread,
            signals,
            told_ready: false,
            _place: place,
        };
        estate.map_or(Ok(()), |estate| run.inherit(estate))?;
        Ok(run)
    }

    /// Goes on where the build before has ended.
    fn inherit(&mut self, estate: &Estate) -> Result<()> {
        let mut services = self.services.take().expect("nobody has them yet");
        self.attach_hooks()?;
        let it = &mut self.supervisor;
        it.inherit(estate, &mut services)?;
        if it.plan.words {
            it.words = Words::open(&Namespace::current()?)?;
        }
        self.start_hand(services)
    }

    /// The take-over is complete: drops what giving back would need, and answers the client.
    fn settle(&mut self, estate: &mut Estate) {
        let it = &mut self.supervisor;
        it.sockets.settle(estate.give(inheritance::LISTENER));
        let build = overspill::Build::current();
        let workers = log::workers(it.current.iter().flatten().count());
        let told = format!("{} (build {}) goes on with {workers}", build.version, build.digest);
        let client = estate.descriptor(inheritance::CLIENT);
        let reply = client.and_then(|client| Reply::resume(client).ok());
        if let Some(why) = estate.refused() {
            let why = format!("the other build cannot take over: {why}; {told}");
            log::line(format_args!("{why}"));
            return reply.into_iter().for_each(|reply| reply.failed(&why));
        }
        log::line(format_args!("{told}"));
        if let Some(reply) = &reply {
            reply.progress(&told);
        }
        if estate.fact(inheritance::RESTART).is_some() {
            return it.reload(self.reread.as_ref(), reply);
        }
        reply.into_iter().for_each(Reply::done);
    }

    fn supervise_and_clean_up(mut self) -> Result<()> {
        let ended = self.supervise();
        if ended.is_err() {
            self.stop(Signal::SIGTERM);
        }
        let removed = self.clean_up();
        log::flush();
        ended.and(removed)
    }

    fn supervise(&mut self) -> Result<()> {
        if let Some(services) = self.services.take() {
            self.begin(services)?;
        }
        loop {
            self.tell_ready();
            self.start_due();
            self.supervisor.look(Instant::now());
            match self.next_event() {
                Some(Event::Signal(Signal::SIGHUP)) => self.reload(None),
                Some(Event::Signal(signal)) => {
                    let it = &self.supervisor;
                    let running = log::workers(it.current.iter().flatten().count());
                    log::line(format_args!("{signal}: ending {running}"));
                    self.stop(signal);
                    return Ok(());
                }
                Some(event) => self.handle(event)?,
                None => {}
            }
            self.look_for_ended_strangers()?;
            self.look_for_believed()?;
            self.tell_silent();
            let it = &mut self.supervisor;
            it.members.watch();
            it.tend_leaving();
            it.tend_restart();
        }
    }

    /// Makes what the workers need, and starts them.
    fn begin(&mut self, mut services: Services) -> Result<()> {
        let it = &mut self.supervisor;
        if it.plan.hands_over() {
            if it.redirected {
                let sockets = it.sockets.by_port();
                let by_port: Vec<_> = sockets
                    .iter()
                    .map(|(port, of_port)| (*port, of_port.iter().collect()))
                    .collect();
                services.make(&by_port)?;
                it.members.listing = services.list();
                it.members.services = services.all();
            }
            // From here on they are removed in the end, whatever comes.
            self.start_hand(services)?;
            if self.supervisor.plan.words {
                self.supervisor.words = Words::open(&Namespace::current()?)?;
            }
            self.supervisor.look(Instant::now());
            self.start_all()?;
            self.begin_to_serve();
            return Ok(());
        }
        self.attach_hooks()?;
        let taken_over = self.supervisor.take_over(&mut services);
        self.start_hand(services)?;
        if taken_over? {
            self.supervisor.look(Instant::now());
            self.supervisor.retire_those_in_the_way();
            // Workers that had no predecessor are started like those that have ended.
            self.supervisor.ask_restart(Vec::new(), None);
            return Ok(());
        }
        if !self.supervisor.redirected {
            self.tell_services();
        }
        self.start_all()
    }

    fn attach_hooks(&mut self) -> Result<()> {
        let it = &mut self.supervisor;
        if let Some(cgroup) = &it.cgroup {
            let hooks = Hooks::attach(cgroup, &it.plan.private)?;
            hand_on(&hooks, it.sender.clone(), Arc::clone(&it.members.looks.hint), &it.listened)?;
            it.hooks = Some(hooks);
        }
        Ok(())
    }

    /// The next thing to be done, or `None` where it is time to look. Becomes another build
    /// instead, where one is to take over and nothing is under way.
    fn next_event(&mut self) -> Option<Event> {
        if !self.supervisor.can_hand_over() {
            return next_event(&self.supervisor, self.next_change(Instant::now()));
        }
        // A signal that comes from now on is the next build's.
        let gate = self.signals.hold();
        let event = next_event(&self.supervisor, Instant::now());
        let it = &mut self.supervisor;
        if event.is_none()
            && let Some(hand_over) = it.hand_over.take()
        {
            let shown = hand_over.program.display();
            log::line(format_args!("handing over to {shown}"));
            let error = it.become_program(&hand_over);
            let why = format!("cannot run {shown}: {error}");
            drop(gate);
            self.go_on(hand_over, &why);
        }
        event
    }

    /// Replaces the workers. Where another program has taken the place of this one's file since
    /// it was started, that takes over first.
    fn reload(&mut self, reply: Option<Reply>) {
        let it = &mut self.supervisor;
        let Some(program) = handover::replacement() else {
            return it.reload(self.reread.as_ref(), reply);
        };
        let hand_over = HandOver { program: program.clone(), reply, restarts: true };
        // It is given to the thread only once that runs: without one, this build goes on with it.
        let (given, gets) = sync_channel(1);
        let sender = it.sender.clone();
        let started = start_thread(move || {
            if let Ok(hand_over) = gets.recv() {
                let outcome = handover::try_out(&program);
                // Nobody listens any more once the supervisor has ended.
                let _ = sender.send(Event::Tried(hand_over, outcome));
            }
        });
        match started {
            Ok(()) => drop(given.send(hand_over)),
            Err(error) => self.go_on(hand_over, &error.to_string()),
        }
    }

    /// Another build can't take over: this one goes on.
    fn go_on(&mut self, hand_over: HandOver, why: &str) {
        let why = format!("{why}; this build goes on");
        log::line(format_args!("{why}"));
        match hand_over {
            HandOver { restarts: true, reply, .. } => {
                if let Some(reply) = &reply {
                    reply.progress(&why);
                }
                self.supervisor.reload(self.reread.as_ref(), reply);
            }
            HandOver { reply, .. } => reply.into_iter().for_each(|reply| reply.failed(&why)),
        }
    }

    /// Another build is to take over as soon as nothing is under way.
    fn ask_hand_over(&mut self, hand_over: HandOver) {
        let it = &mut self.supervisor;
        let before = it.hand_over.replace(hand_over);
        if let Some(reply) = before.and_then(|before| before.reply) {
            reply.failed("somebody has asked for another hand-over since");
        }
        if !it.can_hand_over()
            && let Some(HandOver { reply: Some(reply), .. }) = &it.hand_over
        {
            reply.progress("waiting until the change that is under way is done");
        }
    }

    fn start_hand(&mut self, services: Services) -> Result<()> {
        let sender = self.supervisor.sender.clone();
        let hand = Hand::start(services, move |report| {
            let _ = sender.send(Event::Done(report));
        });
        self.supervisor.members.hand = Some(hand?);
        Ok(())
    }

    /// Workers that are handed their sockets serve once their starts are noted.
    fn begin_to_serve(&mut self) {
        let it = &mut self.supervisor;
        if it.plan.hands_over() && !it.begun && it.members.job.starts.is_empty() && it.is_noted() {
            it.begun = true;
            self.tell_services();
        }
    }

    fn tell_ready(&mut self) {
        if self.supervisor.begun && !self.told_ready {
            notify::tell(notify::READY);
            self.told_ready = true;
        }
    }

    fn tell_services(&self) {
        let it = &self.supervisor;
        let workers = log::workers(it.plan.workers);
        let Rules { policy, on_full, .. } = it.plan.rules;
        if !it.redirected {
            log::line(format_args!("no service: redirection is off for {workers}"));
        }
        for (_, service) in &it.members.services {
            let name = service.name();
            log::line(format_args!(
                "service {name}: {workers}, policy {policy}, on full {on_full}"
            ));
        }
    }

    /// The first start of all workers, which must succeed.
    fn start_all(&mut self) -> Result<()> {
        let it = &mut self.supervisor;
        (0..it.plan.workers)
            .try_for_each(|worker| it.start(worker).map_err(|not_started| not_started.error))
    }

    fn start_due(&mut self) {
        while let Some(worker) = self.supervisor.crew.due(Instant::now()) {
            self.revive(worker);
            let it = &mut self.supervisor;
            if let Err(NotStarted { pid, error }) = it.start(worker) {
                let pause = log::after(it.crew.ended(worker, Instant::now()));
                let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                log::line(format_args!("worker {worker}{pid}: {error}; next start {pause}"));
            }
        }
    }

    /// Mends what the last process may have done to the worker's sockets.
    fn revive(&mut self, worker: usize) {
        let sockets = &self.supervisor.sockets;
        for position in sockets.positions(worker) {
            let address = sockets.address(position);
            match sockets.revive(position) {
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

    fn handle(&mut self, event: Event) -> Result<()> {
        let it = &mut self.supervisor;
        match event {
            Event::Ended(id) => self.may_have_ended(id)?,
            Event::Hint => it.members.looks.hinted = true,
            Event::Given(request) => self.requested(&request),
            Event::Connects { pid, port } => it.note_connecting(pid, port),
            Event::Done(report) => {
                it.reported(Instant::now(), report)?;
                self.tend_given();
                self.begin_to_serve();
            }
            Event::Asked(control::Request::Restart, reply) => self.reload(Some(reply)),
            Event::Asked(control::Request::HandOver(program), reply) => {
                self.ask_hand_over(HandOver { program, reply: Some(reply), restarts: false });
            }
            Event::Tried(hand_over, Ok(())) => self.ask_hand_over(hand_over),
            Event::Tried(hand_over, Err(why)) => self.go_on(hand_over, &why),
            Event::Signal(_) => unreachable!("signals are seen before"),
        }
        Ok(())
    }

    /// The workers that were taken over are not children of this process: nothing tells
    /// when they end.
    fn look_for_ended_strangers(&mut self) -> Result<()> {
        let ended = self.supervisor.instances.iter().filter(|it| it.has_left());
        ended.map(|it| it.id).collect::<Vec<_>>().into_iter().try_for_each(|id| self.ended(id))
    }

    /// A process ended. At the first start the word of its `listen()` may still be under way.
    fn may_have_ended(&mut self, id: InstanceId) -> Result<()> {
        let it = &mut self.supervisor;
        let instance = it.instances.iter_mut().find(|it| it.id == id);
        let Some(instance) = instance.filter(|own| !it.begun && !own.listened) else {
            return self.ended(id);
        };
        instance.believed = Some(Instant::now() + BELIEVED);
        Ok(())
    }

    /// Ends that are believed by now.
    fn look_for_believed(&mut self) -> Result<()> {
        let now = Instant::now();
        let it = &mut self.supervisor;
        let listened = it.listened.lock().unwrap_or_else(PoisonError::into_inner);
        for instance in it.instances.iter_mut().filter(|it| it.believed.is_some()) {
            // One that left it to a child that has ended as well can't be told from others.
            let is_its = |&pid: &u32| pid == instance.pid() || !runs(pid);
            instance.listened |= listened.iter().any(is_its);
        }
        drop(listened);
        let ended = it.instances.iter().filter(|it| it.believed.is_some_and(|at| at <= now));
        ended.map(|it| it.id).collect::<Vec<_>>().into_iter().try_for_each(|id| self.ended(id))
    }

    /// A process ended.
    fn ended(&mut self, id: InstanceId) -> Result<()> {
        let it = &mut self.supervisor;
        if let Some(pid) = it.heir(id) {
            let instance = it.instance(id);
            let before = instance.to_string();
            instance.hand_on(pid);
            log::line(format_args!(
                "{before} has ended, and process {pid} goes on with its sockets"
            ));
            return Ok(());
        }
        let rest = it.leave_rest(id).unwrap_or_default();
        let Some(mut instance) = it.take_out(id) else { return Ok(()) };
        let worker = instance.worker;
        let told = instance.to_string();
        let (how, cut) = instance.end();
        let ending = format!("{how}{cut}{rest}");
        it.members.given.forget(id);
        it.members.looks.hinted = true;
        it.members.sight.hurry();
        if it.leaving.iter().any(|it| it.id == id) {
            it.leaving.retain(|it| it.id != id);
            log::line(format_args!("{told} {ending}"));
            // Its successor has the same sockets.
            self.revive(worker);
            return Ok(());
        }
        if it.succeed_early(id) {
            log::line(format_args!("{told} {ending}; its successor takes over as it comes"));
            self.revive(worker);
            return Ok(());
        }
        if it.successor_ended(id, &format!("{told} {how} before it was ready{cut}{rest}"))
            || it.current.get(worker).is_none_or(|current| current.is_some_and(|it| it != id))
        {
            return Ok(());
        }
        it.current[worker] = None;
        let others = it.instances.iter().any(|it| it.listened);
        if !it.begun
            && !it.plan.hands_over()
            && !instance.listened
            && !others
            && it.members.seats.all().is_empty()
        {
            return Err(Error::NeverListened { worker: told, ending: how });
        }
        let now = Instant::now();
        let pause = if instance.listened {
            it.crew.server_ended(worker, now)
        } else {
            it.crew.ended(worker, now)
        };
        log::line(format_args!("{told} {ending}; next start {}", log::after(pause)));
        it.tell_in_use(&instance);
        Ok(())
    }

    /// Sockets are to join the service of a port, in the order given.
    fn requested(&mut self, request: &Request) {
        let it = &mut self.supervisor;
        let asks = |it: &&Instance| it.processes().contains(&request.pid);
        let id = it.instances.iter().find(asks).map(|it| it.id).ok_or(Errno::SRCH);
        let listening = id.and_then(|id| it.members.given.accept(id, request));
        // Without a service there is nothing to join.
        let listening = listening.map(|all| if it.redirected { all } else { Vec::new() });
        it.members.asked.begin(request, listening);
        it.members.looks.hinted = true;
        it.members.sight.hurry();
        self.tend_given();
    }

    fn tend_given(&mut self) {
        let it = &mut self.supervisor;
        let Some(hooks) = &it.hooks else { return };
        it.members.tend(&[hooks]);
    }

    /// Tells once of each worker that listens nowhere: it is of no use here.
    fn tell_silent(&mut self) {
        let it = &mut self.supervisor;
        if it.plan.hands_over() {
            return;
        }
        for it in &mut it.instances {
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
        let it = &mut self.supervisor;
        // With the last copy of its socket a worker closes it: new requests go to those
        // that still listen, and in the end they are refused.
        it.sockets.close();
        it.members.copies.clear();
        it.members.job = Job::default();
        // A server that was given one knows that alone as the wish to finish what it has.
        let own = it.plan.stop_signal;
        let signal = if own == Signal::SIGTERM { signal } else { own };
        it.instances.iter().for_each(|instance| instance.stop(signal, it.plan.kill_mode));
        let first = Instant::now();
        let mut patience = Some(first + it.plan.grace);
        let mut listen_until = Some(first + it.plan.grace / 2);
        while !self.supervisor.instances.is_empty() {
            let look = Instant::now() + leaving::LOOK;
            let until = patience.map_or(look, |until| until.min(look));
            match next_event(&self.supervisor, until) {
                Some(Event::Ended(id)) => self.bury(id, patience.is_some()),
                Some(Event::Asked(_, reply)) => reply.failed("the supervisor is ending"),
                // Ending, there is nothing to reload.
                Some(Event::Signal(Signal::SIGHUP)) => {}
                Some(Event::Signal(_)) if first.elapsed() < ECHO => {}
                Some(Event::Signal(signal)) => {
                    self.kill_all(&format!("{signal} again"));
                    patience = None;
                }
                _ if patience.is_some_and(|until| until <= Instant::now()) => {
                    let seconds = self.supervisor.plan.grace.as_secs();
                    self.kill_all(&format!("{seconds} s are over"));
                    patience = None;
                }
                _ => {}
            }
            if listen_until.take_if(|until| *until <= Instant::now()).is_some() {
                let it = &self.supervisor;
                it.instances.iter().for_each(|own| it.shut_down_sockets(own.id));
            }
            let rests = self.supervisor.instances.iter_mut().filter(|it| it.is_rest());
            rests.filter(|it| it.has_finished()).for_each(Instance::kill);
            // Of some the word has come before.
            let ended = self.supervisor.instances.iter().filter(|it| it.has_ended());
            ended
                .map(|it| it.id)
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|id| self.bury(id, patience.is_some()));
        }
    }

    /// A process ended at a stop. What it leaves may finish until the grace time is over.
    fn bury(&mut self, id: InstanceId, may_finish: bool) {
        let rest = may_finish.then(|| self.supervisor.leave_rest(id)).flatten().unwrap_or_default();
        if let Some(mut instance) = self.supervisor.take_out(id) {
            let told = instance.to_string();
            let (how, cut) = instance.end();
            log::line(format_args!("{told} {how}{cut}{rest}"));
        }
    }

    fn kill_all(&mut self, why: &str) {
        let running = log::workers(self.supervisor.instances.len());
        log::line(format_args!("{why}: killing {running}"));
        self.supervisor.instances.iter_mut().for_each(Instance::kill);
    }

    /// Takes away all that was made for the workers.
    fn clean_up(&mut self) -> Result<()> {
        let it = &mut self.supervisor;
        let removed = it.members.hand.take().map(Hand::remove);
        it.hooks = None;
        let cgroup = it.cgroup.as_ref().map_or(Ok(()), |cgroup| {
            // What was killed may take a moment to end.
            let until = Instant::now() + ENDING;
            while !cgroup.is_empty()? && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
            cgroup.remove()
        });
        let removed = removed.map(|removed| removed.recv_timeout(REMOVING.max(it.plan.grace)));
        let services = match removed {
            None => Ok(()),
            Some(Ok(result)) => result.map_err(Error::from),
            Some(Err(_)) => Err(Error::NotRemoved { name: it.plan.name.clone() }),
        };
        services.and(cgroup.map_err(Error::from))
    }

    /// When there is something to do even if nothing happens.
    fn next_change(&self, now: Instant) -> Instant {
        let it = &self.supervisor;
        let waits = !it.leaving.is_empty()
            || it.restart.is_some()
            || it.instances.iter().any(Instance::is_stranger);
        let silent = (!it.plan.hands_over())
            .then(|| it.instances.iter().filter(|it| !it.listened && !it.told))
            .and_then(|silent| silent.map(|it| it.started + SILENT).min());
        let others = [
            it.crew.next_change(now),
            it.members.next_watch(now),
            waits.then(|| now + leaving::LOOK),
            silent,
            it.instances.iter().filter_map(|it| it.believed).min(),
        ];
        others.into_iter().flatten().fold(it.next_sight(now), Instant::min)
    }
}

fn worker_and_pid(seat: &Seat) -> String {
    format!("worker {} (pid {})", seat.worker, seat.pid)
}

/// The next event, or `None` when there is none until then.
fn next_event(it: &Supervisor, until: Instant) -> Option<Event> {
    match it.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(event) => Some(event),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => unreachable!("the supervisor holds a sender"),
    }
}

/// Takes the name, or goes on with it.
fn hold_name(plan: &Plan, estate: Option<&Estate>, reserved: usize) -> Result<Control> {
    match estate.and_then(|estate| estate.descriptor(inheritance::CONTROL)) {
        Some(socket) => Control::inherit(&plan.name, socket, reserved),
        None => Control::bind(&plan.name, reserved),
    }
}

/// Hands requests on to the thread that decides.
fn serve(control: Control, sender: Sender<Event>) -> Result<()> {
    control.serve(move |request, reply| {
        if let control::Request::HandOver(program) = &request {
            if handover::is_this(program) {
                reply.progress("is this build already");
                return reply.done();
            }
            if let Err(why) = handover::try_out(program) {
                return reply.failed(why);
            }
        }
        // Nobody listens any more once the supervisor has ended.
        let _ = sender.send(Event::Asked(request, reply));
    })
}
