//! The hash of a flow: which of several members at one address it calls.

use std::net::{IpAddr, SocketAddr};

fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

fn words(address: IpAddr) -> ([u32; 3], u32) {
    match address {
        IpAddr::V4(address) => ([0; 3], address.to_bits()),
        IpAddr::V6(address) => {
            let octets = address.octets();
            let (words, _) = octets.as_chunks::<4>();
            let word = |i: usize| u32::from_be_bytes(words[i]);
            ([word(0), word(1), word(2)], word(3))
        }
    }
}

/// The hash of a request from `client` to `called`, by `MurmurHash3` with a seed drawn
/// when the state is made: a client that does not know it cannot tell which member it meets.
///
/// The kernel program computes the same (`flow_hash` in `bpf/overspill.bpf.c`).
#[must_use]
pub fn hash(seed: u32, client: SocketAddr, called: SocketAddr) -> u32 {
    let mut hash = seed;
    let (client_head, client_tail) = words(client.ip());
    let (called_head, called_tail) = words(called.ip());
    if called.is_ipv6() {
        hash = client_head.into_iter().chain(called_head).fold(hash, mix);
    }
    let ports = u32::from(client.port()) << 16 | u32::from(called.port());
    hash = [client_tail, called_tail, ports].into_iter().fold(hash, mix);
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// Which of `count` the hash gives: an index below `count`, each as likely.
#[must_use]
pub fn index(hash: u32, count: usize) -> usize {
    usize::try_from((u64::from(hash) * count as u64) >> 32).expect("below count")
}

/// Two different indexes below `count`, each pair as likely; the same twice if there is one.
#[must_use]
pub fn two_indexes(hash: u32, count: usize) -> (usize, usize) {
    let one = index(hash, count);
    if count < 2 {
        return (one, one);
    }
    let again = (hash ^ hash >> 16).wrapping_mul(0x9e37_79b1);
    (one, (one + 1 + index(again, count - 1)) % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_about_as_likely() {
        let called = "192.0.2.1:80".parse().unwrap();
        let mut hits = [0_u32; 7];
        for port in 1024..31024 {
            let client = SocketAddr::new("198.51.100.7".parse().unwrap(), port);
            hits[index(hash(42, client, called), hits.len())] += 1;
        }
        let expected = 30_000 / 7;
        assert!(hits.iter().all(|hit| hit.abs_diff(expected) < expected / 10), "{hits:?}");
    }

    #[test]
    fn every_part_of_the_flow_counts() {
        let base = hash(1, "[fd00::1]:5".parse().unwrap(), "[fd00::2]:80".parse().unwrap());
        for (seed, client, called) in [
            (2, "[fd00::1]:5", "[fd00::2]:80"),
            (1, "[fd01::1]:5", "[fd00::2]:80"),
            (1, "[fd00::1]:6", "[fd00::2]:80"),
            (1, "[fd00::1]:5", "[fd00::3]:80"),
            (1, "[fd00::1]:5", "[fd00::2]:81"),
        ] {
            assert_ne!(hash(seed, client.parse().unwrap(), called.parse().unwrap()), base);
        }
    }
}
