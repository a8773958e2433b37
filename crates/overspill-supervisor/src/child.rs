//! A child process, by its number: that of one that was started by this build of the program or,
//! before it handed over, by an earlier one.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, waitid, waitpid};

use crate::error::Result;
use crate::threads::start_thread;

/// A child. Until it is reaped, its number stands for no other process.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    /// How it ended, once it is reaped.
    ended: Option<ExitStatus>,
}

impl Child {
    /// A child that is not reaped yet, by its number.
    pub(crate) fn numbered(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        Some(Self { pid, ended: None })
    }

    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Reaps it if it has ended, and says how it has.
    pub(crate) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(WaitOptions::NOHANG)
    }

    /// Waits until it has ended, and reaps it.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        let ended = self.reap(WaitOptions::empty())?;
        ended.ok_or_else(|| io::Error::other("the kernel names no process that has ended"))
    }

    /// Calls this when it ends, and leaves it to be reaped.
    pub(crate) fn watch_end(&self, ended: impl FnOnce() + Send + 'static) -> Result<()> {
        let pid = self.pid;
        start_thread(move || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(pid), options), Err(Errno::INTR)) {}
            ended();
        })
    }

    /// Whether it has ended, reaped or not.
    pub(crate) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        self.ended.is_some()
            || waitid(WaitId::Pid(self.pid), options).is_ok_and(|ended| ended.is_some())
    }

    fn reap(&mut self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        while self.ended.is_none() {
            match waitpid(Some(self.pid), options) {
                Ok(ended) => {
                    let Some((_, status)) = ended else { return Ok(None) };
                    self.ended = Some(ExitStatus::from_raw(status.as_raw()));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.ended)
    }
}

impl From<std::process::Child> for Child {
    fn from(child: std::process::Child) -> Self {
        Self::numbered(child.id()).expect("the number of a process is positive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn it_is_reaped_once_and_its_status_is_kept() {
        let child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let mut process = Child::from(child);
        assert_eq!(process.wait().unwrap().code(), Some(7));
        assert_eq!(process.try_wait().unwrap().and_then(|it| it.code()), Some(7));
        let mut again = Child::numbered(process.id()).unwrap();
        assert!(again.try_wait().is_err(), "it is no child any more");
    }

    #[test]
    fn zero_is_no_process() {
        assert!(Child::numbered(0).is_none());
    }
}
