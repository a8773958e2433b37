//! Workers: each is occupied by one request at a time, for as long as that costs.
//!
//! Occupied, not computing: a worker spins for a moment and sleeps for the rest, as one does
//! that waits for a disk, a database or a lock. So four workers are as fast as four even on
//! two processors, and clients have processors left.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown, sockopt};

use crate::published::Board;
use crate::traffic::Stall;

pub(crate) const WORKERS: usize = 4;
const LISTENER: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
/// Of a request's cost, so much is computing.
const SPIN: Duration = Duration::from_micros(20);
/// The most that a worker takes on at once.
const EVENTS: usize = 64;
/// Beside the cost in microseconds: the connection ends with the answer.
const LAST: u32 = 1 << 31;

/// A request on the wire; the answer is one byte, the worker's number.
pub(crate) fn encode(cost: Duration, last: bool) -> [u8; 4] {
    let cost = u32::try_from(cost.as_micros()).expect("a cost is short");
    (cost | if last { LAST } else { 0 }).to_le_bytes()
}

/// How a worker takes on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// An event loop: accepts all that wait, then serves one by one who has asked.
    Loop,
    /// Accepts one connection, serves it, and only then the next.
    OneAtATime,
}

/// What a worker has done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) served: AtomicU64,
    /// In nanoseconds, stalls left out.
    pub(crate) busy: AtomicU64,
}

/// How many requests all of them have served, and for how long they were busy.
pub(crate) fn total(tallies: &[Tally]) -> (u64, Duration) {
    let served = tallies.iter().map(|tally| tally.served.load(Ordering::Relaxed)).sum();
    let busy = tallies.iter().map(|tally| tally.busy.load(Ordering::Relaxed)).sum();
    (served, Duration::from_nanos(busy))
}

/// Running workers.
pub(crate) struct Workers {
    threads: Vec<JoinHandle<Result<()>>>,
    way: Way,
    listeners: Vec<TcpListener>,
    stopped: Arc<AtomicBool>,
    stop: Arc<OwnedFd>,
    pub(crate) tallies: Arc<Vec<Tally>>,
}

impl Workers {
    /// One worker for each listener; all of them at a single one.
    pub(crate) fn start(
        listeners: &[TcpListener],
        way: Way,
        start: Instant,
        stalls: &[Stall],
        board: Option<&Arc<Board>>,
    ) -> Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::new(AtomicBool::new(false));
        let tallies: Vec<Tally> = (0..WORKERS).map(|_| Tally::default()).collect();
        let tallies = Arc::new(tallies);
        let mut threads = Vec::new();
        for number in 0..WORKERS {
            let listener = listeners[number % listeners.len()].try_clone()?;
            listener.set_nonblocking(way == Way::Loop)?;
            let own = stalls.iter().filter(|stall| stall.worker % WORKERS == number);
            let stalls = own.rev().map(|stall| (start + stall.at, stall.length)).collect();
            let worker = Worker {
                number,
                listener,
                stalls,
                stopped: Arc::clone(&stopped),
                tallies: Arc::clone(&tallies),
                board: board.cloned(),
            };
            let stop = Arc::clone(&stop);
            threads.push(thread::spawn(move || {
                // Else the kernel rounds each sleep up by 50 us.
                rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
                match way {
                    Way::Loop => worker.work_in_a_loop(&stop),
                    Way::OneAtATime => worker.work_one_at_a_time(),
                }
            }));
        }
        let listeners = listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { threads, way, listeners, stopped, stop, tallies })
    }

    /// Ends them all.
    pub(crate) fn stop(self) -> Result<()> {
        self.stopped.store(true, Ordering::Relaxed);
        rustix::io::write(&*self.stop, &1_u64.to_ne_bytes())?;
        if self.way == Way::OneAtATime {
            // Ends their accept().
            self.listeners.iter().try_for_each(|listener| shutdown(listener, Shutdown::Both))?;
        }
        self.threads
            .into_iter()
            .try_for_each(|worker| worker.join().expect("workers return their errors"))
            .context("a worker")
    }
}

struct Worker {
    number: usize,
    listener: TcpListener,
    /// When, and for how long; the next one is the last.
    stalls: Vec<(Instant, Duration)>,
    stopped: Arc<AtomicBool>,
    tallies: Arc<Vec<Tally>>,
    board: Option<Arc<Board>>,
}

impl Worker {
    fn work_in_a_loop(mut self, stop: &OwnedFd) -> Result<()> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Of those that wait at one socket, one is woken for a connection.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        epoll::add(&epoll, &self.listener, epoll::EventData::new_u64(LISTENER), flags)?;
        epoll::add(&epoll, stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let mut connections: HashMap<u64, OwnedFd> = HashMap::new();
        let mut events = Vec::with_capacity(EVENTS);
        while !self.stopped.load(Ordering::Relaxed) {
            self.stall();
            events.clear();
            let timeout = self.patience().map(Timespec::try_from).transpose()?;
            match epoll::wait(&epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Err(error) if error != Errno::INTR => return Err(error.into()),
                _ => {}
            }
            let began = Instant::now();
            self.publish(|board, own| board.enter(own, events.len()));
            if events.iter().any(|event| event.data.u64() == LISTENER) {
                self.accept_all(&epoll, &mut connections)?;
                self.publish(Board::done);
            }
            let mut stalled = Duration::ZERO;
            for event in &events {
                if self.stopped.load(Ordering::Relaxed) {
                    break;
                }
                let key = event.data.u64();
                if let Some(connection) = connections.get(&key) {
                    stalled += self.stall();
                    if !self.serve(connection) {
                        connections.remove(&key);
                        self.publish(|board, own| board.connections(own, -1));
                    }
                    self.publish(Board::done);
                }
            }
            self.note_busy(began.elapsed().saturating_sub(stalled));
            self.publish(|board, _| board.publish());
        }
        Ok(())
    }

    /// How long to wait for events at most.
    fn patience(&self) -> Option<Duration> {
        let stall = self.stalls.last().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let board = self.board.as_ref().map(|_| Board::PATIENCE);
        stall.into_iter().chain(board).min()
    }

    fn accept_all(&self, epoll: &OwnedFd, connections: &mut HashMap<u64, OwnedFd>) -> Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            match accept_with(&self.listener, flags) {
                Ok(connection) => {
                    sockopt::set_tcp_nodelay(&connection, true)?;
                    let key = u64::try_from(connection.as_raw_fd())?;
                    let data = epoll::EventData::new_u64(key);
                    epoll::add(epoll, &connection, data, epoll::EventFlags::IN)?;
                    connections.insert(key, connection);
                    self.publish(|board, own| board.connections(own, 1));
                }
                // EINVAL: the queue is being emptied.
                Err(Errno::WOULDBLOCK | Errno::INVAL) => return Ok(()),
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(error) => return Err(error).context("accept"),
            }
        }
    }

    fn work_one_at_a_time(self) -> Result<()> {
        self.publish(Board::rest);
        loop {
            let connection = match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(connection) => connection,
                Err(_) if self.stopped.load(Ordering::Relaxed) => return Ok(()),
                Err(Errno::CONNABORTED | Errno::INTR | Errno::INVAL) => continue,
                Err(error) => return Err(error).context("accept"),
            };
            let began = Instant::now();
            self.publish(|board, own| {
                board.enter(own, 1);
                board.connections(own, 1);
                board.publish();
            });
            while self.serve(&connection) {}
            drop(connection);
            self.note_busy(began.elapsed());
            self.publish(|board, own| {
                board.done(own);
                board.connections(own, -1);
                board.rest(own);
                board.publish();
            });
            if self.stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    /// Serves one request; false when the connection has ended.
    fn serve(&self, connection: &OwnedFd) -> bool {
        let mut request = [0; 4];
        match rustix::io::read(connection, &mut request) {
            Ok(length) if length == request.len() => {}
            Err(Errno::WOULDBLOCK) => return true,
            // Whoever has gone is none of the worker's business.
            _ => return false,
        }
        let request = u32::from_le_bytes(request);
        be_occupied(Duration::from_micros((request & !LAST).into()));
        let answer = [u8::try_from(self.number).expect("few workers")];
        let answered = rustix::io::write(connection, &answer).is_ok();
        self.tallies[self.number].served.fetch_add(1, Ordering::Relaxed);
        answered && request & LAST == 0
    }

    /// Stalls if it is time to.
    fn stall(&mut self) -> Duration {
        match self.stalls.last() {
            Some(&(at, length)) if at <= Instant::now() => {
                self.stalls.pop();
                thread::sleep(length);
                length
            }
            _ => Duration::ZERO,
        }
    }

    fn note_busy(&self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).expect("a short time");
        self.tallies[self.number].busy.fetch_add(time, Ordering::Relaxed);
    }

    fn publish(&self, note: impl FnOnce(&Board, usize)) {
        if let Some(board) = &self.board {
            note(board, self.number);
        }
    }
}

fn be_occupied(cost: Duration) {
    let start = Instant::now();
    while start.elapsed() < SPIN.min(cost) {
        std::hint::spin_loop();
    }
    thread::sleep(cost.saturating_sub(start.elapsed()));
}
