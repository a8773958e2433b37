//! When each worker is started again, and whose members drain meanwhile. Nothing here
//! touches a process or a clock.

use std::time::{Duration, Instant};

/// The pause before the second start in a row; each later one is twice as long.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// The longest pause of a worker that has listened: clients wait for it, and it came as far
/// as that.
const LONGEST_OF_SERVERS: Duration = Duration::from_millis(200);
/// A worker that has run this long has run well: its next start is a first one.
const WELL: Duration = Duration::from_secs(10);

/// The workers, by number.
#[derive(Debug)]
pub(crate) struct Crew(Vec<Worker>);

#[derive(Debug, Clone)]
struct Worker {
    phase: Phase,
    /// How long it waited before its last start: it has to run as long to be trusted.
    paused: Duration,
    /// How long it waits when it ends next without having run well.
    pause: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Running { since: Instant },
    Waiting { until: Instant },
}

/// How likely a request finds a worker that takes it, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    Waits,
    RunsAnew,
    Runs,
}

impl Worker {
    fn trust(&self, now: Instant) -> Trust {
        match self.phase {
            Phase::Waiting { .. } => Trust::Waits,
            Phase::Running { since } if now < since + self.paused => Trust::RunsAnew,
            Phase::Running { .. } => Trust::Runs,
        }
    }
}

impl Crew {
    /// All wait for their first start, which is due.
    pub(crate) fn new(workers: usize, now: Instant) -> Self {
        let worker = Worker {
            phase: Phase::Waiting { until: now },
            paused: Duration::ZERO,
            pause: Duration::ZERO,
        };
        Self(vec![worker; workers])
    }

    /// A worker that is to be started now.
    pub(crate) fn due(&self, now: Instant) -> Option<usize> {
        self.0
            .iter()
            .position(|worker| matches!(worker.phase, Phase::Waiting { until } if until <= now))
    }

    /// When there is something to do next: a start, or a worker that is trusted again.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Instant> {
        let changes = self.0.iter().filter_map(|worker| match worker.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Running { since } => Some(since + worker.paused).filter(|&at| at > now),
        });
        changes.min()
    }

    pub(crate) fn started(&mut self, worker: usize, now: Instant) {
        self.0[worker].phase = Phase::Running { since: now };
    }

    /// Notes that a worker that has listened by itself ended, and gives the pause before its
    /// next start.
    pub(crate) fn server_ended(&mut self, worker: usize, now: Instant) -> Duration {
        let longest = LONGEST_OF_SERVERS;
        self.0[worker].pause = self.0[worker].pause.min(longest);
        self.ended(worker, now)
    }

    /// Notes that a worker ended, and gives the pause before its next start.
    pub(crate) fn ended(&mut self, worker: usize, now: Instant) -> Duration {
        let worker = &mut self.0[worker];
        if let Phase::Running { since } = worker.phase
            && now.duration_since(since) >= WELL
        {
            worker.pause = Duration::ZERO;
        }
        let pause = worker.pause;
        worker.phase = Phase::Waiting { until: now + pause };
        worker.paused = pause;
        worker.pause = (pause * 2).clamp(SHORTEST, LONGEST);
        pause
    }

    /// Whose members are to drain: those of the workers that wait, or run for less long than
    /// they waited and may end at once again, while another can be trusted more. Where none
    /// runs, none drains: requests wait in all queues for whoever is back first, instead of
    /// being refused.
    pub(crate) fn draining(&self, now: Instant) -> Vec<bool> {
        let trust: Vec<Trust> = self.0.iter().map(|worker| worker.trust(now)).collect();
        let most = trust.iter().max();
        trust.iter().map(|own| Some(own) < most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crew whose workers were all started at `now`.
    fn running(workers: usize, now: Instant) -> Crew {
        let mut crew = Crew::new(workers, now);
        for worker in 0..workers {
            assert_eq!(crew.due(now), Some(worker));
            crew.started(worker, now);
        }
        crew
    }

    #[test]
    fn the_pauses_grow_to_a_limit() {
        let now = Instant::now();
        let mut crew = running(1, now);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            pauses.push(crew.ended(0, now).as_millis());
            crew.started(0, now);
        }
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn the_pauses_of_servers_stay_short() {
        let now = Instant::now();
        let mut crew = running(1, now);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pauses.push(crew.server_ended(0, now).as_millis());
            crew.started(0, now);
        }
        assert_eq!(pauses, [0, 100, 200, 200, 200, 200]);
        assert_eq!(crew.ended(0, now).as_millis(), 400, "if it does not come as far any more");
    }

    #[test]
    fn a_worker_that_ran_well_is_started_at_once() {
        let now = Instant::now();
        let mut crew = running(1, now);
        for _ in 0..5 {
            crew.ended(0, now);
            crew.started(0, now);
        }
        assert_eq!(crew.ended(0, now + WELL / 2), SHORTEST * 16);
        crew.started(0, now);
        assert_eq!(crew.ended(0, now + WELL), Duration::ZERO);
        crew.started(0, now);
        assert_eq!(crew.ended(0, now), SHORTEST);
    }

    #[test]
    fn a_start_is_due_when_its_pause_is_over() {
        let now = Instant::now();
        let mut crew = running(2, now);
        assert_eq!((crew.due(now), crew.next_change(now)), (None, None));
        crew.ended(1, now);
        assert_eq!(crew.due(now), Some(1));
        crew.started(1, now);
        crew.ended(1, now);
        assert_eq!((crew.due(now), crew.next_change(now)), (None, Some(now + SHORTEST)));
        assert_eq!(crew.due(now + SHORTEST), Some(1));
    }

    #[test]
    fn waiting_workers_drain_only_while_another_runs() {
        let now = Instant::now();
        let mut crew = running(3, now);
        assert_eq!(crew.draining(now), [false, false, false]);
        crew.ended(0, now);
        assert_eq!(crew.draining(now), [true, false, false]);
        crew.ended(2, now);
        assert_eq!(crew.draining(now), [true, false, true]);
        crew.ended(1, now);
        assert_eq!(crew.draining(now), [false, false, false]);
        crew.started(2, now);
        assert_eq!(crew.draining(now), [true, true, false]);
    }

    #[test]
    fn a_worker_that_waited_drains_until_it_has_run_as_long() {
        let now = Instant::now();
        let mut crew = running(2, now);
        crew.ended(0, now);
        crew.started(0, now);
        assert_eq!(crew.draining(now), [false, false], "it did not wait");
        assert_eq!(crew.ended(0, now), SHORTEST);
        let started = now + SHORTEST;
        crew.started(0, started);
        let trusted = started + SHORTEST;
        assert_eq!(crew.draining(started), [true, false]);
        assert_eq!(crew.next_change(started), Some(trusted));
        assert_eq!(crew.draining(trusted), [false, false]);
        assert_eq!(crew.next_change(trusted), None);
    }

    #[test]
    fn a_worker_that_waited_never_drains_as_the_last_one() {
        let now = Instant::now();
        let mut crew = running(2, now);
        for worker in [0, 1] {
            crew.ended(worker, now);
            crew.started(worker, now);
            assert_eq!(crew.ended(worker, now), SHORTEST);
        }
        crew.started(0, now);
        assert_eq!(crew.draining(now), [false, true]);
        crew.started(1, now);
        assert_eq!(crew.draining(now), [false, false]);
    }
}
