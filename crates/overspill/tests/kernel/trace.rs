//! What those who trace are told, beyond that it is what the model says (`history`).

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use overspill::trace::{Event, Filter, Outcome, Trace, Why};
use overspill::{Error, MemberState, Namespace, OnFull, Rules, Service};
use world::{at, deadline, wait_until};

use crate::tools::{Listening, begin_to_connect, connect, listener};

fn begin(filter: &Filter) -> Trace {
    Trace::begin(&Namespace::current().unwrap(), filter).unwrap()
}

/// So many events, and no more.
fn events(trace: &Trace, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let more = trace.wait(deadline()).unwrap();
        assert!(!more.is_empty(), "{count} expected: {events:#?}");
        events.extend(more);
    }
    events.extend(trace.wait(Duration::ZERO).unwrap());
    assert_eq!(events.len(), count, "{events:#?}");
    events
}

fn outcomes(events: &[Event]) -> Vec<Outcome> {
    events.iter().map(|event| event.outcome).collect()
}

/// Two members at addresses of their own, for one connection each.
fn small(name: &str, port: u16, on_full: OnFull) -> (Service, [TcpListener; 2]) {
    let listeners = ["10.0.0.1", "10.0.0.2"]
        .map(|ip| Listening::at(at(&format!("{ip}:{port}"))).backlog(0).open());
    let rules = Rules { on_full, ..Rules::default() };
    (Service::builder(name).rules(rules).share(&listeners).unwrap(), listeners)
}

#[test]
fn a_request_is_told_with_what_was_seen() {
    world::enter();
    let (_service, _listeners) = small("web", 80, OnFull::Reset);
    let trace = begin(&Filter::default());
    let clients = [(); 2].map(|()| connect(at("10.0.0.1:80")).unwrap());
    assert!(connect(at("10.0.0.1:80")).is_err());
    let events = events(&trace, 3);
    assert_eq!(outcomes(&events), [Outcome::Placed, Outcome::Redirected, Outcome::Reset]);
    assert_eq!(
        events.iter().map(|event| event.why).collect::<Vec<_>>(),
        [Why::Policy, Why::Full, Why::Full]
    );
    for (event, client) in events.iter().zip(&clients) {
        assert_eq!(event.client, client.local_addr().unwrap());
        assert_eq!(event.called, at("10.0.0.1:80"));
        assert_eq!(event.service, "web");
        assert!(event.time.elapsed().unwrap() < deadline(), "{:?}", event.time);
    }
    assert_eq!(events[0].member, events[0].chosen);
    let (called, chosen) = (events[1].member.unwrap(), events[1].chosen.unwrap());
    assert_eq!((called.member.0, called.queued, called.capacity), (0, 1, 1));
    assert_eq!((chosen.member.0, chosen.queued, chosen.capacity), (1, 0, 1));
    assert_eq!(chosen.state, MemberState::Active);
    assert_eq!(events[2].chosen, None);
    assert!(events.is_sorted_by_key(|event| event.time));
}

#[test]
fn ipv6_is_told_too() {
    world::enter();
    let listener = listener(at("[fd00::1]:80"));
    let service = Service::builder("web").share(&[&listener]).unwrap();
    let trace = begin(&Filter::default());
    let client = connect(at("[fd00::1]:80")).unwrap();
    service.drain(service.status().unwrap().members[0].member).unwrap();
    assert!(connect(at("[fd00::1]:80")).is_err());
    let events = events(&trace, 2);
    assert_eq!(
        (events[0].client, events[0].called),
        (client.local_addr().unwrap(), at("[fd00::1]:80"))
    );
    assert_eq!((events[1].outcome, events[1].why), (Outcome::Reset, Why::Draining));
}

#[test]
fn each_is_told_what_it_asked_for() {
    world::enter();
    let (_one, _listeners) = small("one", 80, OnFull::Reset);
    let (_two, _more) = small("two", 81, OnFull::Reset);
    let all = begin(&Filter::default());
    let of_two = begin(&Filter { service: Some("two".parse().unwrap()), ..Filter::default() });
    let redirected = begin(&Filter { outcomes: vec![Outcome::Redirected], ..Filter::default() });
    let _clients = [80, 80, 81].map(|port| connect(at(&format!("10.0.0.2:{port}"))).unwrap());
    assert!(connect(at("10.0.0.2:80")).is_err());
    assert_eq!(
        outcomes(&events(&all, 4)),
        [Outcome::Placed, Outcome::Redirected, Outcome::Placed, Outcome::Reset]
    );
    assert_eq!(events(&of_two, 1)[0].service, "two");
    assert_eq!(events(&redirected, 1)[0].outcome, Outcome::Redirected);
}

#[test]
fn what_finds_no_room_is_counted() {
    world::enter();
    let (service, _listeners) = small("web", 80, OnFull::Reset);
    let _clients = [(); 2].map(|()| connect(at("10.0.0.1:80")).unwrap());
    let trace = begin(&Filter::default());
    let mut asked = 0;
    while trace.lost() < 10 {
        for _ in 0..1000 {
            assert!(connect(at("10.0.0.1:80")).is_err());
        }
        asked += 1000;
        assert!(asked < 100_000, "nothing is lost");
    }
    let mut told = 0;
    loop {
        match trace.wait(Duration::ZERO).unwrap().len() {
            0 => break,
            more => told += more as u64,
        }
    }
    assert_eq!(told + trace.lost(), asked);
    assert_eq!(service.status().unwrap().requests.reset, asked, "none of it was held up");
    assert!(connect(at("10.0.0.1:80")).is_err());
    assert_eq!(events(&trace, 1)[0].outcome, Outcome::Reset, "there is room again");
}

#[test]
fn no_more_than_eight_trace_and_places_are_given_back() {
    world::enter();
    let (_service, _listeners) = small("web", 80, OnFull::Drop);
    let mut traces: Vec<Trace> = (0..8).map(|_| begin(&Filter::default())).collect();
    let namespace = Namespace::current().unwrap();
    let refused = Trace::begin(&namespace, &Filter::default()).unwrap_err();
    assert!(matches!(refused, Error::TooManyTracers { most: 8 }), "{refused}");
    traces.remove(3);
    traces.push(begin(&Filter::default()));
    let _client = connect(at("10.0.0.1:80")).unwrap();
    for trace in &traces {
        events(trace, 1);
    }
}

#[test]
fn it_ends_with_its_service() {
    world::enter();
    let (one, _listeners) = small("one", 80, OnFull::Drop);
    let (two, _more) = small("two", 81, OnFull::Drop);
    let of_one = begin(&Filter { service: Some("one".parse().unwrap()), ..Filter::default() });
    let all = begin(&Filter::default());
    assert!(of_one.is_on().unwrap() && all.is_on().unwrap());
    one.remove().unwrap();
    assert!(!of_one.is_on().unwrap() && all.is_on().unwrap());
    two.remove().unwrap();
    assert!(!all.is_on().unwrap());
    let namespace = Namespace::current().unwrap();
    let refused = Trace::begin(&namespace, &Filter::default()).unwrap_err();
    assert!(matches!(refused, Error::NoServices), "{refused}");
    let (_new, _again) = small("new", 82, OnFull::Drop);
    assert!(!all.is_on().unwrap(), "that is another state");
}

/// What comes while a roster is replaced is told once, too.
#[test]
fn changes_lose_nothing() {
    world::enter();
    let listeners = ["10.0.0.1:80", "10.0.0.2:80"].map(|address| listener(at(address)));
    let service = Service::builder("web").share(&listeners).unwrap();
    let trace = begin(&Filter::default());
    let changed = thread::scope(|scope| {
        let asked = scope.spawn(|| {
            for _ in 0..500 {
                drop(begin_to_connect(at("10.0.0.1:80")));
            }
        });
        let mut changed = 0;
        while !asked.is_finished() {
            service.drain(overspill::MemberId(1)).unwrap();
            service.resume(overspill::MemberId(1)).unwrap();
            changed += 1;
        }
        changed
    });
    assert!(changed > 0);
    let mut told = Vec::new();
    wait_until("each request of the service is told", || {
        told.extend(trace.wait(Duration::ZERO).unwrap());
        let requests = service.status().unwrap().requests;
        told.len() as u64 == requests.placed + requests.redirected + requests.dropped
    });
    assert_eq!(trace.lost(), 0);
}

#[test]
fn an_outcome_may_be_asked_for_twice() {
    world::enter();
    let (_service, _listeners) = small("web", 80, OnFull::Reset);
    let twice = begin(&Filter { outcomes: vec![Outcome::Placed; 2], ..Filter::default() });
    let _clients = [(); 2].map(|()| connect(at("10.0.0.1:80")).unwrap());
    assert_eq!(events(&twice, 1)[0].outcome, Outcome::Placed);
}

/// The kernel program knows services by their numbers only.
#[test]
fn another_service_with_the_number_is_not_told_of() {
    world::enter();
    let (_stays, _more) = small("stays", 79, OnFull::Drop);
    let (one, _listeners) = small("one", 80, OnFull::Drop);
    let of_one = begin(&Filter { service: Some("one".parse().unwrap()), ..Filter::default() });
    let all = begin(&Filter::default());
    one.remove().unwrap();
    let (_two, _others) = small("two", 81, OnFull::Drop);
    let _client = connect(at("10.0.0.1:81")).unwrap();
    assert_eq!(events(&all, 1)[0].service, "two");
    assert_eq!(of_one.wait(Duration::ZERO).unwrap(), []);
    assert!(!of_one.is_on().unwrap() && !of_one.is_displaced());
}
