//! The clock of the kernel programs.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock, which the kernel programs read too.
pub(crate) fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let duration = Duration::try_from(time).expect("it begins at zero");
    u64::try_from(duration.as_nanos()).expect("some centuries")
}
