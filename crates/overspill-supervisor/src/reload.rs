//! Reading the plan again for a restart: what can change does, and nothing if it is wrong.

use crate::control::Reply;
use crate::error::Result;
use crate::log;
use crate::plan::Plan;
use crate::supervisor::{Reload, Supervisor};
use crate::watching::Watching;
use crate::worker;

/// Reads a plan anew from where it came from.
///
/// # Errors
///
/// All that is wrong with it, a line each.
pub type Reread = Box<dyn Fn() -> Result<Plan, Vec<String>>>;

impl Supervisor {
    /// Replaces all workers, by what the file says now, where there is one.
    pub(crate) fn reload(&mut self, reread: Option<&Reread>, reply: Option<Reply>) {
        let before = self.recipe();
        let replies: Vec<Reply> = reply.into_iter().collect();
        let Some(reread) = reread else { return self.ask_restart(replies, Some(before)) };
        match reread().and_then(|new| self.prepare(new).map_err(|error| vec![error.to_string()])) {
            Ok(reload) => self.set_rules(Reload { replies, ..reload }),
            Err(lines) => refuse(&lines, replies),
        }
    }

    /// Takes what can't be changed from the old plan, and sees whether the rest can be had.
    fn prepare(&mut self, mut new: Plan) -> Result<Reload> {
        let mut kept = keep(&self.plan, &mut new);
        if new.rules.redirect && !self.redirected {
            new.rules.redirect = false;
            kept.push("redirect");
        }
        let user = new.user.as_deref().map(worker::find_user).transpose()?;
        self.relay.change(new.output, user.map(|user| user.uid))?;
        Ok(Reload { plan: new, kept, replies: Vec::new() })
    }

    /// The services are the first to change: what they refuse changes nothing else.
    fn set_rules(&mut self, mut reload: Reload) {
        if !self.redirected {
            return self.reload_by(reload);
        }
        self.members.job.rules = Some((reload.plan.rules, reload.plan.dispatcher.clone()));
        if let Some(earlier) = self.reload.take() {
            // What it wanted is part of what the file says now.
            reload.replies.splice(0..0, earlier.replies);
        }
        self.reload = Some(reload);
        self.members.give_job();
    }

    /// The services have the new rules, or refuse them.
    pub(crate) fn rules_set(&mut self, result: Result<(), String>) {
        if self.members.job.rules.is_some() {
            // Others have been wanted since: what becomes of those counts.
            return self.members.give_job();
        }
        let Some(reload) = self.reload.take() else {
            // Those of a service that was taken over.
            if let Err(why) = result {
                log::line(format_args!("the rules of the services are as before: {why}"));
            }
            return;
        };
        match result {
            Ok(()) => self.reload_by(reload),
            Err(why) => refuse(&[why], reload.replies),
        }
    }

    fn reload_by(&mut self, Reload { plan, kept, replies }: Reload) {
        let before = self.recipe();
        if plan.patience != self.plan.patience {
            self.members.watching = Watching::new(plan.patience, "worker");
        }
        self.plan = plan;
        if let Some(what) = left_as_before(&kept) {
            log::line(format_args!("restart: {what}"));
            for reply in &replies {
                reply.progress(&what);
            }
        }
        self.ask_restart(replies, Some(before));
    }
}

fn refuse(lines: &[String], replies: Vec<Reply>) {
    for line in lines {
        log::line(format_args!("{line}; nothing is changed"));
    }
    for reply in replies {
        reply.failed(format!("{}; nothing is changed", lines.join("; ")));
    }
}

/// The message about changed keys that take effect only at the next start.
pub(crate) fn left_as_before(kept: &[&str]) -> Option<String> {
    let keys = (!kept.is_empty()).then(|| kept.join(", "))?;
    Some(format!("{keys} changed in the file: left as before until overspill run is started anew"))
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
