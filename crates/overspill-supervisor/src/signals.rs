//! The signals that a supervisor acts on. They are blocked in all its threads and taken one by
//! one; one that is ignored (`nohup`) stays ignored.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Error, Result};
use crate::ignored::Ignored;
use crate::threads::start_thread;

/// The thread that takes signals.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signals(Arc<Mutex<()>>);

impl Signals {
    /// Blocks them, and hands each on until that returns false.
    pub(crate) fn watch(
        ignored: &Ignored,
        hand_on: impl Fn(Signal) -> bool + Send + 'static,
    ) -> Result<Self> {
        let known = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
        // A blocked signal would be taken even where it is ignored.
        let signals: SigSet = known.into_iter().filter(|&it| !ignored.contains(it)).collect();
        let failed = |error| Error::system("wait for signals", error);
        signals.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let source = SignalFd::with_flags(&signals, flags).map_err(failed)?;
        let own = Self::default();
        let gate = own.clone();
        start_thread(move || while gate.take_one(&source, &hand_on) {})?;
        Ok(own)
    }

    /// Waits for a signal, and hands it on. False where nobody listens.
    fn take_one(&self, source: &SignalFd, hand_on: &impl Fn(Signal) -> bool) -> bool {
        // EINTR is as good as a signal: the read says that there is none.
        let _ = poll(&mut [PollFd::new(&source.as_fd(), PollFlags::IN)], None);
        let _gate = self.hold();
        match source.read_signal() {
            Ok(Some(taken)) => {
                let number = i32::try_from(taken.ssi_signo).ok();
                number.and_then(|it| Signal::try_from(it).ok()).is_none_or(hand_on)
            }
            Ok(None) | Err(_) => true,
        }
    }

    /// While this is held, no signal is taken: what comes stays with the process.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
