//! Handshakes by hand: clients that never answer, or answer late.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const SEQUENCE: u32 = 1000;

/// Lets answers to the clients of `client` vanish.
pub fn blackhole() {
    super::ip("route add 198.51.100.0/24 dev lo");
    // IPv6 refuses what is routed to lo and is not local: nothing would be sent at all.
    super::ip("link add away type veth peer name nowhere");
    super::ip("link set away arp off up");
    super::ip("link set nowhere arp off up");
    super::ip("-6 route add 2001:db8::/32 dev away");
}

/// The client of half-open requests with this number.
#[must_use]
pub fn client(ipv6: bool, port: u16) -> SocketAddr {
    one_of_many(ipv6, 7, port)
}

/// A client at one of 256 addresses.
#[must_use]
pub fn one_of_many(ipv6: bool, address: u8, port: u16) -> SocketAddr {
    let ip: IpAddr = if ipv6 {
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, address.into()].into()
    } else {
        [198, 51, 100, address].into()
    };
    SocketAddr::new(ip, port)
}

/// Sends the SYN of a client that does not exist.
pub fn open(from: SocketAddr, to: SocketAddr) {
    Sender::new(to.is_ipv6()).open(from, to);
}

/// Ends the half-open request of that SYN.
pub fn abort(from: SocketAddr, to: SocketAddr) {
    Sender::new(to.is_ipv6()).abort(from, to);
}

/// Answers the SYN-ACK that has this sequence number.
pub fn acknowledge(from: SocketAddr, to: SocketAddr, sequence: u32) {
    Sender::new(to.is_ipv6()).acknowledge(from, to, sequence, b"");
}

/// Sends packets with headers of their own.
pub struct Sender(Socket);

impl Sender {
    /// Of one family.
    #[must_use]
    pub fn new(ipv6: bool) -> Self {
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        // IPPROTO_RAW: the header is ours (raw(7)).
        Self(Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap())
    }

    /// Sends a SYN.
    pub fn open(&self, from: SocketAddr, to: SocketAddr) {
        self.send(from, to, SYN, [SEQUENCE, 0], b"");
    }

    /// Ends the half-open request of that SYN.
    pub fn abort(&self, from: SocketAddr, to: SocketAddr) {
        self.send(from, to, RST, [SEQUENCE + 1, 0], b"");
    }

    /// Answers a SYN-ACK, and sends data with it.
    pub fn acknowledge(&self, from: SocketAddr, to: SocketAddr, sequence: u32, data: &[u8]) {
        self.send(from, to, ACK, [SEQUENCE + 1, sequence.wrapping_add(1)], data);
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, flags: u8, numbers: [u32; 2], data: &[u8]) {
        let segment = segment(from, to, flags, numbers, data);
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

/// What a server sent to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A SYN-ACK with this sequence number.
    SynAck(u32),
    /// A reset.
    Reset,
}

/// Sees the packets of the network namespace to one address, from now on.
pub struct Wire(Socket);

impl Wire {
    /// The packets to this address.
    #[must_use]
    pub fn to(address: IpAddr) -> Self {
        const ETH_P_ALL: u16 = 3;
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).unwrap();
        // The last word of the destination is that of the address, or the packet is not ours.
        let (at, word) = match address {
            IpAddr::V4(ip) => (16, ip.to_bits()),
            IpAddr::V6(ip) => (36, u32::try_from(ip.to_bits() & 0xffff_ffff).unwrap()),
        };
        let filter = [(0x20, 0, 0, at), (0x15, 0, 1, word), (0x06, 0, 0, 0xffff), (0x06, 0, 0, 0)];
        socket
            .attach_filter(&filter.map(|(code, jt, jf, k)| SockFilter::new(code, jt, jf, k)))
            .unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// Passes by what was seen until now.
    pub fn forget(&self) {
        while (&self.0).read(&mut [0; 1]).is_ok() {}
    }

    /// The next answer of a server: to which client, from where, and what. `None` while none
    /// has been seen.
    #[must_use]
    pub fn next(&self) -> Option<(SocketAddr, SocketAddr, Answer)> {
        let mut packet = [0; 2048];
        loop {
            match (&self.0).read(&mut packet) {
                Ok(length) => {
                    if let Some(answer) = answer(&packet[..length]) {
                        return Some(answer);
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                    return None;
                }
            }
        }
    }

    /// The sequence number of the next SYN-ACK from `server` to `client`.
    #[must_use]
    pub fn answer(&self, client: SocketAddr, server: SocketAddr) -> u32 {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < super::deadline(), "no SYN-ACK from {server} to {client}");
            if let Some((to, from, Answer::SynAck(sequence))) = self.next()
                && (to, from) == (client, server)
            {
                return sequence;
            }
        }
    }
}

/// Reads a packet: to whom it goes, from where it comes, and what it says.
fn answer(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, Answer)> {
    let ip = |at: usize| -> Option<IpAddr> {
        if packet[0] >> 4 == 6 {
            Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into())
        } else {
            Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into())
        }
    };
    let (source, destination, tcp) =
        if packet.first()? >> 4 == 6 { (8, 24, 40) } else { (12, 16, 20) };
    let tcp = packet.get(tcp..tcp + 20)?;
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let what = match tcp[13] {
        flags if flags & RST != 0 => Answer::Reset,
        flags if flags == SYN | ACK => {
            Answer::SynAck(u32::from_be_bytes(tcp[4..8].try_into().expect("four bytes")))
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip(destination)?, port(2)), SocketAddr::new(ip(source)?, port(0)), what))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A TCP segment with its checksum (RFC 9293, section 3.1). `numbers`: its own sequence number
/// and the one that it waits for.
fn segment(from: SocketAddr, to: SocketAddr, flags: u8, numbers: [u32; 2], data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(numbers.map(u32::to_be_bytes).concat());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let mut summed = [octets(from.ip()), octets(to.ip())].concat();
    summed.extend([0, 6]);
    summed.extend(length);
    summed.extend(&segment);
    summed.resize(summed.len().next_multiple_of(2), 0);
    let words = summed.chunks_exact(2);
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = (!u16::try_from(sum).unwrap()).to_be_bytes();
    segment[16..18].copy_from_slice(&checksum);
    segment
}
