//! Connections a second: connect, accept, close.
//!
//! Closed loop: each client connects, waits for the end that the worker's close brings,
//! and begins anew. The contestants take turns in short rounds, and each is compared with
//! `SO_REUSEPORT` in the same round; a second `SO_REUSEPORT` shows how much of a
//! difference no difference makes. Clients and workers keep to their CPUs: where the
//! scheduler puts them would make more of a difference than what is measured.

use std::io::{ErrorKind, Read as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use overspill::Policy;

use crate::client;
use crate::contestant::{Contestant, Group, Layout};
use crate::plan::Plan;
use crate::sample::{Case, Samples};
use crate::workers::Workers;

pub(crate) const SUBJECT: &str = "rate";
pub(crate) const RATE: &str = "connections a second";
const MEMBERS: u32 = 4;
const BACKLOG: u32 = 511;
const CLIENTS: usize = 2;

pub(crate) fn contestants() -> Vec<Contestant> {
    let mut all = vec![Contestant::ReusePort, Contestant::Control, Contestant::Shared];
    all.extend(Policy::ALL.map(Contestant::Overspill));
    all
}

pub(crate) fn case(contestant: Contestant) -> Case {
    Case {
        subject: SUBJECT,
        contestant: contestant.name(),
        members: MEMBERS,
        backlog: BACKLOG,
        ..Case::default()
    }
}

pub(crate) fn measure(plan: &Plan, samples: &mut Samples) -> Result<()> {
    let mut fields = Vec::new();
    for contestant in contestants() {
        let group = Group::new(contestant, Layout::One, MEMBERS, BACKLOG)?;
        let workers = Workers::start(&group.listeners, MEMBERS, None)?;
        fields.push((case(contestant), group, workers));
    }
    // A first round that does not count finds members' sockets and fills caches.
    for (_, group, _) in &fields {
        rate(group, plan.rate_time)?;
    }
    let count = fields.len();
    for round in 0..plan.rate_rounds {
        // Everyone begins a round as often as everyone else.
        for turn in 0..count {
            let (case, group, _) = &fields[(round as usize + turn) % count];
            samples.add(*case, round, RATE, rate(group, plan.rate_time)?);
        }
    }
    fields.into_iter().try_for_each(|(_, group, workers)| {
        workers.stop()?;
        group.remove()
    })
}

/// Connections a second over `time`.
fn rate(group: &Group, time: Duration) -> Result<f64> {
    let done = &AtomicU64::new(0);
    let cpus = thread::available_parallelism()?.get();
    let start = Instant::now();
    group.arena.inside(|| {
        thread::scope(|scope| {
            let client = |n| -> Result<()> {
                world::pin_to_cpu(n % cpus);
                while start.elapsed() < time {
                    connect_once()?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            };
            let clients: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || client(n))).collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().expect("clients return their errors"))
        })
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

fn connect_once() -> Result<()> {
    let mut client = client::connect(None, Layout::One.called(0))?;
    client.set_read_timeout(Some(client::PATIENCE))?;
    let mut byte = [0];
    match client.read(&mut byte) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("a client waits for its answer"),
    }
}
