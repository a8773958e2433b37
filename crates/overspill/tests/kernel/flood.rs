//! SYN floods: the kernel answers with SYN cookies and remembers nothing, so that a client's
//! ACK is a look-up of its own. It must find the member that sent the cookie.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use overspill::{Policy, Service, flow};
use world::{at, netstat, wait_until};

use crate::tools::Listening;
use world::syn::{self, Answer, Sender, Wire};

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
        let wire = Wire::to(syn::client(called.is_ipv6(), 0).ip());
        let mut flooded = Self { service, listeners, wire, called, next: 1024 };
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

    /// Another flow is sent a cookie, and takes the place of the client's.
    fn overwrite(&self, client: SocketAddr) {
        let seed = self.service.namespace().seed().unwrap().unwrap();
        let hash = |client| flow::hash(seed, client, self.called) & 0xffff;
        let same = (0..=u8::MAX)
            .flat_map(|address| (1024..=u16::MAX).map(move |port| (address, port)))
            .map(|(address, port)| syn::one_of_many(self.called.is_ipv6(), address, port))
            .find(|&other| other != client && hash(other) == hash(client));
        syn::open(same.expect("256 * 64,512 flows have every hash"), self.called);
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

/// Nor do a change of the list, a drain, or another flow's cookie in the same entry.
#[test]
fn what_happens_meanwhile_is_no_hindrance() {
    for pair in PAIRS {
        let mut flooded = Flooded::new(pair, Policy::NextAvailable);
        let (client, cookie) = flooded.cookie();
        flooded.overwrite(client);
        flooded.abort(2);
        syn::acknowledge(client, flooded.called, cookie);
        flooded.arrives(client);

        let mut flooded = Flooded::new(pair, Policy::ShortestQueue);
        let (client, cookie) = flooded.cookie();
        let id = flooded.service.status().unwrap().members[0].member;
        flooded.service.drain(id).unwrap();
        let third = if flooded.called.is_ipv6() { "[fd00::3]:80" } else { "10.0.0.3:80" };
        let third = Listening::at(at(third)).open();
        flooded.service.join(&third).unwrap();
        syn::acknowledge(client, flooded.called, cookie);
        flooded.arrives(client);
        let requests = flooded.service.status().unwrap().requests;
        assert_eq!((requests.returned, requests.crowded), (1, 1));
    }
}

/// A full sender drops the ACK, as it does without a service; the client sends it again.
#[test]
fn a_full_member_drops_the_ack() {
    for pair in PAIRS {
        let mut flooded = Flooded::new(pair, Policy::NextAvailable);
        let answered = [flooded.cookie(), flooded.cookie()];
        flooded.abort(2);
        let [first, second] = answered.map(|(client, cookie)| {
            syn::acknowledge(client, flooded.called, cookie);
            client
        });
        wait_until("one is dropped", || flooded.service.status().unwrap().requests.dropped == 1);
        flooded.arrives(first);
        syn::acknowledge(second, flooded.called, answered[1].1);
        flooded.arrives(second);
    }
}

/// How the members lie, and whom the flood calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Together,
    ApartCalledOne,
    ApartCalledAll,
}

const MEMBERS: u32 = 4;
/// Of each kind: those that are near, and those a long round trip away.
const CLIENTS: u16 = 60;
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// Four servers, a flood, and the clients that count.
struct Site {
    addresses: Vec<SocketAddr>,
    flooded: Vec<SocketAddr>,
    listeners: Vec<TcpListener>,
    /// The clients whose byte a server has read.
    served: Mutex<HashMap<SocketAddr, usize>>,
    over: AtomicBool,
    syns: AtomicU32,
}

impl Site {
    fn new(layout: Layout, ipv6: bool, always: bool) -> Self {
        world::enter();
        syn::blackhole();
        world::sysctl("net/ipv4/tcp_syncookies", if always { "2" } else { "1" });
        let address = |n| match layout {
            Layout::Together => SocketAddr::new(world::address(ipv6, 0), 80),
            _ => SocketAddr::new(world::address(ipv6, n), 80),
        };
        let addresses: Vec<SocketAddr> = (0..MEMBERS).map(address).collect();
        let open = |&address: &SocketAddr| Listening::at(address).reuse_port().backlog(16).open();
        let listeners = addresses.iter().map(open).collect();
        let flooded = match layout {
            Layout::ApartCalledAll => addresses.clone(),
            _ => addresses[..1].to_vec(),
        };
        let (served, over, syns) = (Mutex::default(), AtomicBool::new(false), AtomicU32::new(0));
        Self { addresses, flooded, listeners, served, over, syns }
    }

    /// Accepts, reads a byte and writes it back.
    fn serve(&self, listener: &TcpListener) {
        while let Ok((mut stream, peer)) = listener.accept() {
            let mut byte = [0];
            stream.set_read_timeout(Some(world::deadline())).unwrap();
            // One that gave up after it had connected sends nothing.
            if stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {
                *self.served.lock().unwrap().entry(peer).or_default() += 1;
            }
        }
    }

    /// SYNs from many clients that never answer, or, every other one, by a reset a little
    /// later, as a host does that is there and has not called: places come free all the time.
    fn flood(&self) {
        const BATCH: u16 = 16;
        let sender = Sender::new(self.addresses[0].is_ipv6());
        let flow = |n: u32| {
            let (address, port) = (10 + (n % 200) as u8, 1024 + (n / 200 % 60_000) as u16);
            let called = self.flooded[n as usize % self.flooded.len()];
            (syn::one_of_many(called.is_ipv6(), address, port), called)
        };
        while !self.over.load(Relaxed) {
            for _ in 0..BATCH {
                let n = self.syns.fetch_add(1, Relaxed);
                let (client, called) = flow(n);
                sender.open(client, called);
                if n >= 200 && n.is_multiple_of(2) {
                    let (client, called) = flow(n - 200);
                    sender.abort(client, called);
                }
            }
            // Some ten thousand a second.
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Clients of this machine, one after the other: how many got their byte back.
    fn near_clients(&self) -> u16 {
        let client = |n: u16| -> std::io::Result<()> {
            let called = self.flooded[usize::from(n) % self.flooded.len()];
            let mut stream = TcpStream::connect_timeout(&called, world::deadline())?;
            stream.set_read_timeout(Some(world::deadline()))?;
            stream.write_all(b"?")?;
            stream.read_exact(&mut [0])
        };
        (0..CLIENTS).filter(|&n| client(n).is_ok()).map(|_| 1).sum()
    }

    /// Clients that take a round trip to answer, all at once: how many were served, and how
    /// many refused.
    fn far_clients(&self, wire: &Wire) -> (u16, u16) {
        struct Far {
            client: SocketAddr,
            called: SocketAddr,
            sent: Instant,
            cookie: Option<u32>,
        }
        let sender = Sender::new(self.addresses[0].is_ipv6());
        let (mut served, mut refused, mut next) = (0, 0, 0);
        let mut under_way: Vec<Far> = Vec::new();
        let start = Instant::now();
        while served + refused < CLIENTS {
            assert!(start.elapsed() < world::deadline(), "{served} served, {refused} refused");
            if next < CLIENTS && under_way.len() < 8 {
                let called = self.flooded[usize::from(next) % self.flooded.len()];
                let client = syn::client(called.is_ipv6(), 1024 + next);
                sender.open(client, called);
                under_way.push(Far { client, called, sent: Instant::now(), cookie: None });
                next += 1;
            }
            while let Some((client, _, answer)) = wire.next() {
                let Some(at) = under_way.iter().position(|far| far.client == client) else {
                    continue;
                };
                match answer {
                    Answer::SynAck(sequence) => under_way[at].cookie = Some(sequence),
                    Answer::Reset => {
                        under_way.swap_remove(at);
                        refused += 1;
                    }
                }
            }
            let done = self.served.lock().unwrap();
            let before = under_way.len();
            under_way.retain(|far| !done.contains_key(&far.client));
            served += u16::try_from(before - under_way.len()).unwrap();
            drop(done);
            for far in &mut under_way {
                let Far { client, called, .. } = *far;
                if far.sent.elapsed() < ROUND_TRIP {
                    continue;
                }
                // What was dropped is sent again.
                match far.cookie {
                    Some(cookie) => sender.acknowledge(client, called, cookie, b"?"),
                    None => sender.open(client, called),
                }
                far.sent = Instant::now();
            }
            thread::sleep(Duration::from_micros(200));
        }
        (served, refused)
    }

    /// Everything at once; every client must be served.
    fn run(&self, policy: Option<Policy>, what: &str) {
        let service = policy
            .map(|policy| Service::builder("web").policy(policy).share(&self.listeners).unwrap());
        let wire = Wire::to(syn::client(self.addresses[0].is_ipv6(), 0).ip());
        let outcome = thread::scope(|scope| {
            for listener in &self.listeners {
                scope.spawn(|| self.serve(listener));
            }
            scope.spawn(|| self.flood());
            let near = scope.spawn(|| self.near_clients());
            wait_until("the flood forces cookies on", || netstat("SyncookiesSent") > 100);
            let far = self.far_clients(&wire);
            let near = near.join().unwrap();
            self.over.store(true, Relaxed);
            for listener in &self.listeners {
                rustix::net::shutdown(listener, rustix::net::Shutdown::Both).unwrap();
            }
            (near, far)
        });
        let returned = service.map(|service| {
            let returned = service.status().unwrap().requests.returned;
            service.remove().unwrap();
            returned
        });
        println!(
            "{what}, {policy:?}: near {}, far {:?} of {CLIENTS} each, {} SYNs, {} cookies sent, \
             {} checked, returned {returned:?}",
            outcome.0,
            outcome.1,
            self.syns.load(Relaxed),
            netstat("SyncookiesSent"),
            netstat("SyncookiesRecv"),
        );
        assert_eq!(outcome, (CLIENTS, (CLIENTS, 0)), "{what}, {policy:?}");
    }
}

fn every_client_is_served(layout: Layout) {
    for ipv6 in [false, true] {
        for always in [false, true] {
            let policies = Policy::ALL.iter().copied().map(Some);
            for policy in std::iter::once(None).chain(policies) {
                let what = format!("{layout:?}, ipv6 {ipv6}, always {always}");
                Site::new(layout, ipv6, always).run(policy, &what);
            }
        }
    }
}

#[test]
fn a_flood_on_one_address_that_all_members_have() {
    every_client_is_served(Layout::Together);
}

#[test]
fn a_flood_on_one_of_several_addresses() {
    every_client_is_served(Layout::ApartCalledOne);
}

#[test]
fn a_flood_on_several_addresses() {
    every_client_is_served(Layout::ApartCalledAll);
}
