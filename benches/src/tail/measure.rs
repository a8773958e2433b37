//! The rounds: in each, every contestant meets every traffic at every load.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::entrant::{BACKLOG, Entrant, Finding, Run};
use crate::sample::{Case, Samples};
use crate::statistics::{mean, quantile};
use crate::traffic::{Request, Traffic};
use crate::worker::WORKERS;

const SUBJECT: &str = "tail";
pub(crate) const MEAN: &str = "mean (ms)";
pub(crate) const MEDIAN: &str = "p50 (ms)";
pub(crate) const P99: &str = "p99 (ms)";
pub(crate) const P999: &str = "p99.9 (ms)";
pub(crate) const MAX: &str = "max (ms)";
pub(crate) const REQUESTS: &str = "requests";
pub(crate) const FAILED: &str = "failed (share)";
pub(crate) const STUCK: &str = "stuck (share)";
pub(crate) const LATE: &str = "asked late p99 (ms)";
pub(crate) const CONNECTIONS: &str = "connections of the busiest (times the mean)";
pub(crate) const CONNECTIONS_VARY: &str = "connections (coefficient of variation)";
pub(crate) const ANSWERS: &str = "answers of the busiest (times the mean)";
pub(crate) const LOOK: &str = "a look (us)";
pub(crate) const MOVES: &str = "moves a second";
pub(crate) const MOVE: &str = "a move (us)";
pub(crate) const MOVED: &str = "moved (share)";

/// Of what the workers can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    pub(crate) share: f64,
    pub(crate) name: &'static str,
}

const LOADS: [Load; 2] = [Load { share: 0.60, name: "60 %" }, Load { share: 0.85, name: "85 %" }];

/// Of fewer requests, the slowest thousandth are a handful.
pub(crate) const ENOUGH_FOR_P999: usize = 5_000;

/// What a run takes besides: its sockets, programs and processes come and go.
const AROUND: Duration = Duration::from_millis(400);

/// How much to measure.
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) traffics: Vec<Traffic>,
    pub(crate) loads: &'static [Load],
    pub(crate) rounds: u32,
    /// Of a run, before and while it is measured.
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

/// How many requests a second the workers can serve.
pub(crate) type Capacities = Vec<(Traffic, f64)>;

impl Plan {
    pub(crate) fn full(traffics: Vec<Traffic>, rounds: u32, time: Duration) -> Self {
        let warm_up = Duration::from_millis(200);
        Self { quick: false, traffics, loads: &LOADS, rounds, warm_up, time }
    }

    pub(crate) fn quick(traffics: Vec<Traffic>) -> Self {
        Self {
            quick: true,
            loads: &LOADS[..1],
            warm_up: Duration::from_millis(50),
            ..Self::full(traffics, 1, Duration::from_millis(150))
        }
    }

    /// The same, of the traffic that was measured.
    pub(crate) fn of(mut self, samples: &Samples) -> Self {
        let cases = samples.cases(SUBJECT);
        self.traffics.retain(|traffic| cases.iter().any(|case| case.state == traffic.name()));
        self
    }

    pub(crate) fn measure(&self, samples: &mut Samples) -> Result<Capacities> {
        let start = Instant::now();
        let expected = Duration::from_secs(self.expected().as_secs());
        eprintln!("this takes about {}", humantime::format_duration(expected));
        let capacities: Capacities = self
            .traffics
            .iter()
            .map(|&traffic| Ok((traffic, self.capacity(traffic)?)))
            .collect::<Result<_>>()?;
        let mut random = fastrand::Rng::with_seed(1);
        for round in 0..self.rounds {
            for &(traffic, capacity) in &capacities {
                for load in self.loads {
                    let seed = random.u64(..);
                    let rate = capacity * load.share;
                    let mut entrants = Entrant::all();
                    random.shuffle(&mut entrants);
                    for entrant in entrants {
                        let finding = self.run(entrant, traffic, rate, round, seed);
                        let what =
                            || format!("{}, {}, {}", entrant.name(), traffic.name(), load.name);
                        let case = case(entrant, traffic, *load);
                        note(samples, case, round, &finding.with_context(what)?);
                    }
                }
            }
            eprintln!("round {round}: {:.0} s", start.elapsed().as_secs_f64());
        }
        Ok(capacities)
    }

    /// How long it will take.
    fn expected(&self) -> Duration {
        let cases = self.traffics.len() * self.loads.len();
        let runs = (cases * Entrant::all().len()) as u32 * self.rounds + self.traffics.len() as u32;
        (self.warm_up + self.time + AROUND) * runs
    }

    /// By what a request occupies a worker for, with all that is around it, at half the load.
    fn capacity(&self, traffic: Traffic) -> Result<f64> {
        let traffic = if traffic == Traffic::Stalled { Traffic::Cheap } else { traffic };
        let rate = 0.5 * WORKERS as f64 / traffic.mean_cost().as_secs_f64();
        let finding = self.run(Entrant::Shared, traffic, rate, 0, 0).context("the capacity")?;
        // Not the mean cost of those that came: few of them are costly ones.
        let requests = self.requests(traffic, rate, 0);
        let cost: Duration = requests.iter().map(|request| request.cost).sum();
        let around = finding.busy.saturating_sub(cost).as_secs_f64() / finding.served as f64;
        Ok(WORKERS as f64 / (traffic.mean_cost().as_secs_f64() + around))
    }

    fn requests(&self, traffic: Traffic, rate: f64, seed: u64) -> Vec<Request> {
        traffic.requests(rate, self.warm_up + self.time, seed)
    }

    fn run(
        &self,
        entrant: Entrant,
        traffic: Traffic,
        rate: f64,
        round: u32,
        seed: u64,
    ) -> Result<Finding> {
        entrant.run(&Run {
            way: traffic.way(),
            requests: &self.requests(traffic, rate, seed),
            stalls: &traffic.stalls(self.warm_up, self.time, round),
            idle_connections: traffic.has_idle_connections(),
            warm_up: self.warm_up,
        })
    }
}

pub(crate) fn case(entrant: Entrant, traffic: Traffic, load: Load) -> Case {
    Case {
        subject: SUBJECT,
        contestant: entrant.name(),
        members: WORKERS as u32,
        backlog: BACKLOG,
        state: traffic.name(),
        way: load.name,
        ..Case::default()
    }
}

fn note(samples: &mut Samples, case: Case, round: u32, finding: &Finding) {
    let outcome = &finding.outcome;
    let millis = |times: &[Duration]| -> Vec<f64> {
        times.iter().map(|time| time.as_secs_f64() * 1e3).collect()
    };
    let waits = millis(&outcome.waits);
    let count = waits.len() as f64;
    let mut add = |measure, value| samples.add(case, round, measure, value);
    let at = |values: &[f64], at| quantile(values, at).unwrap_or(f64::NAN);
    add(REQUESTS, count);
    add(MEAN, mean(&waits));
    for (measure, share) in [(MEDIAN, 0.5), (P99, 0.99), (MAX, 1.0)] {
        add(measure, at(&waits, share));
    }
    if waits.len() >= ENOUGH_FOR_P999 {
        add(P999, at(&waits, 0.999));
    }
    add(FAILED, f64::from(outcome.failed) / count);
    add(STUCK, f64::from(outcome.stuck) / count);
    add(LATE, at(&millis(&outcome.late), 0.99));
    let connections = outcome.connections.map(f64::from);
    add(CONNECTIONS, at(&connections, 1.0) / mean(&connections));
    add(CONNECTIONS_VARY, variation(&connections));
    let answers = outcome.answers.map(f64::from);
    add(ANSWERS, at(&answers, 1.0) / mean(&answers));
    if let Some(deeds) = &finding.deeds {
        let micros = |time: Duration, times: u32| time.as_secs_f64() * 1e6 / f64::from(times);
        add(LOOK, micros(deeds.looking, deeds.looks));
        add(MOVES, f64::from(deeds.moves) / finding.time.as_secs_f64());
        if deeds.moves > 0 {
            add(MOVE, micros(deeds.moving, deeds.moves));
        }
        add(MOVED, f64::from(deeds.moved) / finding.served as f64);
    }
}

/// The standard deviation, times the mean.
fn variation(values: &[f64]) -> f64 {
    let mean_value = mean(values);
    let squares: Vec<f64> = values.iter().map(|value| (value - mean_value).powi(2)).collect();
    mean(&squares).sqrt() / mean_value
}
