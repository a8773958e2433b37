//! The indexes of the rosters: `endpoints`, `near` and `ports`.
//!
//! They say nothing that the rosters do not say, so they are never trusted: whoever takes
//! the lock makes them agree, whatever a writer that was killed has left.

use std::collections::HashMap;

use libbpf_rs::{MapCore, MapFlags};
use zerocopy::{FromZeros as _, IntoBytes};

use super::layout::{Endpoint, EndpointKey, NEAR_FACTOR, Near, PORT_EXACT, PORT_WILDCARD};
use super::{Datapath, Snapshot};
use crate::error::{Error, Result};
use crate::roster::Roster;

/// The size of `ov_ports.kinds`.
const PORTS: usize = 1 << 16;

/// The keys in `endpoints` of a roster, each with the number of its row.
pub(super) fn keys(roster: &Roster) -> impl Iterator<Item = (EndpointKey, u32)> + '_ {
    roster.endpoints().map(|(ip, row)| (EndpointKey::new(ip, roster.port), row))
}

impl Datapath {
    /// Makes `endpoints` and `ports` say what the rosters say. The endpoints come first: a
    /// port that is served without one costs a look-up, the reverse would cost requests.
    pub(super) fn reindex(&self, snapshot: &Snapshot) -> Result<()> {
        let failed = |error| Error::bpf("change", "the map endpoints", error);
        let wanted: HashMap<Vec<u8>, Endpoint> = snapshot
            .rosters()
            .flat_map(|(service, roster)| {
                keys(roster)
                    .map(move |(key, row)| (key.as_bytes().to_vec(), Endpoint { service, row }))
            })
            .collect();
        let strays: Vec<Vec<u8>> =
            self.maps.endpoints.keys().filter(|key| !wanted.contains_key(key)).collect();
        for key in strays {
            self.maps.endpoints.delete(&key).map_err(failed)?;
        }
        for (key, endpoint) in wanted {
            let is = self.maps.endpoints.lookup(&key, MapFlags::ANY).map_err(failed)?;
            if is.as_deref() != Some(endpoint.as_bytes()) {
                let update = self.maps.endpoints.update(&key, endpoint.as_bytes(), MapFlags::ANY);
                update.map_err(failed)?;
            }
        }
        self.set_near(snapshot)?;
        self.set_ports(snapshot)
    }

    /// An entry may be read while it is written, or be out of date: who reads it compares
    /// it with the endpoint row, and asks `endpoints` where they differ.
    fn set_near(&self, snapshot: &Snapshot) -> Result<()> {
        let failed = |error| Error::bpf("change", "the map near", error);
        let mut wanted = vec![Near::new_zeroed(); self.maps.near.max_entries() as usize];
        for (service, roster) in snapshot.rosters() {
            for (key, row) in keys(roster) {
                let index = near_index(&key, wanted.len());
                wanted[index] = Near { key, to: Endpoint { service, row }, zero: 0 };
            }
        }
        let current = super::read::all(&self.maps.near)?;
        for ((index, wanted), current) in (0_u32..).zip(&wanted).zip(&current) {
            if wanted.as_bytes() != current {
                let update =
                    self.maps.near.update(&index.to_ne_bytes(), wanted.as_bytes(), MapFlags::ANY);
                update.map_err(failed)?;
            }
        }
        Ok(())
    }

    fn set_ports(&self, snapshot: &Snapshot) -> Result<()> {
        let mut kinds = vec![0; PORTS];
        for (_, roster) in snapshot.rosters() {
            for (ip, _) in roster.endpoints() {
                kinds[usize::from(roster.port)] |=
                    if ip.is_unspecified() { PORT_WILDCARD } else { PORT_EXACT };
            }
        }
        if super::read::lookup(&self.maps.ports, 0)? == kinds {
            return Ok(());
        }
        self.maps
            .ports
            .update(&0_u32.to_ne_bytes(), &kinds, MapFlags::ANY)
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
