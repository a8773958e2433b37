//! The hash of a flow: which of several members at one address it calls.

use std::net::{IpAddr, SocketAddr};

/// Chosen by search for this shift (Chris Wellons, hash-prospector).
const MIX_FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

fn mix(hash: u64, high: u32, low: u32) -> u64 {
    let hash = (hash ^ (u64::from(high) << 32 | u64::from(low))).wrapping_mul(MIX_FACTOR);
    hash ^ hash >> 32
}

/// As they stand in memory; of an IPv4 address the last one is all.
fn words(address: IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(address) => [[0; 4], [0; 4], [0; 4], address.octets()],
        IpAddr::V6(address) => {
            let octets = address.octets();
            let (words, _) = octets.as_chunks::<4>();
            [words[0], words[1], words[2], words[3]]
        }
    };
    octets.map(u32::from_ne_bytes)
}

/// The hash of a request from `client` to `called`, with a seed drawn when the state is made:
/// a client that does not know it cannot tell which member it meets. Each word is mixed in by
/// a multiplication and a shift, which is all that a decision has time for.
///
/// The kernel program computes the same (`flow_hash` in `bpf/overspill.bpf.c`).
#[must_use]
pub fn hash(seed: u32, client: SocketAddr, called: SocketAddr) -> u32 {
    let words = words(client.ip()).into_iter().zip(words(called.ip()));
    let used = if called.is_ipv6() { 0 } else { 3 };
    let hash =
        words.skip(used).fold(u64::from(seed), |hash, (client, called)| mix(hash, client, called));
    let ports = u32::from(client.port()) << 16 | u32::from(called.port());
    let hash = mix(hash, 0, ports).wrapping_mul(MIX_FACTOR) >> 32;
    u32::try_from(hash).expect("the upper half")
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
