//! Changes that put a successor in a member's place, rename a service or mark a member;
//! and the look at the queues that they are decided by.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use overspill::{Capacity, Change, Error, Health, MemberId, Policy, Service, Words};
use rustix::event::epoll;
use world::{at, wait_until};

use crate::tools::{Listening, connect, listener};

const CALLED: &str = "10.0.0.1:80";

fn shared() -> TcpListener {
    Listening::at(at(CALLED)).reuse_port().open()
}

#[test]
fn a_successor_takes_a_members_place() {
    world::enter();
    let old = shared();
    let other = listener(at("10.0.0.2:80"));
    let service = Service::builder("web").share(&[&old, &other]).unwrap();
    let _before = connect(at(CALLED)).unwrap();
    service.count_start(MemberId(0)).unwrap();
    service.count_start(MemberId(0)).unwrap();
    service.drain(MemberId(0)).unwrap();
    let new = shared();
    service.replace(MemberId(0), &new).unwrap();
    service.resume(MemberId(0)).unwrap();
    let member = service.status().unwrap().members[0].clone();
    assert_eq!((member.member, member.placed, member.queued), (MemberId(0), 0, 0));
    assert_eq!(member.starts, 2);
    let _after = connect(at(CALLED)).unwrap();
    wait_until("the new one has it", || service.queues().unwrap()[0].queued == 1);
    old.accept().unwrap();
    new.accept().unwrap();
}

/// A service that has as many members as its namespace can have, and their sockets.
fn full() -> (Service, Vec<TcpListener>) {
    let listeners = vec![shared(), shared()];
    let capacity = Capacity { services: 1, members: 2 };
    let builder = Service::builder("web").policy(Policy::RoundRobin).capacity(capacity);
    (builder.share(&listeners).unwrap(), listeners)
}

fn is_over_capacity(error: &Error) -> bool {
    matches!(error, Error::OverCapacity { what: "members", wanted: 3, capacity: 2 })
}

fn established(service: &Service) -> Vec<u32> {
    let status = service.status().unwrap();
    status.members.iter().map(|member| member.established.expect("they are counted")).collect()
}

/// Requests that were put on each member.
fn placed(service: &Service) -> Vec<u64> {
    service.status().unwrap().members.iter().map(|member| member.placed).collect()
}

fn accept_all(listener: &TcpListener, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| listener.accept().unwrap().0).collect()
}

#[test]
fn a_successor_needs_no_room_for_one_more_member() {
    world::enter();
    let (service, old) = full();
    let clients =
        |count| -> Vec<TcpStream> { (0..count).map(|_| connect(at(CALLED)).unwrap()).collect() };
    let before = clients(4);
    let words = Words::open(service.namespace()).unwrap().unwrap();
    wait_until("they are counted", || established(&service) == [2, 2]);

    let first = shared();
    service.replace(MemberId(0), &first).unwrap();
    assert_eq!((established(&service), placed(&service)), (vec![0, 2], vec![0, 2]));
    let second = shared();
    service.replace(MemberId(1), &second).unwrap();
    assert_eq!((established(&service), placed(&service)), (vec![0, 0], vec![0, 0]));
    // A member more is one too many, as before.
    assert!(is_over_capacity(&service.join(&shared()).unwrap_err()));
    for (successor, word) in [(&first, 1), (&second, 2)] {
        let own = words.of(successor).unwrap();
        assert!(own.store(word));
        assert_eq!(own.load(), Some(word));
    }

    let after = clients(6);
    wait_until("they are counted", || established(&service) == [3, 3]);
    assert_eq!(placed(&service), [3, 3]);
    // The connections of the old sockets end: the new members' counts stay.
    drop([accept_all(&old[0], 2), accept_all(&old[1], 2)]);
    drop((before, old));
    assert_eq!(established(&service), [3, 3]);
    drop([accept_all(&first, 3), accept_all(&second, 3)]);
    wait_until("they have ended", || established(&service) == [0, 0]);
    drop(after);

    // The next ones too, whichever slot is free now; and dead members have successors.
    drop([first, second]);
    let next = [shared(), shared()];
    for (successor, id) in next.iter().zip(0..) {
        service.replace(MemberId(id), successor).unwrap();
    }
    let _clients = clients(4);
    wait_until("they are counted", || established(&service) == [2, 2]);
    drop([accept_all(&next[0], 2), accept_all(&next[1], 2)]);
}

#[test]
fn a_replacement_without_room_that_fails_changes_nothing() {
    world::enter();
    let (service, old) = full();
    let _clients = [(); 2].map(|()| connect(at(CALLED)).unwrap());
    wait_until("they are counted", || established(&service) == [1, 1]);
    let before = service.status().unwrap();

    // The kernel refuses it a place in `sockets` when the change has begun.
    let held = shared();
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let kind = libbpf_rs::MapType::ReuseportSockarray;
    let group = MapHandle::create(kind, Some("group"), 4, 8, 1, &options).unwrap();
    put(&group, 0, &held);
    let error = service.replace(MemberId(0), &held).unwrap_err();
    assert!(matches!(error, Error::HeldElsewhere { .. }), "{error:?}");
    assert_eq!(service.status().unwrap(), before);
    drop((held, group));

    // A writer that was killed has left a socket in the slot that is free.
    let folder = format!("/sys/fs/bpf/overspill/{}", service.namespace().inode());
    let sockets = MapHandle::from_pinned_path(format!("{folder}/sockets")).unwrap();
    assert_eq!(sockets.max_entries(), 3);
    let left = listener(at("10.0.0.9:81"));
    put(&sockets, 2, &left);
    assert_eq!(service.status().unwrap(), before);
    assert!(is_over_capacity(&service.join(&shared()).unwrap_err()));
    let successor = shared();
    service.replace(MemberId(0), &successor).unwrap();
    let _more = [(); 2].map(|()| connect(at(CALLED)).unwrap());
    wait_until("they are counted", || established(&service) == [1, 2]);
    accept_all(&successor, 1);
    accept_all(&old[0], 1);
    accept_all(&old[1], 2);
}

fn put(map: &MapHandle, key: u32, socket: &TcpListener) {
    let fd = u64::try_from(socket.as_raw_fd()).unwrap();
    map.update(&key.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY).unwrap();
}

/// Clients connect all the while; each is served, by a member or by the one before it.
#[test]
fn replacements_without_room_under_load() {
    const ROUNDS: u32 = 24;
    world::enter();
    let (service, old) = full();
    let sockets: Vec<TcpListener> = old.into_iter().chain((0..ROUNDS).map(|_| shared())).collect();
    let (stop, served) = (&AtomicBool::new(false), &AtomicU32::new(0));
    thread::scope(|scope| {
        for listener in &sockets {
            scope.spawn(|| {
                while let Ok((mut server, _)) = listener.accept() {
                    server.write_all(b"served").unwrap();
                }
            });
        }
        let clients = [(); 3].map(|()| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut answer = String::new();
                    connect(at(CALLED)).unwrap().read_to_string(&mut answer).unwrap();
                    assert_eq!(answer, "served");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let mut refused = None;
        for (round, successor) in (0..ROUNDS).zip(&sockets[2..]) {
            let before = served.load(Ordering::Relaxed);
            let policy = Some(Policy::ALL[round as usize % Policy::ALL.len()]);
            service.set(&Change { policy, ..Change::default() }).unwrap();
            refused = service.replace(MemberId(round % 2), successor).err();
            if refused.is_some() {
                break; // a panic here would wait for the other threads
            }
            wait_until("clients have been served by the new members", || {
                served.load(Ordering::Relaxed) > before + 20
                    || clients.iter().any(thread::ScopedJoinHandle::is_finished)
            });
        }
        stop.store(true, Ordering::Relaxed);
        let failed = clients.map(|client| client.join().is_err());
        let requests = service.status().unwrap().requests;
        for socket in &sockets {
            rustix::net::shutdown(socket, rustix::net::Shutdown::Both).unwrap();
        }
        assert!(refused.is_none(), "{refused:?}");
        assert_eq!(failed, [false; 3], "clients that were failed");
        assert_eq!((requests.dropped, requests.reset, requests.left), (0, 0, 0));
    });
    wait_until("no connection is left in a count", || established(&service) == [0, 0]);
}

#[test]
fn starts_are_counted_for_the_member_that_is_started_and_no_other() {
    world::enter();
    let (service, _listeners) =
        Service::builder("web").listen([at(CALLED), at("10.0.0.2:80")]).unwrap();
    let starts = || -> Vec<u64> {
        service.status().unwrap().members.iter().map(|member| member.starts).collect()
    };
    assert_eq!(starts(), [0, 0]);
    service.count_start(MemberId(1)).unwrap();
    assert_eq!(starts(), [0, 1]);
    // Who joins gets the place that is free in the kernel's maps, and nothing of what was there.
    service.leave(MemberId(1)).unwrap();
    let third = listener(at("10.0.0.3:80"));
    service.join(&third).unwrap();
    assert_eq!(starts(), [0, 0]);
}

#[test]
fn a_successor_that_does_not_fit_changes_nothing() {
    world::enter();
    let (old, other) = (shared(), listener(at("10.0.0.2:80")));
    let service = Service::builder("web").share(&[&old, &other]).unwrap();
    service.drain(MemberId(0)).unwrap();
    let before = service.status().unwrap();
    let elsewhere = listener(at("10.0.0.3:80"));
    let error = service.replace(MemberId(0), &elsewhere).unwrap_err();
    assert!(matches!(error, Error::OtherAddress { .. }), "{error:?}");
    let error = service.replace(MemberId(0), &old).unwrap_err();
    assert!(matches!(error, Error::AlreadyMember { .. }), "{error:?}");
    let error = service.replace(MemberId(7), &shared()).unwrap_err();
    assert!(matches!(error, Error::NoSuchMember { .. }), "{error:?}");
    assert_eq!(service.status().unwrap(), before);
}

#[test]
fn another_name_changes_nothing_else() {
    world::enter();
    let (mut service, _ones) = Service::builder("web").listen([at(CALLED)]).unwrap();
    let (_two, _twos) = Service::builder("two").listen([at("10.0.0.1:81")]).unwrap();
    let _client = connect(at(CALLED)).unwrap();
    let before = service.status().unwrap();
    let error = service.rename("two").unwrap_err();
    assert!(matches!(error, Error::NameTaken { .. }), "{error:?}");
    let error = service.rename("-").unwrap_err();
    assert!(matches!(error, Error::BadName { .. }), "{error:?}");
    assert_eq!(service.status().unwrap(), before);
    service.rename("web").unwrap();
    service.rename("new").unwrap();
    let after = service.status().unwrap();
    assert_eq!(after.name, "new");
    assert_eq!((after.members, after.requests), (before.members, before.requests));
    Service::open("web").unwrap_err();
}

#[test]
fn the_head_of_a_queue_changes_when_it_is_accepted() {
    world::enter();
    let (service, listeners) = Service::builder("web").listen([at(CALLED)]).unwrap();
    let queue = || service.queues().unwrap()[0];
    assert_eq!((queue().head, queue().awaited), (None, false));
    let _clients = [(); 3].map(|()| connect(at(CALLED)).unwrap());
    wait_until("all wait", || queue().queued == 3);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let head = queue().head;
        assert_eq!(queue().head, head, "nobody has accepted");
        assert!(head.is_some() && !seen.contains(&head));
        seen.push(head);
        listeners[0].accept().unwrap();
    }
    assert_eq!((queue().head, queue().placed), (None, 3));
    drop(listeners);
    assert!(queue().gone);
}

#[test]
fn a_socket_is_awaited_by_epoll_and_accept() {
    world::enter();
    let (service, listeners) = Service::builder("web").listen([at(CALLED)]).unwrap();
    let awaited = || service.queues().unwrap()[0].awaited;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&set, &listeners[0], epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
    assert!(awaited());
    drop(set);
    assert!(!awaited());
    std::thread::scope(|scope| {
        scope.spawn(|| listeners[0].accept().unwrap());
        wait_until("accept waits", awaited);
        connect(at(CALLED)).unwrap();
        wait_until("it has returned", || !awaited());
    });
}

#[test]
fn an_epoll_set_is_attended_while_somebody_is_in_epoll_wait() {
    world::enter();
    let (service, listeners) = Service::builder("web").listen([at(CALLED)]).unwrap();
    let queue = || service.queues().unwrap()[0];
    let sets = [(); 3].map(|()| epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
    for set in &sets {
        let data = epoll::EventData::new_u64(0);
        epoll::add(set, &listeners[0], data, epoll::EventFlags::IN).unwrap();
    }
    assert_eq!((queue().awaited, queue().attended), (true, false));
    // In whichever of the sets, and of accept as well.
    for set in &sets {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut events = Vec::<epoll::Event>::with_capacity(1);
                epoll::wait(set, rustix::buffer::spare_capacity(&mut events), None).unwrap();
            });
            wait_until("epoll_wait waits", || queue().attended);
            connect(at(CALLED)).unwrap();
            wait_until("it has returned", || !queue().attended);
        });
        listeners[0].accept().unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| listeners[0].accept().unwrap());
        wait_until("accept waits", || queue().attended);
        connect(at(CALLED)).unwrap();
        wait_until("it has returned", || !queue().attended);
    });
    assert!(queue().awaited);
    drop(sets);
    assert!(!queue().awaited);
}

#[test]
fn a_mark_survives_a_change_of_the_list() {
    world::enter();
    let (service, _listeners) =
        Service::builder("web").listen([at(CALLED), at("10.0.0.2:80")]).unwrap();
    service.set_health(MemberId(0), Health::Hung).unwrap();
    service.set_health(MemberId(5), Health::Hung).unwrap_err();
    let third = listener(at("10.0.0.3:80"));
    service.join(&third).unwrap();
    assert_eq!(service.queues().unwrap()[0].health, Health::Hung);
    let _client = connect(at(CALLED)).unwrap();
    wait_until("a sibling has it", || service.queues().unwrap()[1].queued == 1);
    service.set_health(MemberId(0), Health::Well).unwrap();
    let _client = connect(at(CALLED)).unwrap();
    wait_until("it has requests again", || service.queues().unwrap()[0].queued == 1);
}
