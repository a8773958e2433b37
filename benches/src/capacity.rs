//! How much of a group's capacity is used when its first request is dropped.
//!
//! Nobody accepts. Clients connect one after the other, from random ports, until the
//! namespace counts a dropped request (`ListenDrops`). The figure is how many had been
//! connected by then, of all that the group's queues hold.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overspill::Policy;

use crate::client;
use crate::contestant::{Contestant, Group, Layout};
use crate::plan::Plan;
use crate::sample::{Case, Samples};

pub(crate) const SUBJECT: &str = "capacity";
pub(crate) const USED: &str = "used (share)";
pub(crate) const BACKLOG: u32 = 16;
pub(crate) const SIZES: [u32; 3] = [4, 16, 64];

/// Who takes part, and where it listens.
pub(crate) fn contestants() -> Vec<(Contestant, Layout)> {
    let mut all = vec![
        (Contestant::ReusePort, Layout::One),
        (Contestant::Shared, Layout::One),
        (Contestant::Apart, Layout::Own),
    ];
    for policy in Policy::ALL {
        for layout in [Layout::One, Layout::Own, Layout::Mixed] {
            all.push((Contestant::Overspill(policy), layout));
        }
    }
    all
}

pub(crate) fn case(contestant: Contestant, layout: Layout, members: u32) -> Case {
    Case {
        subject: SUBJECT,
        contestant: contestant.name(),
        members,
        backlog: BACKLOG,
        layout: layout.name(),
        ..Case::default()
    }
}

pub(crate) fn measure(plan: &Plan, samples: &mut Samples) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut fields = Vec::new();
    for members in SIZES {
        for (contestant, layout) in contestants() {
            fields.push(Field::new(contestant, layout, members)?);
        }
    }
    for round in 0..plan.capacity_rounds {
        for field in &fields {
            let used = f64::from(field.fill(&mut random)?) / f64::from(field.capacity);
            samples.add(field.case, round, USED, used);
            field.empty()?;
        }
    }
    fields.into_iter().try_for_each(|field| field.group.remove())
}

/// A group that nobody accepts from.
struct Field {
    case: Case,
    group: Group,
    layout: Layout,
    /// All that its queues hold: the kernel lets one more than the backlog in.
    capacity: u32,
    members: u32,
}

impl Field {
    fn new(contestant: Contestant, layout: Layout, members: u32) -> Result<Self> {
        // The shared socket stands for as many.
        let (backlog, capacity) = match contestant {
            Contestant::Shared => (BACKLOG * members, BACKLOG * members + 1),
            _ => (BACKLOG, (BACKLOG + 1) * members),
        };
        Ok(Self {
            case: case(contestant, layout, members),
            group: Group::new(contestant, layout, members, backlog)?,
            layout,
            capacity,
            members,
        })
    }

    /// How many clients are connected when the first request is dropped.
    fn fill(&self, random: &mut fastrand::Rng) -> Result<u32> {
        self.group.arena.inside(|| {
            let before = drops()?;
            let mut connected: Vec<TcpStream> = Vec::new();
            // One more than it can hold must be dropped, or the figure shows it.
            for _ in 0..=self.capacity {
                let member = random.u32(..self.members);
                let client = client::begin_anywhere(random, self.layout.called(member))?;
                if !completes(&client, before)? {
                    break;
                }
                connected.push(client);
            }
            Ok(u32::try_from(connected.len())?)
        })
    }

    /// Takes all out of the queues again.
    fn empty(&self) -> Result<()> {
        for listener in &self.group.listeners {
            loop {
                match listener.accept() {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// Whether the connection comes about before a request is dropped.
fn completes(client: &TcpStream, drops_before: u64) -> Result<bool> {
    for _ in 0..100 {
        let connected = client::is_connected(client, Duration::from_millis(10))?;
        // A client believes itself connected although its last ACK was dropped.
        if drops()? > drops_before {
            return Ok(false);
        }
        if connected {
            return Ok(true);
        }
    }
    anyhow::bail!("a client is neither connected nor dropped within a second")
}

/// How many requests the calling thread's network namespace has dropped at listeners.
fn drops() -> Result<u64> {
    let path = "/proc/thread-self/net/netstat";
    let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "ListenDrops").context("no ListenDrops")?;
    ensure!(!value.is_empty(), "ListenDrops has no value");
    Ok(value.parse()?)
}
