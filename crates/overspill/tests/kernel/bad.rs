//! Bad input: the right error for each, and nothing changed.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use overspill::{Builder, Error, MemberId, Namespace, Service, Status, adopt};
use socket2::{Domain, Protocol, Socket, Type};
use world::at;

use crate::tools::{Listening, connect, listener};

/// Every file under bpffs.
fn pins() -> Vec<PathBuf> {
    let mut pins = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/bpf")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            pins.push(path);
        }
    }
    pins.sort();
    pins
}

/// All that there is: every service's status, and every pin.
fn everything() -> (Vec<Status>, Vec<PathBuf>) {
    let services = Service::all(&Namespace::current().unwrap()).unwrap();
    (services.iter().map(|service| service.status().unwrap()).collect(), pins())
}

/// The services that the bad input meets.
struct Ground {
    web: Service,
    listeners: Vec<TcpListener>,
}

impl Ground {
    fn new() -> Self {
        world::enter();
        let (web, listeners) =
            Service::builder("web").listen([at("10.0.0.1:80"), at("10.0.0.2:80")]).unwrap();
        Self { web, listeners }
    }

    /// The error of an operation that must leave everything as it was.
    fn error<T: std::fmt::Debug>(&self, operation: impl FnOnce() -> overspill::Result<T>) -> Error {
        let _client = connect(at("10.0.0.1:80")).unwrap();
        world::wait_until("it is queued", || self.web.status().unwrap().members[0].half_open == 0);
        let before = everything();
        let error = operation().unwrap_err();
        assert_eq!(everything(), before, "{error}");
        assert!(!error.to_string().is_empty());
        error
    }

    /// The error of a socket both for a new service and for one that it is to join.
    fn errors(&self, socket: &impl AsFd, expected: fn(&Error) -> bool) {
        let good = listener(at("10.0.0.9:80"));
        for error in [
            self.error(|| Service::builder("new").share(&[good.as_fd(), socket.as_fd()])),
            self.error(|| Service::builder("new").share(&[socket.as_fd(), good.as_fd()])),
            self.error(|| self.web.join(&socket.as_fd())),
        ] {
            assert!(expected(&error), "{error:?}");
        }
    }
}

fn socket(domain: Domain, kind: Type, protocol: Option<i32>) -> Socket {
    Socket::new(domain, kind, protocol.map(Protocol::from)).unwrap()
}

#[test]
fn no_tcp_sockets() {
    let ground = Ground::new();
    let folder = tempfile::tempdir().unwrap();
    let udp = UdpSocket::bind(at("10.0.0.3:80")).unwrap();
    let unix = UnixListener::bind(folder.path().join("socket")).unwrap();
    let not_tcp = |error: &Error| matches!(error, Error::NotTcp { .. });
    ground.errors(&udp, not_tcp);
    ground.errors(&unix, not_tcp);
    ground.errors(&socket(Domain::IPV4, Type::RAW, Some(6)), not_tcp);
}

#[test]
fn no_socket_at_all() {
    let ground = Ground::new();
    let file = fs::File::open("/dev/null").unwrap();
    ground.errors(&file, |error| matches!(error, Error::System { .. }));
}

#[test]
fn an_mptcp_socket() {
    let ground = Ground::new();
    let mptcp = socket(Domain::IPV4, Type::STREAM, Some(262));
    mptcp.bind(&at("10.0.0.3:80").into()).unwrap();
    mptcp.listen(1).unwrap();
    ground.errors(&mptcp, |error| matches!(error, Error::Mptcp { .. }));
}

#[test]
fn sockets_that_do_not_listen() {
    let ground = Ground::new();
    let not_listening = |error: &Error| matches!(error, Error::NotListening { .. });
    ground.errors(&Listening::at(at("10.0.0.3:80")).bind(), not_listening);
    ground.errors(&connect(at("10.0.0.2:80")).unwrap(), not_listening);
}

#[test]
fn a_socket_bound_to_a_device() {
    let ground = Ground::new();
    let socket = Listening::at(at("10.0.0.3:80")).bind();
    socket.bind_device(Some(b"lo")).unwrap();
    socket.listen(1).unwrap();
    ground.errors(
        &socket,
        |error| matches!(error, Error::BoundToDevice { device, .. } if device == "lo"),
    );
}

#[test]
fn a_socket_on_another_port() {
    let ground = Ground::new();
    let other = |error: &Error| matches!(error, Error::OtherPort { .. });
    ground.errors(&listener(at("10.0.0.3:81")), other);
}

#[test]
fn a_socket_twice_or_of_another_service() {
    let ground = Ground::new();
    let twice = listener(at("10.0.0.3:80"));
    let error = ground.error(|| Service::builder("new").share(&[&twice, &twice]));
    assert!(matches!(error, Error::GivenTwice { .. }));
    // A duplicate of the descriptor is the same socket.
    let copy: OwnedFd = rustix::io::dup(&twice).unwrap();
    let error = ground.error(|| Service::builder("new").share(&[twice.as_fd(), copy.as_fd()]));
    assert!(matches!(error, Error::GivenTwice { .. }));
    ground.errors(
        &ground.listeners[0],
        |error| matches!(error, Error::AlreadyMember { service, only: false, .. } if service == "web"),
    );
}

#[test]
fn an_address_of_another_service() {
    let ground = Ground::new();
    let same = Listening::at(at("[::]:81")).reuse_port();
    let other = same.open();
    let wide = Service::builder("wide").share(&[other]).unwrap();
    for address in ["0.0.0.0:81", "[::]:81"] {
        let socket = Listening::at(at(address)).reuse_port().v6_only().open();
        let error = ground.error(|| Service::builder("new").share(&[socket]));
        assert!(matches!(error, Error::AddressTaken { service, .. } if service == "wide"));
    }
    wide.remove().unwrap();
}

#[test]
fn families_that_cannot_help_each_other() {
    let ground = Ground::new();
    ground.errors(&listener(at("[fd00::1]:80")), |error| {
        matches!(error, Error::MixedFamilies { .. })
    });
}

#[test]
fn a_socket_of_another_namespace() {
    let ground = Ground::new();
    let elsewhere = thread::spawn(|| {
        world::enter_namespaces();
        listener(at("10.0.0.3:80"))
    });
    let socket = elsewhere.join().unwrap();
    ground.errors(&socket, |error| matches!(error, Error::OtherNamespace { .. }));
    let here = listener(at("10.0.0.3:80"));
    let namespace = ground.web.namespace().clone();
    let error = ground.error(|| Service::builder("new").namespace(namespace).share(&[socket]));
    assert!(matches!(error, Error::OtherNamespace { .. }));
    drop(here);
}

#[test]
fn a_socket_of_a_reuseport_array() {
    let ground = Ground::new();
    let socket = Listening::at(at("10.0.0.3:80")).reuse_port().open();
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let map =
        MapHandle::create(MapType::ReuseportSockarray, Some("group"), 4, 8, 1, &options).unwrap();
    let fd = u64::try_from(socket.as_raw_fd()).unwrap();
    map.update(&0_u32.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY).unwrap();
    ground.errors(&socket, |error| matches!(error, Error::HeldElsewhere { .. }));
    // It can join once the other program has let go of it.
    map.delete(&0_u32.to_ne_bytes()).unwrap();
    ground.web.join(&socket).unwrap();
}

#[test]
fn bad_names_and_empty_lists() {
    let ground = Ground::new();
    let good = listener(at("10.0.0.3:80"));
    let longer = "a".repeat(65);
    for name in ["", "-a", "a/b", "..", "ä", &longer] {
        let error = ground.error(|| Service::builder(name).share(&[&good]));
        assert!(matches!(error, Error::BadName { .. }), "{error:?}");
        let error = ground.error(|| Service::open(name));
        assert!(matches!(error, Error::BadName { .. }), "{error:?}");
    }
    let error = ground.error(|| Service::builder("new").share::<TcpListener>(&[]));
    assert!(matches!(error, Error::NoMembers { .. }));
    let error = ground.error(|| Service::builder("new").listen([]));
    assert!(matches!(error, Error::NoMembers { .. }));
    assert!(ground.web.join_adopted::<overspill::adopt::Adopted>(&[]).unwrap().is_empty());
    let error = ground.error(|| Service::builder("web").share(&[&good]));
    assert!(matches!(error, Error::NameTaken { .. }));
    let error = ground.error(|| Service::open("wbe"));
    assert!(matches!(error, Error::NoSuchService { nearest: Some(near), .. } if near == "web"));
}

#[test]
fn members_that_are_not_there() {
    let ground = Ground::new();
    let none = MemberId(7);
    for error in [
        ground.error(|| ground.web.leave(none)),
        ground.error(|| ground.web.drain(none)),
        ground.error(|| ground.web.resume(none)),
        ground.error(|| ground.web.set_pid(none, 1)),
        ground.error(|| ground.web.count_start(none)),
    ] {
        assert!(matches!(error, Error::NoSuchMember { .. }), "{error:?}");
    }
    ground.web.leave(MemberId(0)).unwrap();
    let error = ground.web.leave(MemberId(1)).unwrap_err();
    assert!(matches!(error, Error::NoMembers { .. }), "{error:?}");
    assert_eq!(ground.web.status().unwrap().members.len(), 1);
}

#[test]
fn processes_and_sockets_that_are_not_there() {
    let ground = Ground::new();
    let adopt = |pids: &[u32], port| adopt::listeners(pids, port).map(|_| ());
    let error = ground.error(|| adopt(&[u32::MAX], 80));
    assert!(matches!(error, Error::NoSuchProcess { pid: u32::MAX }), "{error:?}");
    let error = ground.error(|| adopt(&[0], 80));
    assert!(matches!(error, Error::NoSuchProcess { pid: 0 }), "{error:?}");
    let error = ground.error(|| adopt(&[std::process::id()], 4));
    assert!(matches!(error, Error::NoSuchSocket { port: 4, .. }), "{error:?}");
}

#[test]
fn a_failed_first_service_leaves_nothing() {
    world::enter();
    let builder = || -> Builder { Service::builder("web") };
    let listening = listener(at("10.0.0.1:80"));
    let bound = Listening::at(at("10.0.0.2:80")).bind();
    let ipv6 = listener(at("[fd00::1]:80"));
    builder().share(&[listening.as_fd(), bound.as_fd()]).unwrap_err();
    builder().share(&[&listening, &ipv6]).unwrap_err();
    builder().share(&[&listening, &listening]).unwrap_err();
    builder().listen([at("10.0.0.3:80"), at("10.0.0.1:80")]).unwrap_err();
    assert!(!Path::new("/sys/fs/bpf/overspill").exists());
}
