//! The kernel held against the model, over random histories.
//!
//! A history is one service with random members and rules, and then random steps:
//! clients connect and reset, servers accept and close, half-open requests come and go,
//! members join, leave, join again, change places, drain, resume and close, rules and weights
//! change. The model says where each request must be; after every step the queues, the counters
//! and the accepted sockets must agree.
//!
//! `OVERSPILL_SEED=N` replays the history with that seed, which a failure names;
//! `OVERSPILL_HISTORIES=N` sets how many are run.

mod asked;
mod bench;

use std::time::{SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand::rngs::StdRng;

use bench::{Bench, Kind, Size};

use crate::tools::many_descriptors;
use world::syn;

/// Half-open requests live a second until their first timer: a history is shorter.
const STEPS: usize = 120;
const HISTORIES: u64 = 150;
/// Each step reads the figures of all members.
const HISTORIES_OF_MANY: u64 = 12;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn run(kind: Kind, size: Size) {
    let replay = number("OVERSPILL_SEED");
    let first = replay.unwrap_or_else(|| {
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() >> 8)
            .unwrap()
    });
    many_descriptors();
    let usual = match size {
        Size::Few => HISTORIES,
        Size::Many => HISTORIES_OF_MANY,
    };
    let count = if replay.is_some() { 1 } else { number("OVERSPILL_HISTORIES").unwrap_or(usual) };
    for seed in first..first + count {
        println!("OVERSPILL_SEED={seed}");
        // Of its own: what is left of an earlier history's connections would answer.
        world::enter();
        // What happens on one CPU happens in one order, as in the model.
        world::pin_to_cpu(0);
        syn::blackhole();
        let mut bench = Bench::new(kind, size, StdRng::seed_from_u64(seed));
        if let Size::Many = size {
            bench.stir();
        }
        for _ in 0..STEPS {
            bench.step();
        }
        bench.finish();
    }
}

#[test]
fn ipv4() {
    run(Kind::Ipv4, Size::Few);
}

#[test]
fn ipv6() {
    run(Kind::Ipv6, Size::Few);
}

#[test]
fn dual() {
    run(Kind::Dual, Size::Few);
}

#[test]
fn crowd_ipv4() {
    run(Kind::Ipv4, Size::Many);
}

#[test]
fn crowd_ipv6() {
    run(Kind::Ipv6, Size::Many);
}

#[test]
fn crowd_dual() {
    run(Kind::Dual, Size::Many);
}
