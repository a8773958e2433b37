//! The signals that whoever started this process lets it ignore.

use nix::sys::signal::Signal;

use crate::error::{Error, Result};

/// A set of signals: bit 0 is signal 1.
#[derive(Debug)]
pub struct Ignored(u64);

impl Ignored {
    /// Those of this process, from /proc: to ask the kernel by `sigaction(2)` is unsafe.
    pub fn read() -> Result<Self> {
        let path = "/proc/self/status";
        let failed = |why: &str| Error::Unreadable { path, why: why.to_owned() };
        let status = std::fs::read_to_string(path).map_err(|error| failed(&error.to_string()))?;
        Self::parse(&status).ok_or_else(|| failed("it has no SigIgn"))
    }

    fn parse(status: &str) -> Option<Self> {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(mask.trim(), 16).ok().map(Self)
    }

    /// Whether a signal is among them.
    #[must_use]
    pub fn contains(&self, signal: Signal) -> bool {
        self.0 & (1 << (signal as u32 - 1)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signals_are_read_from_the_mask() {
        let ignored = Ignored::parse("SigBlk:\t0000000000000000\nSigIgn:\t0000000000010001\n");
        let ignored = ignored.unwrap();
        let all = Signal::iterator().filter(|&signal| ignored.contains(signal));
        assert_eq!(all.collect::<Vec<_>>(), [Signal::SIGHUP, Signal::SIGCHLD]);
        assert!(Ignored::parse("Name:\toverspill\n").is_none());
    }
}
