//! The indexes of the rosters: `endpoints`, `near` and `ports`.
//!
//! They say nothing that the rosters do not say: whoever takes the lock makes them agree,
//! whatever a writer that was killed has left.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use libbpf_rs::{MapCore, MapFlags};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::counters;
use super::handle::Datapath;
use super::layout::{Endpoint, EndpointKey, NEAR_FACTOR, PORT_EXACT, PORT_WILDCARD, ROW_ENDPOINTS};
use super::maps::{ignore_absent, lookup};
use super::roster::Roster;
use super::snapshot::{Published, Snapshot};
use crate::error::{Error, Result};
use crate::sys::{self, Shared};

/// The size of `ov_ports.kinds`.
const PORTS: usize = 1 << 16;

/// The keys in `endpoints` of a roster, each with the number of its row.
fn keys(roster: &Roster) -> impl Iterator<Item = (EndpointKey, u32)> + '_ {
    roster.endpoints().map(|(ip, row)| (EndpointKey::new(ip, roster.port), row))
}

/// What lies in the maps.
pub(super) struct Index {
    endpoints: HashMap<EndpointKey, Endpoint>,
    /// Row numbers; 0 where there is none.
    near: Vec<u64>,
    /// By port.
    kinds: Vec<u8>,
}

impl Index {
    /// What the rosters say.
    pub(super) fn of(snapshot: &Snapshot, near: usize) -> Self {
        let mut index =
            Self { endpoints: HashMap::new(), near: vec![0; near], kinds: vec![0; PORTS] };
        for (service, Published { roster, extent }) in snapshot.services() {
            for (key, row) in keys(roster) {
                index.endpoints.insert(key, Endpoint { service, row });
                let first = extent.first as usize + ROW_ENDPOINTS;
                index.near[near_index(&key, near)] = (first + row as usize) as u64;
            }
            for (ip, _) in roster.endpoints() {
                index.kinds[usize::from(roster.port)] |=
                    if ip.is_unspecified() { PORT_WILDCARD } else { PORT_EXACT };
            }
        }
        index
    }
}

impl Datapath {
    /// Makes `endpoints`, `near` and `ports` say what the rosters say, whatever they do.
    pub(super) fn reindex(&self, snapshot: &Snapshot) -> Result<()> {
        let (is, wanted) = (self.index()?, self.index_of(snapshot)?);
        if is.near != wanted.near {
            // The rows that it leads to are in nobody's use, and may be written over as soon
            // as nobody reads them any more. Who is killed here leaves the wait to others.
            self.owe_a_wait()?;
            self.lead(&is, &wanted)?;
        }
        self.wait_if_owed()?;
        self.give_up(&is, &wanted)?;
        self.follow(&is, &wanted)
    }

    pub(super) fn index_of(&self, snapshot: &Snapshot) -> Result<Index> {
        Ok(Index::of(snapshot, self.own()?.near.max_entries() as usize))
    }

    /// What they say.
    fn index(&self) -> Result<Index> {
        let failed = |name| move |error| Error::system("read", name, error);
        let own = self.own()?;
        let map = &own.endpoints;
        let sizes = [size_of::<EndpointKey>(), size_of::<Endpoint>()];
        let [keys, endpoints] = sys::read_hash(map.as_fd(), map.max_entries(), sizes)
            .map_err(failed("the map endpoints"))?;
        let key = |bytes| EndpointKey::read_from_bytes(bytes).expect("a whole key");
        let endpoint = |bytes| Endpoint::read_from_bytes(bytes).expect("a whole value");
        let endpoints = endpoints.chunks_exact(sizes[1]).map(endpoint);
        Ok(Index {
            endpoints: keys.chunks_exact(sizes[0]).map(key).zip(endpoints).collect(),
            near: self.near()?.words().iter().map(|row| row.load(Ordering::Relaxed)).collect(),
            kinds: lookup(&own.ports, 0)?,
        })
    }

    /// `near`, in memory shared with the kernel.
    fn near(&self) -> Result<&Shared> {
        counters::once(&self.near, || counters::mapped(&self.own()?.near, 1))
    }

    /// Writes what differs in `near`: from now on requests find other rows there, which have
    /// been written before. To be followed by a wait for those who have found the old ones.
    pub(super) fn lead(&self, is: &Index, wanted: &Index) -> Result<()> {
        for ((entry, is), wanted) in self.near()?.words().iter().zip(&is.near).zip(&wanted.near) {
            if is != wanted {
                entry.store(*wanted, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Takes out of `endpoints` what is not served any more.
    pub(super) fn give_up(&self, is: &Index, wanted: &Index) -> Result<()> {
        let failed = |error| Error::bpf("change", "the map endpoints", error);
        let map = &self.own()?.endpoints;
        for key in is.endpoints.keys().filter(|key| !wanted.endpoints.contains_key(key)) {
            ignore_absent(map.delete(key.as_bytes())).map_err(failed)?;
        }
        Ok(())
    }

    /// Writes what else differs in `endpoints`, and in `ports`. The endpoints come first: a
    /// port that is served without one costs a look-up, the reverse would cost requests.
    pub(super) fn follow(&self, is: &Index, wanted: &Index) -> Result<()> {
        let failed = |error| Error::bpf("change", "the map endpoints", error);
        let own = self.own()?;
        for (key, endpoint) in &wanted.endpoints {
            if is.endpoints.get(key) != Some(endpoint) {
                let (key, endpoint) = (key.as_bytes(), endpoint.as_bytes());
                own.endpoints.update(key, endpoint, MapFlags::ANY).map_err(failed)?;
            }
        }
        if is.kinds == wanted.kinds {
            return Ok(());
        }
        own.ports
            .update(&0_u32.to_ne_bytes(), &wanted.kinds, MapFlags::ANY)
            .map_err(|error| Error::bpf("change", "the map ports", error))
    }
}

/// Where an endpoint stands in `near`, of a power of two of `entries`; `find_near` in
/// `bpf/overspill.bpf.c` is the same.
fn near_index(key: &EndpointKey, entries: usize) -> usize {
    let address = u128::from_be_bytes(key.address);
    let half = |half: u128| u64::try_from(half & u128::from(u64::MAX)).expect("masked");
    let (high, low) = (half(address >> 64), half(address));
    let product = (high ^ u64::from(key.port)).wrapping_mul(NEAR_FACTOR).wrapping_add(low);
    let product = product.wrapping_mul(NEAR_FACTOR);
    let index = product >> (u64::BITS - entries.ilog2());
    usize::try_from(index).expect("fewer than entries")
}
