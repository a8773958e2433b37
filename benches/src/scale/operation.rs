//! What is done to services, each time timed.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use overspill::{Change, Health, MemberId, Namespace, Policy, Service};

use crate::field::{Field, Shape};

/// What a caller of the library asks for, from opening the state to the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    First,
    Fill,
    Make,
    Join,
    Replace,
    Leave,
    Drain,
    Resume,
    Policy,
    Remove,
    Mark,
    Look,
    Status,
    All,
}

impl Operation {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 14] = [
        Self::First,
        Self::Fill,
        Self::Make,
        Self::Join,
        Self::Replace,
        Self::Leave,
        Self::Drain,
        Self::Resume,
        Self::Policy,
        Self::Remove,
        Self::Mark,
        Self::Look,
        Self::Status,
        Self::All,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::First => "make the first service of the namespace",
            Self::Fill => "make each of the others, as the namespace fills",
            Self::Make => "make a service of 4 members more",
            Self::Join => "join a member",
            Self::Replace => "replace a member's socket",
            Self::Leave => "let a member leave",
            Self::Drain => "drain a member",
            Self::Resume => "resume a member",
            Self::Policy => "change the policy",
            Self::Remove => "remove a service of 4 members",
            Self::Mark => "mark a member's health",
            Self::Look => "look at one service's queues again",
            Self::Status => "read one service",
            Self::All => "read all services",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) shape: Shape,
    pub(crate) operation: Operation,
    pub(crate) time: Duration,
}

/// Takes the time, and keeps it.
pub(crate) struct Clock<'a> {
    pub(crate) shape: Shape,
    pub(crate) samples: &'a mut Vec<Sample>,
}

impl Clock<'_> {
    pub(crate) fn time<T>(
        &mut self,
        operation: Operation,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let done = work()?;
        let time = start.elapsed();
        self.samples.push(Sample { shape: self.shape, operation, time });
        Ok(done)
    }
}

/// Each operation once, each on a service and a member taken at random. It leaves all as it
/// was.
pub(crate) fn round(field: &mut Field, clock: &mut Clock<'_>) -> Result<()> {
    let guests =
        clock.time(Operation::Make, || Ok(Service::builder("guests").share(&field.guests)?))?;
    clock.time(Operation::Remove, || Ok(guests.remove()?))?;
    come_and_go(field, clock)?;
    replace(field, clock)?;
    change(field, clock)?;
    read(field, clock)
}

fn come_and_go(field: &mut Field, clock: &mut Clock<'_>) -> Result<()> {
    let number = field.any_service();
    let service = &field.services[number as usize];
    let socket = field.joiner(number)?;
    let member = clock.time(Operation::Join, || Ok(service.join(&socket)?))?;
    clock.time(Operation::Leave, || Ok(service.leave(member)?))
}

/// What a restart does for each member.
fn replace(field: &mut Field, clock: &mut Clock<'_>) -> Result<()> {
    let (number, member) = (field.any_service(), field.any_member());
    let successor = field.successor(number, member)?;
    let service = &field.services[number as usize];
    clock.time(Operation::Replace, || Ok(service.replace(MemberId(member), &successor)?))?;
    field.sockets[number as usize][member as usize] = successor;
    Ok(())
}

fn change(field: &mut Field, clock: &mut Clock<'_>) -> Result<()> {
    let (number, member) = (field.any_service(), MemberId(field.any_member()));
    let service = &field.services[number as usize];
    clock.time(Operation::Drain, || Ok(service.drain(member)?))?;
    clock.time(Operation::Resume, || Ok(service.resume(member)?))?;
    // The same again would be no change.
    let before = service.status()?.policy;
    let policy = Policy::ALL.into_iter().find(|&policy| policy != before);
    clock.time(Operation::Policy, || Ok(service.set(&Change { policy, ..Change::default() })?))?;
    clock.time(Operation::Mark, || Ok(service.set_health(member, Health::Hung)?))?;
    Ok(service.set_health(member, Health::Well)?)
}

fn read(field: &mut Field, clock: &mut Clock<'_>) -> Result<()> {
    let number = field.any_service();
    let service = &field.services[number as usize];
    clock.time(Operation::Status, || Ok(service.status()?))?;
    let looker = service.looker()?;
    clock.time(Operation::Look, || Ok(looker.queues()?))?;
    let namespace = Namespace::current()?;
    clock.time(Operation::All, || Ok(Service::statuses(&namespace)?))?;
    Ok(())
}
