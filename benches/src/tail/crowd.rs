//! Clients that ask when it is time to, whatever has become of what was asked before.
//!
//! One thread for all of them. A request's wait begins when it was meant to be asked, so
//! that a late client is a wait as well.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::client;
use crate::traffic::Request;
use crate::worker::{WORKERS, encode};

/// Who waits longer is stuck; a wait counts as this long then, and so does one that failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Of the requests after the warm-up.
    pub(crate) waits: Vec<Duration>,
    pub(crate) failed: u32,
    pub(crate) stuck: u32,
    /// How much later than meant each request was asked.
    pub(crate) late: Vec<Duration>,
    /// By worker: the connections that it has answered on, and its answers.
    pub(crate) connections: [u32; WORKERS],
    pub(crate) answers: [u32; WORKERS],
}

pub(crate) struct Crowd {
    epoll: OwnedFd,
    to: SocketAddr,
    start: Instant,
    warm_up: Duration,
    connections: Vec<Option<Connection>>,
    waiting: usize,
    outcome: Outcome,
}

struct Connection {
    stream: TcpStream,
    /// Requests that could not be sent before it was connected.
    unsent: Vec<u8>,
    /// When each request that waits was meant to be asked.
    waiting: VecDeque<Duration>,
    answered: bool,
    /// Its last request was asked.
    ends: bool,
}

impl Crowd {
    pub(crate) fn new(to: SocketAddr, start: Instant, warm_up: Duration) -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            to,
            start,
            warm_up,
            connections: Vec::new(),
            waiting: 0,
            outcome: Outcome::default(),
        })
    }

    /// Asks all of it, and waits until everyone is answered or has lost patience.
    pub(crate) fn ask(mut self, requests: &[Request]) -> Result<Outcome> {
        // Else the kernel rounds each sleep up by 50 us.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let count = requests.iter().map(|request| request.connection + 1).max().unwrap_or(0);
        self.connections.resize_with(count, || None);
        for request in requests {
            while self.hear(self.start + request.at)? {}
            self.send(request)?;
        }
        let last = requests.last().map_or(Duration::ZERO, |request| request.at);
        while self.waiting > 0 && self.hear(self.start + last + PATIENCE)? {}
        let given_up = self.connections.drain(..).flatten().flat_map(|one| one.waiting);
        for at in given_up {
            if at >= self.warm_up {
                self.outcome.waits.push(PATIENCE);
                self.outcome.stuck += 1;
            }
        }
        Ok(self.outcome)
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let late = self.start.elapsed().saturating_sub(request.at);
        if request.at >= self.warm_up {
            self.outcome.late.push(late);
        }
        let slot = &mut self.connections[request.connection];
        let is_new = slot.is_none();
        if is_new {
            let stream = client::begin(None, self.to)?;
            stream.set_nodelay(true)?;
            *slot = Some(Connection {
                stream,
                unsent: Vec::new(),
                waiting: VecDeque::new(),
                answered: false,
                ends: false,
            });
        }
        let connection = slot.as_mut().expect("just made");
        connection.waiting.push_back(request.at);
        connection.ends |= request.last;
        connection.unsent.extend(encode(request.cost, request.last));
        self.waiting += 1;
        let sent = connection.flush();
        if is_new {
            let data = epoll::EventData::new_u64(request.connection as u64);
            let flags = connection.interest();
            epoll::add(&self.epoll, &connection.stream, data, flags)?;
        }
        if sent.is_err() {
            self.fail(request.connection);
        }
        Ok(())
    }

    /// Notes what is answered, at the latest at `moment`; false when that has come.
    fn hear(&mut self, moment: Instant) -> Result<bool> {
        let left = moment.saturating_duration_since(Instant::now());
        // epoll would wait whole milliseconds.
        let mut ready = [PollFd::new(&self.epoll, PollFlags::IN)];
        match poll(&mut ready, Some(&Timespec::try_from(left)?)) {
            Ok(0) | Err(Errno::INTR) => return Ok(Instant::now() < moment),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = Vec::with_capacity(64);
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&Timespec::default()))?;
        for event in events {
            let number = usize::try_from(event.data.u64())?;
            self.look_at(number, event.flags)?;
        }
        Ok(Instant::now() < moment)
    }

    fn look_at(&mut self, number: usize, flags: epoll::EventFlags) -> Result<()> {
        let Some(connection) = &mut self.connections[number] else { return Ok(()) };
        if flags.contains(epoll::EventFlags::OUT) && !connection.unsent.is_empty() {
            if connection.flush().is_err() {
                self.fail(number);
                return Ok(());
            }
            let data = epoll::EventData::new_u64(number as u64);
            let interest = connection.interest();
            epoll::modify(&self.epoll, &connection.stream, data, interest)?;
        }
        let mut answers = [0; 64];
        match connection.stream.read(&mut answers) {
            Ok(count) if count > 0 => self.note(number, &answers[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => self.fail(number),
        }
        Ok(())
    }

    /// Each answer is the number of the worker that gave it.
    fn note(&mut self, number: usize, answers: &[u8]) {
        let now = self.start.elapsed();
        let connection = self.connections[number].as_mut().expect("it has answered");
        for &worker in answers {
            let Some(at) = connection.waiting.pop_front() else { continue };
            self.waiting -= 1;
            if at >= self.warm_up {
                let wait = now.saturating_sub(at).min(PATIENCE);
                self.outcome.waits.push(wait);
                self.outcome.stuck += u32::from(wait == PATIENCE);
            }
            let worker = usize::from(worker);
            if !connection.answered {
                connection.answered = true;
                self.outcome.connections[worker] += 1;
            }
            self.outcome.answers[worker] += 1;
        }
        if connection.ends && connection.waiting.is_empty() {
            self.connections[number] = None;
        }
    }

    /// What waits on a connection that is refused or reset is not answered any more.
    fn fail(&mut self, number: usize) {
        let Some(connection) = self.connections[number].take() else { return };
        for at in connection.waiting {
            self.waiting -= 1;
            if at >= self.warm_up {
                self.outcome.waits.push(PATIENCE);
                self.outcome.failed += 1;
            }
        }
    }
}

impl Connection {
    fn flush(&mut self) -> io::Result<()> {
        match self.stream.write(&self.unsent) {
            Ok(length) => drop(self.unsent.drain(..length)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn interest(&self) -> epoll::EventFlags {
        if self.unsent.is_empty() {
            epoll::EventFlags::IN
        } else {
            epoll::EventFlags::IN | epoll::EventFlags::OUT
        }
    }
}
