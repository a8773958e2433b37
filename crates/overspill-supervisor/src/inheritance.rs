//! What a supervisor leaves to the next build of itself, and how that goes on with it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use overspill::adopt::Adopted;
use overspill::{Cgroup, Namespace, Service};

use crate::control::Reply;
use crate::error::{Error, Result};
use crate::handover::{Estate, Will};
use crate::instance::{Instance, Kind, Legacy};
use crate::instance_id::InstanceId;
use crate::log;
use crate::plan::Plan;
use crate::reload;
use crate::services::Services;
use crate::sockets::Sockets;
use crate::supervisor::{HandOver, Leaving, Phase, Supervisor};

// The kinds of descriptors and facts. With their arguments they are a contract between builds.
pub(crate) const CONTROL: &str = "control";
pub(crate) const CLIENT: &str = "client";
pub(crate) const LISTENER: &str = "listener";
/// PID DESCRIPTOR WORKER
const COPY: &str = "copy";
const LINK: &str = "link";
/// NAME WORKERS ADDRESS...
const PLAN: &str = "plan";
/// There are services: redirection was on at the start.
const REDIRECTED: &str = "redirected";
const CGROUP: &str = "cgroup";
const SERVICE: &str = "service";
/// ID WORKER PID child|stranger|left|rest serves|leaves|finishes PORT,... [CGROUP]
const PROCESS: &str = "worker";
/// COOKIE ID
const GIVEN: &str = "given";
const NEXT: &str = "next";
/// PLACE PID WORKER
const PIPE: &str = "pipe";
/// The workers are to be replaced.
pub(crate) const RESTART: &str = "restart";

impl Supervisor {
    /// Whether nothing is under way that another build would have to go on with.
    pub(crate) fn can_hand_over(&self) -> bool {
        self.hand_over.is_some()
            && self.begun
            && self.restart.is_none()
            && self.reload.is_none()
            && !self.members.busy
    }

    /// Becomes the program that is to take over. Returns only why it could not.
    pub(crate) fn become_program(&self, hand_over: &HandOver) -> io::Error {
        let mut will = Will::new();
        will.descriptor(CONTROL, self.control.as_fd(), "");
        if let Some(client) = hand_over.reply.as_ref().and_then(Reply::client) {
            will.descriptor(CLIENT, client.as_fd(), "");
        }
        if hand_over.restarts {
            will.fact(RESTART, "");
        }
        for listener in self.sockets.all() {
            will.descriptor(LISTENER, listener.as_fd(), "");
        }
        for (cookie, copy) in &self.members.copies {
            let worker = self.members.seats.by_cookie(*cookie).map_or(0, |seat| seat.worker);
            let arguments = format!("{} {} {worker}", copy.pid(), copy.descriptor());
            will.descriptor(COPY, copy.as_fd(), arguments);
        }
        let hooks = self.hooks.iter().chain(&self.left_hooks);
        hooks.flat_map(overspill::Hooks::links).for_each(|link| will.descriptor(LINK, link, ""));
        will.fact(PLAN, plan_line(&self.plan));
        if self.redirected {
            will.fact(REDIRECTED, "");
        }
        if let Some(cgroup) = &self.cgroup {
            will.fact(CGROUP, cgroup.path().display());
        }
        for (_, service) in &self.members.services {
            will.fact(SERVICE, service.name());
        }
        for instance in &self.instances {
            will.fact(PROCESS, self.process_line(instance));
        }
        for (cookie, owner) in self.members.given.all() {
            will.fact(GIVEN, format_args!("{cookie} {owner}"));
        }
        will.fact(NEXT, self.next_id);
        for (place, pid, worker, reader) in self.relay.pipes() {
            will.descriptor(PIPE, reader, format_args!("{place} {pid} {worker}"));
        }
        log::flush();
        will.become_program(&hand_over.program)
    }

    fn process_line(&self, instance: &Instance) -> String {
        let Instance { id, worker, .. } = instance;
        let Legacy { pid, kind, cgroup, ports } = instance.legacy();
        let finishes = |it: &Leaving| it.id == *id && matches!(it.phase, Phase::Finishes);
        let state = match () {
            () if self.serves(instance) => "serves",
            () if self.leaving.iter().any(finishes) => "finishes",
            () => "leaves",
        };
        // Nothing would be no word.
        let ports = std::iter::once(0).chain(ports).map(|port| port.to_string());
        let ports = ports.collect::<Vec<_>>().join(",");
        let kind = kind.name();
        let cgroup = cgroup.map(|own| format!(" {}", own.path().display())).unwrap_or_default();
        format!("{id} {worker} {pid} {kind} {state} {ports}{cgroup}")
    }

    /// Goes on where the build before has ended: with its workers, services and sockets.
    pub(crate) fn inherit(&mut self, estate: &Estate, services: &mut Services) -> Result<()> {
        self.begun = true;
        self.redirected = estate.fact(REDIRECTED).is_some();
        self.inherit_pipes(estate)?;
        self.inherit_processes(estate)?;
        let sockets = Service::sockets(&Namespace::current()?)?;
        for name in estate.facts(SERVICE).filter_map(|words| words.first()) {
            // Somebody may have removed it.
            let there = sockets.iter().find(|(own, _)| own.as_str() == name);
            if let Some(first) = there.and_then(|(_, sockets)| sockets.first()) {
                services.take_over(Service::open(name)?, first.address);
            }
        }
        self.members.listing = services.list();
        self.members.services = services.all();
        self.inherit_copies(estate)?;
        for words in estate.facts(GIVEN) {
            if let (Some(cookie), Some(owner)) = (word(words, 0), word(words, 1)) {
                self.members.given.add(cookie, InstanceId::numbered(owner));
            }
        }
        Ok(())
    }

    fn inherit_pipes(&mut self, estate: &Estate) -> Result<()> {
        for (reader, words) in duplicates(estate, PIPE)? {
            if let Some((place, pid, worker)) = three(words) {
                self.relay.inherit(place, pid, worker, reader);
            }
        }
        Ok(())
    }

    fn inherit_processes(&mut self, estate: &Estate) -> Result<()> {
        let next = estate.fact(NEXT).and_then(|words| word(words, 0));
        self.next_id = InstanceId::numbered(next.unwrap_or_default());
        let now = Instant::now();
        for words in estate.facts(PROCESS) {
            let [_, _, _, kind, state, ports, cgroup @ ..] = words else { continue };
            let Some((id, worker, pid)) = three(words) else { continue };
            let id = InstanceId::numbered(id);
            let kind = Kind::named(kind).unwrap_or(Kind::Stranger);
            let ports = ports.split(',').filter_map(|port| port.parse().ok()).collect();
            let legacy = Legacy { pid, kind, cgroup: at(cgroup), ports };
            let instance = Instance::inherited(id, worker, legacy);
            self.watch_end_of(&instance)?;
            self.instances.push(instance);
            match state.as_str() {
                "serves" if worker < self.current.len() => {
                    self.current[worker] = Some(id);
                    self.crew.started(worker, now);
                }
                "finishes" => {
                    let phase = Phase::Finishes;
                    self.leaving.push(Leaving { id, phase, until: None, look: now });
                }
                _ => self.take_leave(id),
            }
        }
        let runs = self.instances.iter().filter_map(|it| it.cgroup()?.parent());
        let own = self.cgroup.as_ref().map(Cgroup::path);
        self.hook_left(runs.filter(|run| Some(run.path()) != own).collect());
        Ok(())
    }

    fn inherit_copies(&mut self, estate: &Estate) -> Result<()> {
        for (copy, words) in duplicates(estate, COPY)? {
            let Some((pid, number, worker)) = three(words) else { continue };
            let copy = Adopted::new(copy, pid, number);
            // One that was shut down meanwhile is nobody's any more.
            let (Ok(cookie), Ok(address)) = (copy.cookie(), copy.address()) else { continue };
            self.members.seats.keep(cookie, address, worker, pid);
            self.members.copies.insert(cookie, Arc::new(copy));
        }
        Ok(())
    }
}

/// Copies of the sockets that are handed to workers.
pub(crate) fn sockets(estate: &Estate, plan: &Plan) -> Result<Sockets> {
    let copies = duplicates(estate, LISTENER)?.into_iter().map(|(listener, _)| listener);
    Ok(Sockets::inherit(&plan.addresses, plan.backlog, copies.collect()))
}

/// The control group of all workers, where they have one.
pub(crate) fn cgroup(estate: &Estate) -> Option<Cgroup> {
    at(estate.fact(CGROUP)?)
}

/// The control group of that path, which may have spaces.
fn at(path: &[String]) -> Option<Cgroup> {
    (!path.is_empty()).then(|| Cgroup::at(PathBuf::from(path.join(" "))))
}

/// Keeps in a plan what can't be changed while workers run, and gives the keys of what differs.
pub(crate) fn keep_plan(estate: &Estate, plan: &mut Plan) -> Vec<&'static str> {
    let mut before = plan.clone();
    if let Some([name, workers, addresses @ ..]) = estate.fact(PLAN)
        && let (Ok(name), Ok(workers)) = (name.parse(), workers.parse::<usize>())
    {
        (before.name, before.workers) = (name, workers);
        let addresses: Vec<_> = addresses.iter().filter_map(|it| it.parse().ok()).collect();
        before.addresses = addresses.chunks(workers.max(1)).map(<[_]>::to_vec).collect();
    }
    reload::keep(&before, plan)
}

fn plan_line(plan: &Plan) -> String {
    let addresses = plan.addresses.iter().flatten().map(|address| format!(" {address}"));
    format!("{} {}{}", plan.name, plan.workers, addresses.collect::<String>())
}

/// The descriptors of a kind, with their arguments. The originals stay with the estate, so that it
/// can be given back.
fn duplicates<'a>(estate: &'a Estate, kind: &str) -> Result<Vec<(OwnedFd, &'a [String])>> {
    let failed = |error| Error::system(format!("duplicate the inherited {kind}"), error);
    let all = estate.all(kind).map(|(own, words)| Ok((own.try_clone().map_err(failed)?, words)));
    all.collect()
}

fn word<T: FromStr>(words: &[String], at: usize) -> Option<T> {
    words.get(at)?.parse().ok()
}

fn three<A: FromStr, B: FromStr, C: FromStr>(words: &[String]) -> Option<(A, B, C)> {
    Some((word(words, 0)?, word(words, 1)?, word(words, 2)?))
}
