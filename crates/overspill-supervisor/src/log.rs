//! What the supervisor tells: one line an event, on stderr.

use std::fmt;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

/// Writes a line. That nobody reads it any more is no reason to end.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    // In one piece, so that what the workers write comes before or after it.
    let _ = std::io::stderr().write_all(format!("overspill: {text}\n").as_bytes());
}

/// How a process ended, to follow its name.
pub(crate) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by {}", signal_name(signal)),
        (None, None) => format!("ended ({status})"),
    }
}

fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |it| it.to_string())
}

/// When a start after that pause takes place.
pub(crate) fn after(pause: Duration) -> String {
    match pause.as_millis() {
        0 => "now".to_owned(),
        milliseconds @ 1..1000 => format!("in {milliseconds} ms"),
        _ => format!("in {} s", pause.as_secs_f64()),
    }
}

/// "1 worker", "2 workers".
pub(crate) fn workers(count: usize) -> String {
    format!("{count} worker{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_told_in_their_unit() {
        let told = |milliseconds| after(Duration::from_millis(milliseconds));
        assert_eq!(
            [told(0), told(100), told(1600), told(10_000)],
            ["now", "in 100 ms", "in 1.6 s", "in 10 s"]
        );
    }

    #[test]
    fn endings_are_told_by_status_or_signal() {
        assert_eq!(ending(ExitStatus::from_raw(3 << 8)), "ended with status 3");
        assert_eq!(ending(ExitStatus::from_raw(9)), "was ended by SIGKILL");
        assert_eq!(ending(ExitStatus::from_raw(64)), "was ended by signal 64");
    }
}
