//! What a supervisor tells: one line an event, on stderr.
//!
//! A thread of its own writes them. Where nobody reads them in time they are lost, and counted;
//! the supervisor goes on.

use std::fmt;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::error::Error;
use crate::threads::start_thread;

/// How many lines may wait to be read.
const LINES: usize = 1024;
/// After this time, what still fails is told again.
const AGAIN: Duration = Duration::from_secs(60);
/// How long the last lines may take to be read in the end.
const PATIENCE: Duration = Duration::from_secs(1);

static WRITER: OnceLock<Option<SyncSender<Item>>> = OnceLock::new();
static TROUBLES: Mutex<Troubles> = Mutex::new(Troubles::new());
static LOST: AtomicU64 = AtomicU64::new(0);

enum Item {
    Line(String),
    /// All before it is written.
    Mark(SyncSender<()>),
}

/// Tells something. It waits for nobody.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let line = format!("overspill: {text}\n");
    match writer() {
        Some(writer) => {
            if let Err(TrySendError::Full(_)) = writer.try_send(Item::Line(line)) {
                LOST.fetch_add(1, Ordering::Relaxed);
            }
        }
        None => write(&line),
    }
}

/// Tells of something that failed and is of no consequence.
pub(crate) fn tell(error: overspill::Error) {
    trouble(&Error::from(error).to_string());
}

/// Tells of something that failed and is tried again and again. The same is told once a while.
pub(crate) fn trouble(why: &str) {
    if TROUBLES.lock().unwrap_or_else(PoisonError::into_inner).is_new(why, Instant::now()) {
        line(format_args!("{why}"));
    }
}

/// What has failed lately, and since when it was not told.
struct Troubles(Vec<(String, Instant)>);

impl Troubles {
    const fn new() -> Self {
        Self(Vec::new())
    }

    fn is_new(&mut self, why: &str, now: Instant) -> bool {
        self.0.retain(|(_, told)| now.duration_since(*told) < AGAIN);
        let is_new = self.0.iter().all(|(known, _)| known != why);
        if is_new && self.0.len() < LINES {
            self.0.push((why.to_owned(), now));
        }
        is_new
    }
}

/// Waits until all that was told is written, but not for long.
pub(crate) fn flush() {
    let (sender, written) = sync_channel(1);
    if let Some(Some(writer)) = WRITER.get()
        && writer.try_send(Item::Mark(sender)).is_ok()
    {
        let _ = written.recv_timeout(PATIENCE);
    }
}

fn writer() -> Option<&'static SyncSender<Item>> {
    let start = || {
        let (sender, items) = sync_channel(LINES);
        start_thread(move || write_all(&items)).ok().map(|()| sender)
    };
    WRITER.get_or_init(start).as_ref()
}

fn write_all(items: &Receiver<Item>) {
    while let Ok(item) = items.recv() {
        match item {
            Item::Line(line) => write(&line),
            Item::Mark(written) => {
                let _ = written.send(());
            }
        }
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            write(&format!("overspill: {lost} lines are lost: nobody has read stderr in time\n"));
        }
    }
}

/// Writes a line in one piece, so that what the workers write comes before or after it. That
/// nobody reads it any more is no reason to end.
fn write(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
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
    counted(count, "worker", "s")
}

/// "1 process", "2 processes".
pub(crate) fn processes(count: usize) -> String {
    counted(count, "process", "es")
}

/// "1 connection", "2 connections".
pub(crate) fn connections(count: usize) -> String {
    counted(count, "connection", "s")
}

fn counted(count: usize, noun: &str, plural: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { plural })
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
    fn the_same_trouble_is_told_once_a_while() {
        let (mut troubles, now) = (Troubles::new(), Instant::now());
        assert!(troubles.is_new("one", now));
        assert!(troubles.is_new("two", now));
        assert!(!troubles.is_new("one", now + AGAIN / 2));
        assert!(troubles.is_new("one", now + AGAIN));
        assert!(!troubles.is_new("one", now + AGAIN));
    }

    #[test]
    fn endings_are_told_by_status_or_signal() {
        assert_eq!(ending(ExitStatus::from_raw(3 << 8)), "ended with status 3");
        assert_eq!(ending(ExitStatus::from_raw(9)), "was ended by SIGKILL");
        assert_eq!(ending(ExitStatus::from_raw(64)), "was ended by signal 64");
    }
}
