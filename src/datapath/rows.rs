//! Where rosters lie: runs of rows in one plain array, so that the kernel program reads them
//! without calls.
//!
//! A run belongs to the roster that `services` leads to it; all other rows are free, also
//! those that a writer which was killed had begun to fill, once `near` leads nobody there
//! (`index.rs`).

use std::os::fd::AsFd as _;

use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle, MapType};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::layout::{EndpointRow, Extent, Header, ROW_ENDPOINTS, ROW_SIZE};
use super::read::READS;
use super::{Capacity, Datapath, Snapshot};
use crate::error::{Error, Result};
use crate::roster::{Roster, Row};
use crate::sys;

/// The number of rows for so many services and members.
///
/// A roster takes a row for each member and one for each of its addresses, an eighth of a
/// row for the copy of its socket's address and an eighth for its places in the called
/// table, and a few rows more. The free rows are twice as many as all rosters can take: what
/// [`Datapath::make_room`] promises rests on it.
pub(super) fn capacity(capacity: Capacity) -> u32 {
    let services = capacity.services.min(capacity.members);
    3 * (capacity.members * 9 / 4 + services * 8)
}

/// Where a roster lies, and the number of the map that says so: that changes with each
/// roster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) map: u32,
    pub(super) extent: Extent,
}

/// Rows in use, and the service whose they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) extent: Extent,
    pub(super) id: u32,
}

/// A roster in its rows, to which nothing leads yet: the map is to be published.
pub(super) struct Written {
    pub(super) extent: Extent,
    pub(super) map: MapHandle,
}

impl Datapath {
    /// Where the roster of service number `id` lies.
    pub(super) fn place(&self, id: u32) -> Result<Option<Place>> {
        for _ in 0..READS {
            let Some(number) = self.roster_map(id)? else { return Ok(None) };
            let map = match MapHandle::from_map_id(number) {
                Ok(map) => map,
                // Replaced, and therefore gone, between the two steps: the next look sees
                // its successor.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::bpf("open", "a roster", error)),
            };
            let bytes = super::read::lookup(&map, 0)?;
            let extent = Extent::read_from_bytes(&bytes).expect("the size of the map's values");
            return Ok(Some(Place { map: number, extent }));
        }
        Err(self.unopenable(id))
    }

    /// The number of the map that says where the roster lies.
    pub(super) fn roster_map(&self, id: u32) -> Result<Option<u32>> {
        let failed = |error| Error::bpf("read", "the map services", error);
        let map = self.maps.services.lookup(&id.to_ne_bytes(), MapFlags::ANY).map_err(failed)?;
        Ok(map.map(|map| u32::from_ne_bytes(map.try_into().expect("the number of a map"))))
    }

    pub(super) fn unopenable(&self, id: u32) -> Error {
        let what = format!("the roster of service number {id} can't be opened");
        Error::Damaged { path: self.folder.clone(), what }
    }

    /// Rows number `first .. first + count`.
    pub(super) fn read_rows(&self, first: u32, count: u32) -> Result<Vec<Row>> {
        let mut rows = vec![[0; ROW_SIZE]; count as usize];
        sys::read_array(self.own()?.rows.as_fd(), first, rows.as_flattened_mut(), ROW_SIZE)
            .map_err(|error| Error::system("read", "the map rows", error))?;
        Ok(rows)
    }

    /// Writes the roster of service number `id` where no program looks, with all of
    /// `services` in use, which may have to be moved for it.
    pub(super) fn write_rows(
        &self,
        id: u32,
        roster: &Roster,
        services: &mut Snapshot,
    ) -> Result<Written> {
        let mut rows = roster.encode();
        let first = match self.gap(&services.runs(), count(&rows), u32::MAX)? {
            Some(first) => first,
            None => self.make_room(services, count(&rows))?,
        };
        self.write_at(id, first, &mut rows)
    }

    fn write_at(&self, id: u32, first: u32, rows: &mut [Row]) -> Result<Written> {
        let failed = |error| Error::bpf("write", "the map rows", error);
        let header = Header::ref_from_bytes(&rows[0]).expect("the first row");
        let (endpoints, members) = (header.endpoints, header.members);
        debug_assert!(rows.len() >= ROW_ENDPOINTS + (endpoints + members) as usize);
        for row in &mut rows[ROW_ENDPOINTS..][..endpoints as usize] {
            let mut endpoint = EndpointRow::read_from_bytes(row).expect("the size of a row");
            (endpoint.service, endpoint.roster) = (id, first);
            row.copy_from_slice(endpoint.as_bytes());
        }
        let extent = Extent { first, count: count(rows), endpoints, members };
        let keys: Vec<u32> = (first..first + extent.count).collect();
        self.own()?
            .rows
            .update_batch(
                keys.as_bytes(),
                rows.as_bytes(),
                extent.count,
                MapFlags::ANY,
                MapFlags::ANY,
            )
            .map_err(failed)?;
        let map = roster_map()?;
        let failed = |error| Error::bpf("write", "a roster", error);
        map.update(&0_u32.to_ne_bytes(), extent.as_bytes(), MapFlags::ANY).map_err(failed)?;
        Ok(Written { extent, map })
    }

    /// The first of so many free rows, if there are any below `end`.
    fn gap(&self, runs: &[Run], wanted: u32, end: u32) -> Result<Option<u32>> {
        let mut first = 0;
        for Run { extent, .. } in runs {
            if extent.first - first >= wanted {
                break;
            }
            first = extent.first + extent.count;
        }
        let end = end.min(self.own()?.rows.max_entries());
        Ok((first + wanted <= end).then_some(first))
    }

    /// Moves rosters down into gaps that are large enough, until there is one for so many
    /// rows. There is, while the rosters take no more than a third of all rows: what stays
    /// free before a roster is then less than it takes itself, so that all of them lie in the
    /// first two thirds.
    fn make_room(&self, services: &mut Snapshot, wanted: u32) -> Result<u32> {
        for Run { extent, id } in services.runs() {
            if let Some(first) = self.gap(&services.runs(), extent.count, extent.first)? {
                let mut rows = self.read_rows(extent.first, extent.count)?;
                let written = self.write_at(id, first, &mut rows)?;
                let moved = services.moved(id, written.extent);
                self.publish(id, Some(&written.map), services, &moved)?;
                *services = moved;
            }
        }
        let capacity = self.own()?.rows.max_entries();
        self.gap(&services.runs(), wanted, u32::MAX)?.ok_or(Error::OverCapacity {
            what: "rows",
            wanted: wanted.into(),
            capacity,
        })
    }
}

fn count(rows: &[Row]) -> u32 {
    u32::try_from(rows.len()).expect("the capacity is a u32")
}

/// A map that says where a roster lies: nowhere yet.
pub(super) fn roster_map() -> Result<MapHandle> {
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let size = u32::try_from(size_of::<Extent>()).expect("small");
    MapHandle::create(MapType::Array, Some("roster"), 4, size, 1, &options)
        .map_err(|error| Error::bpf("make", "a roster", error))
}
