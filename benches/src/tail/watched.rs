//! Watching workers as `overspill run` does: one whose queue stands gets no requests, and what
//! waits there moves to siblings, until it accepts again. (All are at one address, none drains
//! and none is gone, and one is always well: what `run` asks besides is so here.)

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use overspill::hang::{Sample, Watch};
use overspill::{Health, Looker, Queue, Service, empty_queue};

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

/// Looks and acts until it is told to stop.
pub(crate) fn watch(
    service: &Service,
    listeners: &[TcpListener],
    patience: Duration,
    stop: &AtomicBool,
) -> Result<Deeds> {
    let looker = service.looker()?;
    let mut deeds = Deeds::default();
    let mut watch = Watch::new(patience);
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let queues = looker.queues()?;
        let samples: Vec<Sample> = queues.iter().map(sample).collect();
        // Healths are compared one by one below.
        let _ = watch.observe(began, &samples);
        deeds.looks += 1;
        deeds.looking += began.elapsed();
        // Members are in the order of their sockets.
        for (queue, listener) in queues.iter().zip(listeners) {
            act(&looker, &mut watch, queue, listener, &mut deeds)?;
        }
        next = (next + watch.interval()).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(deeds)
}

fn sample(queue: &Queue) -> Sample {
    Sample {
        member: queue.member,
        head: queue.head,
        placed: queue.placed.saturating_sub(queue.half_open.into()),
        queued: queue.queued,
        awaited: queue.awaited,
        attended: queue.attended,
    }
}

fn act(
    looker: &Looker,
    watch: &mut Watch,
    queue: &Queue,
    listener: &TcpListener,
    deeds: &mut Deeds,
) -> Result<()> {
    let health = watch.state(queue.member);
    // A mark runs out when it is not renewed.
    if queue.health != health || health != Health::Well {
        looker.set_health(queue.member, health)?;
    }
    if health == Health::Hung && queue.queued > 0 {
        let began = Instant::now();
        empty_queue(listener, queue.backlog)?;
        watch.moved(queue.member);
        deeds.moves += 1;
        deeds.moving += began.elapsed();
        deeds.moved += queue.queued;
    }
    Ok(())
}
