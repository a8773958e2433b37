//! What is measured side by side, and one run of each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use overspill::Policy;

use crate::contestant::{Contestant, Group, Layout};
use crate::crowd::{Crowd, Outcome};
use crate::idle;
use crate::proxy::{self, Proxy};
use crate::published::Board;
use crate::traffic::{Request, Stall};
use crate::watched::{self, Deeds};
use crate::worker::{WORKERS, Way, Workers, total};

/// A way to share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrant {
    /// One socket; of the workers that wait at it one is woken (`EPOLLEXCLUSIVE`).
    Shared,
    /// Sockets at one address, chosen by the kernel's hash.
    ReusePort,
    /// The same, chosen among those that the workers themselves let through.
    Published,
    /// `HAProxy` before the workers.
    Proxy,
    /// overspill. A policy that needs more than its name is made ready in [`Field::new`].
    Overspill(Policy),
    /// The default policy of `run` ([`USUAL_POLICY`]), and workers are watched as `run` does.
    Run(Hang),
}

/// After how long a worker whose queue stands hangs (`--hang`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hang {
    /// 100 ms
    ByDefault,
    /// 20 ms
    Soon,
}

impl Hang {
    pub(crate) const ALL: [Self; 2] = [Self::ByDefault, Self::Soon];

    fn patience(self) -> Duration {
        Duration::from_millis(match self {
            Self::ByDefault => 100,
            Self::Soon => 20,
        })
    }
}

/// What `run` places by unless told otherwise.
pub(crate) const USUAL_POLICY: Policy = Policy::ShortestQueue;

/// Of each worker's socket; the shared one has as much as all of them.
pub(crate) const BACKLOG: u32 = 511;
const MEMBERS: u32 = WORKERS as u32;

impl Entrant {
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Shared, Self::ReusePort, Self::Published, Self::Proxy];
        all.extend(Policy::ALL.map(Self::Overspill));
        all.extend(Hang::ALL.map(Self::Run));
        all
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shared => "one shared socket",
            Self::ReusePort => "SO_REUSEPORT",
            Self::Published => "published bitmap",
            Self::Proxy => "HAProxy leastconn",
            Self::Overspill(policy) => policy.name(),
            Self::Run(Hang::ByDefault) => "run",
            Self::Run(Hang::Soon) => "run --hang 20",
        }
    }

    /// What users get who choose nothing: the verdict is on this one.
    pub(crate) const USUAL: Self = Self::Run(Hang::ByDefault);

    /// Whether it is overspill.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Overspill(_) | Self::Run(_))
    }

    fn patience(self) -> Option<Duration> {
        match self {
            Self::Run(hang) => Some(hang.patience()),
            _ => None,
        }
    }

    /// Whether it is what overspill is compared with.
    pub(crate) fn is_other(self) -> bool {
        !self.is_ours()
    }
}

/// What a run is to be.
pub(crate) struct Run<'a> {
    pub(crate) way: Way,
    pub(crate) requests: &'a [Request],
    pub(crate) stalls: &'a [Stall],
    /// Some workers hold idle connections; these workers don't stall.
    pub(crate) idle_connections: bool,
    /// Requests that come earlier are not measured.
    pub(crate) warm_up: Duration,
}

/// What a run has come to.
pub(crate) struct Finding {
    pub(crate) outcome: Outcome,
    /// How many requests workers have served, and for how long they were busy with them.
    pub(crate) served: u64,
    pub(crate) busy: Duration,
    pub(crate) deeds: Option<Deeds>,
    /// How long it took.
    pub(crate) time: Duration,
}

/// Sockets, and what stands before them.
struct Field {
    group: Group,
    called: SocketAddr,
    board: Option<Arc<Board>>,
    proxy: Option<Proxy>,
}

impl Field {
    fn new(entrant: Entrant) -> Result<Self> {
        let (contestant, layout, backlog) = match entrant {
            Entrant::Shared => (Contestant::Shared, Layout::One, BACKLOG * MEMBERS),
            Entrant::ReusePort | Entrant::Published => {
                (Contestant::ReusePort, Layout::One, BACKLOG)
            }
            Entrant::Proxy => (Contestant::Apart, Layout::Own, BACKLOG),
            Entrant::Overspill(policy) => (Contestant::Overspill(policy), Layout::One, BACKLOG),
            Entrant::Run(_) => (Contestant::Overspill(USUAL_POLICY), Layout::One, BACKLOG),
        };
        let group = Group::new(contestant, layout, MEMBERS, backlog)?;
        let (mut called, mut board, mut proxy) = (layout.called(0), None, None);
        match entrant {
            Entrant::Published => board = Some(Arc::new(Board::new(&group.listeners)?)),
            Entrant::Proxy => {
                called = proxy::ADDRESS;
                let backlog = BACKLOG * MEMBERS;
                proxy = Some(Proxy::start(&group.arena, &group.listeners, backlog)?);
            }
            Entrant::Run(_) => {
                let service = group.service.as_ref().context("a service")?;
                group.arena.inside(|| Ok(service.keep_requests(&group.listeners[0])?))?;
            }
            _ => {}
        }
        Ok(Self { group, called, board, proxy })
    }

    fn remove(self) -> Result<()> {
        drop(self.proxy);
        self.group.remove()
    }
}

impl Entrant {
    /// Lets clients ask it, in namespaces of its own.
    pub(crate) fn run(self, run: &Run<'_>) -> Result<Finding> {
        let field = Field::new(self)?;
        // Until then all is ready.
        let start = Instant::now() + Duration::from_millis(10);
        let (listeners, board) = (&field.group.listeners, field.board.as_ref());
        let workers = Workers::start(listeners, run.way, start, run.stalls, board)?;
        let (stop, group) = (AtomicBool::new(false), &field.group);
        let (start, idle) = if run.idle_connections {
            let idle = group.arena.inside(|| idle::open(field.called))?;
            (Instant::now() + Duration::from_millis(10), idle)
        } else {
            (start, Vec::new())
        };
        let before = total(&workers.tallies);
        let (outcome, deeds) = thread::scope(|scope| {
            let stopped = &stop;
            let watcher = self.patience().map(|patience| {
                let service = group.service.as_ref().expect("it has one");
                let work = move || watched::watch(service, &group.listeners, patience, stopped);
                scope.spawn(move || group.arena.inside(work))
            });
            let outcome = group
                .arena
                .inside(|| Crowd::new(field.called, start, run.warm_up)?.ask(run.requests));
            stop.store(true, Ordering::Relaxed);
            let deeds = watcher.map(|thread| thread.join().expect("it returns its errors"));
            anyhow::Ok((outcome?, deeds.transpose()?))
        })?;
        let time = start.elapsed();
        let tallies = Arc::clone(&workers.tallies);
        workers.stop()?;
        drop(idle);
        field.remove()?;
        let after = total(&tallies);
        let (served, busy) = (after.0 - before.0, after.1.saturating_sub(before.1));
        Ok(Finding { outcome, served, busy, deeds, time })
    }
}
