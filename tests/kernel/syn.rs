//! Handshakes by hand: clients that never answer, or answer late.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const SEQUENCE: u32 = 1000;

/// Lets answers to the clients of `client` vanish.
pub(crate) fn blackhole() {
    world::ip("route add 198.51.100.0/24 dev lo");
    // IPv6 refuses what is routed to lo and is not local: nothing would be sent at all.
    world::ip("link add away type veth peer name nowhere");
    world::ip("link set away arp off up");
    world::ip("link set nowhere arp off up");
    world::ip("-6 route add 2001:db8::/32 dev away");
}

/// The client of half-open requests with this number.
pub(crate) fn client(ipv6: bool, port: u16) -> SocketAddr {
    one_of_many(ipv6, 7, port)
}

/// A client at one of 256 addresses.
pub(crate) fn one_of_many(ipv6: bool, address: u8, port: u16) -> SocketAddr {
    let ip: IpAddr = if ipv6 {
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, address.into()].into()
    } else {
        [198, 51, 100, address].into()
    };
    SocketAddr::new(ip, port)
}

/// Sends the SYN of a client that does not exist.
pub(crate) fn open(from: SocketAddr, to: SocketAddr) {
    Sender::new(to.is_ipv6()).open(from, to);
}

/// Ends the half-open request of that SYN.
pub(crate) fn abort(from: SocketAddr, to: SocketAddr) {
    Sender::new(to.is_ipv6()).send(from, to, RST, SEQUENCE + 1, 0);
}

/// Answers the SYN-ACK that has this sequence number.
pub(crate) fn acknowledge(from: SocketAddr, to: SocketAddr, sequence: u32) {
    let acknowledged = sequence.wrapping_add(1);
    Sender::new(to.is_ipv6()).send(from, to, ACK, SEQUENCE + 1, acknowledged);
}

/// Sends packets with headers of their own.
pub(crate) struct Sender(Socket);

impl Sender {
    pub(crate) fn new(ipv6: bool) -> Self {
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        // IPPROTO_RAW: the header is ours (raw(7)).
        Self(Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap())
    }

    pub(crate) fn open(&self, from: SocketAddr, to: SocketAddr) {
        self.send(from, to, SYN, SEQUENCE, 0);
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32, answered: u32) {
        let segment = segment(from, to, flags, sequence, answered);
        let header = match (from.ip(), to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
                let mut header = vec![0x60, 0, 0, 0, length[0], length[1], 6, 64];
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => unreachable!("a flow has one family"),
        };
        let destination = SockAddr::from(SocketAddr::new(to.ip(), 0));
        self.0.send_to(&[header, segment].concat(), &destination).unwrap();
    }
}

/// Sees all packets that pass the network namespace from now on.
pub(crate) struct Wire(Socket);

impl Wire {
    pub(crate) fn new() -> Self {
        const ETH_P_ALL: u16 = 3;
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// Passes by what was seen until now.
    pub(crate) fn forget(&self) {
        while (&self.0).read(&mut [0; 1]).is_ok() {}
    }

    /// The sequence number of the next SYN-ACK from `server` to `client`.
    pub(crate) fn answer(&self, client: SocketAddr, server: SocketAddr) -> u32 {
        let mut packet = [0; 2048];
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < world::DEADLINE, "no SYN-ACK from {server} to {client}");
            match (&self.0).read(&mut packet) {
                Ok(length) => {
                    if let Some(sequence) = syn_ack(&packet[..length], server, client) {
                        return sequence;
                    }
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
    }
}

/// The sequence number of a packet that is a SYN-ACK from one to the other.
fn syn_ack(packet: &[u8], from: SocketAddr, to: SocketAddr) -> Option<u32> {
    let (addresses, length, header) = if from.is_ipv6() { (8, 16, 40) } else { (12, 4, 20) };
    let part = |at: usize, length: usize| packet.get(at..at + length);
    let ends = [octets(from.ip()), octets(to.ip())].concat();
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let wanted = packet.first()? >> 4 == if from.is_ipv6() { 6 } else { 4 }
        && part(addresses, 2 * length)? == ends
        && part(header, 4)? == ports
        && *packet.get(header + 13)? == SYN | ACK;
    wanted.then(|| u32::from_be_bytes(packet[header + 4..header + 8].try_into().unwrap()))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A TCP segment without data, with its checksum (RFC 9293, section 3.1).
fn segment(from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32, answered: u32) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(answered.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
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
