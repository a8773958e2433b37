//! What the kernel's own tests of `sk_lookup` try, tried with this program: redirecting
//! over addresses and families, refusing, and living beside other programs and sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use overspill::{OnFull, Policy, Service};
use world::{at, wait_until};

use crate::beside::Beside;
use crate::tools::{
    Listening, begin_to_connect, connect, is_connected, listener, overflows, total_queued,
};

/// A byte goes each way, and the accepted socket shows the called address.
fn echo(client: &mut TcpStream, listener: &TcpListener) {
    let (mut server, _) = listener.accept().unwrap();
    let called = client.peer_addr().unwrap();
    let shown = server.local_addr().unwrap();
    assert_eq!(shown.ip().to_canonical(), called.ip());
    assert_eq!(shown.port(), called.port());
    client.write_all(b"?").unwrap();
    let mut byte = [0];
    server.read_exact(&mut byte).unwrap();
    server.write_all(&byte).unwrap();
    client.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"?");
}

/// Fills a listener's queue, to the last place.
fn fill(service: &Service, address: SocketAddr, places: u32) -> Vec<TcpStream> {
    let before = total_queued(service);
    let clients = (0..places).map(|_| connect(address).unwrap()).collect();
    wait_until("it is full", || total_queued(service) == before + places);
    clients
}

fn refused(address: SocketAddr) {
    assert_eq!(connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
}

/// A request to the first address, whose queue is full, is served by the second.
fn redirects(called: Listening, sibling: Listening, to: SocketAddr) {
    let listeners = [called.backlog(0).open(), sibling.open()];
    let service = Service::builder("web").share(&listeners).unwrap();
    let _full = fill(&service, to, 1);
    let mut client = connect(to).unwrap();
    echo(&mut client, &listeners[1]);
    let status = service.status().unwrap();
    assert_eq!(status.requests.redirected, 1);
    assert_eq!(status.members[1].redirected_in, 1);
    service.remove().unwrap();
}

#[test]
fn to_another_address() {
    world::enter();
    for (called, sibling) in [("10.0.0.1:80", "10.0.0.2:80"), ("[fd00::1]:80", "[fd00::2]:80")] {
        redirects(Listening::at(at(called)), Listening::at(at(sibling)), at(called));
    }
}

#[test]
fn from_ipv4_to_a_dual_socket_and_not_to_one_of_ipv6_only() {
    world::enter();
    // Without SO_REUSEPORT nobody else may have the port beside a wildcard.
    let ipv4 = Listening::at(at("10.0.0.1:80")).reuse_port();
    redirects(ipv4, Listening::at(at("[::]:80")).reuse_port(), at("10.0.0.1:80"));

    let listeners = [ipv4.open(), Listening::at(at("[::]:80")).v6_only().open()];
    let error = Service::builder("web").share(&listeners).unwrap_err();
    assert!(matches!(error, overspill::Error::MixedFamilies { .. }), "{error}");
}

#[test]
fn a_v4_mapped_socket_takes_ipv4() {
    world::enter();
    let mapped = Listening::at(at("[::ffff:10.0.0.2]:80"));
    redirects(Listening::at(at("10.0.0.1:80")), mapped, at("10.0.0.1:80"));
    // It is called as well.
    let listeners = [mapped.open(), listener(at("10.0.0.1:80"))];
    let service = Service::builder("web").share(&listeners).unwrap();
    let mut client = connect(at("10.0.0.2:80")).unwrap();
    echo(&mut client, &listeners[0]);
    assert_eq!(service.status().unwrap().members[0].placed, 1);
}

/// The kernel does not choose again within the group: neither by its hash ...
#[test]
fn the_choice_within_a_reuseport_group_stands() {
    world::enter();
    for called in ["10.0.0.1:80", "[fd00::1]:80"] {
        let (service, listeners) =
            Service::builder("web").policy(Policy::RoundRobin).listen([at(called); 8]).unwrap();
        for _ in 0..5 {
            for listener in &listeners {
                echo(&mut connect(at(called)).unwrap(), listener);
            }
        }
        service.remove().unwrap();
    }
}

/// ... nor by a program of the group's own.
#[test]
fn the_choice_stands_against_the_groups_own_program() {
    world::enter();
    let called = at("10.0.0.1:80");
    let group: Vec<TcpListener> =
        (0..4).map(|_| Listening::at(called).reuse_port().open()).collect();
    let mut beside = Beside::load();
    beside.choose(&group[0]);
    attach_to_group(&group[0], beside.descriptor("selects"));
    echo(&mut connect(called).unwrap(), &group[0]);
    assert_eq!(beside.runs(), 1);
    let service = Service::builder("web").policy(Policy::RoundRobin).share(&group).unwrap();
    for listener in &group {
        echo(&mut connect(called).unwrap(), listener);
    }
    assert_eq!(beside.runs(), 1);
    service.remove().unwrap();
    echo(&mut connect(called).unwrap(), &group[0]);
    assert_eq!(beside.runs(), 2);
}

/// `SO_ATTACH_REUSEPORT_EBPF`, for which no crate here has a safe function: Python does it,
/// with descriptors that it inherits.
fn attach_to_group(member: &TcpListener, program: OwnedFd) {
    let script = "import socket, sys; \
                  socket.socket(fileno=int(sys.argv[1])).setsockopt(1, 52, int(sys.argv[2]))";
    let inherited = [rustix::io::dup(member).unwrap(), program];
    let numbers = inherited.each_ref().map(|fd| {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
        fd.as_raw_fd().to_string()
    });
    let status = Command::new("python3").args(["-c", script]).args(&numbers).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_full_service_drops_or_refuses() {
    world::enter();
    let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80")];
    for (on_full, name) in [(OnFull::Drop, "drop"), (OnFull::Reset, "reset")] {
        let (service, _listeners) =
            Service::builder(name).on_full(on_full).backlog(1).listen(addresses).unwrap();
        let _clients = fill(&service, addresses[0], 4);
        let before = overflows();
        if on_full == OnFull::Reset {
            refused(addresses[1]);
            assert_eq!(overflows(), before);
            assert_eq!(service.status().unwrap().requests.reset, 1);
        } else {
            let client = begin_to_connect(addresses[1]);
            wait_until("the kernel drops it", || overflows() > before);
            assert!(!is_connected(&client));
            assert!(client.take_error().unwrap().is_none(), "it is told nothing");
            assert!(service.status().unwrap().requests.dropped > 0);
        }
        service.remove().unwrap();
    }
}

/// What a listener held before it was shared stays there and is served.
#[test]
fn connections_from_before_are_untouched() {
    world::enter();
    let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80")];
    let listeners = addresses.map(listener);
    let mut waiting = connect(addresses[0]).unwrap();
    let mut accepted = connect(addresses[1]).unwrap();
    let (mut server, _) = listeners[1].accept().unwrap();
    let service = Service::builder("web").share(&listeners).unwrap();
    assert_eq!(service.status().unwrap().members[0].queued, 1);
    echo(&mut waiting, &listeners[0]);
    // Nor do those established meanwhile notice what becomes of their member.
    let ids: Vec<_> = service.status().unwrap().members.iter().map(|m| m.member).collect();
    let mut still_works = || {
        let mut byte = [0];
        accepted.write_all(b"!").unwrap();
        server.read_exact(&mut byte).unwrap();
        server.write_all(b"!").unwrap();
        accepted.read_exact(&mut byte).unwrap();
    };
    service.drain(ids[1]).unwrap();
    still_works();
    service.resume(ids[1]).unwrap();
    service.leave(ids[1]).unwrap();
    still_works();
    service.remove().unwrap();
    still_works();
}

#[test]
fn another_program_before_ours() {
    world::enter();
    let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80")];
    let other = listener(at("10.0.0.9:99"));
    for name in ["passes", "drops", "assigns"] {
        let mut beside = Beside::load();
        beside.choose(&other);
        beside.attach(name);
        let (service, listeners) = Service::builder("web").listen(addresses).unwrap();
        let mut client = connect(addresses[0]).unwrap();
        if name == "assigns" {
            echo(&mut client, &other);
            let exits = service.namespace().exits().unwrap().unwrap();
            assert_eq!(exits.other_program, 1);
            assert_eq!(service.status().unwrap().requests.placed, 0);
        } else {
            // The kernel ranks a chosen socket above a drop, whatever the order
            // (BPF_PROG_SK_LOOKUP_RUN_ARRAY), so ours serves its own addresses ...
            echo(&mut client, &listeners[0]);
            assert_eq!(service.status().unwrap().requests.placed, 1);
        }
        assert_eq!(beside.runs(), 1);
        if name == "drops" {
            // ... and leaves the drop of all others alone.
            let _unserved = listener(at("10.0.0.3:80"));
            refused(at("10.0.0.3:80"));
        }
        service.remove().unwrap();
    }
}

#[test]
fn another_program_after_ours() {
    world::enter();
    let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80")];
    let other = listener(at("10.0.0.9:99"));
    for name in ["passes", "drops", "assigns", "replaces"] {
        let (service, listeners) = Service::builder("web").listen(addresses).unwrap();
        let mut beside = Beside::load();
        beside.choose(&other);
        beside.attach(name);
        let mut client = connect(addresses[0]).unwrap();
        // Only a program that insists takes it from us.
        echo(&mut client, if name == "replaces" { &other } else { &listeners[0] });
        assert_eq!(service.status().unwrap().requests.placed, 1);
        assert_eq!(beside.runs(), 1);
        service.remove().unwrap();
        drop(listeners);
        if name == "assigns" {
            // With the service gone the other one serves on.
            echo(&mut connect(addresses[0]).unwrap(), &other);
        }
    }
}

/// The kernel ranks a chosen socket above our drop as well.
#[test]
fn a_refusal_of_ours_leaves_other_programs_their_choice() {
    world::enter();
    let address = at("10.0.0.1:80");
    let other = listener(at("10.0.0.9:99"));
    let (service, _listeners) =
        Service::builder("web").on_full(OnFull::Reset).backlog(0).listen([address]).unwrap();
    let _full = fill(&service, address, 1);
    for (name, refusals) in [("passes", 1), ("drops", 2), ("assigns", 3)] {
        let mut beside = Beside::load();
        beside.choose(&other);
        beside.attach(name);
        if name == "assigns" {
            echo(&mut connect(address).unwrap(), &other);
        } else {
            refused(address);
        }
        assert_eq!(beside.runs(), 1, "{name}");
        assert_eq!(service.status().unwrap().requests.reset, refusals, "{name}");
    }
}

#[test]
fn udp_on_the_same_port_is_untouched() {
    world::enter();
    let listeners =
        ["10.0.0.1:80", "[::]:80"].map(|text| Listening::at(at(text)).reuse_port().open());
    let service = Service::builder("web").share(&listeners).unwrap();
    for called in ["10.0.0.1:80", "[fd00::1]:80"] {
        let server = UdpSocket::bind(at(called)).unwrap();
        let client = UdpSocket::bind(SocketAddr::new(at(called).ip(), 0)).unwrap();
        client.send_to(b"?", at(called)).unwrap();
        let mut byte = [0];
        assert_eq!(server.recv_from(&mut byte).unwrap().1, client.local_addr().unwrap());
    }
    assert_eq!(service.status().unwrap().requests.placed, 0);
    assert!(service.namespace().exits().unwrap().unwrap().not_tcp >= 2);
}

#[test]
fn what_is_not_served_is_untouched() {
    world::enter();
    let (service, _listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    let exits = || service.namespace().exits().unwrap().unwrap();
    for (other, silent) in [
        ("10.0.0.2:80", "10.0.0.3:80"),
        ("10.0.0.1:81", "10.0.0.1:82"),
        ("[fd00::1]:80", "[fd00::2]:80"),
    ] {
        let before = exits();
        let listener = listener(at(other));
        echo(&mut connect(at(other)).unwrap(), &listener);
        refused(at(silent));
        let after = exits();
        let port = after.unserved_port - before.unserved_port;
        let address = after.unserved_address - before.unserved_address;
        assert!(port + address >= 2, "{port} {address}");
        assert_eq!(at(other).port() == 80, address > 0);
    }
    assert_eq!(service.status().unwrap().requests, overspill::Requests::default());
}

#[test]
fn exact_addresses_go_before_wildcards() {
    world::enter();
    let listeners =
        ["0.0.0.0:80", "10.0.0.1:80"].map(|text| Listening::at(at(text)).reuse_port().open());
    let service = Service::builder("web").share(&listeners).unwrap();
    echo(&mut connect(at("10.0.0.1:80")).unwrap(), &listeners[1]);
    echo(&mut connect(at("10.0.0.7:80")).unwrap(), &listeners[0]);
    let status = service.status().unwrap();
    assert_eq!(status.requests.placed, 2);
    assert_eq!(status.requests.special, 0);
}

#[test]
fn a_wildcard_of_each_family_beside_each_other() {
    world::enter();
    // A dual [::] leaves no room for 0.0.0.0 unless both share the port.
    let listeners = [
        Listening::at(at("0.0.0.0:80")).reuse_port().backlog(0).open(),
        Listening::at(at("[::]:80")).reuse_port().backlog(3).open(),
    ];
    let service = Service::builder("web").share(&listeners).unwrap();
    // Of IPv4 both are called; the IPv4 socket takes one, the dual one the rest.
    let _ipv4 = fill(&service, at("10.0.0.1:80"), 5);
    dropped(&service, at("[fd00::1]:80"));
    let queued: Vec<u32> =
        service.status().unwrap().members.iter().map(|member| member.queued).collect();
    assert_eq!(queued, [1, 4]);
    // IPv6 goes to the dual one alone, room or none.
    for _ in 0..4 {
        listeners[1].accept().unwrap();
    }
    echo(&mut connect(at("[fd00::1]:80")).unwrap(), &listeners[1]);
}

fn dropped(service: &Service, address: SocketAddr) {
    let before = service.status().unwrap().requests.dropped;
    let _client = begin_to_connect(address);
    wait_until("it is dropped", || service.status().unwrap().requests.dropped > before);
}

#[test]
fn an_ipv6_only_wildcard_leaves_ipv4_alone() {
    world::enter();
    let ours = [Listening::at(at("[::]:80")).v6_only().open()];
    let theirs = listener(at("0.0.0.0:80"));
    let service = Service::builder("web").share(&ours).unwrap();
    echo(&mut connect(at("[fd00::1]:80")).unwrap(), &ours[0]);
    echo(&mut connect(at("10.0.0.1:80")).unwrap(), &theirs);
    assert_eq!(service.status().unwrap().requests.placed, 1);
}
