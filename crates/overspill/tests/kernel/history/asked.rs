//! `asked.bpf.c` in Rust.

use std::net::{IpAddr, SocketAddr};

use overspill::MemberId;
use overspill::model;

/// A request, as the dispatcher is told of it.
pub(super) struct Asked<'a> {
    pub(super) hash: u32,
    pub(super) client: SocketAddr,
    pub(super) called: SocketAddr,
    pub(super) members: &'a [model::Member],
    pub(super) ids: &'a [MemberId],
}

impl Asked<'_> {
    /// The index of the candidate chosen.
    pub(super) fn answer(&self, candidates: &[usize]) -> Option<usize> {
        let member = |index: usize| &self.members[candidates[index]];
        let best = |better: &dyn Fn(usize, usize) -> bool| {
            Some((0..candidates.len()).fold(0, |best, c| if better(c, best) { c } else { best }))
        };
        match mix(self.hash) % 8 {
            0 => None,
            1 => Some(candidates.len()),
            2 => Some(candidates.len() - 1),
            3 => best(&|c, best| {
                let (c, best) = (member(c), member(best));
                (c.queued + c.half_open) * (best.backlog + 1)
                    < (best.queued + best.half_open) * (c.backlog + 1)
            }),
            4 => best(&|c, best| {
                let (c, best) = (member(c), member(best));
                c.established * u32::from(best.weight) < best.established * u32::from(c.weight)
            }),
            5 => best(&|c, _| {
                let address = member(c).address;
                address.is_wildcard() || address.ip == self.called.ip()
            }),
            6 => best(&|c, best| self.ids[candidates[c]] > self.ids[candidates[best]]),
            _ => {
                let ports = u32::from(self.client.port()) ^ u32::from(self.called.port());
                let word = last_word(self.client.ip()) ^ last_word(self.called.ip()) ^ ports;
                Some(word as usize % candidates.len())
            }
        }
    }
}

/// `overspill_mix`
fn mix(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x7feb_352d);
    hash ^= hash >> 15;
    hash = hash.wrapping_mul(0x846c_a68b);
    hash ^ (hash >> 16)
}

/// The last four bytes of an address as they lie in memory.
fn last_word(ip: IpAddr) -> u32 {
    let bytes = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => ip.octets()[12..].try_into().unwrap(),
    };
    u32::from_ne_bytes(bytes)
}
