//! The rolling restart: a worker's successor is started, and when it is ready it takes over.

use std::time::{Duration, Instant};

use overspill::Address;

use crate::control::Reply;
use crate::instance::Instance;
use crate::instance_id::InstanceId;
use crate::log;
use crate::supervisor::{Recipe, Step, Supervisor, Wish};
use crate::worker::NotStarted;

/// Who is handed its sockets and has run for this long is taken for ready: nothing else
/// tells, and what it does not accept yet waits in the queue that it shares with its
/// predecessor.
const SETTLED: Duration = Duration::from_secs(1);

impl Wish {
    fn progress(&self, what: &str) {
        self.replies.iter().for_each(|reply| reply.progress(what));
    }

    /// What it came to, as far as it came.
    fn replaced(&self) -> String {
        format!("{} replaced", log::workers(self.replaced))
    }
}

impl Supervisor {
    /// Begins a restart of all workers. One that is under way goes on, and the workers that it has
    /// replaced are replaced again behind it: whatever has changed since then is to be seen by all.
    pub(crate) fn ask_restart(&mut self, replies: Vec<Reply>, before: Option<Recipe>) {
        let workers = 0..self.plan.workers;
        let again = if self.restart.is_some() { ", behind the restart under way" } else { "" };
        let wish = Wish { workers: workers.clone().collect(), replaced: 0, replies };
        let what = format!("replacing {}, one after another{again}", log::workers(workers.len()));
        log::line(format_args!("restart: {what}"));
        wish.progress(&what);
        let restart = self.restart.get_or_insert_default();
        restart.wishes.push(wish);
        restart.before = restart.before.take().or(before);
        self.tend_restart();
    }

    /// Goes on with a restart.
    pub(crate) fn tend_restart(&mut self) {
        while let Some(restart) = &mut self.restart {
            let Some(step) = restart.step else {
                let Some(&worker) = restart.wishes.first().and_then(|it| it.workers.first()) else {
                    self.wishes_done();
                    continue;
                };
                if !self.begin_step(worker) {
                    return;
                }
                continue;
            };
            if !step.takes_over && self.is_ready(step) {
                self.hand_over(step);
                return;
            }
            if step.takes_over && self.has_taken_over(step) {
                self.succeeded(step);
            } else if step.until <= Instant::now() {
                return self.not_ready(step);
            } else {
                return;
            }
        }
    }

    /// Starts a worker's successor; a worker that does not run is started anew anyway.
    fn begin_step(&mut self, worker: usize) -> bool {
        let Some(old) = self.current[worker] else {
            let wishes = self.restart.iter_mut().flat_map(|restart| &mut restart.wishes);
            for wish in wishes {
                wish.workers.remove(&worker);
            }
            return true;
        };
        let spawned = self.spawn(worker);
        let Some(restart) = &mut self.restart else { return false };
        let wishes = restart.wishes.len();
        match spawned {
            Ok(successor) => {
                let until = Instant::now() + self.plan.ready;
                let step = Step { worker, old, successor, wishes, until, takes_over: false };
                restart.step = Some(step);
                true
            }
            Err(NotStarted { error, .. }) => {
                self.restart_failed(wishes, &format!("worker {worker}: {error}"));
                false
            }
        }
    }

    /// Whether a successor can take over: it listens wherever its predecessor does.
    fn is_ready(&self, step: Step) -> bool {
        let Some(successor) = self.find(step.successor) else { return false };
        if self.plan.hands_over() {
            return successor.started.elapsed() >= SETTLED;
        }
        let old = self.find(step.old).map(|old| &old.holds[..]).unwrap_or_default();
        successor.listened && covers(&successor.holds, old)
    }

    /// The successor is the current one from now on: at the next look its sockets take the places
    /// of its predecessor's.
    fn hand_over(&mut self, step: Step) {
        self.current[step.worker] = Some(step.successor);
        self.members.looks.hinted = true;
        if let Some(restart) = &mut self.restart {
            restart.step = Some(Step { takes_over: true, ..step });
        }
    }

    /// A worker has ended while its successor comes up: no other one is started. False where none
    /// comes.
    pub(crate) fn succeed_early(&mut self, old: InstanceId) -> bool {
        let step = self.restart.as_ref().and_then(|restart| restart.step);
        let Some(step) = step.filter(|step| step.old == old) else { return false };
        if self.current[step.worker] == Some(old) {
            self.hand_over(step);
        }
        true
    }

    fn has_taken_over(&self, step: Step) -> bool {
        if !self.redirected {
            return true;
        }
        if self.plan.hands_over() {
            let pid = self.find(step.successor).map(Instance::pid);
            return pid.is_none_or(|pid| {
                self.members.seats.are_noted(step.worker, pid, &self.members.listing)
            });
        }
        let holds = self.find(step.successor).map(|it| &it.holds[..]).unwrap_or_default();
        let seated = self.members.seats.addresses(step.successor);
        covers(&seated, holds) && self.members.seats.is_seated(step.successor)
    }

    fn succeeded(&mut self, step: Step) {
        let Step { worker, old, successor, wishes, .. } = step;
        self.crew.started(worker, Instant::now());
        if self.find(old).is_some() {
            self.take_leave(old);
        }
        let pid = self.instance(successor).pid();
        let what = format!("worker {worker} replaced (pid {pid})");
        log::line(format_args!("restart: {what}"));
        let Some(restart) = &mut self.restart else { return };
        restart.step = None;
        // What was wanted later is yet to be tried.
        restart.before = restart.before.take().filter(|_| wishes < restart.wishes.len());
        for wish in &mut restart.wishes[..wishes] {
            if wish.workers.remove(&worker) {
                wish.replaced += 1;
                wish.progress(&what);
            }
        }
    }

    /// A successor takes too long. Its predecessor goes on, in all places that it had.
    fn not_ready(&mut self, step: Step) {
        self.give_back(step);
        let seconds = self.plan.ready.as_secs();
        let instance = self.instance(step.successor);
        instance.kill();
        let told = format!("{instance} was not ready within {seconds} s");
        self.restart_failed(step.wishes, &told);
    }

    /// Makes a worker's predecessor the current one again.
    fn give_back(&mut self, step: Step) {
        if step.takes_over {
            let old = self.find(step.old).map(|it| it.id);
            self.current[step.worker] = old;
            self.members.looks.hinted = true;
        }
    }

    /// A successor ended before it was ready. False where it is none.
    pub(crate) fn successor_ended(&mut self, id: InstanceId, told: &str) -> bool {
        let step = self.restart.as_ref().and_then(|restart| restart.step);
        let Some(step) = step.filter(|step| step.successor == id) else { return false };
        self.give_back(step);
        self.restart_failed(step.wishes, told);
        // A predecessor that has ended as well is started again.
        self.current[step.worker].is_some()
    }

    /// Answers those whose workers are all replaced.
    fn wishes_done(&mut self) {
        let Some(restart) = &mut self.restart else { return };
        let is_done = |wish: &mut Wish| wish.workers.is_empty();
        let done: Vec<Wish> = restart.wishes.extract_if(.., is_done).collect();
        if restart.wishes.is_empty() {
            self.restart = None;
        }
        for alike in done.chunk_by(|one, other| one.replaced == other.replaced) {
            log::line(format_args!("restart: done, {}", alike[0].replaced()));
        }
        for wish in done {
            wish.progress(&format!("done, {}", wish.replaced()));
            wish.replies.into_iter().for_each(Reply::done);
        }
    }

    /// Ends the first `wishes` restarts with a failure; the workers stay as they are. Restarts
    /// requested after the successor was started go on: they need another successor.
    fn restart_failed(&mut self, wishes: usize, why: &str) {
        let Some(restart) = &mut self.restart else { return };
        restart.step = None;
        let failed: Vec<Wish> = restart.wishes.drain(..wishes).collect();
        let others = !restart.wishes.is_empty();
        let before = if others { None } else { self.restart.take().and_then(|it| it.before) };
        let why = |wish: &Wish| {
            let (replaced, kept) = (wish.replaced(), wish.workers.len());
            format!("{why}; stopped after {replaced}, {kept} kept as before")
        };
        for alike in failed.chunk_by(|one, other| why(one) == why(other)) {
            log::line(format_args!("restart: {}", why(&alike[0])));
        }
        for wish in failed {
            let why = why(&wish);
            wish.replies.into_iter().for_each(|reply| reply.failed(&why));
        }
        if let Some(before) = before {
            // What has failed once is not what a worker that ends is started by.
            self.go_back(before);
        }
    }

    /// How workers are started now.
    pub(crate) fn recipe(&self) -> Recipe {
        Recipe { command: self.plan.command.clone(), user: self.plan.user.clone() }
    }

    /// Starts workers as before again.
    fn go_back(&mut self, Recipe { command, user }: Recipe) {
        (self.plan.command, self.plan.user) = (command, user);
    }
}

/// Whether each of the addresses wanted is among those there, as often.
fn covers(there: &[Address], wanted: &[Address]) -> bool {
    let mut there = there.to_vec();
    wanted.iter().all(|address| {
        let found = there.iter().position(|it| it == address);
        found.map(|found| there.swap_remove(found)).is_some()
    })
}
