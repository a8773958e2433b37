//! An experiment: what waits at a busy worker is moved to an idle sibling.
//!
//! A thread looks at the queues of a service. Where a connection has stood at the head of a
//! queue since the look before, while a sibling's was empty both times and somebody waits
//! there for connections, that queue is emptied: the kernel moves what it holds to the
//! siblings that hold the fewest. Of a worker with an event loop nobody sees whether it
//! waits: it counts as idle when its queue is empty.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use overspill::{Queue, Service, empty_queue};

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(2);
/// Between two moves.
const PAUSE: Duration = Duration::from_millis(5);

/// What it did.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    pub(crate) looks: u32,
    pub(crate) looking: Duration,
    pub(crate) moves: u32,
    pub(crate) moving: Duration,
    /// Connections that were moved, as of the look before.
    pub(crate) moved: u32,
}

/// Looks and moves until it is told to stop.
pub(crate) fn run(
    service: &Service,
    listeners: &[TcpListener],
    stop: &AtomicBool,
) -> Result<Deeds> {
    let looker = service.looker()?;
    let mut deeds = Deeds::default();
    let mut before: Vec<Queue> = Vec::new();
    let mut rested = Instant::now();
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let queues = looker.queues()?;
        deeds.looks += 1;
        deeds.looking += began.elapsed();
        if rested <= began
            && let Some(busy) = to_empty(&before, &queues)
        {
            let began = Instant::now();
            // Members are in the order of their sockets.
            empty_queue(&listeners[busy], queues[busy].backlog)?;
            deeds.moves += 1;
            deeds.moving += began.elapsed();
            deeds.moved += queues[busy].queued;
            rested = began + PAUSE;
        }
        before = queues;
        next = (next + INTERVAL).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(deeds)
}

/// The longest of the queues that stand, if a sibling is idle.
fn to_empty(before: &[Queue], now: &[Queue]) -> Option<usize> {
    let idle = |(before, now): (&Queue, &Queue)| {
        !now.gone && before.queued == 0 && now.queued == 0 && now.awaited
    };
    if !before.iter().zip(now).any(idle) {
        return None;
    }
    let stands = |n: &usize| now[*n].head.is_some() && before[*n].head == now[*n].head;
    (0..before.len()).filter(stands).max_by_key(|&n| now[n].queued)
}
