//! SYN floods: the kernel answers with SYN cookies and remembers nothing, so that a client's
//! ACK is a look-up of its own. It must find the member that sent the cookie.

use std::net::{SocketAddr, TcpListener};

use overspill::{Policy, Service};
use world::{at, wait_until};

use crate::syn::{self, Wire};
use crate::tools::{Listening, netstat};

/// Two members on an address of each, with a queue of one place, the called one first.
const PAIRS: [[&str; 2]; 2] = [["10.0.0.1:80", "10.0.0.2:80"], ["[fd00::1]:80", "[fd00::2]:80"]];

/// A service under a flood that has filled it with half-open requests.
struct Flooded {
    service: Service,
    listeners: [TcpListener; 2],
    wire: Wire,
    called: SocketAddr,
    next: u16,
}

impl Flooded {
    fn new(pair: [&str; 2], policy: Policy) -> Self {
        // Of its own: what is left of an earlier one's connections would answer.
        world::enter();
        syn::blackhole();
        let listeners = pair.map(|address| Listening::at(at(address)).backlog(0).open());
        let service = Service::builder("web").policy(policy).share(&listeners).unwrap();
        let called = at(pair[0]);
        let mut flooded = Self { service, listeners, wire: Wire::new(), called, next: 1024 };
        for _ in 0..2 {
            let client = flooded.client();
            syn::open(client, called);
        }
        flooded.half_open([1, 1]);
        flooded
    }

    fn client(&mut self) -> SocketAddr {
        self.next += 1;
        syn::client(self.called.is_ipv6(), self.next)
    }

    /// A client's SYN is answered with a cookie, whose sequence number it is.
    fn cookie(&mut self) -> (SocketAddr, u32) {
        let client = self.client();
        let sent = netstat("SyncookiesSent");
        syn::open(client, self.called);
        let cookie = self.wire.answer(client, self.called);
        assert_eq!(netstat("SyncookiesSent"), sent + 1);
        (client, cookie)
    }

    /// The half-open request of the n-th client ends.
    fn abort(&self, n: u16) {
        syn::abort(syn::client(self.called.is_ipv6(), 1024 + n), self.called);
    }

    fn half_open(&self, expected: [u32; 2]) {
        wait_until(&format!("{expected:?} are half open"), || {
            let members = self.service.status().unwrap().members;
            members.iter().map(|member| member.half_open).eq(expected)
        });
    }

    /// The client's connection waits at the member that sent the cookie.
    fn arrives(&self, client: SocketAddr) {
        wait_until("the cookie is accepted", || {
            self.service.status().unwrap().members[0].queued == 1
        });
        assert_eq!(self.listeners[0].accept().unwrap().1, client);
    }
}

/// Room that appears at a sibling after the cookie was sent does not draw its ACK there: the
/// sibling knows of no cookie, and would refuse it.
#[test]
fn a_late_ack_finds_the_member_that_sent_the_cookie() {
    for pair in PAIRS {
        for policy in Policy::ALL {
            let mut flooded = Flooded::new(pair, policy);
            let (client, cookie) = flooded.cookie();
            flooded.abort(2);
            flooded.half_open([1, 0]);
            syn::acknowledge(client, flooded.called, cookie);
            flooded.arrives(client);
            flooded.service.remove().unwrap();
        }
    }
}
