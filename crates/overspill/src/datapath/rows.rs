//! Where rosters lie: runs of rows in one plain array, so that the kernel program reads them
//! without calls.
//!
//! A run belongs to the roster that `services` leads to it; all other rows are free, also
//! those that a writer which was killed had begun to fill, once `near` leads nobody there
//! (`index.rs`).

use std::os::fd::AsFd as _;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::arguments::Arguments;
use super::handle::{Capacity, Datapath};
use super::layout::{EndpointRow, Extent, Header, ROW_ENDPOINTS, ROW_SIZE};
use super::maps::{number, roster_map, set_extent, values};
use super::roster::{Roster, Row};
use super::snapshot::{Run, Snapshot};
use crate::error::{Error, Result};
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

/// A roster in its rows, to which nothing leads yet: the map is to be published.
pub(super) struct Written {
    pub(super) extent: Extent,
    pub(super) map: MapHandle,
}

impl Datapath {
    /// Where the snapshot of service number `id` lies.
    pub(super) fn place(&self, id: u32) -> Result<Option<Extent>> {
        let extent = self.locate(id, 1)?[0];
        Ok((extent.number != 0).then_some(extent))
    }

    /// The numbers of all services.
    pub(super) fn numbers(&self) -> Result<Vec<u32>> {
        let extents = self.locate(0, self.state.services)?;
        let numbered = (0..).zip(&extents).filter(|(_, extent)| extent.number != 0);
        Ok(numbered.map(|(id, _)| id).collect())
    }

    /// Lets the kernel program look up where snapshots lie: see `struct ov_extent`.
    fn locate(&self, first: u32, count: u32) -> Result<Vec<Extent>> {
        let arguments = Arguments { service: first, position: count, ..Arguments::default() };
        sys::test_run(self.programs.locator.as_fd(), &arguments.context())
            .map_err(|error| Error::system("run", "the program locate", error))?;
        values(&self.maps.publications, &(first..first + count).collect::<Vec<_>>())
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
        let map = roster_map()?;
        let number = number(&map)?;
        let extent = Extent { number, first, count: count(rows), endpoints, members, zero: 0 };
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
        set_extent(&map, extent)?;
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
