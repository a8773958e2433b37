//! What any map is asked for: its name, its number, its values.

use std::os::fd::AsFd as _;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};
use zerocopy::{FromBytes, IntoBytes as _};

use super::layout::{Extent, known_part};
use crate::error::{Error, Result};
use crate::sys;

/// The number by which the kernel knows a map.
pub(super) fn number(map: &MapHandle) -> Result<u32> {
    let info = map.info().map_err(|e| Error::bpf("read", map_name(map), e))?;
    Ok(info.info.id)
}

/// Slots no farther apart than this are read at once, with what lies between them: that
/// costs less than one more system call.
const NEAR: u32 = 8;

/// The values of an array at these slots, in the same order. Of another build's array it reads
/// the fields that both builds have; the others are zero.
pub(super) fn values<T: FromBytes>(map: &MapHandle, slots: &[u32]) -> Result<Vec<T>> {
    let size = (map.value_size() as usize).next_multiple_of(8);
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_unstable_by_key(|&at| slots[at]);
    let mut found: Vec<Option<T>> = slots.iter().map(|_| None).collect();
    for run in order.chunk_by(|&one, &other| slots[other] - slots[one] <= NEAR) {
        let (first, last) = (slots[run[0]], slots[run[run.len() - 1]]);
        let mut bytes = vec![0; (last - first + 1) as usize * size];
        sys::read_array(map.as_fd(), first, &mut bytes, size)
            .map_err(|error| Error::system("read", map_name(map), error))?;
        for &at in run {
            let begin = (slots[at] - first) as usize * size;
            found[at] = Some(known_part(&bytes[begin..begin + size]));
        }
    }
    Ok(found.into_iter().flatten().collect())
}

pub(super) fn map_name(map: &MapHandle) -> String {
    format!("the map {}", map.name().to_string_lossy())
}

pub(super) fn lookup(map: &MapHandle, key: u32) -> Result<Vec<u8>> {
    let value = map
        .lookup(&key.to_ne_bytes(), MapFlags::ANY)
        .map_err(|error| Error::bpf("read", map_name(map), error))?;
    Ok(value.expect("an array has all its entries"))
}

/// An empty extent. Its map id is the publication number.
pub(super) fn roster_map() -> Result<MapHandle> {
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let size = u32::try_from(size_of::<Extent>()).expect("small");
    let map = MapHandle::create(MapType::Array, Some("roster"), 4, size, 1, &options)
        .map_err(|error| Error::bpf("make", "a roster", error))?;
    set_extent(&map, Extent { number: number(&map)?, ..Extent::default() })?;
    Ok(map)
}

pub(super) fn set_extent(map: &MapHandle, extent: Extent) -> Result<()> {
    map.update(&0_u32.to_ne_bytes(), extent.as_bytes(), MapFlags::ANY)
        .map_err(|error| Error::bpf("write", "a roster", error))
}

pub(super) fn ignore_absent(result: libbpf_rs::Result<()>) -> libbpf_rs::Result<()> {
    match result {
        Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
