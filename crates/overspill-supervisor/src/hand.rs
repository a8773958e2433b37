//! The thread that changes services: it may wait, for the right to change and for the kernel,
//! while the one that decides goes on.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

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
    /// Members that are to drain, or not to any more; in this order.
    pub(crate) drains: Vec<(Member, bool)>,
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
}

fn work(mut services: Services, orders: &Receiver<Order>, report: impl Fn(Report)) {
    while let Ok(order) = orders.recv() {
        match order {
            Order::Do(job) => report(carry_out(&mut services, job)),
            Order::Remove(done) => {
                let _ = done.send(services.remove());
                return;
            }
        }
    }
}

/// Does a job.
pub(crate) fn carry_out(services: &mut Services, job: Job) -> Report {
    let text = |error: overspill::Error| Error::from(error).to_string();
    let rules = job.rules.map(|(rules, path)| services.set_rules(rules, path).map_err(text));
    let outcome = |action| (action, act(services, action, &job.copies));
    let outcomes = job.actions.into_iter().map(outcome).collect();
    let mut troubles = Vec::new();
    let mut note = |result: overspill::Result<()>| troubles.extend(result.err().map(text));
    job.starts.into_iter().for_each(|member| note(services.count_start(member)));
    job.drains.into_iter().for_each(|(member, drain)| note(services.drain(member, drain)));
    job.orders.iter().for_each(|(service, order)| note(services.arrange(*service, order)));
    troubles.dedup();
    Report { outcomes, rules, troubles, listing: services.list(), services: services.all() }
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
        Action::Note { member, pid } => services.note(member, pid).map(|()| None),
        // It is the keeper of the copies that lets go of one.
        Action::Release { .. } => Ok(None),
    }
}
