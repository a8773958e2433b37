//! What the clients' waits amount to. Nothing here touches anything outside.

use std::time::Duration;

use super::load::Visit;

/// From here on a client has waited long: the kernel dropped its first request, and it
/// asked again, which it does after a second.
pub(super) const LONG: Duration = Duration::from_secs(1);

/// A load in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) clients: usize,
    /// Clients that gave up without an answer.
    pub(super) failed: usize,
    /// Clients that were answered, but only after [`LONG`].
    pub(super) late: usize,
    /// How long clients waited for the answer, or until they gave up: half of them ...
    pub(super) median: Duration,
    /// ... 99 of 100 of them ...
    pub(super) p99: Duration,
    /// ... and all of them at most.
    pub(super) longest: Duration,
}

/// Sums up what became of the clients.
pub(super) fn summarise(visits: &[Visit]) -> Summary {
    let mut waits: Vec<Duration> = visits.iter().map(|visit| visit.waited).collect();
    waits.sort_unstable();
    let late = |visit: &&Visit| visit.answer.is_some() && visit.waited >= LONG;
    Summary {
        clients: visits.len(),
        failed: visits.iter().filter(|visit| visit.answer.is_none()).count(),
        late: visits.iter().filter(late).count(),
        median: percentile(&waits, 50),
        p99: percentile(&waits, 99),
        longest: percentile(&waits, 100),
    }
}

/// The smallest of the sorted values that `percent` of them do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::demo::load::Answer;

    fn visit(milliseconds: u64, answered: bool) -> Visit {
        let answer = answered.then(|| Answer { server: "a".to_owned(), address: None });
        Visit { waited: Duration::from_millis(milliseconds), answer }
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let waits: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&waits, 50), Duration::from_millis(100));
        assert_eq!(percentile(&waits, 99), Duration::from_millis(198));
        assert_eq!(percentile(&waits, 100), Duration::from_millis(200));
        assert_eq!(percentile(&waits[..1], 50), Duration::from_millis(1));
        assert_eq!(percentile(&waits[..3], 99), Duration::from_millis(3));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[test]
    fn failed_and_late_clients_are_told_apart() {
        let visits = [visit(2000, false), visit(1001, true), visit(5, true), visit(3, true)];
        let summary = summarise(&visits);
        assert_eq!((summary.clients, summary.failed, summary.late), (4, 1, 1));
        assert_eq!(summary.median, Duration::from_millis(5));
        assert_eq!(summary.longest, Duration::from_secs(2));
    }
}
