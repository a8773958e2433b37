//! A place among those who trace: its ring buffer, and its time, which is moved on.

use std::cell::RefCell;
use std::fmt;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use libbpf_rs::{
    ErrorKind, MapCore as _, MapFlags, MapHandle, MapType, RingBuffer, RingBufferBuilder,
};
use zerocopy::FromBytes as _;

use super::handle::Datapath;
use super::layout::{self, TRACERS};
use super::maps::number;
use crate::error::{Error, Result};
use crate::sys::{Shared, monotonic};

/// How long the kernel goes on telling one who does not move its time on: killed, or stopped.
const LEASE: Duration = Duration::from_secs(5);
/// How often the time is moved on.
const RENEWAL: Duration = Duration::from_secs(1);
/// The size of a ring buffer in bytes: about 5,000 requests.
const RING: u32 = 1 << 20;
/// How many are taken out of it at a time.
const BATCH: usize = 1024;

const WORD: usize = size_of::<u64>();
/// Where the words of a tracer begin in `struct ov_tracing`, and how many they are.
const FIRST: usize = offset_of!(layout::Tracing, tracers) / WORD;
const WORDS: usize = size_of::<layout::Tracer>() / WORD;
const UNTIL: usize = offset_of!(layout::Tracer, until) / WORD;
const LOST: usize = offset_of!(layout::Tracer, lost) / WORD;
const WANTED: usize = offset_of!(layout::Tracer, service) / WORD;

/// One who traces, until it is dropped.
pub(crate) struct Tracer {
    place: Arc<Place>,
    ring: RingBuffer<'static>,
    events: Rc<RefCell<Vec<layout::Event>>>,
    keeper: Option<JoinHandle<()>>,
    /// The pin of the map `tracing`, and the map's number. An upgrade within a layout keeps the
    /// map, and so does not end this.
    tracing: (PathBuf, u32),
}

/// A place, in memory shared with the kernel; given up when it is dropped.
#[derive(Debug)]
struct Place {
    memory: Shared,
    /// `struct ov_settings`
    settings: Shared,
    index: usize,
    tracers: MapHandle,
    /// What its time was set to last; 0 when another has taken it.
    until: AtomicU64,
    ended: AtomicBool,
    /// Nanoseconds in which nothing was told, because the time had run out.
    paused: AtomicU64,
}

impl Datapath {
    /// Begins to trace: of a service by its number, or of all, what has these outcomes.
    pub(crate) fn trace(&self, service: Option<u32>, outcomes: u32) -> Result<Tracer> {
        let own = self.own()?;
        let tracing = (self.folder.join("tracing"), number(&own.tracing)?);
        let words = size_of::<layout::Tracing>() / WORD;
        let memory = Shared::map(own.tracing.as_fd(), words)
            .map_err(|error| Error::system("map", "the map tracing", error))?;
        let settings = Shared::map(own.settings.as_fd(), size_of::<layout::Settings>() / WORD)
            .map_err(|error| Error::system("map", "the map settings", error))?;
        let tracers = MapHandle::try_from(&own.tracers)
            .map_err(|error| Error::bpf("duplicate", "the map tracers", error))?;
        let place = Place::claim(memory, settings, tracers)?;
        let events = Rc::new(RefCell::new(Vec::new()));
        let ring = place.install(&events)?;
        place.begin(service.unwrap_or(layout::EVERY_SERVICE), outcomes);
        let place = Arc::new(place);
        let kept = Arc::clone(&place);
        let keeper = thread::Builder::new().name("trace".to_owned()).spawn(move || kept.keep());
        let keeper = keeper.map_err(|error| Error::system("start", "a thread", error))?;
        Ok(Tracer { place, ring, events, keeper: Some(keeper), tracing })
    }
}

impl Place {
    /// Takes a place that nobody has, or whose holder has let its time run out.
    fn claim(memory: Shared, settings: Shared, tracers: MapHandle) -> Result<Self> {
        let until = end_of_lease(monotonic());
        let index = (0..TRACERS).find(|index| {
            let word = &memory.words()[FIRST + index * WORDS + UNTIL];
            let held = word.load(Ordering::Acquire);
            let swap = || word.compare_exchange(held, until, Ordering::AcqRel, Ordering::Relaxed);
            held < monotonic() && swap().is_ok()
        });
        let index = index.ok_or(Error::TooManyTracers { most: TRACERS })?;
        let (until, paused, ended) = (until.into(), 0.into(), false.into());
        let place = Self { memory, settings, index, tracers, until, ended, paused };
        // Where no request has met the last holder's time run out, the kernel would go on
        // telling what that one wanted, into the new ring buffer.
        place.active().fetch_and(!(1 << index), Ordering::AcqRel);
        Ok(place)
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        &self.memory.words()[FIRST + self.index * WORDS + word]
    }

    fn active(&self) -> &AtomicU64 {
        &self.settings.words()[offset_of!(layout::Settings, active) / WORD]
    }

    fn key(&self) -> [u8; 4] {
        u32::try_from(self.index).expect("one of a few").to_ne_bytes()
    }

    /// Makes the ring buffer, and says how what it holds is read.
    fn install(&self, events: &Rc<RefCell<Vec<layout::Event>>>) -> Result<RingBuffer<'static>> {
        let failed = |operation| move |error| Error::bpf(operation, "a ring buffer", error);
        let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let ring = MapHandle::create(MapType::RingBuf, Some("events"), 0, 0, RING, &options)
            .map_err(failed("make"))?;
        self.tracers
            .update(&self.key(), &ring.as_fd().as_raw_fd().to_ne_bytes(), MapFlags::ANY)
            .map_err(failed("install"))?;
        let events = Rc::clone(events);
        let mut builder = RingBufferBuilder::new();
        let take = move |bytes: &[u8]| {
            events.borrow_mut().extend(layout::Event::read_from_bytes(bytes));
            0
        };
        builder.add(&ring, take).map_err(failed("read"))?;
        builder.build().map_err(failed("read"))
    }

    fn begin(&self, service: u32, outcomes: u32) {
        let mut wanted = [0; WORD];
        wanted[..4].copy_from_slice(&service.to_ne_bytes());
        wanted[4..].copy_from_slice(&outcomes.to_ne_bytes());
        self.word(LOST).store(0, Ordering::Relaxed);
        self.word(WANTED).store(u64::from_ne_bytes(wanted), Ordering::Release);
        self.active().fetch_or(1 << self.index, Ordering::AcqRel);
    }

    /// Moves the time on until it is to end.
    fn keep(&self) {
        while !self.ended.load(Ordering::Acquire) && self.renew() {
            thread::park_timeout(RENEWAL);
        }
    }

    /// False when the place is another's by now.
    fn renew(&self) -> bool {
        let before = self.until.load(Ordering::Acquire);
        let now = monotonic();
        let until = end_of_lease(now);
        let word = self.word(UNTIL);
        if word.compare_exchange(before, until, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            self.until.store(0, Ordering::Release);
            return false;
        }
        self.until.store(until, Ordering::Release);
        self.paused.fetch_add(now.saturating_sub(before), Ordering::AcqRel);
        // The kernel has struck us off if it met us when the time had run out. Else nothing is
        // written to a line that every request reads.
        if self.active().load(Ordering::Acquire) & 1 << self.index == 0 {
            self.active().fetch_or(1 << self.index, Ordering::AcqRel);
        }
        true
    }
}

fn end_of_lease(now: u64) -> u64 {
    now + LEASE.as_secs() * 1_000_000_000
}

impl Drop for Place {
    fn drop(&mut self) {
        // The time may have run out since it was moved on last, and another may be here.
        if self.until.load(Ordering::Acquire) == 0 || !self.renew() {
            return;
        }
        self.active().fetch_and(!(1 << self.index), Ordering::AcqRel);
        // A buffer that stays costs memory until the next one takes the place.
        let _ = self.tracers.delete(&self.key());
        self.word(UNTIL).store(0, Ordering::Release);
    }
}

impl Tracer {
    /// Some of what has been told, in its order; nothing when there is nothing.
    pub(crate) fn take(&self) -> Result<Vec<layout::Event>> {
        match self.ring.consume_raw_n(BATCH) {
            code if code >= 0 => Ok(self.events.take()),
            code => {
                let error = std::io::Error::from_raw_os_error(-code);
                Err(Error::system("read", "the ring buffer", error))
            }
        }
    }

    /// How many events found no room.
    pub(crate) fn lost(&self) -> u64 {
        if self.is_displaced() {
            return 0; // what is counted there is another's
        }
        self.place.word(LOST).load(Ordering::Relaxed)
    }

    /// How long nothing was told, because this process stood still.
    pub(crate) fn paused(&self) -> Duration {
        Duration::from_nanos(self.place.paused.load(Ordering::Acquire))
    }

    /// Whether another has the place.
    pub(crate) fn is_displaced(&self) -> bool {
        self.place.until.load(Ordering::Acquire) == 0
    }

    /// Whether the state is still the one that is traced, and the place ours.
    pub(crate) fn is_on(&self) -> Result<bool> {
        let (path, traced) = &self.tracing;
        let pinned = match MapHandle::from_pinned_path(path) {
            Ok(map) => number(&map)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::bpf("open", path.display().to_string(), error)),
        };
        Ok(pinned == *traced && !self.is_displaced())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.place.ended.store(true, Ordering::Release);
        if let Some(keeper) = self.keeper.take() {
            keeper.thread().unpark();
            // It has nothing to say.
            let _ = keeper.join();
        }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("place", &self.place).finish_non_exhaustive()
    }
}
