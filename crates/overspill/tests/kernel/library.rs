//! The library's promises beyond the placing: changing services one step at a time, what
//! becomes of them when sockets, processes and namespaces end, and who may write.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use libbpf_rs::query::{LinkInfoIter, LinkTypeInfo};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use overspill::trace::{Filter, Trace};
use overspill::{
    Capacity, Change, Error, Health, MemberId, MemberState, Namespace, OnFull, Policy, Service,
    adopt,
};
use world::{at, wait_until};

use crate::tools::{Listening, connect, listener, total_queued};

const ROOT: &str = "/sys/fs/bpf/overspill";

fn here() -> Namespace {
    Namespace::current().unwrap()
}

fn ids(service: &Service) -> Vec<u32> {
    service.status().unwrap().members.iter().map(|member| member.member.0).collect()
}

fn state(service: &Service, position: usize) -> MemberState {
    service.status().unwrap().members[position].state
}

/// Connects and waits until the connection lies in one of the listeners' queues.
fn accepted_by(listeners: &[&TcpListener], address: SocketAddr) -> usize {
    let _client = connect(address).unwrap();
    let mut found = None;
    wait_until("a listener has it", || {
        found = listeners.iter().position(|listener| {
            listener.set_nonblocking(true).unwrap();
            match listener.accept() {
                Ok((server, _)) => {
                    assert_eq!(server.local_addr().unwrap(), address);
                    true
                }
                Err(error) => {
                    assert!(matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::InvalidInput
                    ));
                    false
                }
            }
        });
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn every_change_is_read_back() {
    world::enter();
    let (service, _listeners) =
        Service::builder("web").listen([at("10.0.0.1:80"), at("10.0.0.2:80")]).unwrap();
    let third = listener(at("10.0.0.3:80"));
    assert_eq!(service.join(&third).unwrap(), MemberId(2));
    assert_eq!(ids(&service), [0, 1, 2]);
    service.leave(MemberId(1)).unwrap();
    assert_eq!(ids(&service), [0, 2]);
    service.drain(MemberId(2)).unwrap();
    assert_eq!(state(&service, 1), MemberState::Draining);
    service.resume(MemberId(2)).unwrap();
    assert_eq!(state(&service, 1), MemberState::Active);
    service.set_pid(MemberId(2), 1).unwrap();
    assert_eq!(service.status().unwrap().members[1].pid, 1);

    for policy in Policy::ALL {
        service.set(&Change { policy: Some(policy), ..Change::default() }).unwrap();
        assert_eq!(service.status().unwrap().policy, policy);
    }
    for on_full in OnFull::ALL {
        service.set(&Change { on_full: Some(on_full), ..Change::default() }).unwrap();
        assert_eq!(service.status().unwrap().on_full, on_full);
    }
    for on in [false, true] {
        service.set(&Change { redirect: Some(on), ..Change::default() }).unwrap();
        service.set(&Change { spread: Some(on), ..Change::default() }).unwrap();
        let status = service.status().unwrap();
        assert_eq!((status.redirect, status.spread), (on, on));
    }
    let status = service.status().unwrap();
    assert_eq!(Service::open("web").unwrap().status().unwrap(), status);
    assert_eq!(Service::all(&here()).unwrap(), [service]);
}

#[test]
fn the_number_of_a_member_is_never_used_again() {
    world::enter();
    let (service, _listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    let other = listener(at("10.0.0.2:80"));
    for n in 1..20 {
        assert_eq!(service.join(&other).unwrap(), MemberId(n));
        service.leave(MemberId(n)).unwrap();
    }
}

#[test]
fn a_new_member_begins_with_counters_of_zero() {
    world::enter();
    let (service, mut listeners) =
        Service::builder("web").listen([at("10.0.0.1:80"), at("10.0.0.2:80")]).unwrap();
    connect(at("10.0.0.2:80")).unwrap();
    assert_eq!(service.status().unwrap().members[1].placed, 1);
    service.leave(MemberId(1)).unwrap();
    let id = service.join(&listeners[1]).unwrap();
    let status = service.status().unwrap();
    assert_eq!((status.members[1].member, status.members[1].placed), (id, 0));
    listeners.clear();
}

#[test]
fn members_of_services_that_lie_among_each_other_keep_their_own_figures() {
    world::enter();
    let (web, _one) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    let between = (0..20).map(|n| SocketAddr::new(world::address(false, 100 + n), 81));
    let (other, _others) = Service::builder("other").listen(between).unwrap();
    let two = listener(at("10.0.0.2:80"));
    web.join(&two).unwrap();
    let called = ["10.0.0.2:80", "10.0.0.101:81", "10.0.0.1:80", "10.0.0.2:80"];
    let _clients = called.map(|address| connect(at(address)).unwrap());
    let figures = |service: &Service| -> Vec<(u64, u32)> {
        let members = service.status().unwrap().members;
        members.iter().map(|member| (member.placed, member.queued)).collect()
    };
    wait_until("all wait", || figures(&web) == [(1, 1), (2, 2)]);
    let mut others = vec![(0, 0); 20];
    others[0] = (1, 1);
    wait_until("one waits", || figures(&other) == others);
    let queued = |service: &Service| -> Vec<u32> {
        service.queues().unwrap().iter().map(|queue| queue.queued).collect()
    };
    assert_eq!(queued(&web), [1, 2]);
    assert_eq!(queued(&other)[..2], [1, 0]);
}

#[test]
fn a_member_whose_socket_ended_keeps_its_address() {
    world::enter();
    let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80"), at("10.0.0.3:80")];
    let (service, mut listeners) = Service::builder("web").listen(addresses).unwrap();
    drop(listeners.remove(0));
    rustix::net::shutdown(&listeners[0], rustix::net::Shutdown::Both).unwrap();
    for position in [0, 1] {
        assert_eq!(state(&service, position), MemberState::Gone);
    }
    for called in addresses {
        assert_eq!(accepted_by(&[&listeners[1]], called), 0);
    }
    let status = service.status().unwrap();
    assert_eq!(status.members[0].address.to_string(), "10.0.0.1:80");
    assert_eq!((status.requests.placed, status.requests.redirected), (1, 2));
    assert_eq!(status.members[0].redirected_out, 1);
    // A new socket takes its place beside it.
    let anew = listener(addresses[0]);
    service.join(&anew).unwrap();
    assert_eq!(accepted_by(&[&anew, &listeners[1]], addresses[0]), 0);
    service.leave(MemberId(0)).unwrap();
    assert_eq!(accepted_by(&[&anew, &listeners[1]], addresses[0]), 0);
}

/// `shutdown` does not take a socket out of the kernel's socket map; `close` does.
#[test]
fn a_socket_that_listens_again_is_a_member_again() {
    world::enter();
    let (service, listeners) =
        Service::builder("web").listen([at("10.0.0.1:80"), at("10.0.0.2:80")]).unwrap();
    let both = [&listeners[0], &listeners[1]];
    for _ in 0..2 {
        rustix::net::shutdown(&listeners[0], rustix::net::Shutdown::Both).unwrap();
        assert_eq!(state(&service, 0), MemberState::Gone);
        assert_eq!(accepted_by(&both[1..], at("10.0.0.1:80")), 0);
        rustix::net::listen(&listeners[0], 5).unwrap();
        assert_eq!(state(&service, 0), MemberState::Active);
        assert_eq!(service.status().unwrap().members[0].capacity, 6);
        assert_eq!(accepted_by(&both, at("10.0.0.1:80")), 0);
    }
}

#[test]
fn with_all_members_gone_the_request_is_left_to_the_kernel() {
    world::enter();
    let called = at("10.0.0.1:80");
    let (service, listeners) = Service::builder("web").listen([called, at("10.0.0.2:80")]).unwrap();
    drop(listeners);
    assert_eq!(connect(called).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let other = listener(called);
    assert_eq!(accepted_by(&[&other], called), 0);
    assert_eq!(service.status().unwrap().requests.left, 2);
    service.remove().unwrap();
}

#[test]
fn two_services_on_one_port() {
    world::enter();
    let builder = |name| Service::builder(name).backlog(0);
    let (one, ones) = builder("one").listen([at("10.0.0.1:80"), at("10.0.0.2:80")]).unwrap();
    let (two, twos) = builder("two").listen([at("10.0.0.3:80"), at("10.0.0.4:80")]).unwrap();
    let _clients = [at("10.0.0.1:80"); 2].map(|address| connect(address).unwrap());
    wait_until("one is full", || total_queued(&one) == 2);
    assert_eq!(accepted_by(&[&twos[0], &twos[1]], at("10.0.0.3:80")), 0);
    assert_eq!(two.status().unwrap().requests.redirected, 0);
    one.remove().unwrap();
    assert_eq!(accepted_by(&[&twos[0], &twos[1]], at("10.0.0.4:80")), 1);
    assert_eq!(two.status().unwrap().requests.placed, 2);
    two.remove().unwrap();
    drop(ones);
    assert!(!Path::new(ROOT).exists());
}

/// Clients connect and servers accept all the while; nobody may notice the changes.
#[test]
fn changes_under_load() {
    world::enter();
    let addresses: Vec<SocketAddr> =
        (0..4).map(|n| SocketAddr::new(world::address(false, n / 2), 80)).collect();
    let listeners: Vec<TcpListener> = addresses
        .iter()
        .map(|&address| Listening::at(address).reuse_port().backlog(64).open())
        .collect();
    let service = Service::builder("web").share(&listeners).unwrap();
    let stop = AtomicBool::new(false);
    let served = AtomicU32::new(0);
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| {
                while let Ok((mut server, _)) = listener.accept() {
                    let called = server.local_addr().unwrap().to_string();
                    server.write_all(called.as_bytes()).unwrap();
                }
            });
        }
        let clients: Vec<_> = (0..3)
            .map(|n| {
                let (stop, served, addresses) = (&stop, &served, &addresses);
                scope.spawn(move || {
                    for called in addresses.iter().cycle().skip(n) {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let mut answer = String::new();
                        let mut client = connect(*called).unwrap();
                        client.read_to_string(&mut answer).unwrap();
                        assert_eq!(answer, called.to_string());
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for round in 0..40_usize {
            let before = served.load(Ordering::Relaxed);
            let status = service.status().unwrap();
            let first = status.members[0].member;
            let policy = Some(Policy::ALL[round % 3]);
            service.set(&Change { policy, ..Change::default() }).unwrap();
            service.drain(first).unwrap();
            service.resume(first).unwrap();
            service.leave(first).unwrap();
            let missing = |listener: &&TcpListener| service.join(*listener).is_ok();
            assert_eq!(listeners.iter().filter(missing).count(), 1);
            service.set(&Change { spread: Some(round % 2 == 0), ..Change::default() }).unwrap();
            if round % 8 == 3 {
                service.clone().remove().unwrap();
                Service::builder("web").share(&listeners).unwrap();
            }
            wait_until("clients have been served meanwhile", || {
                served.load(Ordering::Relaxed) > before + 20
                    || clients.iter().any(thread::ScopedJoinHandle::is_finished)
            });
        }
        stop.store(true, Ordering::Relaxed);
        let failed = clients.into_iter().map(|client| client.join().is_err());
        let failed = failed.filter(|&failed| failed).count();
        let requests = service.status().unwrap().requests;
        for listener in &listeners {
            rustix::net::shutdown(listener, rustix::net::Shutdown::Both).unwrap();
        }
        assert_eq!(failed, 0, "clients that were failed");
        assert_eq!((requests.dropped, requests.reset, requests.left), (0, 0, 0));
        assert!(requests.placed > 0);
    });
}

#[test]
fn a_capacity_that_is_reached() {
    world::enter();
    let capacity = Capacity { services: 2, members: 5 };
    let make = |name: &str, port: u16, count: u32| {
        let addresses = (0..count).map(|n| SocketAddr::new(world::address(false, n), port));
        Service::builder(name).capacity(capacity).listen(addresses)
    };
    let (one, _ones) = make("one", 80, 2).unwrap();
    let error = make("two", 81, 4).unwrap_err();
    assert!(
        matches!(error, Error::OverCapacity { what: "members", wanted: 6, capacity: 5 }),
        "{error:?}"
    );
    let (two, _twos) = make("two", 81, 3).unwrap();
    let before = (one.status().unwrap(), two.status().unwrap());
    let error = make("three", 82, 1).unwrap_err();
    assert!(
        matches!(error, Error::OverCapacity { what: "services", wanted: 3, capacity: 2 }),
        "{error:?}"
    );
    let more = listener(at("10.0.0.9:80"));
    let error = one.join(&more).unwrap_err();
    assert!(matches!(error, Error::OverCapacity { what: "members", .. }), "{error:?}");
    assert_eq!((one.status().unwrap(), two.status().unwrap()), before);
    // What is given up can be had again.
    two.leave(MemberId(0)).unwrap();
    one.join(&more).unwrap();
    two.remove().unwrap();
    make("three", 82, 2).unwrap();

    let other = Capacity { services: 3, members: 5 };
    let error = Service::builder("four").capacity(other).listen([at("10.0.0.1:83")]).unwrap_err();
    assert!(matches!(error, Error::BadCapacity { .. }), "{error:?}");
}

#[test]
fn capacities_that_cannot_be_had() {
    world::enter();
    let listening = listener(at("10.0.0.1:80"));
    for (services, members) in [(0, 1), (1, 0), (Capacity::MAX + 1, 1), (1, Capacity::MAX + 1)] {
        let builder = Service::builder("web").capacity(Capacity { services, members });
        let error = builder.share(&[&listening]).unwrap_err();
        assert!(matches!(error, Error::BadCapacity { .. }), "{error:?}");
        assert!(!Path::new(ROOT).exists());
    }
}

#[test]
fn a_second_writer_waits() {
    world::enter();
    let (service, _listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    let lock = File::open(ROOT).unwrap();
    lock.lock().unwrap();
    let released = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            service.drain(MemberId(0)).unwrap();
            released.load(Ordering::SeqCst)
        });
        wait_until("the writer is about to take the lock", || {
            let open = fs::read_dir("/proc/thread-self/fd").unwrap();
            let links = open.flatten().flat_map(|entry| fs::read_link(entry.path()));
            links.filter(|link| link == Path::new(ROOT)).count() == 2
        });
        // Who only looks does not wait, and sees that nothing has changed.
        assert_eq!(state(&service, 0), MemberState::Active);
        released.store(true, Ordering::SeqCst);
        lock.unlock().unwrap();
        assert!(writer.join().unwrap(), "it did not wait");
    });
    assert_eq!(state(&service, 0), MemberState::Draining);
}

#[test]
fn a_writer_that_is_stopped_is_not_waited_for_without_end() {
    world::enter();
    let (service, _listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    let mut stopped = Command::new("flock")
        .args(["--no-fork", ROOT, "sh", "-c", "echo ready; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(stopped.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let error = service.drain(MemberId(0)).unwrap_err();
    let pid = stopped.id();
    assert!(
        matches!(&error, Error::Locked { pid: Some(holder), command, .. }
            if *holder == pid && command == "cat"),
        "{error:?}"
    );
    assert!(error.remedy().unwrap().contains(&format!("kill -KILL {pid}")));
    assert_eq!(state(&service, 0), MemberState::Active);
    drop(stopped.stdin.take());
    stopped.wait().unwrap();
    service.drain(MemberId(0)).unwrap();
}

#[test]
fn what_a_killed_writer_left_is_swept_away() {
    world::enter();
    let (service, _listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    let own = Path::new(ROOT).join(here().inode().to_string());
    // Killed while making a state, and while removing one.
    for name in ["new-123", "4"] {
        let folder = Path::new(ROOT).join(name);
        fs::create_dir(&folder).unwrap();
        for pin in ["state", "ports"] {
            MapHandle::from_pinned_path(own.join(pin)).unwrap().pin(folder.join(pin)).unwrap();
        }
    }
    assert_eq!(Service::all(&here()).unwrap().len(), 1);
    assert_eq!(Namespace::with_services().unwrap(), [here()]);
    service.drain(MemberId(0)).unwrap();
    let left: Vec<_> = fs::read_dir(ROOT).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [own]);
    service.remove().unwrap();
    assert!(!Path::new(ROOT).exists());
}

#[test]
fn what_was_left_of_a_first_service_is_no_hindrance() {
    world::enter();
    // Killed while making this very namespace's state.
    fs::create_dir_all(Path::new(ROOT).join(format!("new-{}", here().inode()))).unwrap();
    fs::create_dir_all(Path::new(ROOT).join(here().inode().to_string())).unwrap();
    assert!(Service::all(&here()).unwrap().is_empty());
    let (service, _listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    service.remove().unwrap();
    assert!(!Path::new(ROOT).exists());
}

/// A pinned map of this namespace.
fn map(name: &str) -> MapHandle {
    let folder = Path::new(ROOT).join(here().inode().to_string());
    MapHandle::from_pinned_path(folder.join(name)).unwrap()
}

/// The entry of an array.
fn entry(map: &MapHandle, number: u32) -> Option<Vec<u8>> {
    map.lookup(&number.to_ne_bytes(), MapFlags::ANY).unwrap()
}

/// The entries of `near` that lead somewhere: where each stands, and the number of the row.
fn near() -> BTreeMap<u32, u32> {
    let near = map("near");
    let row = |at| u64::from_ne_bytes(entry(&near, at).unwrap().try_into().unwrap());
    let row = |at| u32::try_from(row(at)).unwrap();
    (0..near.max_entries()).map(|at| (at, row(at))).filter(|(_, row)| *row != 0).collect()
}

/// What is in the indexes of this namespace.
#[derive(Debug, PartialEq)]
struct Indexes {
    endpoints: BTreeMap<Vec<u8>, Vec<u8>>,
    /// By port.
    kinds: Vec<u8>,
    near: BTreeMap<u32, u32>,
}

fn indexes() -> Indexes {
    let endpoints = map("endpoints");
    let entries = endpoints
        .keys()
        .map(|key| (key.clone(), endpoints.lookup(&key, MapFlags::ANY).unwrap().unwrap()))
        .collect();
    Indexes { endpoints: entries, kinds: entry(&map("ports"), 0).unwrap(), near: near() }
}

#[test]
fn what_a_killed_writer_left_of_the_indexes_is_put_right() {
    world::enter();
    let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80"), at("10.0.0.3:80")];
    let (service, _listeners) = Service::builder("web").listen(addresses).unwrap();
    let whole = indexes();
    assert_eq!((whole.endpoints.len(), whole.near.len()), (3, 3));
    // Killed with one endpoint gone, another one too many, and the port not yet served.
    let endpoints = map("endpoints");
    let (key, value) = whole.endpoints.first_key_value().unwrap();
    endpoints.delete(key).unwrap();
    let stray: Vec<u8> = key.iter().map(|byte| byte ^ 0xff).collect();
    endpoints.update(&stray, value, MapFlags::ANY).unwrap();
    map("ports").update(&[0; 4], &vec![0; whole.kinds.len()], MapFlags::ANY).unwrap();
    // And requests led to a roster that was never published.
    let (at, row) = whole.near.first_key_value().unwrap();
    let stray = u64::from(row + 60).to_ne_bytes();
    map("near").update(&at.to_ne_bytes(), &stray, MapFlags::ANY).unwrap();
    // And killed again, while it led them back: by this it says that nobody has waited yet.
    let services = map("services");
    let spare = services.max_entries() - 1;
    let (_, any) = place(0);
    let owed = any.as_fd().as_raw_fd().to_ne_bytes();
    services.update(&spare.to_ne_bytes(), &owed, MapFlags::ANY).unwrap();
    let is = indexes();
    assert_ne!(is.endpoints, whole.endpoints);
    assert_ne!(is.kinds, whole.kinds);
    assert_ne!(is.near, whole.near);
    // Any writer puts it right, also one that changes nothing.
    service.set(&Change::default()).unwrap();
    assert_eq!(indexes(), whole);
    assert_eq!(entry(&services, spare), None);
}

/// Fails unless each entry of `near` is the row of an endpoint, of a roster as published.
fn near_leads_to_what_is_published() {
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..][..4].try_into().unwrap());
    let rows = map("rows");
    for number in near().into_values() {
        let row = entry(&rows, number).unwrap();
        // `struct ov_endpoint_row`: service, roster, mark.
        let (service, roster, mark) = (word(&row, 44), word(&row, 56), word(&row, 60));
        assert_eq!(mark, 0x6f76_0001, "row {number} is no endpoint's");
        let (first, extent) = place(service);
        let count = word(&entry(&extent, 0).unwrap(), 8);
        assert_eq!(roster, first, "row {number} is of a roster that was replaced");
        assert!((first..first + count).contains(&number), "row {number}: {first} + {count}");
    }
}

/// Stops a thread when it is dropped, also because something has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Where the roster of service number `id` lies (`struct ov_extent`): its first row, and the map
/// that says so.
fn place(id: u32) -> (u32, MapHandle) {
    let number = entry(&map("services"), id).expect("a service").try_into().unwrap();
    let map = MapHandle::from_map_id(u32::from_ne_bytes(number)).unwrap();
    (u32::from_ne_bytes(entry(&map, 0).unwrap()[4..8].try_into().unwrap()), map)
}

/// Moves the roster of service number `id`, of so many rows and one endpoint, to where it would
/// lie after years of changes. Not while anybody calls it.
fn scatter(id: u32, count: u32, first: u32) {
    let rows = map("rows");
    let (before, map) = place(id);
    for number in 0..count {
        let mut row = entry(&rows, before + number).unwrap();
        if number == 3 {
            // `struct ov_endpoint_row`: roster.
            row[56..60].copy_from_slice(&first.to_ne_bytes());
        }
        rows.update(&(first + number).to_ne_bytes(), &row, MapFlags::ANY).unwrap();
    }
    let mut extent = entry(&map, 0).unwrap();
    extent[4..8].copy_from_slice(&first.to_ne_bytes());
    map.update(&[0; 4], &extent, MapFlags::ANY).unwrap();
}

/// Where there is no gap that is large enough for a new roster, the others are moved together.
#[test]
fn rosters_are_moved_while_clients_call() {
    const SMALL: u32 = 6;
    // Header, name, an endpoint, a member, its socket's address.
    const SMALL_ROWS: u32 = 6;
    const LARGE: u32 = 29;
    const LARGE_ROWS: u32 = 65;
    world::enter();
    let capacity = Capacity { services: SMALL + 1, members: 40 };
    let address = |service: u32, member: u32| at(&format!("10.0.{service}.{member}:80"));
    let small: Vec<_> = (0..SMALL)
        .map(|n| {
            let socket = listener(address(n, 1));
            let builder = Service::builder(&format!("small-{n}")).capacity(capacity);
            (builder.share(&[&socket]).unwrap(), socket)
        })
        .collect();
    for id in (0..SMALL).rev() {
        scatter(id, SMALL_ROWS, LARGE_ROWS - 1 + id * (LARGE_ROWS - 1 + SMALL_ROWS));
    }
    let firsts = || -> Vec<u32> { (0..SMALL).map(|id| place(id).0).collect() };
    let scattered = firsts();
    let rows = map("rows").max_entries();
    assert!(rows - (scattered[SMALL as usize - 1] + SMALL_ROWS) < LARGE_ROWS, "of {rows}");
    // Whoever takes the lock lets `near` follow.
    small[0].0.set(&Change::default()).unwrap();
    near_leads_to_what_is_published();
    assert_eq!(firsts(), scattered);

    let stop = AtomicBool::new(false);
    let called = AtomicU32::new(0);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (_, socket) in &small {
                    socket.set_nonblocking(true).unwrap();
                    let _client = connect(socket.local_addr().unwrap()).unwrap();
                    wait_until("the one called has it", || socket.accept().is_ok());
                    called.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        wait_until("clients call", || called.load(Ordering::Relaxed) > 20);
        let sockets: Vec<_> = (1..=LARGE).map(|member| listener(address(SMALL, member))).collect();
        Service::builder("large").share(&sockets).unwrap();
        near_leads_to_what_is_published();
        let seen = called.load(Ordering::Relaxed);
        wait_until("clients go on", || called.load(Ordering::Relaxed) > seen + 20);
    });
    assert!(firsts().iter().zip(&scattered).all(|(now, before)| now < before));
    // But for those that share an index.
    assert!(near().len() > LARGE as usize);
    // Nobody was called past us.
    let placed = |(service, _): &(Service, _)| service.status().unwrap().requests.placed;
    let placed: u64 = small.iter().map(placed).sum();
    assert_eq!(u64::from(called.into_inner()), placed);
}

#[test]
fn a_capacity_is_not_held_by_a_state_without_services() {
    world::enter();
    let (service, listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    // Killed between taking the last service out and taking the state away.
    let folder = Path::new(ROOT).join(here().inode().to_string());
    MapHandle::from_pinned_path(folder.join("services")).unwrap().delete(&[0; 4]).unwrap();
    assert!(matches!(service.status(), Err(Error::NoSuchService { .. })));
    let capacity = Capacity { services: 3, members: 5 };
    let service = Service::builder("web").capacity(capacity).share(&listeners).unwrap();
    assert_eq!(service.status().unwrap().members.len(), 1);
    service.remove().unwrap();
    assert!(!Path::new(ROOT).exists());
}

#[test]
fn a_folder_of_another_user_is_not_trusted() {
    world::enter();
    fs::create_dir(ROOT).unwrap();
    std::os::unix::fs::chown(ROOT, Some(65_534), None).unwrap();
    let socket = listener(at("10.0.0.1:80"));
    let error = Service::builder("web").share(&[&socket]).unwrap_err();
    assert!(matches!(&error, Error::OtherOwner { owner: 65_534, .. }), "{error}");
    std::os::unix::fs::chown(ROOT, Some(0), None).unwrap();
    Service::builder("web").share(&[socket]).unwrap().remove().unwrap();
}

/// A process that listens on the address, in namespaces as given to `unshare`.
pub(crate) fn python_listener(unshare: &[&str], address: &str, port: u16) -> Child {
    let script = "import socket, sys; s = socket.create_server((sys.argv[1], int(sys.argv[2]))); \
                  print('ready', flush=True); sys.stdin.read()";
    let mut arguments: Vec<&str> = unshare.to_vec();
    let port = port.to_string();
    arguments.extend(["python3", "-c", script, address, &port]);
    let mut child = Command::new(arguments[0])
        .args(&arguments[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn a_namespace_that_ended_is_swept_away() {
    world::enter();
    let mut child = python_listener(&["unshare", "--net"], "0.0.0.0", 80);
    let namespace = Namespace::of_process(child.id()).unwrap();
    let inode = namespace.inode();
    assert_ne!(inode, here().inode());
    let sockets = adopt::listeners(&[child.id()], 80).unwrap();
    let service =
        Service::builder("web").namespace(namespace.clone()).share_adopted(&sockets).unwrap();
    assert_eq!(Namespace::with_services().unwrap(), std::slice::from_ref(&namespace));
    assert_eq!(service.status().unwrap().members[0].pid, child.id());
    assert_eq!(Service::open_in("web", &Namespace::numbered(inode)).unwrap(), service);
    drop((service, namespace, sockets));
    drop(child.stdin.take());
    child.wait().unwrap();
    wait_until("the namespace has ended", || Namespace::with_services().unwrap().is_empty());
    let folder = Path::new(ROOT).join(inode.to_string());
    assert!(folder.exists());
    assert!(matches!(
        Service::open_in("web", &Namespace::numbered(inode)).unwrap_err(),
        Error::NoSuchService { .. }
    ));
    let (service, _listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    assert!(!folder.exists());
    service.remove().unwrap();
    assert!(!Path::new(ROOT).exists());
}

/// Changes the state's description of itself at an offset (`struct ov_state`).
fn alter_state(offset: usize) {
    let folder = Path::new(ROOT).join(here().inode().to_string());
    let map = MapHandle::from_pinned_path(folder.join("state")).unwrap();
    let mut bytes = map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
    bytes[offset] ^= 0xff;
    map.update(&0_u32.to_ne_bytes(), &bytes, MapFlags::ANY).unwrap();
}

/// Changes the layout's number; gives the one before.
fn set_layout(layout: u32) -> u32 {
    let folder = Path::new(ROOT).join(here().inode().to_string());
    let map = MapHandle::from_pinned_path(folder.join("state")).unwrap();
    let mut bytes = map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
    let before = u32::from_ne_bytes(bytes[..4].try_into().unwrap());
    bytes[..4].copy_from_slice(&layout.to_ne_bytes());
    map.update(&0_u32.to_ne_bytes(), &bytes, MapFlags::ANY).unwrap();
    before
}

/// The offsets of the program's tag and of the build's digest in `struct ov_state`.
const TAG: usize = 16;
const BUILD: usize = 24;

/// Nothing is written to a state that is altered there, but it is read, and its service goes on.
fn is_read_and_not_written(altered: usize, expected: fn(&Error) -> bool) {
    world::enter();
    let (service, listeners) =
        Service::builder("web").listen([at("10.0.0.1:80"), at("10.0.0.2:80")]).unwrap();
    let before = service.status().unwrap();
    alter_state(altered);
    let more = listener(at("10.0.0.3:80"));
    for error in [
        service.drain(MemberId(0)).unwrap_err(),
        service.leave(MemberId(0)).unwrap_err(),
        service.join(&more).unwrap_err(),
        service.set(&Change { spread: Some(true), ..Change::default() }).unwrap_err(),
        service.set_health(MemberId(0), Health::Hung).unwrap_err(),
        service.keep_requests(&listeners[0]).unwrap_err(),
        service.clone().remove().unwrap_err(),
        Service::builder("new").share(&[&more]).unwrap_err(),
        Trace::begin(service.namespace(), &Filter::default()).unwrap_err(),
    ] {
        assert!(expected(&error), "{error:?}");
        assert!(error.remedy().is_some());
    }
    assert_eq!(service.status().unwrap(), before);
    assert_eq!(accepted_by(&[&listeners[0], &listeners[1]], at("10.0.0.1:80")), 0);
    alter_state(altered);
    service.remove().unwrap();
}

#[test]
fn the_state_of_another_build_with_the_same_layout_is_written() {
    world::enter();
    let (service, listeners) =
        Service::builder("web").listen([at("10.0.0.1:80"), at("10.0.0.2:80")]).unwrap();
    alter_state(BUILD);
    service.drain(MemberId(0)).unwrap();
    service.set_health(MemberId(1), Health::Hung).unwrap();
    service.keep_requests(&listeners[0]).unwrap_err(); // it has no SO_REUSEPORT
    let more = listener(at("10.0.0.3:80"));
    service.join(&more).unwrap();
    assert_eq!(service.status().unwrap().members.len(), 3);
    service.remove().unwrap();
    assert!(!Path::new(ROOT).exists());
}

/// As if somebody had put another program in the place of the one that it was made with.
#[test]
fn a_state_whose_program_is_another_is_read_and_not_written() {
    is_read_and_not_written(TAG, |error| matches!(error, Error::Damaged { .. }));
}

/// What the programs of a state export is what lies in its maps.
#[test]
fn a_state_of_another_layout_is_read_through_its_programs() {
    world::enter();
    // Several pages, some of them not full.
    let addresses: Vec<_> =
        (0..150).map(|n| SocketAddr::new(world::address(false, n), 80)).collect();
    let (service, listeners) =
        Service::builder("web").policy(Policy::RoundRobin).listen(addresses).unwrap();
    let (other, _others) = Service::builder("other").listen([at("[::]:81")]).unwrap();
    let weight = (MemberId(70), NonZeroU16::new(3).unwrap());
    service.set(&Change { weights: vec![weight], ..Change::default() }).unwrap();
    service.drain(MemberId(149)).unwrap();
    service.set_health(MemberId(2), Health::Hung).unwrap();
    service.count_start(MemberId(1)).unwrap();
    let _client = connect(at("10.0.0.1:80")).unwrap();
    wait_until("it is queued", || service.queues().unwrap()[0].half_open == 0);
    let before = (service.status().unwrap(), other.status().unwrap(), service.queues().unwrap());
    alter_state(0);
    let after = (service.status().unwrap(), other.status().unwrap(), service.queues().unwrap());
    assert_eq!(after, before);
    assert_eq!(Service::all(&here()).unwrap(), [other.clone(), service.clone()]);
    for error in [
        service.leave(MemberId(0)).unwrap_err(),
        service.set(&Change { spread: Some(true), ..Change::default() }).unwrap_err(),
        service.keep_requests(&listeners[0]).unwrap_err(),
        Trace::begin(service.namespace(), &Filter::default()).unwrap_err(),
    ] {
        assert!(matches!(error, Error::OtherVersion { .. }), "{error:?}");
        assert!(error.remedy().unwrap().contains("overspill upgrade"));
    }
    service.resume(MemberId(149)).unwrap();
    service.drain(MemberId(148)).unwrap();
    assert!(matches!(service.drain(MemberId(150)).unwrap_err(), Error::NoSuchMember { .. }));
    other.remove().unwrap();
    alter_state(0);
    let states =
        |state| service.status().unwrap().members.iter().filter(|m| m.state == state).count();
    assert_eq!((states(MemberState::Draining), states(MemberState::Hung)), (1, 1));
    assert_eq!(service.status().unwrap().members[148].state, MemberState::Draining);
    service.remove().unwrap();
    assert!(!Path::new(ROOT).exists());
}

/// From before builds shared a contract.
#[test]
fn a_state_of_an_old_layout_is_not_even_read() {
    world::enter();
    let (service, listeners) =
        Service::builder("web").listen([at("10.0.0.1:80"), at("10.0.0.2:80")]).unwrap();
    let own = set_layout(7);
    for error in [
        service.status().unwrap_err(),
        Service::all(&here()).unwrap_err(),
        service.drain(MemberId(0)).unwrap_err(),
        here().upgrade().unwrap_err(),
    ] {
        assert!(matches!(error, Error::OtherVersion { layout: 7, .. }), "{error:?}");
        assert!(error.remedy().unwrap().contains("remove its services with it"));
    }
    assert_eq!(accepted_by(&[&listeners[0], &listeners[1]], at("10.0.0.1:80")), 0);
    set_layout(own);
    service.remove().unwrap();
}

/// A policy of a later version.
#[test]
fn a_service_with_an_unknown_policy_is_not_taken_over() {
    world::enter();
    let (service, listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    alter_state(0);
    let folder = Path::new(ROOT).join(here().inode().to_string());
    let rows = MapHandle::from_pinned_path(folder.join("rows")).unwrap();
    let mut header = rows.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
    let policy = std::mem::replace(&mut header[14], 99);
    rows.update(&0_u32.to_ne_bytes(), &header, MapFlags::ANY).unwrap();
    let before = fs::read_dir(&folder).unwrap().count();
    let error = here().upgrade().unwrap_err();
    assert!(matches!(error, Error::UnknownPolicy { policy: 99, .. }), "{error:?}");
    assert!(error.remedy().unwrap().contains("--policy"));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), before);
    assert_eq!(accepted_by(&[&listeners[0]], at("10.0.0.1:80")), 0);
    header[14] = policy;
    rows.update(&0_u32.to_ne_bytes(), &header, MapFlags::ANY).unwrap();
    alter_state(0);
    service.remove().unwrap();
}

/// The namespaces of all `sk_lookup` links that act in this thread's.
fn links_here() -> usize {
    LinkInfoIter::default()
        .filter(|link| matches!(&link.info, LinkTypeInfo::NetNs(netns) if u64::from(netns.ino) == here().inode()))
        .count()
}

#[test]
fn the_last_service_takes_everything_with_it() {
    world::enter();
    let (one, _ones) = Service::builder("one").listen([at("10.0.0.1:80")]).unwrap();
    let (two, _twos) = Service::builder("two").listen([at("10.0.0.1:81")]).unwrap();
    assert_eq!(links_here(), 1);
    one.remove().unwrap();
    assert_eq!(links_here(), 1);
    two.remove().unwrap();
    assert!(!Path::new(ROOT).exists());
    // The kernel frees an unpinned link a little later.
    wait_until("the link is gone", || links_here() == 0);
}

/// The example, run as a process that makes a service and ends.
#[test]
fn the_maker_of_a_service_may_end() {
    world::enter();
    let mut servers: Vec<Child> =
        ["10.0.0.1", "10.0.0.2"].map(|ip| python_listener(&["env"], ip, 80)).into();
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--offline", "--example", "share", "--", "web", "80"])
        .args(servers.iter().map(|server| server.id().to_string()))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let service = Service::open("web").unwrap();
    let status = service.status().unwrap();
    assert_eq!(status.members[1].pid, servers[1].id());
    // Python listens with a backlog of 128; the first queue overflows into the second.
    let places = status.members.iter().map(|member| member.capacity).sum();
    let clients: Vec<_> = (0..places).map(|_| connect(at("10.0.0.1:80")).unwrap()).collect();
    wait_until("both queues are full", || total_queued(&service) == places);
    for client in &clients {
        client.shutdown(Shutdown::Both).unwrap();
    }
    for server in &mut servers {
        drop(server.stdin.take());
        server.wait().unwrap();
    }
    wait_until("both are gone", || {
        service.status().unwrap().members.iter().all(|member| member.state == MemberState::Gone)
    });
    service.remove().unwrap();
}

/// Who looks while services come and go sees one or the other, never an error.
#[test]
fn looking_while_services_come_and_go() {
    world::enter();
    let listeners = [listener(at("10.0.0.1:80")), listener(at("10.0.0.2:80"))];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = [0_u32; 2];
            while !stop.load(Ordering::Relaxed) {
                let services = Service::all(&here()).unwrap_or_else(|e| panic!("{e:?}"));
                seen[services.len()] += 1;
                for service in services {
                    match service.status() {
                        Ok(status) => {
                            assert_eq!(status.members.len(), 2);
                            for member in status.members {
                                assert_eq!(member.state, MemberState::Active);
                            }
                        }
                        Err(Error::NoSuchService { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
                here().exits().unwrap();
                Namespace::with_services().unwrap();
            }
            seen
        });
        for _ in 0..30 {
            let service = Service::builder("web").share(&listeners).unwrap();
            for spread in [true, false] {
                service.set(&Change { spread: Some(spread), ..Change::default() }).unwrap();
            }
            service.remove().unwrap();
            if reader.is_finished() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let seen = reader.join().unwrap();
        assert!(seen.iter().all(|&times| times > 0), "{seen:?}");
    });
}

/// As a profiler sends them, or a runtime that interrupts its threads: the kernel would leave
/// off verifying the program at each.
#[test]
fn a_process_that_gets_signals_all_the_time() {
    world::enter();
    let (seen, done) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR2, Arc::clone(&seen)).unwrap();
    let maker = nix::sys::pthread::pthread_self();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                nix::sys::pthread::pthread_kill(maker, nix::sys::signal::SIGUSR2).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
        });
        wait_until("they arrive", || seen.load(Ordering::Acquire));
        let made = Service::builder("web").listen([at("10.0.0.1:80")]);
        done.store(true, Ordering::Release);
        assert_eq!(made.unwrap().0.status().unwrap().members.len(), 1);
    });
}
