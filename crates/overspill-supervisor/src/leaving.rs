//! Workers that have been replaced: they finish what they have accepted, and end.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use overspill::adopt::sockets_of;
use procfs::net::{TcpNetEntry, TcpState, tcp, tcp6};

use crate::instance_id::InstanceId;
use crate::log;
use crate::supervisor::{Leaving, Phase, Supervisor};

/// How often to look whether they have ended, or have nothing left to do.
pub(crate) const LOOK: Duration = Duration::from_millis(50);
/// To read what connections there are takes a fraction of the time of no more than this.
const SHARE: u32 = 50;

impl Supervisor {
    /// Lets an instance that serves no member any more finish what it has, and end.
    pub(crate) fn take_leave(&mut self, id: InstanceId) {
        let now = Instant::now();
        // Who shares its socket with its successor would go on taking requests.
        let drain = if self.plan.hands_over() { Duration::ZERO } else { self.plan.drain };
        let until = now.checked_add(drain);
        self.leaving.retain(|it| it.id != id);
        self.leaving.push(Leaving { id, phase: Phase::Drains(until), look: now });
    }

    /// Goes on with those that are to end.
    pub(crate) fn tend_leaving(&mut self) {
        let now = Instant::now();
        let mut leaving = std::mem::take(&mut self.leaving);
        for it in &mut leaving {
            let id = it.id;
            let idle = matches!(it.phase, Phase::Drains(_)) && self.is_idle(it);
            match it.phase {
                Phase::Drains(until) if idle || until.is_some_and(|until| until <= now) => {
                    let signal = self.plan.stop_signal;
                    self.instance(id).send(signal);
                    it.phase = Phase::Ends(now + self.plan.grace);
                }
                Phase::Ends(until) if until <= now => {
                    let seconds = self.plan.grace.as_secs();
                    log::line(format_args!(
                        "{}: {seconds} s are over: killing it",
                        self.instance(id)
                    ));
                    self.instance(id).kill();
                    it.phase = Phase::Killed;
                }
                _ => {}
            }
        }
        self.leaving = leaving;
    }

    /// Whether an instance has neither connections nor any that wait to be accepted, as far as it
    /// is time to look.
    fn is_idle(&self, leaving: &mut Leaving) -> bool {
        let now = Instant::now();
        let Some(instance) = self.find(leaving.id).filter(|_| leaving.look <= now) else {
            return false;
        };
        let sockets = instance.processes().into_iter().flat_map(sockets_of).flatten();
        let sockets: HashSet<u64> = sockets.map(|(_, inode)| inode).collect();
        let busy = |entry: &TcpNetEntry| match entry.state {
            TcpState::Established | TcpState::CloseWait => sockets.contains(&entry.inode),
            // What waits in its queue belongs to no descriptor yet.
            TcpState::Listen => sockets.contains(&entry.inode) && entry.rx_queue > 0,
            _ => false,
        };
        // What can't be read is no reason to end it early.
        let idle = match (tcp(), tcp6()) {
            (Ok(ipv4), Ok(ipv6)) => !ipv4.iter().chain(&ipv6).any(busy),
            _ => false,
        };
        leaving.look = now + LOOK.max(now.elapsed() * SHARE);
        idle
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
