//! What clients feel when one of four workers hangs.
//!
//! New clients arrive at a steady rate whatever becomes of those before them (an open
//! loop), and wait for the one byte that a worker answers. The hung worker never accepts.
//! Who has no answer after a second is stuck.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use overspill::Policy;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::client;
use crate::contestant::{Contestant, Group, Layout};
use crate::plan::Plan;
use crate::sample::{Case, Samples};
use crate::statistics::quantile;
use crate::workers::Workers;

pub(crate) const SUBJECT: &str = "hang";
pub(crate) const CLIENTS: &str = "clients";
pub(crate) const STUCK: &str = "stuck (clients)";
pub(crate) const SHARE: &str = "stuck (share)";
pub(crate) const MEDIAN: &str = "median wait (ms)";
pub(crate) const P99: &str = "99th percentile of waits (ms)";
pub(crate) const MAX: &str = "longest wait (ms)";
pub(crate) const MEMBERS: u32 = 4;
/// Who waits longer is stuck; a wait counts as this long then.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two clients.
const INTERVAL: Duration = Duration::from_millis(2);

pub(crate) fn contestants() -> Vec<Contestant> {
    let mut all = vec![Contestant::ReusePort, Contestant::Shared];
    all.extend(Policy::ALL.map(Contestant::Overspill));
    all
}

pub(crate) fn case(contestant: Contestant, backlog: u32) -> Case {
    let (contestant, members) = (contestant.name(), MEMBERS);
    Case { subject: SUBJECT, contestant, members, backlog, ..Case::default() }
}

pub(crate) fn measure(plan: &Plan, samples: &mut Samples) -> Result<()> {
    for round in 0..plan.hang_rounds {
        for &backlog in plan.hang_backlogs {
            for contestant in contestants() {
                let case = case(contestant, backlog);
                let waits = run(contestant, backlog, plan.hang_arrivals)?;
                let stuck = waits.iter().filter(|&&wait| wait >= PATIENCE).count();
                let waits: Vec<f64> = waits.iter().map(|wait| wait.as_secs_f64() * 1e3).collect();
                let mut add = |measure, value| samples.add(case, round, measure, value);
                add(CLIENTS, waits.len() as f64);
                add(STUCK, stuck as f64);
                add(SHARE, stuck as f64 / waits.len() as f64);
                for (measure, at) in [(MEDIAN, 0.5), (P99, 0.99), (MAX, 1.0)] {
                    add(measure, quantile(&waits, at).expect("there were clients"));
                }
            }
        }
    }
    Ok(())
}

/// How long each client waits.
fn run(contestant: Contestant, backlog: u32, arrivals: Duration) -> Result<Vec<Duration>> {
    let group = Group::new(contestant, Layout::One, MEMBERS, backlog)?;
    let workers = Workers::start(&group.listeners, MEMBERS, Some(0))?;
    let waits = group.arena.inside(|| {
        let mut crowd = Crowd::new()?;
        crowd.arrive(arrivals)?;
        crowd.wait_out()?;
        Ok(crowd.waits())
    })?;
    workers.stop()?;
    group.remove()?;
    Ok(waits)
}

/// Clients that wait for an answer.
struct Crowd {
    epoll: rustix::fd::OwnedFd,
    waiting: HashMap<u64, (TcpStream, Instant)>,
    answered: Vec<Duration>,
    next: u64,
}

impl Crowd {
    fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, waiting: HashMap::new(), answered: Vec::new(), next: 0 })
    }

    /// New clients, one each interval.
    fn arrive(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        let mut due = start;
        while due < start + time {
            self.hear_until(due)?;
            let client = client::begin(None, Layout::One.called(0))?;
            let data = epoll::EventData::new_u64(self.next);
            epoll::add(&self.epoll, client.as_fd(), data, epoll::EventFlags::IN)?;
            // From when it should have come: a late start is a wait as well.
            self.waiting.insert(self.next, (client, due));
            self.next += 1;
            due += INTERVAL;
        }
        Ok(())
    }

    /// Until everyone is answered or has lost patience.
    fn wait_out(&mut self) -> Result<()> {
        while let Some(last) = self.waiting.values().map(|(_, since)| *since).max() {
            if last.elapsed() >= PATIENCE {
                break;
            }
            self.hear(last + PATIENCE)?;
        }
        Ok(())
    }

    fn hear_until(&mut self, moment: Instant) -> Result<()> {
        while Instant::now() < moment {
            self.hear(moment)?;
        }
        Ok(())
    }

    /// Notes who is answered, at the latest at `moment`.
    fn hear(&mut self, moment: Instant) -> Result<()> {
        let mut events = Vec::with_capacity(64);
        let left = moment.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left)?;
        // Interrupted: nothing was heard.
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&left)) {
            Err(error) if error != Errno::INTR => return Err(error.into()),
            _ => {}
        }
        for event in events {
            let Some((mut client, since)) = self.waiting.remove(&event.data.u64()) else {
                continue;
            };
            client.read_exact(&mut [0])?;
            self.answered.push(since.elapsed());
        }
        Ok(())
    }

    /// All waits; those of the stuck count as [`PATIENCE`].
    fn waits(self) -> Vec<Duration> {
        let stuck = self.waiting.into_values().map(|_| PATIENCE);
        self.answered.into_iter().map(|wait| wait.min(PATIENCE)).chain(stuck).collect()
    }
}
