//! What is known of a member besides its queue.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

/// Which requests a listening socket can take.
///
/// An IPv4 socket never takes IPv6 requests; an IPv6 socket takes IPv4 requests
/// unless it is IPv6-only (`bpf_sk_lookup_assign` in `net/core/filter.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Families {
    /// Requests that arrive over IPv4.
    pub ipv4: bool,
    /// Requests that arrive over IPv6.
    pub ipv6: bool,
}

impl Families {
    /// An IPv4 socket.
    pub const IPV4: Self = Self { ipv4: true, ipv6: false };
    /// An IPv6-only socket.
    pub const IPV6: Self = Self { ipv4: false, ipv6: true };
    /// An IPv6 socket that also takes IPv4.
    pub const BOTH: Self = Self { ipv4: true, ipv6: true };

    /// Whether a request that calls `address` can be put on such a socket.
    #[must_use]
    pub fn take(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.ipv4,
            IpAddr::V6(_) => self.ipv6,
        }
    }
}

/// The address that a member is bound to, and the requests that it can take there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// The address; a v4-mapped IPv6 address is given as the IPv4 address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The requests that it can take.
    pub families: Families,
}

impl Address {
    /// Whether it is bound to every address of its families.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.ip.is_unspecified()
    }

    /// The addresses at which clients reach it: its own, or one or two wildcards.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4_too = self.ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && self.families.ipv4;
        std::iter::once(self.ip).chain(ipv4_too.then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&std::net::SocketAddr::new(self.ip, self.port).to_string())
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether a member accepts connections, as far as its queue tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// It gets its share of the requests.
    #[default]
    Well,
    /// It does not accept: it gets requests only where no other member can take them, and
    /// what waits at it is to be moved to its siblings, also what comes out of the
    /// half-open state later.
    Hung,
    /// It is given one request, while it has none, to see whether it accepts again.
    OnTrial,
}

/// A member's number within its service: given when it joins, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct MemberId(pub u32);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}
