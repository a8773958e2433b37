//! Changes that put a successor in a member's place, rename a service or mark a member;
//! and the look at the queues that they are decided by.

use std::net::TcpListener;

use overspill::{Error, Health, MemberId, Service};
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
