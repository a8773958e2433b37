//! Programs of the user's own that choose who gets a request.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use libbpf_rs::query::ProgInfoIter;
use overspill::{Change, Error, MemberId, Namespace, Policy, Service, Word, Words};
use tempfile::TempDir;
use world::{at, netstat, wait_until};

use crate::tools::{Listening, connect, listener};

/// A dispatcher compiled as a user would; gone with this.
pub(crate) struct Object {
    folder: TempDir,
}

impl Object {
    /// Compiles a file of this repository with the options given.
    pub(crate) fn compile(source: &str, options: &[&str]) -> Self {
        Self::compile_at(&Path::new(env!("CARGO_MANIFEST_DIR")).join(source), options)
    }

    /// Compiles a program given as text.
    fn of(text: &str) -> Self {
        let header = include_str!("../../include/overspill_dispatcher.h");
        Self::with(header, text)
    }

    /// The same, with another header beside it.
    fn with(header: &str, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("overspill_dispatcher.h"), header).unwrap();
        let source = folder.path().join("source.bpf.c");
        std::fs::write(&source, text).unwrap();
        Self::compile_at(&source, &[])
    }

    fn compile_at(source: &Path, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new("clang")
            .args(["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/include"))
            .args(options)
            .arg("-c")
            .arg(source)
            .arg("-o")
            .arg(folder.path().join("object.bpf.o"))
            .status()
            .expect("clang is installed: the build needs it");
        assert!(status.success(), "clang cannot compile {}", source.display());
        Self { folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("object.bpf.o")
    }
}

/// A program with this body, which has `c` to go through the candidates with.
fn body(text: &str) -> Object {
    Object::of(&format!(
        "#include \"overspill_dispatcher.h\"\n\
         OVERSPILL_DISPATCHER(test, request)\n{{\n\
         struct overspill_candidate *c;\n(void)c, (void)request;\n{text}\n}}\n"
    ))
}

fn to_member(number: u32) -> Object {
    body(&format!(
        "OVERSPILL_FOR_EACH(c, request) if (c->member == {number}) return c;\n\
         return OVERSPILL_REFUSE;"
    ))
}

/// A program that answers the first candidate.
pub(crate) fn first_candidate() -> PathBuf {
    static FIRST: LazyLock<Object> =
        LazyLock::new(|| body("return overspill_candidate(request, 0);"));
    FIRST.path()
}

fn asks(path: PathBuf) -> Change {
    Change { dispatcher: Some(path), ..Change::default() }
}

const CALLED: &str = "10.0.0.1:80";

/// A service of so many sockets at one address, which accept nothing.
fn group(members: usize, backlog: i32) -> (Service, Vec<TcpListener>) {
    let one = Listening::at(at(CALLED)).backlog(backlog).reuse_port();
    let listeners: Vec<TcpListener> = (0..members).map(|_| one.open()).collect();
    (Service::builder("web").share(&listeners).unwrap(), listeners)
}

/// How many connections each member has been given.
fn given(service: &Service) -> Vec<u64> {
    let members = service.status().unwrap().members;
    members.iter().map(|member| member.placed + member.redirected_in).collect()
}

fn fallback(service: &Service) -> u64 {
    service.status().unwrap().requests.fallback
}

fn connect_times(times: usize) -> Vec<TcpStream> {
    (0..times).map(|_| connect(at(CALLED)).unwrap()).collect()
}

/// Whether a program of that name is loaded anywhere.
fn is_loaded(name: &str) -> bool {
    ProgInfoIter::default().any(|program| program.name.to_string_lossy() == name)
}

// --- choosing ---------------------------------------------------------------------------

#[test]
fn the_answer_is_carried_out() {
    world::enter();
    let (service, _listeners) = group(4, 64);
    for number in [2, 0, 3] {
        let before = given(&service);
        service.set(&asks(to_member(number).path())).unwrap();
        let status = service.status().unwrap();
        assert_eq!(
            (status.policy, status.dispatcher.as_deref()),
            (Policy::Dispatcher, Some("test"))
        );
        let _clients = connect_times(10);
        let mut expected = before;
        expected[number as usize] += 10;
        assert_eq!(given(&service), expected);
    }
    assert_eq!(fallback(&service), 0);
}

#[test]
fn a_member_that_is_full_is_no_candidate() {
    world::enter();
    let (service, _listeners) = group(2, 3);
    service.set(&asks(to_member(1).path())).unwrap();
    // Four fit into the queue of member 1; the others are refused by the program.
    let _clients = connect_times(8);
    assert_eq!(given(&service), [4, 4]);
    assert_eq!(fallback(&service), 4);
}

#[test]
fn siblings_are_candidates_when_no_called_member_has_room() {
    world::enter();
    let listeners = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
        .map(|it| Listening::at(at(it)).backlog(0).open());
    let object = body(
        "if (request->count == 1) return overspill_candidate(request, 0)->called \
             ? overspill_candidate(request, 0) : OVERSPILL_REFUSE;\n\
         return overspill_candidate(request, 1)->called ? OVERSPILL_REFUSE \
             : overspill_candidate(request, 1);",
    );
    let service = Service::builder("web").dispatcher(object.path()).share(&listeners).unwrap();
    let _clients = connect_times(2);
    assert_eq!(given(&service), [1, 0, 1]);
    let requests = service.status().unwrap().requests;
    assert_eq!((requests.placed, requests.redirected, requests.fallback), (1, 1, 0));
}

#[test]
fn what_cannot_be_is_counted_and_next_available_chooses() {
    world::enter();
    let refusals = [
        "return OVERSPILL_REFUSE;",
        "return overspill_candidate(request, request->count);",
        "return overspill_candidate(request, 511);",
        // What is not to be touched, touched: another member's slot, one that does not exist.
        "c = overspill_candidate(request, 0); c->slot++; return c;",
        "c = overspill_candidate(request, 0); c->position = 4000000000; return c;",
        "request->count = 0; return overspill_candidate(request, 0);",
    ];
    let (service, _listeners) = group(2, 64);
    for (already, refusal) in (0..).zip(refusals) {
        service.set(&asks(body(refusal).path())).unwrap();
        let _clients = connect_times(1);
        assert_eq!(fallback(&service), already + 1, "{refusal}");
    }
    assert_eq!(given(&service).iter().sum::<u64>(), refusals.len() as u64);
}

#[test]
fn more_members_than_it_can_be_told_of() {
    world::enter();
    crate::tools::many_descriptors();
    let (service, _listeners) = group(600, 4);
    let object = body(
        "return request->count == OVERSPILL_CANDIDATES \
             ? overspill_candidate(request, OVERSPILL_CANDIDATES - 1) : OVERSPILL_REFUSE;",
    );
    service.set(&asks(object.path())).unwrap();
    let _clients = connect_times(3);
    assert_eq!(fallback(&service), 0);
}

#[test]
fn it_is_told_the_request() {
    world::enter();
    let (service, _listeners) = group(1, 64);
    let client: SocketAddr = at("10.1.2.3:4567");
    let object = body(
        "__u8 *remote = (__u8 *)request->remote_address, *local = (__u8 *)request->local_address;\n\
         c = overspill_candidate(request, 0);\n\
         if (request->version == 1 && request->count == 1 && remote[9] == 0 &&\n\
             remote[10] == 0xff && remote[12] == 10 && remote[15] == 3 && local[11] == 0xff &&\n\
             local[15] == 1 && request->remote_port == 4567 && request->local_port == 80 &&\n\
             request->interface == 1 && request->cpu == 0 && c->member == 0 && c->called &&\n\
             c->capacity == 65 && c->weight == 1 && !c->queued && !c->half_open &&\n\
             !c->established && !c->word)\n\
             return c;\n\
         return OVERSPILL_REFUSE;",
    );
    service.set(&asks(object.path())).unwrap();
    world::pin_to_cpu(0);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&client.into()).unwrap();
    socket.connect(&at(CALLED).into()).unwrap();
    assert_eq!(fallback(&service), 0);
}

// --- what is refused -------------------------------------------------------------------

/// What is refused changes nothing.
fn refused(path: PathBuf) -> Error {
    let (service, _listeners) = group(2, 64);
    let good = to_member(1);
    service.set(&asks(good.path())).unwrap();
    let before = service.status().unwrap();
    let change = Change { spread: Some(true), ..asks(path.clone()) };
    let error = service.set(&change).unwrap_err();
    assert_eq!(service.status().unwrap(), before);
    let other = listener(at("10.0.0.9:81"));
    let again = Service::builder("other").dispatcher(path).share(&[&other]).unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
    Service::open("other").unwrap_err();
    let _client = connect(at(CALLED)).unwrap();
    assert_eq!(given(&service), [0, 1], "the one before goes on");
    error
}

#[test]
fn what_the_verifier_does_not_take() {
    world::enter();
    let object = body(
        "return request->candidates[request->hash].queued ? OVERSPILL_REFUSE : request->candidates;",
    );
    let error = refused(object.path());
    assert!(matches!(error, Error::DispatcherRefused { .. }), "{error:?}");
    assert!(error.to_string().contains("unbounded memory access"), "{error}");
}

#[test]
fn one_made_for_another_version() {
    world::enter();
    let header = include_str!("../../include/overspill_dispatcher.h");
    let other = header.replace("DISPATCHER_VERSION 1\n", "DISPATCHER_VERSION 7\n");
    assert_ne!(other, header);
    let text = "#include \"overspill_dispatcher.h\"\n\
                OVERSPILL_DISPATCHER(test, request) { return overspill_candidate(request, 0); }\n";
    let object = Object::with(&other, text);
    let error = refused(object.path());
    assert!(matches!(error, Error::DispatcherVersion { version: 7, own: 1, .. }), "{error:?}");
}

#[test]
fn what_is_no_dispatcher() {
    world::enter();
    let missing = refused("/nonexistent".into());
    assert!(matches!(missing, Error::NotADispatcher { .. }), "{missing:?}");
    let header = "#include \"overspill_dispatcher.h\"\n";
    let one = "OVERSPILL_DISPATCHER(test, request) { return &request->candidates[0]; }\n";
    let section = |name: &str| {
        format!(
            "__attribute__((section(\"{name}\"), used)) int other(void *ctx) {{ return !!ctx; }}\n"
        )
    };
    let license = "char LICENSE[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";
    for (text, said) in [
        (section("sk_lookup"), "OVERSPILL_DISPATCHER"),
        (format!("{header}{one}{}", section("sk_lookup")), "2 programs"),
        (
            format!(
                "{header}{license}const volatile __u32 v \
                 OVERSPILL_SECTION(\".rodata.overspill\") = 1;\n{}",
                section("xdp")
            ),
            "sk_lookup",
        ),
        (
            format!(
                "{header}{license}const volatile __u32 v \
                 OVERSPILL_SECTION(\".rodata.overspill\") = 1;\n{}",
                section("sk_lookup")
            ),
            "overspill_requests",
        ),
    ] {
        world::enter();
        let error = refused(Object::of(&text).path());
        assert!(matches!(error, Error::NotADispatcher { .. }), "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    for bytes in [&b"int main() {}"[..], b"", b"\x7fELF", b"\x7fELF and then nothing of it"] {
        world::enter();
        std::fs::write(&path, bytes).unwrap();
        let error = refused(path.clone());
        assert!(matches!(error, Error::NotADispatcher { .. }), "{error:?}");
    }
}

#[test]
fn the_policy_alone_is_not_enough() {
    world::enter();
    let (service, _listeners) = group(1, 64);
    let alone = Change { policy: Some(Policy::Dispatcher), ..Change::default() };
    let error = service.set(&alone).unwrap_err();
    assert!(matches!(error, Error::NoDispatcher { .. }), "{error:?}");
    let other = listener(at("10.0.0.9:81"));
    let error = Service::builder("two").policy(Policy::Dispatcher).share(&[&other]).unwrap_err();
    assert!(matches!(error, Error::NoDispatcher { .. }), "{error:?}");
    service.set(&asks(to_member(0).path())).unwrap();
    service.set(&alone).unwrap();
    assert_eq!(service.status().unwrap().dispatcher.as_deref(), Some("test"));
}

// --- coming and going ---------------------------------------------------------------------

#[test]
fn the_file_is_not_needed_after_loading() {
    world::enter();
    let (service, _listeners) = group(2, 64);
    let object = to_member(1);
    service.set(&asks(object.path())).unwrap();
    drop(object);
    service.set(&Change { spread: Some(true), ..Change::default() }).unwrap();
    let _clients = connect_times(3);
    assert_eq!(given(&service), [0, 3]);
}

#[test]
fn it_ends_with_the_policy_and_with_the_service() {
    world::enter();
    let named = |name: &str| {
        Object::of(&format!(
            "#include \"overspill_dispatcher.h\"\nOVERSPILL_DISPATCHER({name}, request)\n\
             {{ return overspill_candidate(request, request->count - 1); }}\n"
        ))
    };
    let programs = ["ends_replaced", "ends_policy", "ends_service"];
    let (service, listeners) = group(2, 64);
    for (name, other) in [(programs[0], programs[1]), (programs[1], programs[0])] {
        service.set(&asks(named(name).path())).unwrap();
        assert!(is_loaded(name));
        wait_until("the one before is gone", || !is_loaded(other));
    }
    service.set(&Change { policy: Some(Policy::RoundRobin), ..Change::default() }).unwrap();
    wait_until("it is gone", || !is_loaded(programs[1]));
    service.set(&asks(named(programs[2]).path())).unwrap();
    let other = listener(at("10.0.0.9:81"));
    let _kept = Service::builder("other").share(&[&other]).unwrap();
    service.remove().unwrap();
    wait_until("it is gone with its service", || !is_loaded(programs[2]));
    // The number is free: whoever gets it does not get the program.
    let next = Service::builder("next").share(&listeners).unwrap();
    let _clients = connect_times(4);
    let status = next.status().unwrap();
    assert_eq!((status.policy, status.dispatcher), (Policy::NextAvailable, None));
}

#[test]
fn nobody_is_lost_while_it_is_swapped() {
    world::enter();
    let (service, listeners) = group(2, 64);
    let objects = [to_member(0), to_member(1)];
    let (swapped, served) = (AtomicBool::new(false), AtomicBool::new(false));
    let (calls, accepted) = thread::scope(|scope| {
        let servers: Vec<_> = listeners
            .iter()
            .map(|listener| {
                let served = &served;
                listener.set_nonblocking(true).unwrap();
                scope.spawn(move || serve(listener, served))
            })
            .collect();
        // Each has one connection at a time: no queue is ever full.
        let clients = [(); 4].map(|()| scope.spawn(|| call_until(&swapped)));
        for round in 0..60 {
            match round % 3 {
                2 => {
                    let policy = Some(Policy::ALL[round % Policy::ALL.len()]);
                    service.set(&Change { policy, ..Change::default() }).unwrap();
                }
                which => service.set(&asks(objects[which].path())).unwrap(),
            }
        }
        swapped.store(true, Ordering::Release);
        let calls: u64 = clients.map(|client| client.join().unwrap()).iter().sum();
        served.store(true, Ordering::Release);
        let accepted: u64 = servers.into_iter().map(|server| server.join().unwrap()).sum();
        (calls, accepted)
    });
    assert!(calls > 0);
    assert_eq!(accepted, calls);
    let requests = service.status().unwrap().requests;
    assert_eq!((requests.fallback, requests.dropped), (0, 0));
    // While one CPU puts a closed connection in the place of an open one (TIME_WAIT), the
    // client's last segment may find neither on another, and is a request too: a stray one,
    // which the kernel answers with a reset.
    let strays = requests.placed.checked_sub(calls).expect("each call is a request");
    let resets = netstat("OutRsts");
    assert!(strays <= resets, "{strays} more than {calls} calls, {resets} resets");
}

/// Accepts and closes until it is over; how often.
fn serve(listener: &TcpListener, over: &AtomicBool) -> u64 {
    let mut accepted = 0;
    while !over.load(Ordering::Acquire) {
        match listener.accept() {
            Ok(_) => accepted += 1,
            Err(_) => thread::yield_now(),
        }
    }
    accepted
}

/// Connects and waits for the server's end until it is over; how often.
fn call_until(over: &AtomicBool) -> u64 {
    let mut calls = 0;
    while !over.load(Ordering::Acquire) {
        let mut client = connect(at(CALLED)).expect("nobody is lost");
        assert_eq!(client.read(&mut [0]).expect("somebody serves"), 0);
        calls += 1;
    }
    calls
}

#[test]
fn maps_of_its_own_may_be_pinned() {
    world::enter();
    let (service, _listeners) = group(2, 64);
    let object = Object::of(
        "#include \"overspill_dispatcher.h\"\n\
         struct { int(*type)[2]; int(*max_entries)[1]; __u32 *key; __u64 *value; int(*pinning)[1]; }\n\
         asked OVERSPILL_SECTION(\".maps\");\n\
         OVERSPILL_DISPATCHER(counts, request)\n{\n__u32 zero = 0;\n\
         __u64 *n = overspill_map_lookup(&asked, &zero);\n\
         if (n) __sync_fetch_and_add(n, 1);\nreturn overspill_candidate(request, 0);\n}\n",
    );
    let count = || {
        use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
        let map = MapHandle::from_pinned_path("/sys/fs/bpf/asked").unwrap();
        let bytes = map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
        u64::from_ne_bytes(bytes.try_into().unwrap())
    };
    for expected in [3, 6] {
        service.set(&asks(object.path())).unwrap();
        let _clients = connect_times(3);
        assert_eq!(count(), expected, "a new program finds what the one before has left");
    }
}

// --- the examples ------------------------------------------------------------------------

#[test]
fn a_canary_gets_its_share() {
    world::enter();
    let one = Listening::at(at(CALLED)).backlog(4000).reuse_port();
    let listeners: Vec<TcpListener> = (0..4).map(|_| one.open()).collect();
    let object =
        Object::compile("examples/dispatchers/canary.bpf.c", &["-DCANARY=3", "-DPERCENT=10"]);
    // The flows and their hashes are always the same: so is what becomes of them.
    let service =
        Service::builder("web").seed(7).dispatcher(object.path()).share(&listeners).unwrap();
    for port in 20_000..22_000 {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        socket.bind(&SocketAddr::new(at("10.1.0.1:1").ip(), port).into()).unwrap();
        socket.connect(&at(CALLED).into()).unwrap();
    }
    let given = given(&service);
    // 200 of 2000, and 600 for each of the others: within four standard deviations.
    assert!(given[3].abs_diff(200) <= 54, "{given:?}");
    assert!(given[..3].iter().all(|one| one.abs_diff(600) <= 82), "{given:?}");
    assert_eq!(fallback(&service), 0);
}

#[test]
fn other_members_take_over_from_a_canary_that_is_out() {
    world::enter();
    let (service, _listeners) = group(3, 64);
    let object =
        Object::compile("examples/dispatchers/canary.bpf.c", &["-DCANARY=0", "-DPERCENT=100"]);
    service.set(&asks(object.path())).unwrap();
    let _clients = connect_times(5);
    assert_eq!(given(&service), [5, 0, 0]);
    service.drain(MemberId(0)).unwrap();
    let _others = connect_times(9);
    assert_eq!(given(&service)[0], 5);
    assert_eq!(given(&service).iter().sum::<u64>(), 14);
}

#[test]
fn the_member_on_the_cpu_where_a_request_arrives_is_preferred() {
    let cpu = last_cpu();
    prefers_the_local_member(&[], cpu, cpu as u64);
}

#[test]
fn the_member_on_the_node_where_a_request_arrives_is_preferred() {
    let cpu = last_cpu();
    let nodes = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")).unwrap();
    let node = nodes
        .into_iter()
        .find_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("node")?.parse().ok());
    prefers_the_local_member(&["-DBY_NODE"], cpu, node.unwrap_or(0));
}

/// Where there are several, its number is not that of its NUMA node.
fn last_cpu() -> usize {
    thread::available_parallelism().unwrap().get() - 1
}

/// `here` is what a worker on the CPU says, less 1.
fn prefers_the_local_member(options: &[&str], cpu: usize, here: u64) {
    world::enter();
    let (service, listeners) = group(3, 4);
    let words = Words::open(service.namespace()).unwrap().unwrap();
    let object = Object::compile("examples/dispatchers/local_cpu.bpf.c", options);
    service.set(&asks(object.path())).unwrap();
    // What a client sends over the loopback device arrives on the CPU that it sends from.
    world::pin_to_cpu(cpu);
    for (local, listener) in listeners.iter().enumerate() {
        for (member, other) in listeners.iter().enumerate() {
            words.of(other).unwrap().store(here + if member == local { 1 } else { 2 });
        }
        let _clients = connect_times(2);
        let mut expected = [0; 3];
        expected[local] = 2;
        assert_eq!(queued(&service), expected);
        listener.accept().unwrap();
        listener.accept().unwrap();
    }
    assert!(words.of(&listeners[1]).unwrap().store(here + 1));
    assert!(words.of(&listeners[2]).unwrap().store(0));
    let _clients = connect_times(12);
    let queued = queued(&service);
    assert_eq!(queued[1], 5, "full");
    assert_eq!(queued.iter().sum::<u32>(), 12, "the others take the rest");
    assert_eq!(fallback(&service), 0);
}

/// How many connections wait in each queue.
fn queued(service: &Service) -> Vec<u32> {
    service.status().unwrap().members.iter().map(|member| member.queued).collect()
}

#[test]
fn members_are_chosen_by_the_figure_that_they_publish() {
    world::enter();
    let (service, listeners) = group(3, 64);
    let object = Object::compile("examples/dispatchers/published.bpf.c", &[]);
    service.set(&asks(object.path())).unwrap();
    let words = Words::open(service.namespace()).unwrap().unwrap();
    let words: Vec<Word> = listeners.iter().map(|it| words.of(it).unwrap()).collect();
    let mut expected = [0; 3];
    for figures in [[5, 3, 9], [5, 7, 9], [u64::MAX, 1 << 40, (1 << 40) - 1]] {
        for (word, figure) in words.iter().zip(figures) {
            assert!(word.store(figure));
            assert_eq!(word.load(), Some(figure));
        }
        let least = figures.iter().min().unwrap();
        let _clients = connect_times(4);
        expected[figures.iter().position(|figure| figure == least).unwrap()] += 4;
        assert_eq!(given(&service), expected);
    }
}

#[test]
fn a_word_is_its_members_alone() {
    world::enter();
    assert!(Words::open(&Namespace::current().unwrap()).unwrap().is_none());
    let (service, mut listeners) = group(2, 64);
    let words = Words::open(service.namespace()).unwrap().unwrap();
    let stranger = listener(at("10.0.0.9:81"));
    let error = words.of(&stranger).unwrap_err();
    assert!(matches!(error, Error::NotAMember { .. }), "{error:?}");
    let old = words.of(&listeners[1]).unwrap();
    assert!(old.store(7));
    service.leave(MemberId(1)).unwrap();
    let new = Listening::at(at(CALLED)).reuse_port().open();
    service.join(&new).unwrap();
    assert_eq!((old.store(8), old.load()), (false, None), "its place is another's");
    assert_eq!(words.of(&new).unwrap().load(), Some(0));
    let successor = Listening::at(at(CALLED)).reuse_port().open();
    service.replace(MemberId(0), &successor).unwrap();
    assert!(words.of(&successor).unwrap().store(9));
    listeners.clear();
}

#[test]
fn each_instruction_set_will_do() {
    world::enter();
    let (service, _listeners) = group(4, 64);
    let sources = ["local_cpu", "published", "canary"]
        .map(|name| format!("examples/dispatchers/{name}.bpf.c"))
        .into_iter()
        .chain(["tests/kernel/history/asked.bpf.c".to_owned()]);
    for source in sources {
        for set in ["-mcpu=v1", "-mcpu=v2", "-mcpu=v3"] {
            for level in ["-O1", "-O2"] {
                let object = Object::compile(&source, &[set, level]);
                service
                    .set(&asks(object.path()))
                    .unwrap_or_else(|e| panic!("{source} {set} {level}: {e}"));
            }
        }
    }
}
