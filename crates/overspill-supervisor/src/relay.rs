//! The relay: a process beside the supervisor that passes on what the workers write, line by
//! line, so that it can be told who wrote it.
//!
//! The workers outlive a supervisor that was killed, and who reads their pipes has to as
//! well: a process that writes to a pipe that nobody reads is ended by SIGPIPE. Each process
//! of a worker gets pipes of its own: where its last line breaks off, the end of the pipe
//! says so.

mod lines;
mod message;
mod process;

use std::fs::File;
use std::io::{self, IoSlice, PipeReader, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, fchown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::unistd::Uid;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::error::{Error, Result};
pub use message::Args;
use message::Number;
pub use process::run;

/// How long to wait for those who read the output.
const PATIENCE: Duration = Duration::from_secs(2);

/// How what the workers write comes out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Each line with the worker's number before it; to the worker it is a pipe
    #[default]
    Prefixed,
    /// The workers' stdout and stderr are those of overspill run
    AsIs,
}

/// What the workers write to. At its end it waits, not for long, until all that they have
/// written is passed on.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where stdout and stderr go. Where both go to the same place it is one, so that their
    /// lines are not mixed; where not, nobody waits for the other's reader.
    places: Vec<Place>,
    workers: usize,
    output: Output,
    owner: Option<Uid>,
}

/// A relay's process, and the socket on which it gets its pipes.
#[derive(Debug)]
struct Place {
    to: OwnedFd,
    workers: usize,
    process: Child,
    socket: UnixStream,
}

impl Relay {
    /// Starts what is needed: nothing where the output stays as it is. The pipes are the
    /// owner's, who may want to open /dev/stdout.
    pub(crate) fn start(output: Output, workers: usize, owner: Option<Uid>) -> Result<Self> {
        let mut relay = Self { places: Vec::new(), workers, output, owner };
        relay.change(output, owner)?;
        Ok(relay)
    }

    /// What is started from now on writes in this way. Who writes in another goes on.
    pub(crate) fn change(&mut self, output: Output, owner: Option<Uid>) -> Result<()> {
        if output == Output::Prefixed && self.places.is_empty() {
            self.places = Self::places(self.workers).map_err(|error| {
                let operation = "start passing on the output of workers";
                Error::helped(operation, error, "; try --output as-is")
            })?;
        }
        (self.output, self.owner) = (output, owner);
        Ok(())
    }

    fn places(workers: usize) -> io::Result<Vec<Place>> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let mut to = vec![stdout];
        if identity(&to[0])? != identity(&stderr)? {
            to.push(stderr);
        }
        to.into_iter().map(|to| Place::start(to, workers)).collect()
    }

    /// Its processes. They go on without it, until nobody writes to their pipes any more.
    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        self.places.iter().map(|place| place.process.id())
    }

    /// stdout and stderr for a process of this worker.
    pub(crate) fn outputs(&mut self, worker: usize) -> io::Result<[Stdio; 2]> {
        let owner = self.owner;
        match &mut self.places[..] {
            _ if self.output == Output::AsIs => Ok([Stdio::inherit(), Stdio::inherit()]),
            [] => unreachable!("it is started where there are to be prefixes"),
            [both] => Ok([both.pipe(worker, owner)?, both.pipe(worker, owner)?]),
            [stdout, stderr, ..] => Ok([stdout.pipe(worker, owner)?, stderr.pipe(worker, owner)?]),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let until = Instant::now() + PATIENCE;
        // They all learn it before one is waited for.
        for place in &self.places {
            let _ = place.socket.shutdown(Shutdown::Write);
        }
        for place in &mut self.places {
            place.wait(until);
        }
    }
}

impl Place {
    fn start(to: OwnedFd, workers: usize) -> io::Result<Self> {
        let (socket, stdin) = UnixStream::pair()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let process = Command::new("/proc/self/exe")
            .arg0("overspill")
            .args(["relay", "--workers", &workers.to_string()])
            .stdin(OwnedFd::from(stdin))
            .stdout(to.try_clone()?)
            .spawn()?;
        Ok(Self { to, workers, process, socket })
    }

    /// A new pipe for a worker, which the relay reads.
    fn pipe(&mut self, worker: usize, owner: Option<Uid>) -> io::Result<Stdio> {
        let (reader, writer) = io::pipe()?;
        if let Some(owner) = owner {
            // Who may not give it away may not become that user either, and is told so.
            let _ = fchown(&writer, Some(owner.as_raw()), None);
        }
        match self.hand_over(worker, &reader) {
            // Somebody has killed it, and with that every worker that wrote something.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.process.wait()?;
                *self = Self::start(self.to.try_clone()?, self.workers)?;
                self.hand_over(worker, &reader)?;
            }
            handed_over => handed_over?,
        }
        Ok(writer.into())
    }

    fn hand_over(&self, worker: usize, pipe: &PipeReader) -> io::Result<()> {
        let number = Number::try_from(worker).expect("a worker's number is small").to_ne_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let pipes = [pipe.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&pipes)), "there is room for one");
        sendmsg(&self.socket, &[IoSlice::new(&number)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits until it has passed on all that there is.
    fn wait(&mut self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let _ = self.socket.set_read_timeout(Some(left));
        let _ = self.socket.read(&mut [0]);
        // What goes on, as a process that a worker left behind still may write, ends by itself.
        let _ = self.process.try_wait();
    }
}

/// What tells files apart.
fn identity(descriptor: &OwnedFd) -> io::Result<(u64, u64)> {
    let metadata = File::from(descriptor.try_clone()?).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
