//! Reading the plan again for a restart: what can change does, and nothing if it is wrong.

use std::ffi::OsString;

use super::control::Reply;
use super::{Supervisor, log, worker};
use crate::error::Result;
use crate::plan::Plan;

/// Reads a plan anew from where it came from.
///
/// # Errors
///
/// All that is wrong with it, a line each.
pub type Reread = Box<dyn Fn() -> Result<Plan, Vec<String>>>;

/// How a worker is started.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    command: Vec<OsString>,
    user: Option<String>,
}

impl Supervisor {
    /// Replaces all workers, by what the file says now, where there is one.
    pub(super) fn reload(&mut self, reply: Option<Reply>) {
        let before = self.recipe();
        match self.reread() {
            Ok(kept) => {
                if !kept.is_empty() {
                    let what = format!(
                        "{} changed in the file: left as before until overspill run is started anew",
                        kept.join(", ")
                    );
                    log::line(format_args!("restart: {what}"));
                    if let Some(reply) = &reply {
                        reply.progress(&what);
                    }
                }
                self.ask_restart(reply, Some(before));
            }
            Err(lines) => {
                for line in &lines {
                    log::line(format_args!("{line}; nothing is changed"));
                }
                if let Some(reply) = reply {
                    reply.failed(format!("{}; nothing is changed", lines.join("; ")));
                }
            }
        }
    }

    /// Takes over what can be changed, and gives the keys of what has changed and can't be.
    fn reread(&mut self) -> Result<Vec<&'static str>, Vec<String>> {
        let Some(reread) = &self.reread else { return Ok(Vec::new()) };
        let new = reread()?;
        self.adopt(new).map_err(|error| vec![error.to_string()])
    }

    fn adopt(&mut self, mut new: Plan) -> Result<Vec<&'static str>> {
        let mut kept = keep(&self.plan, &mut new);
        if new.rules.redirect && !self.services.redirected() {
            new.rules.redirect = false;
            kept.push("redirect");
        }
        let user = new.user.as_deref().map(worker::find_user).transpose()?;
        self.relay.change(new.output, user.map(|user| user.uid))?;
        self.services.set_rules(new.rules, new.dispatcher.as_ref())?;
        if new.patience != self.plan.patience {
            self.services.set_patience(new.patience);
        }
        self.plan = new;
        Ok(kept)
    }

    fn recipe(&self) -> Recipe {
        Recipe { command: self.plan.command.clone(), user: self.plan.user.clone() }
    }

    /// Starts workers as before again.
    pub(super) fn go_back(&mut self, Recipe { command, user }: Recipe) {
        (self.plan.command, self.plan.user) = (command, user);
    }
}

/// Keeps in a new plan what can't be changed any more, and gives the keys of what differs.
#[must_use]
pub fn keep(old: &Plan, new: &mut Plan) -> Vec<&'static str> {
    fn one<T: PartialEq + Clone>(old: &T, new: &mut T, key: &'static str) -> Option<&'static str> {
        let differs = old != new;
        new.clone_from(old);
        differs.then_some(key)
    }
    // More or fewer workers alone have other addresses as well.
    let both = old.workers.min(new.workers);
    let listens = |plan: &Plan| -> Vec<Vec<_>> {
        plan.addresses.iter().map(|each| each[..both].to_vec()).collect()
    };
    let listen = (listens(old) != listens(new)).then_some("listen");
    new.addresses.clone_from(&old.addresses);
    let kept = [
        one(&old.name, &mut new.name, "name"),
        one(&old.workers, &mut new.workers, "workers"),
        listen,
        one(&old.private, &mut new.private, "private-port"),
        one(&old.backlog, &mut new.backlog, "backlog"),
        one(&old.capacity, &mut new.capacity, "capacity"),
        one(&old.words, &mut new.words, "words"),
        // The kernel lets only one user's sockets share a port.
        (!old.hands_over()).then(|| one(&old.user, &mut new.user, "user")).flatten(),
    ];
    kept.into_iter().flatten().collect()
}
