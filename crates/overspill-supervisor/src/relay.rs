//! The relay: a process beside the supervisor that passes on what the workers write, line by
//! line, so that it can be told who wrote it.
//!
//! The workers outlive a supervisor that was killed, and who reads their pipes has to as
//! well: a process that writes to a pipe that nobody reads is ended by SIGPIPE. The supervisor
//! holds the pipes too, so that they outlive a relay that was killed, and starts that again. Each
//! process of a worker gets pipes of its own: where its last line breaks off, the end of the pipe
//! says so.

mod lines;
mod message;
mod place;
mod process;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::unistd::Uid;

use crate::error::{Error, Result};
pub use message::Args;
pub(crate) use place::Ended;
use place::Place;
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
pub(crate) struct Relay {
    /// Where stdout and stderr go. Where both go to the same place it is one, so that their
    /// lines are not mixed; where not, nobody waits for the other's reader.
    places: Vec<Place>,
    workers: usize,
    output: Output,
    owner: Option<Uid>,
    ended: Ended,
}

impl Relay {
    /// Starts what is needed: nothing where the output stays as it is. The pipes are the
    /// owner's, who may want to open /dev/stdout. When a process of it ends, `ended` is called:
    /// [`Relay::tend`] starts it again.
    pub(crate) fn start(
        output: Output,
        workers: usize,
        owner: Option<Uid>,
        ended: Ended,
    ) -> Result<Self> {
        let mut relay = Self { places: Vec::new(), workers, output, owner, ended };
        relay.change(output, owner)?;
        Ok(relay)
    }

    /// What is started from now on writes in this way. Who writes in another goes on.
    pub(crate) fn change(&mut self, output: Output, owner: Option<Uid>) -> Result<()> {
        if output == Output::Prefixed && self.places.is_empty() {
            self.places = self.make_places().map_err(|error| {
                let operation = "start passing on the output of workers";
                Error::helped(operation, error, "; try --output as-is")
            })?;
        }
        (self.output, self.owner) = (output, owner);
        Ok(())
    }

    fn make_places(&self) -> io::Result<Vec<Place>> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let mut to = vec![stdout];
        if identity(&to[0])? != identity(&stderr)? {
            to.push(stderr);
        }
        let place = |to| Place::start(to, self.workers, Arc::clone(&self.ended));
        to.into_iter().map(place).collect()
    }

    /// The pipes that workers write to, for the next build: the number of the place, the process
    /// that reads, the worker, and the end that is read.
    pub(crate) fn pipes(&self) -> impl Iterator<Item = (usize, u32, usize, BorrowedFd<'_>)> {
        let places = self.places.iter().enumerate();
        places.flat_map(|(number, place)| {
            place.pipes().map(move |(pid, worker, reader)| (number, pid, worker, reader))
        })
    }

    /// Keeps a pipe of the build before, whose process goes on reading it. Where that ends, a
    /// process of this build goes on.
    pub(crate) fn inherit(&mut self, place: usize, pid: u32, worker: usize, reader: OwnedFd) {
        if let Some(place) = self.places.get_mut(place) {
            place.inherit(pid, worker, reader.into());
        }
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

    /// Mends what has ended since.
    pub(crate) fn tend(&mut self) {
        self.places.iter_mut().for_each(Place::tend);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let until = Instant::now() + PATIENCE;
        // They all learn it before one is waited for.
        for place in &mut self.places {
            place.end(PATIENCE);
        }
        for place in &mut self.places {
            place.wait(until);
        }
    }
}

/// What tells files apart.
fn identity(descriptor: &OwnedFd) -> io::Result<(u64, u64)> {
    let metadata = File::from(descriptor.try_clone()?).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
