//! What libbpf and the kernel's verifier say when a program is loaded.
//!
//! libbpf hands out errors as numbers and prints the reason. `EACCES` from the verifier and
//! `EACCES` for lack of a privilege are the same number (`kernel/bpf/verifier.c`,
//! `kernel/bpf/syscall.c`); only the text tells them apart.

use std::cell::RefCell;
use std::thread;
use std::time::Duration;

use libbpf_rs::PrintLevel;

use crate::error::{Error, Result};
use crate::sys;

thread_local! {
    /// What libbpf has warned of on this thread, while `listen` runs.
    static HEARD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps libbpf from writing to standard error: its errors carry the text instead.
/// Called before anything else is asked of libbpf.
pub(super) fn hush() {
    libbpf_rs::set_print(Some((PrintLevel::Warn, |level, text| hear(level, &text))));
}

fn hear(level: PrintLevel, text: &str) {
    if level == PrintLevel::Warn {
        HEARD.with_borrow_mut(|heard| heard.iter_mut().for_each(|heard| heard.push_str(text)));
    }
}

/// Runs `act`, and returns what libbpf said meanwhile.
pub(super) fn listen<T>(act: impl FnOnce() -> T) -> (T, String) {
    HEARD.set(Some(String::new()));
    let done = act();
    (done, HEARD.take().unwrap_or_default())
}

/// Loads an object; the error says whether the verifier refused a program, and which.
pub(super) fn load<T>(
    object: &'static str,
    load: impl FnOnce() -> libbpf_rs::Result<T>,
) -> Result<T> {
    let (loaded, said) = listen(|| sys::without_signals(load));
    loaded.map_err(|error| match Refusal::read(&said) {
        // The verifier was interrupted (EAGAIN); the caller tries again.
        Some(_) if error.kind() == libbpf_rs::ErrorKind::WouldBlock => {
            Error::bpf("load", object, error)
        }
        Some(Refusal { program, verdict }) => Error::Refused { program, verdict },
        None => Error::bpf("load", object, error),
    })
}

/// How often loading is tried; the pause before the last attempt is half a second.
const ATTEMPTS: u32 = 10;

/// Loads again after EAGAIN: the verifier stops when a signal is pending
/// (`kernel/bpf/verifier.c`, `do_check`). libbpf's own five attempts were seen to be too few on
/// a busy machine. Nothing has been made until then.
pub(super) fn retried<T>(mut load: impl FnMut() -> Result<T>) -> Result<T> {
    let again = |error: &Error| match error {
        Error::Bpf { source, .. } => source
            .downcast_ref::<libbpf_rs::Error>()
            .is_some_and(|error| error.kind() == libbpf_rs::ErrorKind::WouldBlock),
        _ => false,
    };
    for attempt in 1..ATTEMPTS {
        match load() {
            Err(error) if again(&error) => thread::sleep(Duration::from_millis(1 << attempt)),
            result => return result,
        }
    }
    load()
}

/// A program that the verifier refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) program: String,
    /// The last lines of the verifier's log.
    pub(super) verdict: String,
}

impl Refusal {
    /// Finds it in what libbpf said.
    pub(super) fn read(said: &str) -> Option<Self> {
        let (before, log) = said.split_once("-- BEGIN PROG LOAD LOG --")?;
        let (_, name) = before.rsplit_once("prog '")?;
        let (log, _) = log.split_once("-- END PROG LOAD LOG --").unwrap_or((log, ""));
        let program = name.split('\'').next()?.to_owned();
        Some(Self { program, verdict: last_lines(log)? })
    }
}

/// What a log says in the end, as one line: since 7.3 the reason that it gives, before the last
/// lines without the statistics that follow them.
pub(super) fn last_lines(text: &str) -> Option<String> {
    const LINES: usize = 3;
    const STATISTICS: [&str; 4] =
        ["processed ", "verification time ", "stack depth ", "peak_states "];
    let is_statistic = |line: &&str| STATISTICS.iter().any(|it| line.starts_with(it));
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !is_statistic(line)).map(str::to_owned).collect()
    };
    let last = if let Some((_, reason)) = text.rsplit_once("\nReason:\n") {
        lines(reason.split("\n\n").next().unwrap_or(reason))
    } else {
        let all = lines(text);
        all[all.len().saturating_sub(LINES)..].to_vec()
    };
    let words = last.join(" | ").split_whitespace().collect::<Vec<_>>().join(" ");
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_is_quoted_where_it_ends() {
        let said = "libbpf: prog 'x': BPF program load failed: Permission denied\n\
                    libbpf: prog 'x': -- BEGIN PROG LOAD LOG --\n\
                    0: R1=ctx() R10=fp0\n; int i = 0;\n1: (b7) r0 = 0\n\
                    R0 invalid mem access 'scalar'\n\
                    processed 12 insns (limit 1000000)\n\
                    -- END PROG LOAD LOG --\nlibbpf: prog 'x': failed to load: -13\n";
        let verdict = "; int i = 0; | 1: (b7) r0 = 0 | R0 invalid mem access 'scalar'";
        let refusal = Refusal { program: "x".to_owned(), verdict: verdict.to_owned() };
        assert_eq!(Refusal::read(said), Some(refusal));
        assert_eq!(Refusal::read("libbpf: failed to create map\n"), None);
    }

    #[test]
    fn a_log_that_gives_its_reason_is_quoted_there() {
        let log = "149: (85) call bpf_probe_read#4\n\
                   program of this type cannot use helper bpf_probe_read#4\n\n\
                   Verification failed: Policy: Operation is not allowed\n\n\
                   Reason:\n  The helper bpf_probe_read#4 is not allowed.\n\n\
                   At:\n  migrate @ connections.h:202:12\n\n\
                   Suggestion:\n  Use another.\n\nprocessed 271 insns (limit 1000000)\n";
        let reason = "The helper bpf_probe_read#4 is not allowed.";
        assert_eq!(last_lines(log).as_deref(), Some(reason));
    }

    #[test]
    fn libbpf_is_heard_only_on_the_thread_that_listens() {
        let ((), said) = listen(|| {
            hear(PrintLevel::Warn, "one ");
            hear(PrintLevel::Info, "two ");
            std::thread::spawn(|| hear(PrintLevel::Warn, "three ")).join().expect("it ends");
            hear(PrintLevel::Warn, "four");
        });
        assert_eq!(said, "one four");
    }
}
