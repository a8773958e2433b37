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

impl Datapath {
    /// Where the roster of service number `id` lies, and the number of the map that says so:
    /// that changes with each roster.
    pub(super) fn lies(&self, id: u32) -> Result<Option<(u32, Extent)>> {
        let failed = |error| Error::bpf("read", "the map services", error);
        for _ in 0..READS {
            let map = self.maps.services.lookup(&id.to_ne_bytes(), MapFlags::ANY);
            let Some(map) = map.map_err(failed)? else { return Ok(None) };
            let number = u32::from_ne_bytes(map.try_into().expect("the number of a map"));
            let map = match MapHandle::from_map_id(number) {
                Ok(map) => map,
                // Replaced, and therefore gone, between the two steps: the next look sees
                // its successor.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::bpf("open", "a roster", error)),
            };
            let bytes = super::read::lookup(&map, 0)?;
            let extent = Extent::read_from_bytes(&bytes).expect("the size of the map's values");
            return Ok(Some((number, extent)));
        }
        let what = format!("the roster of service number {id} can't be opened");
        Err(Error::Damaged { path: self.folder.clone(), what })
    }

    /// The rows of a roster, in order.
    pub(super) fn read_rows(&self, extent: &Extent) -> Result<Vec<Row>> {
        let mut rows = vec![[0; ROW_SIZE]; extent.count as usize];
        sys::read_array(self.maps.rows.as_fd(), extent.first, rows.as_flattened_mut(), ROW_SIZE)
            .map_err(|error| Error::system("read", "the map rows", error))?;
        Ok(rows)
    }

    /// Writes a roster where no program looks; gives the map that leads to it.
    pub(super) fn write_rows(&self, roster: &Roster) -> Result<MapHandle> {
        let rows = roster.encode();
        let first = match self.gap(count(&rows), u32::MAX)? {
            Some(first) => first,
            None => self.make_room(count(&rows))?,
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

    /// The runs in use with the services' numbers, in the order of the rows.
    fn runs(&self) -> Result<Vec<(Extent, u32)>> {
        let mut runs = Vec::new();
        for id in 0..self.state.services {
            runs.extend(self.lies(id)?.map(|(_, extent)| (extent, id)));
        }
        runs.sort_unstable_by_key(|(extent, _)| extent.first);
        Ok(runs)
    }

    /// The first of so many free rows, if there are any below `end`.
    fn gap(&self, wanted: u32, end: u32) -> Result<Option<u32>> {
        let mut first = 0;
        for (run, _) in self.runs()? {
            if run.first - first >= wanted {
                break;
            }
            first = run.first + run.count;
        }
        let end = end.min(self.maps.rows.max_entries());
        Ok((first + wanted <= end).then_some(first))
    }

    /// Moves rosters down into gaps that are large enough, until there is one for so many
    /// rows. There is, while the rosters take no more than a third of all rows: what stays
    /// free before a roster is then less than it takes itself, so that all of them lie in the
    /// first two thirds.
    fn make_room(&self, wanted: u32) -> Result<u32> {
        for (run, id) in self.runs()? {
            if let Some(first) = self.gap(run.count, run.first)? {
                let map = self.write_at(first, &self.read_rows(&run)?)?;
                self.publish(id, Some(&map))?;
            }
        }
        self.gap(wanted, u32::MAX)?.ok_or_else(|| Error::OverCapacity {
            what: "rows",
            wanted: wanted.into(),
            capacity: self.maps.rows.max_entries(),
        })
    }
}

fn count(rows: &[Row]) -> u32 {
    u32::try_from(rows.len()).expect("the capacity is a u32")
}
