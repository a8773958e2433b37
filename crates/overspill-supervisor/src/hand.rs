//! The thread that changes services: it may wait, for the right to change and for the kernel,
//! while the one that decides goes on.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use overspill::adopt::Adopted;
use overspill::{MemberId, Rules, Service};

use crate::error::{Error, Result};
use crate::seats::{Action, Listing, Member, ServiceNumber};
use crate::services::Services;
use crate::threads::start_thread;

/// The copies of sockets that are held, by cookie.
pub(crate) type Copies = HashMap<u64, Arc<Adopted>>;

/// What is to be done at once; what it came to is reported when all of it is done.
#[derive(Debug, Default)]
pub(crate) struct Job {
    pub(crate) actions: Vec<Action>,
    /// The sockets that the actions name.
    pub(crate) copies: Copies,
    /// Members whose process was started.
    pub(crate) starts: Vec<Member>,
    /// The order that members of services were asked to stand in.
    pub(crate) orders: Vec<(ServiceNumber, Vec<MemberId>)>,
    /// Other rules for all services.
    pub(crate) rules: Option<(Rules, Option<PathBuf>)>,
}

/// What a job came to, and what is there since.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) outcomes: Vec<(Action, overspill::Result<Option<Member>>)>,
    /// That rules were set, or why not.
    pub(crate) rules: Option<std::result::Result<(), String>>,
    /// What else failed.
    pub(crate) troubles: Vec<String>,
    pub(crate) listing: Listing,
    pub(crate) services: Vec<(ServiceNumber, Service)>,
}

enum Order {
    Do(Job),
    /// Removes all services, and ends.
    Remove(Sender<overspill::Result<()>>),
    /// Ends, and leaves them.
    Leave(Sender<()>),
}

/// The thread's end for the one that decides.
#[derive(Debug)]
pub(crate) struct Hand(Sender<Order>);

impl Hand {
    /// Starts it. Each job is reported, in the order in which they were given.
    pub(crate) fn start(
        services: Services,
        report: impl Fn(Report) + Send + 'static,
    ) -> Result<Self> {
        let (sender, orders) = channel();
        start_thread(move || work(services, &orders, report))?;
        Ok(Self(sender))
    }

    /// Gives it a job.
    pub(crate) fn give(&self, job: Job) {
        // It ends with the supervisor alone.
        let _ = self.0.send(Order::Do(job));
    }

    /// Removes all services, behind whatever is under way. The result comes through the receiver;
    /// that of a hand that has failed never does.
    pub(crate) fn remove(self) -> Receiver<overspill::Result<()>> {
        let (sender, removed) = channel();
        let _ = self.0.send(Order::Remove(sender));
        removed
    }

    /// Leaves the services as they are, when what is under way is done: a change that breaks off
    /// is left for others to repair. Waits no longer than that.
    pub(crate) fn leave(&self, patience: Duration) {
        let (sender, done) = channel();
        let _ = self.0.send(Order::Leave(sender));
        let _ = done.recv_timeout(patience);
    }
}

fn work(mut services: Services, orders: &Receiver<Order>, report: impl Fn(Report)) {
    while let Ok(order) = orders.recv() {
        match order {
            Order::Do(job) => report(carry_out(&mut services, job)),
            Order::Remove(done) => {
                let _ = done.send(services.remove());
                return;
            }
            Order::Leave(done) => {
                let _ = done.send(());
                return;
            }
        }
    }
}

/// Does a job.
pub(crate) fn carry_out(services: &mut Services, job: Job) -> Report {
    let text = |error: overspill::Error| Error::from(error).to_string();
    services.name_first_port();
    let rules = job.rules.map(|(rules, path)| services.set_rules(rules, path).map_err(text));
    let outcomes = act_all(services, &job.actions, &job.copies);
    let mut troubles = Vec::new();
    let mut note = |result: overspill::Result<()>| troubles.extend(result.err().map(text));
    job.starts.into_iter().for_each(|member| note(services.count_start(member)));
    job.orders.iter().for_each(|(service, order)| note(services.arrange(*service, order)));
    troubles.dedup();
    Report { outcomes, rules, troubles, listing: services.list(), services: services.all() }
}

/// Carries actions out in their order; sockets that join at the same address do so together.
fn act_all(
    services: &mut Services,
    actions: &[Action],
    copies: &Copies,
) -> Vec<(Action, overspill::Result<Option<Member>>)> {
    let address = |action: &Action| match action {
        Action::Join { cookie } => copies.get(cookie)?.address().ok(),
        _ => None,
    };
    let together = |a: &Action, b: &Action| address(a).is_some() && address(a) == address(b);
    let mut outcomes = Vec::new();
    for actions in actions.chunk_by(together) {
        let joined = if actions.len() > 1 { join_all(services, actions, copies) } else { None };
        if let Some(members) = joined {
            let members = members.into_iter().map(|member| Ok(Some(member)));
            outcomes.extend(actions.iter().copied().zip(members));
            continue;
        }
        // One by one: one of them may be what is in the way.
        let outcome = |&action: &Action| (action, act(services, action, copies));
        outcomes.extend(actions.iter().map(outcome));
    }
    outcomes
}

/// Lets sockets join at once, if all of them can.
fn join_all(services: &mut Services, joins: &[Action], copies: &Copies) -> Option<Vec<Member>> {
    let sockets = joins.iter().map(|action| match action {
        Action::Join { cookie } => copies.get(cookie).map(|copy| &**copy),
        _ => None,
    });
    services.join_all(&sockets.collect::<Option<Vec<&Adopted>>>()?).ok()
}

fn act(
    services: &mut Services,
    action: Action,
    copies: &Copies,
) -> overspill::Result<Option<Member>> {
    let socket = |cookie| copies.get(&cookie).expect("a job has the sockets that it names");
    match action {
        Action::Succeed { cookie, member } => services.succeed(member, socket(cookie)).map(Some),
        Action::Join { cookie } => services.join(socket(cookie)).map(Some),
        Action::Leave { member } => services.leave(member).map(|()| None),
        Action::Note { member, pid, resume } => services.note(member, pid, resume).map(|()| None),
        Action::Drain { member, drain } => services.drain(member, drain).map(|()| None),
        // It is the keeper of the copies that lets go of one.
        Action::Release { .. } => Ok(None),
    }
}
