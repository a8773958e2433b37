//! A process of the relay, as the supervisor sees it: it gets the pipes, and is started again when
//! it has ended.

use std::io::{self, IoSlice, PipeReader, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::message::Number;
use crate::child::Child;
use crate::log;

/// One that ends at once again is not started more often.
const APART: Duration = Duration::from_secs(1);

/// Called when a process of the relay has ended.
pub(crate) type Ended = Arc<dyn Fn() + Send + Sync>;

/// Where lines go: the process that writes them there, and the pipes that it reads.
pub(super) struct Place {
    to: OwnedFd,
    workers: usize,
    ended: Ended,
    process: Process,
    /// In the order in which they were made. They are kept open here as well, so that no worker
    /// finds its pipe broken when the process has ended.
    pipes: Vec<Pipe>,
    /// Those of the builds before this one, which go on with the pipes of their time.
    before: Vec<Before>,
    /// Why the process could not be started again, as it was logged.
    told: Option<String>,
}

/// The process, and the socket on which it gets its pipes.
struct Process {
    child: Child,
    socket: UnixStream,
    started: Instant,
}

/// A process of an earlier build, and the pipes that it reads.
struct Before {
    process: Child,
    pipes: Vec<Pipe>,
}

struct Pipe {
    worker: usize,
    reader: PipeReader,
    /// The process has it.
    handed_over: bool,
}

impl Place {
    pub(super) fn start(to: OwnedFd, workers: usize, ended: Ended) -> io::Result<Self> {
        let process = Process::start(&to, workers, &ended)?;
        let (pipes, before) = (Vec::new(), Vec::new());
        Ok(Self { to, workers, ended, process, pipes, before, told: None })
    }

    /// Each pipe, with its process and its worker.
    pub(super) fn pipes(&self) -> impl Iterator<Item = (u32, usize, BorrowedFd<'_>)> {
        let own = self.pipes.iter().map(|pipe| (self.process.child.id(), pipe));
        let of = |it: &'_ Before| it.process.id();
        let before = self.before.iter().flat_map(move |it| {
            let pid = of(it);
            it.pipes.iter().map(move |pipe| (pid, pipe))
        });
        own.chain(before).map(|(pid, pipe)| (pid, pipe.worker, pipe.reader.as_fd()))
    }

    /// Keeps a pipe that a process of an earlier build reads.
    pub(super) fn inherit(&mut self, pid: u32, worker: usize, reader: PipeReader) {
        let pipe = Pipe { worker, reader, handed_over: false };
        if let Some(known) = self.before.iter_mut().find(|it| it.process.id() == pid) {
            known.pipes.push(pipe);
            return;
        }
        match Child::numbered(pid) {
            Some(process) => self.before.push(Before { process, pipes: vec![pipe] }),
            None => self.pipes.push(pipe),
        }
    }

    /// Goes on with the pipes of those that have ended.
    fn succeed_those_before(&mut self) {
        for it in &mut self.before {
            drop_ended(&mut it.pipes);
        }
        let ended = self.before.extract_if(.., |it| !matches!(it.process.try_wait(), Ok(None)));
        self.pipes.extend(ended.flat_map(|it| it.pipes));
    }

    /// A new pipe for a worker, which the process reads.
    pub(super) fn pipe(&mut self, worker: usize, owner: Option<Uid>) -> io::Result<Stdio> {
        let (reader, writer) = io::pipe()?;
        if let Some(owner) = owner {
            // Who may not give it away may not become that user either, and is told so.
            let _ = fchown(&writer, Some(owner.as_raw()), None);
        }
        self.pipes.push(Pipe { worker, reader, handed_over: false });
        self.tend();
        Ok(writer.into())
    }

    /// Starts the process again if it has ended, and hands over what it does not have yet. What
    /// fails is tried again at the next look.
    pub(super) fn tend(&mut self) {
        let mended = self.mend().map_err(|error| error.to_string()).err();
        if let Some(why) = mended.as_ref().filter(|&why| Some(why) != self.told.as_ref()) {
            log::line(format_args!(
                "cannot start passing on the output of workers again: {why}; it is tried again"
            ));
        }
        self.told = mended;
        self.succeed_those_before();
        drop_ended(&mut self.pipes);
        self.hand_over(SendFlags::DONTWAIT);
    }

    fn mend(&mut self) -> io::Result<()> {
        let Some(status) = self.process.child.try_wait()? else { return Ok(()) };
        if self.process.started.elapsed() < APART {
            return Ok(());
        }
        self.process = Process::start(&self.to, self.workers, &self.ended)?;
        self.pipes.iter_mut().for_each(|pipe| pipe.handed_over = false);
        let ending = log::ending(status);
        log::line(format_args!(
            "overspill relay, which passes on the output of workers, {ending}; started again"
        ));
        Ok(())
    }

    fn hand_over(&mut self, flags: SendFlags) {
        let socket = &self.process.socket;
        for pipe in self.pipes.iter_mut().filter(|pipe| !pipe.handed_over) {
            if pipe.send(socket, flags).is_err() {
                // It has ended, or has not taken those before yet. They stay in their order.
                return;
            }
            pipe.handed_over = true;
        }
    }

    /// Tells the process that it gets no more pipes.
    pub(super) fn end(&mut self, patience: Duration) {
        self.tend();
        let _ = self.process.socket.set_write_timeout(Some(patience));
        self.hand_over(SendFlags::empty());
        let _ = self.process.socket.shutdown(Shutdown::Write);
    }

    /// Waits until it has passed on all that there is.
    pub(super) fn wait(&mut self, until: Instant) {
        let Process { socket, child, .. } = &mut self.process;
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let _ = socket.set_read_timeout(Some(left));
        let _ = socket.read(&mut [0]);
        // What goes on, as a process that a worker left behind still may write, ends by itself.
        let _ = child.try_wait();
        while self.before.iter_mut().any(|it| matches!(it.process.try_wait(), Ok(None)))
            && Instant::now() < until
        {
            sleep(Duration::from_millis(5));
        }
    }
}

/// Lets go of pipes that are read to their ends and that nobody writes to any more.
fn drop_ended(pipes: &mut Vec<Pipe>) {
    let mut polled: Vec<PollFd<'_>> =
        pipes.iter().map(|pipe| PollFd::new(&pipe.reader, PollFlags::IN)).collect();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut polled, Some(&at_once)).is_err() {
        return;
    }
    let ended: Vec<bool> = polled.iter().map(|it| it.revents() == PollFlags::HUP).collect();
    let mut ended = ended.into_iter();
    pipes.retain(|_| ended.next() != Some(true));
}

impl Process {
    fn start(to: &OwnedFd, workers: usize, ended: &Ended) -> io::Result<Self> {
        let (socket, stdin) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0("overspill")
            .args(["relay", "--workers", &workers.to_string()])
            .stdin(OwnedFd::from(stdin))
            .stdout(to.try_clone()?)
            .spawn()?;
        let child = Child::from(child);
        let ended = Arc::clone(ended);
        // Without the thread, the next look finds that it has ended.
        let _ = child.watch_end(move || ended());
        Ok(Self { child, socket, started: Instant::now() })
    }
}

impl Pipe {
    fn send(&self, socket: &UnixStream, flags: SendFlags) -> io::Result<()> {
        let worker = Number::try_from(self.worker).expect("a worker's number is small");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let pipes = [self.reader.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&pipes)), "there is room for one");
        let bytes = worker.to_ne_bytes();
        sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags | SendFlags::NOSIGNAL)?;
        Ok(())
    }
}
