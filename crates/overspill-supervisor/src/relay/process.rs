//! The relay's own process: reads what the workers write, and writes it line by line.
//!
//! It serves until nobody can write any more. Its stdin is a socket on which it gets the
//! pipes, one a message; when that has ended and all that was written is passed on, it says
//! so by ending the socket from its side.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::lines::Lines;
use super::message::{Args, Number};
use crate::error::{Error, Result};
use crate::log;

/// What a pipe holds, unless its writer made it larger.
const PIPE: usize = 64 << 10;
/// What is written at once to a pipe is not mixed with what others write (`PIPE_BUF`).
const UNMIXED: usize = 4096;

/// Passes on what workers write until nobody can write any more.
///
/// # Errors
///
/// When the system refuses what it needs.
pub fn run(args: &Args) -> Result<()> {
    let failed = |error| Error::system("pass on the output of workers", error);
    stand_apart().map_err(failed)?;
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
    let place = Place { file: stdout.into(), buffer: Vec::new() };
    let supervisor = Channel { socket: stdin.into(), state: State::Open };
    let mut relay = Relay {
        workers: args.workers,
        supervisor,
        sources: Vec::new(),
        place,
        chunk: vec![0; PIPE],
    };
    relay.serve().map_err(failed)
}

/// What ends the supervisor is not to end the relay, which is needed as long as a worker
/// writes; without a terminal of its own it is not stopped by one either.
fn stand_apart() -> io::Result<()> {
    let signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
    SigSet::from_iter(signals).thread_block()?;
    nix::unistd::setsid()?;
    // As many pipes as can be: one that it can't take is one that nobody reads.
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

struct Relay {
    workers: usize,
    supervisor: Channel,
    /// In the order in which they were made.
    sources: Vec<Source>,
    place: Place,
    chunk: Vec<u8>,
}

/// A pipe that a worker writes to.
struct Source {
    worker: Number,
    pipe: File,
    lines: Lines,
}

struct Channel {
    socket: UnixStream,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// There may be more pipes.
    Open,
    /// No more pipes, and something may be left in those that there are.
    Ending,
    /// The supervisor knows that nothing is left.
    Ended,
}

impl Relay {
    fn serve(&mut self) -> io::Result<()> {
        while self.supervisor.state == State::Open || !self.sources.is_empty() {
            let (workers, called) = self.wait()?;
            if workers.is_empty() && self.supervisor.state == State::Ending {
                // One that was killed doesn't listen.
                let _ = self.supervisor.socket.shutdown(Shutdown::Write);
                self.supervisor.state = State::Ended;
            }
            self.pass_on(&workers);
            if called {
                match self.supervisor.receive() {
                    Some((worker, Some(pipe))) => self.add(worker, pipe)?,
                    Some((worker, None)) => log::line(format_args!(
                        "the output of worker {worker} can't be read: too many open files; \
                         raise their limit (ulimit -Hn), or use --output as-is"
                    )),
                    None => self.supervisor.state = State::Ending,
                }
            }
        }
        Ok(())
    }

    /// Waits until there is something to do. Gives the workers that have written something,
    /// and whether the supervisor has a word.
    fn wait(&self) -> io::Result<(Vec<Number>, bool)> {
        let mut all: Vec<PollFd<'_>> =
            self.sources.iter().map(|source| PollFd::new(&source.pipe, PollFlags::IN)).collect();
        if self.supervisor.state == State::Open {
            all.push(PollFd::new(&self.supervisor.socket, PollFlags::IN));
        }
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = (self.supervisor.state == State::Ending).then_some(&at_once);
        while let Err(error) = poll(&mut all, timeout) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        let ready = |it: &PollFd<'_>| !it.revents().is_empty();
        let (sources, supervisor) = all.split_at(self.sources.len());
        let workers = self.sources.iter().zip(sources).filter(|(_, it)| ready(it));
        Ok((workers.map(|(source, _)| source.worker).collect(), supervisor.iter().any(ready)))
    }

    /// Passes on what these workers have written: of each all its pipes in their order, so
    /// that the words of a process come before those of its successor.
    fn pass_on(&mut self, workers: &[Number]) {
        let Self { sources, place, chunk, .. } = self;
        sources.retain_mut(|source| !workers.contains(&source.worker) || source.read(chunk, place));
        place.flush();
    }

    fn add(&mut self, worker: Number, pipe: OwnedFd) -> io::Result<()> {
        ioctl_fionbio(&pipe, true)?;
        let number = usize::try_from(worker).expect("a worker's number is small");
        let lines = Lines::new(number, self.workers);
        self.sources.push(Source { worker, pipe: pipe.into(), lines });
        Ok(())
    }
}

impl Source {
    /// Passes on what it holds, and tells whether there may be more some time.
    fn read(&mut self, chunk: &mut [u8], place: &mut Place) -> bool {
        let mut give = |line: &[u8]| place.line(line);
        match self.pipe.read(chunk) {
            Ok(length @ 1..) => self.lines.take(&chunk[..length], &mut give),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Ok(0) | Err(_) => {
                self.lines.finish(&mut give);
                return false;
            }
        }
        true
    }
}

impl Channel {
    /// Whose pipe is next, and the pipe, if there was room for it; `None` when there are no
    /// more.
    fn receive(&self) -> Option<(Number, Option<OwnedFd>)> {
        let mut number = [0; size_of::<Number>()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(&mut number)];
        let got = recvmsg(&self.socket, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        got.ok().filter(|got| got.bytes == size_of::<Number>())?;
        let pipe = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Some((Number::from_ne_bytes(number), pipe))
    }
}

/// Where the lines go.
struct Place {
    file: File,
    buffer: Vec<u8>,
}

impl Place {
    fn line(&mut self, line: &[u8]) {
        if self.buffer.len() + line.len() > UNMIXED {
            self.flush();
        }
        self.buffer.extend(line);
    }

    /// Writes the lines. What can't be written, as nobody reads it any more or the disk is
    /// full, is given up: the workers are to go on.
    fn flush(&mut self) {
        let mut left = &self.buffer[..];
        while !left.is_empty() {
            match self.file.write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Whoever shares it has set O_NONBLOCK.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None);
                }
                Err(_) => break,
            }
        }
        self.buffer.clear();
    }
}
