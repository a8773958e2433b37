//! The rolling restart: a worker's successor is started, and when it is ready it takes over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use overspill::adopt::Adopted;

use super::control::Reply;
use super::reload::Recipe;
use super::worker::NotStarted;
use super::{InstanceId, Supervisor, log};
use crate::error;

/// Who is handed its sockets and has run for this long is taken for ready: nothing else
/// tells, and what it does not accept yet waits in the queue that it shares with its
/// predecessor.
const SETTLED: Duration = Duration::from_secs(1);

/// A restart under way.
#[derive(Default)]
pub(crate) struct Restart {
    /// The workers yet to be replaced.
    workers: VecDeque<usize>,
    /// The one that is being replaced, by whom, and until when that must be ready.
    step: Option<(usize, InstanceId, Instant)>,
    replaced: usize,
    /// How workers were started before, until one is replaced.
    before: Option<Recipe>,
    /// Those who want to know.
    replies: Vec<Reply>,
}

impl Restart {
    fn tell(&self, what: &str) {
        log::line(format_args!("restart: {what}"));
        self.replies.iter().for_each(|reply| reply.progress(what));
    }
}

impl Supervisor {
    /// Begins a restart of all workers. One that is under way begins anew behind the worker
    /// that is being replaced: whatever has changed since then is to be seen by all.
    pub(super) fn ask_restart(&mut self, reply: Option<Reply>, before: Option<Recipe>) {
        let begun = self.restart.is_some();
        let restart = self.restart.get_or_insert_default();
        restart.workers = (0..self.plan.workers).collect();
        restart.replaced = 0;
        restart.before = restart.before.take().or(before);
        restart.replies.extend(reply);
        let workers = log::workers(self.plan.workers);
        let again = if begun { " anew" } else { "" };
        restart.tell(&format!("replacing {workers}{again}, one after another"));
        self.tend_restart();
    }

    /// Goes on with a restart.
    pub(super) fn tend_restart(&mut self) {
        while let Some(restart) = &mut self.restart {
            let Some((worker, successor, until)) = restart.step else {
                let Some(worker) = restart.workers.pop_front() else {
                    return self.restart_done();
                };
                if !self.begin_step(worker) {
                    return;
                }
                continue;
            };
            if self.is_ready(worker, successor) {
                if !self.succeed(worker, successor) {
                    return;
                }
            } else if until <= Instant::now() {
                let seconds = self.plan.ready.as_secs();
                let instance = self.instance(successor);
                instance.kill();
                let told = format!("{instance} was not ready within {seconds} s");
                return self.restart_failed(&told);
            } else {
                return;
            }
        }
    }

    /// Starts a worker's successor; a worker that does not run is started anew anyway.
    fn begin_step(&mut self, worker: usize) -> bool {
        if self.current[worker].is_none() {
            return true;
        }
        match self.spawn(worker) {
            Ok(successor) => {
                let until = Instant::now() + self.plan.ready;
                if let Some(restart) = &mut self.restart {
                    restart.step = Some((worker, successor, until));
                }
                true
            }
            Err(NotStarted { error: failure, .. }) => {
                self.restart_failed(&format!("worker {worker}: {failure}"));
                false
            }
        }
    }

    /// Whether a successor can take over: it listens wherever its predecessor does.
    fn is_ready(&mut self, worker: usize, successor: InstanceId) -> bool {
        let hands_over = self.plan.hands_over();
        let old = self.current[worker].map(|old| self.services.addresses(old)).unwrap_or_default();
        let successor = self.instance(successor);
        if hands_over {
            return successor.started.elapsed() >= SETTLED;
        }
        let mut new: Vec<_> = successor.pending.iter().flat_map(Adopted::address).collect();
        // Each of the old ones by one of the new.
        successor.listened
            && old.into_iter().all(|address| {
                let found = new.iter().position(|&it| it == address);
                found.map(|found| new.swap_remove(found)).is_some()
            })
    }

    /// Lets a successor take over.
    fn succeed(&mut self, worker: usize, successor: InstanceId) -> bool {
        let old = self.current[worker];
        for socket in std::mem::take(&mut self.instance(successor).pending) {
            if let Err(error) = self.services.seat(worker, successor, old, socket) {
                let failure = error::Error::from(error);
                self.instance(successor).kill();
                self.restart_failed(&format!("worker {worker}: {failure}"));
                return false;
            }
        }
        self.current[worker] = Some(successor);
        self.crew.started(worker, Instant::now());
        if let Some(old) = old {
            self.services.dismiss(old);
            self.take_leave(old);
        }
        let pid = self.instance(successor).pid();
        if self.plan.hands_over() {
            self.services.count_start(worker);
            self.services.set_pid(worker, pid);
        }
        if let Some(restart) = &mut self.restart {
            restart.step = None;
            restart.replaced += 1;
            restart.before = None;
            restart.tell(&format!("worker {worker} replaced (pid {pid})"));
        }
        true
    }

    /// A successor ended before it was ready.
    pub(super) fn successor_ended(&mut self, id: InstanceId, told: &str) {
        if self.restart.as_ref().and_then(|restart| restart.step).is_some_and(|step| step.1 == id) {
            self.restart_failed(told);
        }
    }

    fn restart_done(&mut self) {
        let Some(restart) = self.restart.take() else { return };
        restart.tell(&format!("done, {} replaced", log::workers(restart.replaced)));
        restart.replies.into_iter().for_each(Reply::done);
    }

    /// Those that are replaced stay, and so do those that are not.
    fn restart_failed(&mut self, why: &str) {
        let Some(restart) = self.restart.take() else { return };
        let kept = restart.workers.len() + 1;
        let why = format!(
            "{why}; stopped after {} replaced, {kept} kept as before",
            log::workers(restart.replaced)
        );
        log::line(format_args!("restart: {why}"));
        restart.replies.into_iter().for_each(|reply| reply.failed(&why));
        if let Some(before) = restart.before {
            // What has failed once is not what a worker that ends is started by.
            self.go_back(before);
        }
    }
}
