//! TCP sockets of a network namespace, as the kernel lists them (`sock_diag(7)`).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};

/// `TCPF_LISTEN`
pub(crate) const LISTENING: u32 = 1 << 10;
/// `TCPF_ESTABLISHED | TCPF_CLOSE_WAIT`
pub(crate) const CONNECTED: u32 = 1 << 1 | 1 << 8;

const TCP: u8 = 6; // IPPROTO_TCP
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// Where `struct inet_diag_msg` has the local port, the cookie and the inode number, behind that.
const PORT: usize = HEADER + 4;
const COOKIE: usize = HEADER + 4 + 40;
const INODE: usize = HEADER + 4 + 48 + 4 * 4;

/// A TCP socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) port: u16,
    pub(crate) cookie: u64,
    pub(crate) inode: u64,
}

/// The sockets in some states, read as they are asked for. Nothing follows an error.
pub(crate) struct Sockets {
    socket: OwnedFd,
    /// The lists that are still to be asked for.
    requests: VecDeque<Vec<u8>>,
    found: VecDeque<Found>,
    /// The kernel has more of the list that was asked for last.
    unfinished: bool,
}

impl Sockets {
    /// All in these states, or those of one control group, by its id. The kernel leaves the
    /// others out.
    pub(crate) fn list(states: u32, cgroup: Option<u64>) -> io::Result<Self> {
        let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::SOCK_DIAG))?;
        let families = [AddressFamily::INET, AddressFamily::INET6];
        let requests = families.map(|family| request(family, states, cgroup)).into();
        Ok(Self { socket, requests, found: VecDeque::new(), unfinished: false })
    }

    /// Takes a part of the answer.
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 32 << 10];
        let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while rest.len() >= HEADER {
            let length = (word(rest, 0) as usize).clamp(HEADER, rest.len());
            match u16::from_ne_bytes([rest[4], rest[5]]) {
                NLMSG_DONE => self.unfinished = false,
                NLMSG_ERROR => return Err(io::Error::from(io::ErrorKind::Unsupported)),
                SOCK_DIAG_BY_FAMILY if length >= INODE + 4 => self.found.push_back(Found {
                    port: u16::from_be_bytes([rest[PORT], rest[PORT + 1]]),
                    // Its lower half comes first.
                    cookie: u64::from(word(rest, COOKIE + 4)) << 32 | u64::from(word(rest, COOKIE)),
                    inode: u64::from(word(rest, INODE)),
                }),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn go_on(&mut self) -> io::Result<Option<Found>> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Ok(Some(found));
            }
            if !self.unfinished {
                let Some(request) = self.requests.pop_front() else { return Ok(None) };
                send(&self.socket, &request, SendFlags::empty())?;
                self.unfinished = true;
            }
            self.receive()?;
        }
    }
}

impl Iterator for Sockets {
    type Item = io::Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        self.go_on()
            .inspect_err(|_| {
                self.requests.clear();
                self.unfinished = false;
            })
            .transpose()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// `struct nlmsghdr`, `struct inet_diag_req_v2` without a socket's identity, and what is to be
/// true of the sockets.
fn request(family: AddressFamily, states: u32, cgroup: Option<u64>) -> Vec<u8> {
    const REQUEST_AND_DUMP: u16 = 0x301; // NLM_F_REQUEST | NLM_F_DUMP
    let mut bytes = vec![0; HEADER + 56];
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_AND_DUMP.to_ne_bytes());
    bytes[16] = u8::try_from(family.as_raw()).expect("the families are small numbers");
    bytes[17] = TCP;
    bytes[20..24].copy_from_slice(&states.to_ne_bytes());
    bytes.extend(cgroup.into_iter().flat_map(of_cgroup));
    let length = u32::try_from(bytes.len()).expect("it is short");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// The attribute `INET_DIAG_REQ_BYTECODE` with one condition, `struct inet_diag_bc_op` and the id:
/// the end is right behind it where it holds, and is missed where it does not.
fn of_cgroup(id: u64) -> Vec<u8> {
    const INET_DIAG_REQ_BYTECODE: u16 = 1;
    const INET_DIAG_BC_CGROUP_COND: u8 = 13;
    const CONDITION: u8 = 12;
    let mut bytes = Vec::new();
    bytes.extend((4 + u16::from(CONDITION)).to_ne_bytes());
    bytes.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    bytes.extend([INET_DIAG_BC_CGROUP_COND, CONDITION]);
    bytes.extend((u16::from(CONDITION) + 4).to_ne_bytes());
    bytes.extend(id.to_ne_bytes());
    bytes
}
