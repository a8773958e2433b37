//! What becomes of the requests at a listener that ends or is emptied: with
//! `keep_requests`, the kernel moves them to siblings of its `SO_REUSEPORT` group, and the
//! program `migrate` chooses the sibling.
//!
//! The cases are those of the kernel's own test of this machinery
//! (`tools/testing/selftests/bpf`, `migrate_reuseport`), and what overspill promises
//! beyond: which sibling it is.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use overspill::{Health, MemberId, Service, empty_queue, wake};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventFlags};
use socket2::{Domain, SockAddr, Socket, Type};
use world::{at, deadline, netstat, wait_until};

use crate::tools::{Listening, connect, half_open, overflows, queued, total_queued};

const LISTENERS: usize = 5;
const CLIENTS: u32 = 25;
const BACKLOG: i32 = 125;
const MESSAGE: &[u8] = b"Hello World";

/// The address of a group; the tests run with each.
fn both_families() -> [SocketAddr; 2] {
    [at("127.0.0.1:80"), at("[::1]:80")]
}

/// How a listener ends.
#[derive(Clone, Copy)]
enum End {
    Close,
    Shutdown,
}

/// Five listeners at one address, members of a service that keeps its requests.
struct Group {
    called: SocketAddr,
    service: Service,
    listeners: Vec<Option<TcpListener>>,
}

impl Group {
    fn new(called: SocketAddr) -> Self {
        Self::with_backlogs(called, &[BACKLOG; LISTENERS])
    }

    fn with_backlogs(called: SocketAddr, backlogs: &[i32]) -> Self {
        let open = |&backlog| Listening::at(called).reuse_port().backlog(backlog).open();
        let listeners: Vec<TcpListener> = backlogs.iter().map(open).collect();
        let service = Service::builder("web").share(&listeners).unwrap();
        service.keep_requests(&listeners[0]).unwrap();
        Self { called, service, listeners: listeners.into_iter().map(Some).collect() }
    }

    fn listener(&self, position: usize) -> &TcpListener {
        self.listeners[position].as_ref().unwrap()
    }

    fn end(&mut self, position: usize, how: End) {
        match how {
            End::Close => drop(self.listeners[position].take()),
            End::Shutdown => shutdown(self.listener(position)),
        }
    }

    fn queued(&self) -> Vec<u32> {
        self.service.status().unwrap().members.iter().map(|member| member.queued).collect()
    }

    fn half_open(&self) -> Vec<u32> {
        self.service.status().unwrap().members.iter().map(|member| member.half_open).collect()
    }

    /// Connects clients that each send a message, all put on the first four listeners.
    fn clients(&self) -> Vec<TcpStream> {
        self.service.drain(MemberId(4)).unwrap();
        let clients = (0..CLIENTS).map(|_| client(self.called)).collect();
        self.service.resume(MemberId(4)).unwrap();
        clients
    }

    fn set_health(&self, positions: &[u32], health: Health) {
        for &position in positions {
            self.service.set_health(MemberId(position), health).unwrap();
        }
    }

    /// Accepts so many requests at a listener, and reads each one's message.
    fn serve(&self, position: usize, count: u32) {
        let listener = self.listener(position);
        listener.set_nonblocking(true).unwrap();
        for _ in 0..count {
            let mut accepted = None;
            wait_until("a request can be accepted", || {
                accepted = listener.accept().ok();
                accepted.is_some()
            });
            let (mut server, _) = accepted.unwrap();
            assert_eq!(server.local_addr().unwrap(), self.called);
            server.set_nonblocking(false).unwrap();
            server.set_read_timeout(Some(deadline())).unwrap();
            let mut message = [0; MESSAGE.len()];
            server.read_exact(&mut message).unwrap();
            assert_eq!(message, MESSAGE);
        }
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

fn client(called: SocketAddr) -> TcpStream {
    let mut client = connect(called).unwrap();
    client.write_all(MESSAGE).unwrap();
    client
}

fn shutdown(listener: &TcpListener) {
    rustix::net::shutdown(listener, rustix::net::Shutdown::Both).unwrap();
}

/// What each listener holds when all that waits at one has been moved: one request after
/// the other to the first of those that hold the fewest.
fn moved(mut held: Vec<u32>, from: usize, heirs: &[usize]) -> Vec<u32> {
    for _ in 0..std::mem::take(&mut held[from]) {
        let heir = heirs.iter().copied().min_by_key(|&heir| held[heir]).unwrap();
        held[heir] += 1;
    }
    held
}

/// Lets nothing but SYNs reach port 80 while it lives: handshakes stay half open. A
/// program of classic BPF on what comes in: IPv4 (without options) or IPv6, TCP, port 80,
/// ACK without SYN.
struct Withheld;

impl Withheld {
    fn new() -> Self {
        tc(&["qdisc", "add", "dev", "lo", "clsact"]);
        let program = [
            (40, 0, 0, 12), // what protocol
            (21, 0, 6, 0x0800),
            (48, 0, 0, 23),
            (21, 0, 13, 6),
            (40, 0, 0, 36), // the port
            (21, 0, 11, 80),
            (48, 0, 0, 47), // the flags
            (5, 0, 0, 6),
            (21, 0, 8, 0x86dd),
            (48, 0, 0, 20),
            (21, 0, 6, 6),
            (40, 0, 0, 56), // the port
            (21, 0, 4, 80),
            (48, 0, 0, 67), // the flags
            (84, 0, 0, 0x12),
            (21, 0, 1, 0x10),
            (6, 0, 0, 2), // TC_ACT_SHOT
            (6, 0, 0, 0), // TC_ACT_OK
        ];
        let lines = program.map(|(code, yes, no, k)| format!(",{code} {yes} {no} {k}"));
        let bytecode = format!("{}{}", program.len(), lines.concat());
        tc(&["filter", "add", "dev", "lo", "ingress", "bpf", "da", "bytecode", &bytecode]);
        Self
    }

    fn release(self) {
        drop(self);
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        tc(&["qdisc", "del", "dev", "lo", "clsact"]);
    }
}

fn tc(arguments: &[&str]) {
    let output = Command::new("tc").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "tc: {}", String::from_utf8_lossy(&output.stderr));
}

/// All cases of a test: each address and each way to end, in a world of its own.
fn each_case(case: impl Fn(SocketAddr, End)) {
    for called in both_families() {
        for end in [End::Close, End::Shutdown] {
            world::enter();
            case(called, end);
        }
    }
}

#[test]
fn what_waits_goes_to_those_that_hold_the_fewest() {
    world::enter();
    each_case(|called, end| {
        let mut group = Group::new(called);
        let _clients = group.clients();
        wait_until("all wait", || total_queued(&group.service) == CLIENTS);
        let mut held = group.queued();
        assert_eq!(held[4], 0);
        for ended in 0..4 {
            let heirs: Vec<usize> = (ended + 1..LISTENERS).collect();
            group.end(ended, end);
            held = moved(held, ended, &heirs);
            assert_eq!(group.queued(), held);
        }
        assert_eq!(held[4], CLIENTS);
        if matches!(end, End::Shutdown) {
            // To one that listens again, and back.
            for (from, to) in [(4, 1), (1, 4)] {
                rustix::net::listen(group.listener(to), BACKLOG).unwrap();
                group.end(from, end);
                assert_eq!(group.queued()[to], CLIENTS);
            }
        }
        group.serve(4, CLIENTS);
        assert_eq!(overflows(), 0);
    });
}

#[test]
fn those_that_hang_or_drain_come_last() {
    world::enter();
    each_case(|called, end| {
        let mut group = Group::new(called);
        let _clients = group.clients();
        wait_until("all wait", || total_queued(&group.service) == CLIENTS);
        let mut held = group.queued();
        group.set_health(&[1], Health::Hung);
        group.set_health(&[3], Health::OnTrial);
        group.service.drain(MemberId(4)).unwrap();
        group.end(0, end);
        held = moved(held, 0, &[2]);
        assert_eq!(group.queued(), held);
        // Only those are left, and they are better than none.
        group.end(2, end);
        assert_eq!(total_queued(&group.service), CLIENTS);
        group.service.resume(MemberId(4)).unwrap();
        group.end(1, end);
        group.end(3, end);
        group.serve(4, CLIENTS);
    });
}

/// Half-open requests at the first two listeners, which end; two others hang.
fn half_open_requests(called: SocketAddr, end: End, at_the_timer: bool) {
    let mut group = Group::new(called);
    let withheld = Withheld::new();
    let _clients = group.clients();
    wait_until("all are half open", || half_open(&group.service.status().unwrap()) == CLIENTS);
    let held = group.half_open();
    group.set_health(&[2, 3], Health::Hung);
    group.end(0, end);
    group.end(1, end);
    let inherited = held[0] + held[1];
    assert!(inherited > 0, "a hash of 25 flows gave none to two of four");
    let before = netstat("TCPMigrateReqSuccess");
    if at_the_timer {
        wait_until("the timer moves them", || group.half_open()[4] == inherited);
    }
    withheld.release();
    wait_until("all wait", || total_queued(&group.service) == CLIENTS);
    assert_eq!(group.queued(), [0, 0, held[2], held[3], inherited]);
    assert_eq!(netstat("TCPMigrateReqSuccess") - before, u64::from(inherited));
    for position in 2..LISTENERS {
        group.serve(position, group.queued()[position]);
    }
    assert_eq!(netstat("TCPMigrateReqFailure"), 0);
}

#[test]
fn half_open_requests_follow_when_their_ack_arrives() {
    world::enter();
    each_case(|called, end| half_open_requests(called, end, false));
}

#[test]
fn half_open_requests_follow_when_their_timer_sends_the_answer_again() {
    world::enter();
    each_case(|called, end| half_open_requests(called, end, true));
}

/// A fast-open request waits to be accepted while its handshake is still half open.
#[test]
fn fast_open_requests_are_moved_with_their_data() {
    world::enter();
    each_case(|called, end| {
        // Client and server, without cookies, and without a socket option at either.
        world::sysctl("net/ipv4/tcp_fastopen", "1543");
        let mut group = Group::new(called);
        let withheld = Withheld::new();
        group.service.drain(MemberId(4)).unwrap();
        let _clients: Vec<Socket> = (0..CLIENTS).map(|_| fast_client(called)).collect();
        group.service.resume(MemberId(4)).unwrap();
        wait_until("all wait", || total_queued(&group.service) == CLIENTS);
        assert_eq!(netstat("TCPFastOpenPassive"), u64::from(CLIENTS));
        let mut held = group.queued();
        for ended in 0..4 {
            let heirs: Vec<usize> = (ended + 1..LISTENERS).collect();
            group.end(ended, end);
            held = moved(held, ended, &heirs);
            assert_eq!(group.queued(), held);
        }
        withheld.release();
        group.serve(4, CLIENTS);
    });
}

fn fast_client(called: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(called), Type::STREAM, None).unwrap();
    let sent = socket.send_to_with_flags(MESSAGE, &SockAddr::from(called), libc::MSG_FASTOPEN);
    assert_eq!(sent.unwrap(), MESSAGE.len());
    socket
}

/// Nobody is left to take it: what waits is reset, and what is half open is refused.
#[test]
fn what_the_last_of_a_group_holds_is_lost() {
    world::enter();
    each_case(|called, end| {
        let mut group = Group::with_backlogs(called, &[BACKLOG]);
        let waiting = client(called);
        wait_until("it waits", || total_queued(&group.service) == 1);
        let withheld = Withheld::new();
        let opening = client(called);
        wait_until("it is half open", || half_open(&group.service.status().unwrap()) == 1);
        group.end(0, end);
        withheld.release();
        for mut client in [waiting, opening] {
            let error = client.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    });
}

/// The program is asked only where it is attached; the kernel's setting is off here.
#[test]
fn without_keep_requests_nothing_is_moved() {
    world::enter();
    let called = at("127.0.0.1:80");
    let listeners = [0; 2].map(|_| Listening::at(called).reuse_port().open());
    let service = Service::builder("web").share(&listeners).unwrap();
    service.drain(MemberId(1)).unwrap();
    let mut client = client(called);
    wait_until("it waits", || total_queued(&service) == 1);
    shutdown(&listeners[0]);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_socket_without_a_group_keeps_nothing() {
    world::enter();
    let (service, listeners) = Service::builder("web").listen([at("127.0.0.1:80")]).unwrap();
    service.keep_requests(&listeners[0]).unwrap_err();
}

/// The kernel asks nobody for room when it moves what waits: the heir holds more than it
/// would take, nothing is dropped, and new requests go elsewhere until it has room.
#[test]
fn an_heir_may_be_overfilled() {
    world::enter();
    let called = at("127.0.0.1:80");
    let group = Group::with_backlogs(called, &[16, 1]);
    let _clients: Vec<TcpStream> = (0..19).map(|_| client(called)).collect();
    wait_until("both are full", || group.queued() == [17, 2]);
    empty_queue(group.listener(0), 16).unwrap();
    assert_eq!(group.queued(), [0, 19]);
    assert_eq!(group.service.status().unwrap().members[1].capacity, 2);
    let _more: Vec<TcpStream> = (0..17).map(|_| client(called)).collect();
    wait_until("they wait elsewhere", || group.queued() == [17, 19]);
    assert_eq!(overflows(), 0);
    group.serve(1, 19);
    group.serve(0, 17);
}

/// What is half open needs a place: with its heir full, the ACK is dropped and counted,
/// and the client's next segment tries again.
#[test]
fn a_half_open_request_waits_for_a_place_at_its_heir() {
    world::enter();
    let called = at("127.0.0.1:80");
    let mut group = Group::with_backlogs(called, &[16, 0]);
    group.service.drain(MemberId(0)).unwrap();
    let _waiting = client(called);
    wait_until("the heir is full", || group.queued() == [0, 1]);
    group.service.resume(MemberId(0)).unwrap();
    let withheld = Withheld::new();
    let _opening = client(called);
    wait_until("it is half open", || group.half_open() == [1, 0]);
    group.end(0, End::Close);
    withheld.release();
    wait_until("its ACK is dropped", || overflows() > 0);
    group.serve(1, 1);
    group.serve(1, 1);
}

#[test]
fn an_emptied_member_listens_on_as_before() {
    world::enter();
    each_case(|called, _| {
        let group = Group::new(called);
        let _clients = group.clients();
        wait_until("all wait", || total_queued(&group.service) == CLIENTS);
        let before = group.service.status().unwrap();
        empty_queue(group.listener(0), BACKLOG.unsigned_abs()).unwrap();
        let after = group.service.status().unwrap();
        assert_eq!(group.queued(), moved(group_held(&before), 0, &[1, 2, 3, 4]));
        for (before, after) in before.members.iter().zip(&after.members) {
            assert_eq!(after.member, before.member);
            assert_eq!((after.state, after.capacity), (before.state, before.capacity));
            assert_eq!(after.placed, before.placed);
        }
        // It gets requests again, and its group still keeps them.
        for other in 1..5 {
            group.service.drain(MemberId(other)).unwrap();
        }
        let _more = client(called);
        wait_until("it has the new one", || group.queued()[0] == 1);
        empty_queue(group.listener(0), BACKLOG.unsigned_abs()).unwrap();
        assert_eq!(group.queued()[0], 0);
        assert_eq!(total_queued(&group.service), CLIENTS + 1);
    });
}

fn group_held(status: &overspill::Status) -> Vec<u32> {
    assert_eq!(queued(status), CLIENTS);
    status.members.iter().map(|member| member.queued).collect()
}

/// One of three does not accept, and is emptied again and again while clients come.
#[test]
fn emptied_under_load() {
    world::enter();
    let called = at("127.0.0.1:80");
    let group = Group::with_backlogs(called, &[16, 64, 64]);
    let (stop, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        for position in [1, 2] {
            let listener = group.listener(position);
            scope.spawn(move || {
                while let Ok((mut server, _)) = listener.accept() {
                    // A client that failed is counted by itself.
                    let _ = server.write_all(MESSAGE);
                }
            });
        }
        let clients: Vec<_> = (0..24)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let mut client = TcpStream::connect_timeout(&called, deadline()).unwrap();
                        client.set_read_timeout(Some(3 * deadline())).unwrap();
                        let mut answer = Vec::new();
                        client.read_to_end(&mut answer).unwrap();
                        assert_eq!(answer, MESSAGE);
                        client.shutdown(Shutdown::Both).ok();
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let failed = || clients.iter().any(thread::ScopedJoinHandle::is_finished);
        for _ in 0..50 {
            wait_until("it is full", || group.queued()[0] == 17 || failed());
            empty_queue(group.listener(0), 16).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        while !clients.iter().all(thread::ScopedJoinHandle::is_finished) {
            empty_queue(group.listener(0), 16).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        let failed = clients.into_iter().filter_map(|client| client.join().err()).count();
        for position in [1, 2] {
            shutdown(group.listener(position));
        }
        assert_eq!(failed, 0, "clients that were failed");
        assert!(answered.load(Ordering::Relaxed) > 50 * 17);
        assert_eq!(netstat("TCPMigrateReqFailure"), 0);
    });
}

/// A thread that accepts as a server with epoll does.
struct Server {
    thread: thread::JoinHandle<u32>,
    number: rustix::thread::Pid,
}

impl Server {
    /// Starts it, and waits until it waits for the first of so many requests.
    fn start(listener: &TcpListener, count: u32, edge: EventFlags) -> Self {
        let listener = listener.try_clone().unwrap();
        listener.set_nonblocking(true).unwrap();
        let waiting = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(0);
        epoll::add(&waiting, &listener, data, EventFlags::IN | edge).unwrap();
        let (sender, receiver) = mpsc::channel();
        let thread = thread::spawn(move || {
            sender.send(rustix::thread::gettid()).unwrap();
            accept_all(&listener, &waiting, count)
        });
        let server = Self { thread, number: receiver.recv().unwrap() };
        wait_until("the server waits", || server.is_asleep());
        server
    }

    fn is_asleep(&self) -> bool {
        let path = format!("/proc/self/task/{}/stat", self.number.as_raw_nonzero());
        fs::read_to_string(path).is_ok_and(|stat| stat.contains(") S "))
    }

    /// How many requests it has accepted.
    fn accepted(self) -> u32 {
        self.thread.join().unwrap()
    }
}

/// Accepts until there were so many, or nobody wakes it.
fn accept_all(listener: &TcpListener, waiting: &OwnedFd, count: u32) -> u32 {
    let deadline = Timespec::try_from(deadline()).unwrap();
    let mut accepted = 0;
    while accepted < count {
        let mut events = Vec::with_capacity(1);
        epoll::wait(waiting, spare_capacity(&mut events), Some(&deadline)).unwrap();
        if events.is_empty() {
            break;
        }
        while listener.accept().is_ok() {
            accepted += 1;
        }
    }
    accepted
}

#[test]
fn who_waits_for_a_moved_connection_is_woken() {
    world::enter();
    for called in both_families() {
        for edge in [EventFlags::empty(), EventFlags::ET] {
            let group = Group::new(called);
            for other in 1..5 {
                group.service.drain(MemberId(other)).unwrap();
            }
            let _client = client(called);
            wait_until("it waits", || group.queued()[0] == 1);
            group.service.resume(MemberId(1)).unwrap();
            let server = Server::start(group.listener(1), 1, edge);
            empty_queue(group.listener(0), BACKLOG.unsigned_abs()).unwrap();
            wake(group.listener(1)).unwrap();
            assert_eq!(server.accepted(), 1);
            group.service.remove().unwrap();
        }
    }
}

#[test]
fn waking_changes_nothing_else() {
    world::enter();
    let group = Group::new(at("127.0.0.1:80"));
    for other in 1..5 {
        group.service.drain(MemberId(other)).unwrap();
    }
    let server = Server::start(group.listener(0), 1, EventFlags::ET);
    for _ in 0..10 {
        wake(group.listener(0)).unwrap();
    }
    wait_until("the server waits on", || server.is_asleep());
    let _client = client(group.called);
    assert_eq!(server.accepted(), 1);
    assert_eq!(group.service.status().unwrap().members[0].capacity, BACKLOG.unsigned_abs() + 1);
}

/// `HAProxy` and others pause a listener with `shutdown(SHUT_RD)`, and let it listen again.
#[test]
fn waking_leaves_a_paused_listener_alone() {
    world::enter();
    let group = Group::new(at("127.0.0.1:80"));
    rustix::net::shutdown(group.listener(0), rustix::net::Shutdown::Read).unwrap();
    wake(group.listener(0)).unwrap();
    rustix::net::listen(group.listener(0), BACKLOG).unwrap();
    for other in 1..5 {
        group.service.drain(MemberId(other)).unwrap();
    }
    let mut client = client(group.called);
    let (mut server, _) = group.listener(0).accept().unwrap();
    server.write_all(MESSAGE).unwrap();
    client.set_read_timeout(Some(deadline())).unwrap();
    let mut message = [0; MESSAGE.len()];
    client.read_exact(&mut message).unwrap();
    assert_eq!(message, MESSAGE);
}
