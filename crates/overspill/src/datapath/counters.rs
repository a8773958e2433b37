//! Counters of requests: arrays in memory shared with the kernel. Each CPU counts in a part of
//! its own. One extra part holds what was counted before an upgrade.

use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::{MapCore as _, MapHandle};
use zerocopy::{FromBytes, IntoBytes as _};

use super::layout::known_part;
use super::maps::map_name;
use crate::error::{Error, Result};
use crate::sys::Shared;

const WORD: usize = size_of::<AtomicU64>();

/// The arrays, each mapped when it is asked for.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) services: OnceLock<Counted>,
    pub(super) members: OnceLock<Counted>,
    pub(super) exits: OnceLock<Counted>,
}

/// What is made when it is asked for first. (`OnceLock::get_or_try_init` is not stable yet.)
pub(super) fn once<T>(place: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = place.get() {
        return Ok(made);
    }
    let new = make()?;
    Ok(place.get_or_init(|| new))
}

/// The memory of an array whose entries have so many words.
pub(super) fn mapped(map: &MapHandle, words: usize) -> Result<Shared> {
    Shared::map(map.as_fd(), map.max_entries() as usize * words)
        .map_err(|error| Error::system("map", map_name(map), error))
}

/// An array of counters: each CPU's `own` entries, one CPU's after the other's (`OF_CPU` in
/// `bpf/overspill.bpf.c`).
#[derive(Debug)]
pub(super) struct Counted {
    memory: Shared,
    /// Words in an entry.
    words: usize,
    own: usize,
}

impl Counted {
    pub(super) fn once<'a>(
        place: &'a OnceLock<Self>,
        map: &MapHandle,
        own: u32,
    ) -> Result<&'a Self> {
        once(place, || Self::of(map, own))
    }

    /// The counters in a map of any build. It may have counters that this build does not know.
    pub(super) fn of(map: &MapHandle, own: u32) -> Result<Self> {
        let words = map.value_size() as usize / WORD;
        Ok(Self { memory: mapped(map, words)?, words, own: own as usize })
    }

    /// Every CPU's entry of that number.
    fn entries(&self, number: u32) -> impl Iterator<Item = &[AtomicU64]> {
        self.memory.words().chunks_exact(self.words).skip(number as usize).step_by(self.own)
    }

    /// What all CPUs have counted there.
    pub(super) fn sum<C: FromBytes>(&self, number: u32) -> C {
        known_part(self.sums(number).as_bytes())
    }

    fn sums(&self, number: u32) -> Vec<u64> {
        let mut sums = vec![0_u64; self.words];
        for entry in self.entries(number) {
            for (sum, word) in sums.iter_mut().zip(entry) {
                *sum = sum.wrapping_add(word.load(Ordering::Relaxed));
            }
        }
        sums
    }

    /// Adds the other build's counts in the extra part. Repeating it is safe.
    pub(super) fn take_over(&self, other: &Self) {
        for number in 0..self.own {
            let number = u32::try_from(number).expect("a capacity is a u32");
            let Some(part) = self.entries(number).last() else { continue };
            for (word, sum) in part.iter().zip(other.sums(number)) {
                word.store(sum, Ordering::Relaxed);
            }
        }
    }

    /// Lets them begin at zero, where no request is counted.
    pub(super) fn clear(&self, number: u32) {
        self.entries(number).flatten().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}
