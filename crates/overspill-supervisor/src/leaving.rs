//! Workers that have been replaced: they finish what they have accepted, and end.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::instance::Instance;
use crate::instance_id::InstanceId;
use crate::log;
use crate::sight::Sight;
use crate::supervisor::{Leaving, Phase, Supervisor};

/// How often to look whether they have ended, or have nothing left to do.
pub(crate) const LOOK: Duration = Duration::from_millis(50);
/// How long a worker that was told to end may go on to listen.
const LISTENS: Duration = Duration::from_secs(1);
/// To ask for their connections takes a fraction of the time of no more than this.
const SHARE: u32 = 50;

impl Supervisor {
    /// Lets an instance that serves no member any more finish what it has, and end.
    pub(crate) fn take_leave(&mut self, id: InstanceId) {
        let now = Instant::now();
        // Who shares its socket with its successor would go on taking requests.
        let drain = if self.plan.hands_over() { Duration::ZERO } else { self.plan.drain };
        self.leaving.retain(|it| it.id != id);
        let until = now.checked_add(drain);
        self.leaving.push(Leaving { id, phase: Phase::Drains, until, look: now });
    }

    /// The first process of an instance has ended; others may finish the connections that it has
    /// left.
    pub(crate) fn leave_rest(&mut self, id: InstanceId) -> Option<String> {
        let rest = self.next_id.take();
        let rest = self.instance_opt(id)?.split_rest(rest)?;
        let now = Instant::now();
        let own = self.leaving.iter().find(|it| it.id == id);
        let until = own.map_or_else(|| now.checked_add(self.plan.drain), |it| it.until);
        let processes = log::processes(rest.processes().len());
        let connections = rest.has_connections().unwrap_or_default();
        self.leaving.push(Leaving { id: rest.id, phase: Phase::Drains, until, look: now });
        self.instances.push(rest);
        Some(format!("; {processes} with {connections} may finish them"))
    }

    /// Goes on with those that are to end.
    pub(crate) fn tend_leaving(&mut self) {
        let now = Instant::now();
        let mut leaving = std::mem::take(&mut self.leaving);
        for it in &mut leaving {
            let idle = matches!(it.phase, Phase::Drains) && self.is_idle(it);
            match it.phase {
                Phase::Drains if idle => self.tell_to_end(it),
                Phase::Drains if it.until.is_some_and(|until| until <= now) => {
                    self.tell_cut(it.id);
                    self.tell_to_end(it);
                }
                Phase::Ends(until) if until <= now => {
                    let seconds = self.plan.grace.as_secs();
                    log::line(format_args!(
                        "{}: {seconds} s are over: killing it",
                        self.instance(it.id)
                    ));
                    self.instance(it.id).kill();
                    it.phase = Phase::Killed;
                }
                Phase::Ends(_) if it.look <= now => {
                    self.shut_down_sockets(it.id);
                    it.look = now + LISTENS;
                }
                _ => {}
            }
        }
        self.leaving = leaving;
    }

    fn tell_to_end(&mut self, leaving: &mut Leaving) {
        let (signal, mode) = (self.plan.stop_signal, self.plan.kill_mode);
        self.instance(leaving.id).stop(signal, mode);
        let now = Instant::now();
        (leaving.phase, leaving.look) = (Phase::Ends(now + self.plan.grace), now + LISTENS);
    }

    /// Shuts down the sockets on which an instance that is to end still listens, if they are its
    /// own. Some servers that are told to end connect to their own port, so that `accept()`
    /// returns. Such a connection goes to a sibling or to the successor, as all do.
    pub(crate) fn shut_down_sockets(&self, id: InstanceId) {
        let group = self.find(id).filter(|_| !self.plan.hands_over()).and_then(Instance::group_now);
        let sockets = group.and_then(|it| Sight::default().look(Instant::now(), &[it]));
        for socket in sockets.map(|(_, sockets)| sockets).unwrap_or_default() {
            let is_other_s = |cookie| {
                self.members.seats.by_cookie(cookie).is_some_and(|it| it.owner != Some(id))
                    || self.held.iter().any(|it| it.cookie == cookie && it.owner != id)
            };
            if socket.cookie().is_ok_and(|cookie| !is_other_s(cookie)) {
                socket.shut_down().unwrap_or_else(log::tell);
            }
        }
    }

    /// Tells that an instance has not finished in time.
    fn tell_cut(&mut self, id: InstanceId) {
        let (drain, signal) = (self.plan.drain.as_secs(), self.plan.stop_signal);
        let instance = self.instance(id);
        if let Some(connections) = instance.has_connections() {
            log::line(format_args!(
                "{instance}: {drain} s are over with {connections}: ending it with {signal}"
            ));
        }
    }

    /// Whether an instance has neither connections nor any that wait to be accepted, as far as it
    /// is time to look.
    fn is_idle(&self, leaving: &mut Leaving) -> bool {
        let now = Instant::now();
        let Some(instance) = self.find(leaving.id).filter(|_| leaving.look <= now) else {
            return false;
        };
        // What waits for it is not its own any more once its first process has ended.
        let idle = if instance.is_rest() { instance.has_finished() } else { instance.is_idle() };
        leaving.look = now + LOOK.max(now.elapsed() * SHARE);
        idle
    }
}

/// How long a worker that is replaced may finish what it has: seconds, or `inf` for without end.
///
/// # Errors
///
/// When it is neither; a sentence for people.
pub fn drain_time(text: &str) -> Result<Duration, String> {
    match text {
        "inf" => Ok(Duration::MAX),
        _ => text
            .parse()
            .map(|seconds: u32| Duration::from_secs(seconds.into()))
            .map_err(|_| format!("it is a whole number of seconds from 0 to {}, or inf", u32::MAX)),
    }
}

/// What tells a worker that is replaced to end: `TERM`, `SIGQUIT`, ...
///
/// # Errors
///
/// When there is no such signal; a sentence for people.
pub fn stop_signal(text: &str) -> Result<Signal, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    format!("SIG{name}").parse().map_err(|_| {
        let known = Signal::iterator().map(|it| it.as_str().trim_start_matches("SIG").to_owned());
        let near = overspill::nearest(name, known);
        let hint = near.map(|name| format!("; there is {name}")).unwrap_or_default();
        format!("there is no signal {name}{hint}; give its name, such as TERM, QUIT or USR2")
    })
}
