//! Half-open requests: SYNs from clients that never answer.

use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const SEQUENCE: u32 = 1000;

/// Lets answers to the clients of `client` vanish.
pub(super) fn blackhole() {
    world::ip("route add 198.51.100.0/24 dev lo");
    world::ip("-6 route add 2001:db8::/32 dev lo");
}

/// The client of half-open requests with this number.
pub(super) fn client(ipv6: bool, port: u16) -> SocketAddr {
    let ip: &str = if ipv6 { "2001:db8::7" } else { "198.51.100.7" };
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Sends the SYN of a client that does not exist.
pub(super) fn open(from: SocketAddr, to: SocketAddr) {
    send(from, to, SYN, SEQUENCE);
}

/// Ends the half-open request of that SYN.
pub(super) fn abort(from: SocketAddr, to: SocketAddr) {
    send(from, to, RST, SEQUENCE + 1);
}

fn send(from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32) {
    let segment = segment(from, to, flags, sequence);
    let (domain, packet) = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            (Domain::IPV4, [packet, segment].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
            let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], 6, 64];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            (Domain::IPV6, [packet, segment].concat())
        }
        _ => unreachable!("a flow has one family"),
    };
    // IPPROTO_RAW: the header is ours (raw(7)).
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap();
    let destination = SockAddr::from(SocketAddr::new(to.ip(), 0));
    socket.send_to(&packet, &destination).unwrap();
}

/// A TCP segment without data, with its checksum (RFC 9293, section 3.1).
fn segment(from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let pseudo = [octets(from.ip()), octets(to.ip()), vec![0, 6, 0, 20]].concat();
    let words = pseudo.chunks_exact(2).chain(segment.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = (!u16::try_from(sum).unwrap()).to_be_bytes();
    segment[16..18].copy_from_slice(&checksum);
    segment
}
