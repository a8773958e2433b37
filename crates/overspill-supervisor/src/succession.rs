//! Taking over what a supervisor of the same name has left that was killed.
//!
//! The workers are found by their control groups, whatever services there are. A control group of
//! this name has no other owner: the caller holds the name in this network namespace.

use std::sync::Arc;

use overspill::{Address, Cgroup, Hooks, Name, Namespace, Service};

use crate::error::{Error, Result};
use crate::groups::supervisor_of;
use crate::instance::Instance;
use crate::instance_id::InstanceId;
use crate::log;
use crate::services::{Services, is_own};
use crate::sight::{Group, Held, Sight, runs};
use crate::supervisor::{Supervisor, hand_on};

/// A worker's control group, as its name says whose it is.
struct Left {
    cgroup: Cgroup,
    worker: usize,
    /// Numbers grow with the time of the start.
    number: u64,
}

impl Supervisor {
    /// Takes over the workers that are left, and their services. False where there are none.
    pub(crate) fn take_over(&mut self, services: &mut Services) -> Result<bool> {
        let left = left_behind(&self.plan.name)?;
        if left.is_empty() {
            return Ok(false);
        }
        let told = log::workers(left.len());
        log::line(format_args!("taking over {told} of a supervisor that was killed"));
        self.begun = true;
        self.hook_left(left.iter().filter_map(|it| it.cgroup.parent()).collect());
        for Left { cgroup, worker, .. } in left {
            let id = self.next_id.take();
            self.instances.push(Instance::left(id, worker, cgroup));
        }
        let groups: Vec<Group> = self.instances.iter().filter_map(Instance::group_now).collect();
        let held = Sight::default().look(std::time::Instant::now(), &groups);
        let held = held.map(|(held, _)| held).unwrap_or_default();
        if self.redirected {
            match own_services(&self.plan.name, &held) {
                Ok(own) => {
                    for (service, address) in own {
                        services.take_over(service, address);
                    }
                }
                // They are found at a later look.
                Err(error) => log::line(format_args!("{error}; it is tried again")),
            }
            // The hand sets them: it may take time.
            self.members.job.rules = Some((self.plan.rules, self.plan.dispatcher.clone()));
            self.members.listing = services.list();
            self.members.services = services.all();
        }
        // Of those that have closed their sockets it can't be seen any more where they listened.
        let ports = held.iter().map(|it| it.address.port);
        self.instances.iter_mut().for_each(|it| it.ports.extend(ports.clone()));
        self.sort_out(&held);
        Ok(true)
    }

    /// The hooks on these ended with their supervisor. Who has not bound its port yet would have it
    /// for itself.
    pub(crate) fn hook_left(&mut self, mut runs: Vec<Cgroup>) {
        runs.dedup();
        for run in runs {
            let hooked = Hooks::attach(&run, &self.plan.private).map_err(Error::from);
            let handed_on = hooked.and_then(|hooks| {
                let hint = Arc::clone(&self.members.looks.hint);
                hand_on(&hooks, self.sender.clone(), hint, &self.listened)?;
                self.left_hooks.push(hooks);
                Ok(())
            });
            if let Err(error) = handed_on {
                log::line(format_args!("{error}"));
            }
        }
    }

    /// Ends the workers that have their port for themselves: they were bound when no hook was
    /// there, and no other worker can share it. They are started anew.
    pub(crate) fn retire_those_in_the_way(&mut self) {
        for worker in 0..self.current.len() {
            if let Some(old) = self.current[worker].filter(|&old| self.is_in_the_way(old)) {
                self.current[worker] = None;
                self.crew.ended(worker, std::time::Instant::now());
                self.take_leave(old);
            }
        }
    }

    fn is_in_the_way(&self, id: InstanceId) -> bool {
        self.find(id).is_some_and(|it| {
            it.holds.is_empty() && self.held.iter().any(|held| held.owner == it.id)
        })
    }

    /// Of each worker the one serves that has members; of several of them, and where none has,
    /// the one that was started last. The others were leaving, or were to succeed others.
    fn sort_out(&mut self, held: &[Held]) {
        let is_member =
            |cookie| self.members.listing.values().flatten().any(|it| it.cookie == cookie);
        let serves =
            |it: &Instance| held.iter().any(|held| held.owner == it.id && is_member(held.cookie));
        let mut best: Vec<Option<(bool, InstanceId)>> = vec![None; self.plan.workers];
        for it in &self.instances {
            if let Some(best) = best.get_mut(it.worker) {
                *best = (*best).max(Some((serves(it), it.id)));
            }
        }
        self.current = best.into_iter().map(|best| best.map(|(_, id)| id)).collect();
        let now = std::time::Instant::now();
        for id in self.instances.iter().map(|it| it.id).collect::<Vec<_>>() {
            match self.current.iter().position(|&current| current == Some(id)) {
                Some(worker) => self.crew.started(worker, now),
                None => self.take_leave(id),
            }
        }
    }
}

/// The control groups of workers that run, of supervisors of this name that have ended, in the
/// order of their starts. Those that are empty are removed.
fn left_behind(name: &Name) -> Result<Vec<Left>> {
    // One of that name in another network namespace is another one.
    let own = Namespace::current()?;
    let is_here = |pid: &u32| Namespace::of_process(*pid).ok().as_ref() == Some(&own);
    let mut left = Vec::new();
    for run in Cgroup::all_named(|own| supervisor_of(own, name).is_some())? {
        let supervisor = supervisor_of(run.name(), name);
        if supervisor == Some(std::process::id()) {
            continue;
        }
        let processes = run.processes().unwrap_or_default();
        if processes.is_empty() {
            // One that has just been made is empty as well.
            if supervisor.is_some_and(|pid| !runs(pid)) {
                let _ = run.remove();
            }
            continue;
        }
        // One that ends just now is nowhere.
        if !processes.iter().any(is_here) {
            continue;
        }
        for cgroup in run.children().unwrap_or_default() {
            let numbers = cgroup.name().split_once('.');
            let numbers = numbers
                .and_then(|(worker, number)| Some((worker.parse().ok()?, number.parse().ok()?)));
            let Some((worker, number)) = numbers else { continue };
            if !cgroup.is_empty().unwrap_or(true) {
                left.push(Left { cgroup, worker, number });
            }
        }
    }
    left.sort_by_key(|it| it.number);
    Ok(left)
}

/// The services of this name that have one of these sockets, and where these listen; those of the
/// first port come first.
fn own_services(name: &Name, held: &[Held]) -> Result<Vec<(Service, Address)>> {
    let mut own = Vec::new();
    for (full, sockets) in Service::sockets(&Namespace::current()?)? {
        if !is_own(name, &full) {
            continue;
        }
        let is_one = |held: &&Held| sockets.iter().any(|it| it.cookie == held.cookie);
        // A worker opens its sockets in the order of their descriptors.
        let first = held.iter().filter(is_one).min_by_key(|held| held.descriptor);
        if let Some(&Held { address, descriptor, .. }) = first {
            let has_port = full != full.without_port();
            own.push(((has_port, descriptor), Service::open(full.as_str())?, address));
        }
    }
    own.sort_by_key(|(rank, ..)| *rank);
    Ok(own.into_iter().map(|(_, service, address)| (service, address)).collect())
}
