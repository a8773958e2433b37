//! What clients ask for, and when: fixed before a run, the same for every contestant.

use std::time::Duration;

use clap::ValueEnum;

use crate::worker::Way;

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Traffic {
    /// Cheap requests, a connection each
    Cheap,
    /// One request in twenty costs fifty times as much as the others, a connection each
    Mixed,
    /// Connections that stay and ask again and again
    Lasting,
    /// As cheap, while one worker after the other stalls
    Stalled,
    /// As mixed, to workers that accept a connection only when they are idle
    OneAtATime,
    /// Short requests, a connection each, while two of the workers hold idle connections
    IdleKeepAlive,
}

/// A request to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    /// From the start of the run.
    pub(crate) at: Duration,
    /// The connection that it is asked on, which is opened for its first one.
    pub(crate) connection: usize,
    /// For how long it occupies a worker.
    pub(crate) cost: Duration,
    /// The connection ends with its answer.
    pub(crate) last: bool,
}

/// A worker does nothing for a while, whatever waits for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stall {
    pub(crate) worker: usize,
    /// From the start of the run.
    pub(crate) at: Duration,
    pub(crate) length: Duration,
}

const CHEAP: Duration = Duration::from_micros(800);
const CHEAPEST: Duration = Duration::from_micros(400);
const COSTLY: Duration = Duration::from_millis(20);
const COSTLY_SHARE: f64 = 0.05;
/// On average.
const SHORT: Duration = Duration::from_millis(10);

/// How many connections last at a time, and how long one does on average, in seconds.
const LASTING: usize = 64;
const LIFETIME: f64 = 0.5;

const STALL: Duration = Duration::from_millis(400);
const BETWEEN_STALLS: Duration = Duration::from_secs(1);

impl Traffic {
    pub(crate) const ALL: [Self; 6] = [
        Self::Cheap,
        Self::Mixed,
        Self::Lasting,
        Self::Stalled,
        Self::OneAtATime,
        Self::IdleKeepAlive,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cheap => "cheap",
            Self::Mixed => "mixed",
            Self::Lasting => "lasting",
            Self::Stalled => "stalled",
            Self::OneAtATime => "one at a time",
            Self::IdleKeepAlive => "idle keep-alive",
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Cheap => "0.8 ms a request, a connection each",
            Self::Mixed => "95 % of requests 0.4 ms, 5 % 20 ms; a connection each",
            Self::Lasting => {
                "0.8 ms a request; 64 connections at a time, each with many requests, that come \
                 and go all the time (0.5 s on average)"
            }
            Self::Stalled => "as `cheap`; each second another worker stalls for 400 ms",
            Self::OneAtATime => {
                "as `mixed`; a worker accepts one connection, serves it, and only then the next"
            }
            Self::IdleKeepAlive => {
                "10 ms a request on average (exponential), a connection each; two of the four \
                 workers hold 50 idle connections each"
            }
        }
    }

    pub(crate) fn way(self) -> Way {
        if self == Self::OneAtATime { Way::OneAtATime } else { Way::Loop }
    }

    /// Whether some workers hold idle connections ([`crate::idle`]).
    pub(crate) fn has_idle_connections(self) -> bool {
        self == Self::IdleKeepAlive
    }

    /// What workers are occupied for by a request, without what accepting and answering take.
    pub(crate) fn mean_cost(self) -> Duration {
        match self {
            Self::Mixed | Self::OneAtATime => {
                CHEAPEST.mul_f64(1.0 - COSTLY_SHARE) + COSTLY.mul_f64(COSTLY_SHARE)
            }
            Self::IdleKeepAlive => SHORT,
            _ => CHEAP,
        }
    }

    fn cost(self, random: &mut fastrand::Rng) -> Duration {
        match self {
            Self::Mixed | Self::OneAtATime if random.f64() < COSTLY_SHARE => COSTLY,
            Self::Mixed | Self::OneAtATime => CHEAPEST,
            Self::IdleKeepAlive => {
                Duration::from_secs_f64(exponential(SHORT.as_secs_f64(), random))
            }
            _ => CHEAP,
        }
    }

    /// Requests at random moments (a Poisson process), `rate` a second for `time`.
    pub(crate) fn requests(self, rate: f64, time: Duration, seed: u64) -> Vec<Request> {
        let mut random = fastrand::Rng::with_seed(seed);
        if self == Self::Lasting {
            return lasting(rate, time.as_secs_f64(), &mut random);
        }
        let moments = moments(rate, 0.0, time.as_secs_f64(), &mut random);
        let requests = moments.into_iter().enumerate().map(|(connection, at)| Request {
            at: Duration::from_secs_f64(at),
            connection,
            cost: self.cost(&mut random),
            last: true,
        });
        requests.collect()
    }

    /// The stalls of a run of that length after a warm-up: those of another run begin with
    /// another worker.
    pub(crate) fn stalls(self, warm_up: Duration, time: Duration, run: u32) -> Vec<Stall> {
        if self != Self::Stalled {
            return Vec::new();
        }
        let first = warm_up + time.min(BETWEEN_STALLS).mul_f64(0.3);
        let mut stalls = Vec::new();
        for n in 0.. {
            let at = first + BETWEEN_STALLS * n;
            if at >= warm_up + time {
                break;
            }
            stalls.push(Stall { worker: (n + run) as usize, at, length: STALL });
        }
        stalls
    }
}

/// When something happens that happens at random, `rate` times a second.
fn moments(rate: f64, from: f64, until: f64, random: &mut fastrand::Rng) -> Vec<f64> {
    let mut moments = Vec::new();
    let mut at = from + exponential(1.0 / rate, random);
    while at < until {
        moments.push(at);
        at += exponential(1.0 / rate, random);
    }
    moments
}

fn exponential(mean: f64, random: &mut fastrand::Rng) -> f64 {
    -mean * (1.0 - random.f64()).ln()
}

/// As many connections at a time as ever, each of which asks at the same rate until it ends.
fn lasting(rate: f64, time: f64, random: &mut fastrand::Rng) -> Vec<Request> {
    let births = LASTING as f64 / LIFETIME;
    // A connection asks as soon as it is there, and then at random.
    let each = ((rate - births) / LASTING as f64).max(1.0);
    // Those that are there from the start come one by one within a tenth of a second.
    let mut born: Vec<f64> = (0..LASTING).map(|_| 0.1 * random.f64()).collect();
    born.extend(moments(births, 0.0, time, random));
    let mut requests = Vec::new();
    for (connection, born) in born.into_iter().enumerate() {
        let end = (born + exponential(LIFETIME, random)).min(time);
        let mut asked = vec![born];
        asked.extend(moments(each, born, end, random));
        let count = asked.len();
        requests.extend(asked.into_iter().enumerate().map(|(n, at)| Request {
            at: Duration::from_secs_f64(at),
            connection,
            cost: CHEAP,
            last: n + 1 == count,
        }));
    }
    requests.sort_by_key(|request| request.at);
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_at_the_rate_and_cost_what_they_should() {
        for traffic in Traffic::ALL {
            let requests = traffic.requests(2_000.0, Duration::from_secs(20), 1);
            let rate = requests.len() as f64 / 20.0;
            assert!((1_900.0..2_100.0).contains(&rate), "{traffic:?}: {rate}");
            assert!(requests.is_sorted_by_key(|request| request.at), "{traffic:?}");
            let cost: Duration = requests.iter().map(|request| request.cost).sum();
            let ratio = (cost / u32::try_from(requests.len()).unwrap()).as_secs_f64()
                / traffic.mean_cost().as_secs_f64();
            assert!((0.95..1.05).contains(&ratio), "{traffic:?}: {ratio}");
        }
    }

    #[test]
    fn each_connection_has_one_last_request() {
        for traffic in Traffic::ALL {
            let requests = traffic.requests(1_000.0, Duration::from_secs(3), 2);
            let mut ended = std::collections::HashSet::new();
            for request in &requests {
                assert!(!ended.contains(&request.connection), "{traffic:?}: {request:?}");
                if request.last {
                    ended.insert(request.connection);
                }
            }
            assert!(requests.iter().all(|request| ended.contains(&request.connection)));
        }
    }
}
