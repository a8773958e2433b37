//! Clients: one after another at a steady rate, whatever becomes of those before them.
//!
//! Every other client sends its request at once. The rest wait to be spoken to: of those the
//! kernel itself tells whether they had been accepted. A connection that ends in an accept
//! queue is reset; one that was accepted, and had nothing unread, ends with a FIN when its
//! process dies.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::record::Record;

/// Who has heard nothing for so long is lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an accepted client waits for the rest.
const LONGEST: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"please\n";
const DONE: &[u8] = b"done\n";

/// How it ended for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has its whole answer.
    Served,
    /// It was accepted, and its worker ended, or did not answer in 10 s.
    CutOff,
    /// It was reset, perhaps by the end of a worker between `accept()` and the note of it.
    Undecided,
    /// Not accepted: its connection was refused.
    Refused,
    /// Not accepted: its connection was reset.
    Reset,
    /// Not accepted within 5 s.
    TimedOut,
}

impl End {
    /// Before a worker had accepted it.
    #[must_use]
    pub fn is_lost(self) -> bool {
        matches!(self, Self::Refused | Self::Reset | Self::TimedOut)
    }

    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::CutOff => "cut off",
            Self::Undecided => "undecided",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::TimedOut => "timed out",
        }
    }
}

/// What became of a client.
#[derive(Debug, Clone, Copy)]
pub struct Fate {
    /// When it came, from the beginning of the trial.
    pub came: Duration,
    /// How long it waited until it heard that it was accepted.
    pub accepted: Option<Duration>,
    /// How it ended.
    pub end: End,
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    came: Instant,
    /// It waits to be spoken to.
    quiet: bool,
    heard: Vec<u8>,
    accepted: Option<Duration>,
}

/// Those whose fate is open, and those whose is not.
#[derive(Debug)]
pub(crate) struct Crowd<'a> {
    to: SocketAddr,
    record: &'a Record,
    epoll: OwnedFd,
    waiting: HashMap<u32, Client>,
    next: u32,
    began: Instant,
    fates: Vec<Fate>,
}

impl<'a> Crowd<'a> {
    pub(crate) fn new(to: SocketAddr, record: &'a Record) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (waiting, fates) = (HashMap::new(), Vec::new());
        Ok(Self { to, record, epoll, waiting, next: 0, began: Instant::now(), fates })
    }

    /// New clients, one each interval, until the time is over; then until all is decided.
    pub(crate) fn come(mut self, interval: Duration, time: Duration) -> Result<Vec<Fate>> {
        self.began = Instant::now();
        let mut due = self.began;
        while due < self.began + time {
            while Instant::now() < due {
                self.hear(due)?;
            }
            self.enter(due)?;
            due += interval;
        }
        while !self.waiting.is_empty() {
            self.hear(Instant::now() + Duration::from_millis(100))?;
        }
        self.leave_open()?;
        Ok(self.fates)
    }

    fn enter(&mut self, due: Instant) -> Result<()> {
        let number = self.next;
        self.next += 1;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        let from = Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + number);
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.set_nonblocking(true)?;
        let quiet = number.is_multiple_of(2);
        let begun = socket.connect(&self.to.into());
        let stream = TcpStream::from(socket);
        // From when it should have come: a late start is a wait as well.
        let client = Client { stream, came: due, quiet, heard: Vec::new(), accepted: None };
        match begun {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                self.failed(number, &client, &error)?;
                return Ok(());
            }
            _ => {}
        }
        let flags = if quiet { epoll::EventFlags::IN } else { epoll::EventFlags::OUT };
        epoll::add(&self.epoll, &client.stream, epoll::EventData::new_u64(number.into()), flags)?;
        self.waiting.insert(number, client);
        Ok(())
    }

    /// Notes what clients hear, at the latest at `moment`, and who has lost patience.
    fn hear(&mut self, moment: Instant) -> Result<()> {
        let mut events = Vec::with_capacity(64);
        let left = Timespec::try_from(moment.saturating_duration_since(Instant::now()))?;
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&left)) {
            Err(error) if error != Errno::INTR => return Err(error.into()),
            _ => {}
        }
        for event in events {
            let number = u32::try_from(event.data.u64())?;
            let Some(mut client) = self.waiting.remove(&number) else { continue };
            let flags = event.flags; // The structure is packed.
            let out = flags.contains(epoll::EventFlags::OUT);
            match self.go_on(number, &mut client, out) {
                Ok(true) => drop(self.waiting.insert(number, client)),
                Ok(false) => self.ended(&client),
                Err(error) => self.failed(number, &client, &error)?,
            }
        }
        self.give_up()
    }

    /// Whether there is more to come.
    fn go_on(&self, number: u32, client: &mut Client, out: bool) -> io::Result<bool> {
        if out && let Some(error) = client.stream.take_error()? {
            return Err(error);
        }
        if out {
            client.stream.write_all(REQUEST)?;
            let data = epoll::EventData::new_u64(number.into());
            epoll::modify(&self.epoll, &client.stream, data, epoll::EventFlags::IN)?;
        }
        let mut bytes = [0; 64];
        loop {
            match client.stream.read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(count) => client.heard.extend(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
            if client.accepted.is_none() {
                client.accepted = Some(client.came.elapsed());
                if client.quiet {
                    client.stream.write_all(REQUEST)?;
                }
            }
        }
    }

    /// The connection was closed from the other side, with a FIN: it was accepted.
    fn ended(&mut self, client: &Client) {
        let served = client.heard.ends_with(DONE);
        self.note(client, if served { End::Served } else { End::CutOff });
    }

    fn failed(&mut self, number: u32, client: &Client, error: &io::Error) -> io::Result<()> {
        let end = match error.kind() {
            _ if client.heard.ends_with(DONE) => End::Served,
            _ if self.was_accepted(number, client)? => End::CutOff,
            ErrorKind::ConnectionRefused => End::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe if client.quiet => End::Reset,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Undecided,
            ErrorKind::TimedOut => End::TimedOut,
            _ => return Err(io::Error::new(error.kind(), error.to_string())),
        };
        self.note(client, end);
        Ok(())
    }

    fn was_accepted(&self, number: u32, client: &Client) -> io::Result<bool> {
        Ok(client.accepted.is_some() || self.record.accepted(number)?)
    }

    fn give_up(&mut self) -> Result<()> {
        let late = |client: &Client| {
            let longest = if client.accepted.is_some() { LONGEST } else { PATIENCE };
            client.came.elapsed() >= longest
        };
        let late: Vec<u32> =
            self.waiting.iter().filter(|(_, it)| late(it)).map(|(number, _)| *number).collect();
        for number in late {
            let client = self.waiting.remove(&number).expect("it waits");
            // Of one that its worker has noted but not spoken to yet, the worker was stopped.
            let accepted = self.was_accepted(number, &client)?;
            self.note(&client, if accepted { End::CutOff } else { End::TimedOut });
        }
        Ok(())
    }

    fn note(&mut self, client: &Client, end: End) {
        let came = client.came.duration_since(self.began);
        self.fates.push(Fate { came, accepted: client.accepted, end });
    }

    /// Each worker that was killed within `accept()` can have reset one client that it had just
    /// accepted; any more were not accepted.
    fn leave_open(&mut self) -> Result<()> {
        let open = self.record.ended_in_accept()?;
        let undecided = self.fates.iter_mut().filter(|fate| fate.end == End::Undecided);
        undecided.skip(open).for_each(|fate| fate.end = End::Reset);
        Ok(())
    }
}
