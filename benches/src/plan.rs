//! How long to measure.

use std::time::Duration;

/// The sizes of a run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) seed: u64,
    pub(crate) capacity_rounds: u32,
    pub(crate) hang_rounds: u32,
    /// How long new clients arrive while a worker hangs.
    pub(crate) hang_arrivals: Duration,
    pub(crate) hang_backlogs: &'static [u32],
    pub(crate) decision_rounds: u32,
    pub(crate) decision_sizes: &'static [u32],
    /// Real requests for each figure.
    pub(crate) decision_requests: u32,
    /// How long a program runs for each figure.
    pub(crate) decision_repeat: Duration,
    pub(crate) rate_rounds: u32,
    /// How long clients connect for each figure.
    pub(crate) rate_time: Duration,
}

impl Plan {
    /// For figures to be believed.
    pub(crate) fn full() -> Self {
        Self {
            quick: false,
            seed: 1,
            capacity_rounds: 20,
            hang_rounds: 5,
            hang_arrivals: Duration::from_secs(3),
            hang_backlogs: &[16, 511],
            decision_rounds: 7,
            decision_sizes: &[1, 4, 16, 64, 256, 1024, 4096],
            decision_requests: 500,
            decision_repeat: Duration::from_millis(2),
            rate_rounds: 100,
            rate_time: Duration::from_millis(200),
        }
    }

    /// To see that all still runs.
    pub(crate) fn quick() -> Self {
        Self {
            quick: true,
            capacity_rounds: 2,
            hang_rounds: 1,
            hang_arrivals: Duration::from_millis(400),
            decision_rounds: 3,
            decision_sizes: &[1, 4, 64],
            decision_requests: 50,
            decision_repeat: Duration::from_micros(500),
            rate_rounds: 5,
            rate_time: Duration::from_millis(50),
            ..Self::full()
        }
    }
}
