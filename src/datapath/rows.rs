//! Where rosters lie: runs of rows in one plain array, so that the kernel program reads them
//! without calls.
//!
//! A run belongs to the roster that `services` leads to it; all other rows are free, also
//! those that a writer which was killed had begun to fill.

use std::os::fd::AsFd as _;

use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle, MapType};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::layout::{Extent, Header, ROW_ENDPOINTS, ROW_SIZE};
use super::read::READS;
use super::{Capacity, Datapath};
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
        sys::read_array(self.maps.rows.as_fd(), first, rows.as_flattened_mut(), ROW_SIZE)
            .map_err(|error| Error::system("read", "the map rows", error))?;
        Ok(rows)
    }

    /// Writes a roster where no program looks, with all `runs` in use; gives the map that
    /// leads to it.
    pub(super) fn write_rows(&self, roster: &Roster, runs: &[Run]) -> Result<MapHandle> {
        let rows = roster.encode();
        let first = match self.gap(runs, count(&rows), u32::MAX) {
            Some(first) => first,
            None => self.make_room(runs, count(&rows))?,
        };
        self.write_at(first, &rows)
    }

    fn write_at(&self, first: u32, rows: &[Row]) -> Result<MapHandle> {
        let failed = |error| Error::bpf("write", "the map rows", error);
        let header = Header::ref_from_bytes(&rows[0]).expect("the first row");
        let (endpoints, members) = (header.endpoints, header.members);
        debug_assert!(rows.len() >= ROW_ENDPOINTS + (endpoints + members) as usize);
        let extent = Extent { first, count: count(rows), endpoints, members };
        let keys: Vec<u32> = (first..first + extent.count).collect();
        self.maps
            .rows
            .update_batch(
                keys.as_bytes(),
                rows.as_bytes(),
                extent.count,
                MapFlags::ANY,
                MapFlags::ANY,
            )
            .map_err(failed)?;
        let failed = |error| Error::bpf("make", "a roster", error);
        let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let size = u32::try_from(size_of::<Extent>()).expect("small");
        let map = MapHandle::create(MapType::Array, Some("roster"), 4, size, 1, &options)
            .map_err(failed)?;
        map.update(&0_u32.to_ne_bytes(), extent.as_bytes(), MapFlags::ANY).map_err(failed)?;
        Ok(map)
    }

    /// The runs in use, in the order of the rows.
    pub(super) fn runs(&self) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for id in 0..self.state.services {
            runs.extend(self.place(id)?.map(|place| Run { extent: place.extent, id }));
        }
        runs.sort_unstable_by_key(|run| run.extent.first);
        Ok(runs)
    }

    /// The first of so many free rows, if there are any below `end`.
    fn gap(&self, runs: &[Run], wanted: u32, end: u32) -> Option<u32> {
        let mut first = 0;
        for Run { extent, .. } in runs {
            if extent.first - first >= wanted {
                break;
            }
            first = extent.first + extent.count;
        }
        let end = end.min(self.maps.rows.max_entries());
        (first + wanted <= end).then_some(first)
    }

    /// Moves rosters down into gaps that are large enough, until there is one for so many
    /// rows. There is, while the rosters take no more than a third of all rows: what stays
    /// free before a roster is then less than it takes itself, so that all of them lie in the
    /// first two thirds.
    fn make_room(&self, runs: &[Run], wanted: u32) -> Result<u32> {
        let mut now = runs.to_vec();
        for Run { extent, id } in runs {
            if let Some(first) = self.gap(&now, extent.count, extent.first) {
                let map = self.write_at(first, &self.read_rows(extent.first, extent.count)?)?;
                self.publish(*id, Some(&map))?;
                now.iter_mut().filter(|run| run.id == *id).for_each(|run| run.extent.first = first);
                now.sort_unstable_by_key(|run| run.extent.first);
            }
        }
        self.gap(&now, wanted, u32::MAX).ok_or_else(|| Error::OverCapacity {
            what: "rows",
            wanted: wanted.into(),
            capacity: self.maps.rows.max_entries(),
        })
    }
}

fn count(rows: &[Row]) -> u32 {
    u32::try_from(rows.len()).expect("the capacity is a u32")
}
