//! The indexes of the rosters: `endpoints`, `near` and `ports`.
//!
//! They say nothing that the rosters do not say, so they are never trusted: whoever takes
//! the lock makes them agree, whatever a writer that was killed has left.

use std::collections::HashMap;
use std::os::fd::AsFd as _;

use libbpf_rs::{MapCore, MapFlags};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::change::ignore_absent;
use super::layout::{Endpoint, EndpointKey, NEAR_FACTOR, PORT_EXACT, PORT_WILDCARD};
use super::{Datapath, Snapshot};
use crate::error::{Error, Result};
use crate::roster::Roster;
use crate::sys;

/// The size of `ov_ports.kinds`.
const PORTS: usize = 1 << 16;

/// The keys in `endpoints` of a roster, each with the number of its row.
pub(super) fn keys(roster: &Roster) -> impl Iterator<Item = (EndpointKey, u32)> + '_ {
    roster.endpoints().map(|(ip, row)| (EndpointKey::new(ip, roster.port), row))
}

/// What lies in the maps.
pub(super) struct Index {
    endpoints: HashMap<EndpointKey, Endpoint>,
    near: Vec<Endpoint>,
    /// By port.
    kinds: Vec<u8>,
}

impl Index {
    /// What the rosters say.
    pub(super) fn of(snapshot: &Snapshot, near: usize) -> Self {
        let mut index = Self {
            endpoints: HashMap::new(),
            near: vec![Endpoint::new_zeroed(); near],
            kinds: vec![0; PORTS],
        };
        for (service, roster) in snapshot.rosters() {
            for (key, row) in keys(roster) {
                let to = Endpoint { service, row };
                index.endpoints.insert(key, to);
                index.near[near_index(&key, near)] = to;
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
        self.rewrite(&self.index()?, &self.index_of(snapshot))
    }

    /// The same where they say what the rosters said before a change.
    pub(super) fn reindex_after(&self, before: &Snapshot, after: &Snapshot) -> Result<()> {
        self.rewrite(&self.index_of(before), &self.index_of(after))
    }

    fn index_of(&self, snapshot: &Snapshot) -> Index {
        Index::of(snapshot, self.maps.near.max_entries() as usize)
    }

    /// What they say.
    fn index(&self) -> Result<Index> {
        let failed = |name| move |error| Error::system("read", name, error);
        let map = &self.maps.endpoints;
        let sizes = [size_of::<EndpointKey>(), size_of::<Endpoint>()];
        let [keys, endpoints] = sys::read_hash(map.as_fd(), map.max_entries(), sizes)
            .map_err(failed("the map endpoints"))?;
        let key = |bytes| EndpointKey::read_from_bytes(bytes).expect("a whole key");
        let endpoint = |bytes| Endpoint::read_from_bytes(bytes).expect("a whole value");
        let endpoints = endpoints.chunks_exact(sizes[1]).map(endpoint);
        let map = &self.maps.near;
        let mut near = vec![Endpoint::new_zeroed(); map.max_entries() as usize];
        sys::read_array(map.as_fd(), 0, near.as_mut_bytes(), size_of::<Endpoint>())
            .map_err(failed("the map near"))?;
        Ok(Index {
            endpoints: keys.chunks_exact(sizes[0]).map(key).zip(endpoints).collect(),
            near,
            kinds: super::read::lookup(&self.maps.ports, 0)?,
        })
    }

    /// Writes what differs. The endpoints come first: a port that is served without one costs
    /// a look-up, the reverse would cost requests.
    fn rewrite(&self, is: &Index, wanted: &Index) -> Result<()> {
        let failed = |error| Error::bpf("change", "the map endpoints", error);
        for key in is.endpoints.keys().filter(|key| !wanted.endpoints.contains_key(key)) {
            // A change has taken them out already.
            ignore_absent(self.maps.endpoints.delete(key.as_bytes())).map_err(failed)?;
        }
        for (key, endpoint) in &wanted.endpoints {
            if is.endpoints.get(key) != Some(endpoint) {
                let (key, endpoint) = (key.as_bytes(), endpoint.as_bytes());
                self.maps.endpoints.update(key, endpoint, MapFlags::ANY).map_err(failed)?;
            }
        }
        // An entry of `near` may be read while it is written, or be out of date: who reads it
        // compares what is called with the endpoint row, and asks `endpoints` where they differ.
        let failed = |error| Error::bpf("change", "the map near", error);
        for ((number, is), wanted) in (0_u32..).zip(&is.near).zip(&wanted.near) {
            if is != wanted {
                let (number, near) = (number.to_ne_bytes(), wanted.as_bytes());
                self.maps.near.update(&number, near, MapFlags::ANY).map_err(failed)?;
            }
        }
        if is.kinds == wanted.kinds {
            return Ok(());
        }
        self.maps
            .ports
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
