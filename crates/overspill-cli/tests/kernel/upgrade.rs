//! Two builds at one state: one reads, drains, removes and takes over what the other has made.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{Backlog, listen, setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike as _};
use overspill::trace::{Filter, Trace};
use overspill::{Address, Capacity, Health, MemberId, Namespace, Policy, Service};
use serde_json::Value;
use world::syn::{self, Wire};
use world::{at, deadline, netstat, wait_until};

use crate::dispatcher::compile;
use crate::tool::{Ran, traced};
use crate::versions::Version;

const CALLED: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
/// How often the state goes from one build to the other and back under load.
const TURNS: usize = 3;

fn service() -> (Service, Vec<TcpListener>) {
    Service::builder("web").listen(CALLED.map(at)).unwrap()
}

fn show(version: &Version) -> Value {
    serde_json::from_str(&version.run("show web --json").done()).unwrap()
}

/// The folders under bpffs that hold states, or are to hold one.
fn folders() -> Vec<String> {
    let entries = fs::read_dir("/sys/fs/bpf/overspill").unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn own_folder() -> String {
    Namespace::current().unwrap().inode().to_string()
}

/// One request from the client's side and the server's.
fn call(address: &str) -> std::io::Result<()> {
    let address: SocketAddr = at(address);
    let mut client = TcpStream::connect_timeout(&address, deadline())?;
    client.set_read_timeout(Some(deadline()))?;
    client.write_all(b"?")?;
    client.read_exact(&mut [0])
}

/// Servers and clients that come one after the other, as fast as they are served.
struct Load {
    over: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    servers: Vec<JoinHandle<()>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn begin(listeners: &[TcpListener]) -> Self {
        let mut load = Self::of_nobody(listeners);
        let clients = CALLED.iter().map(|&address| {
            let (over, served) = (Arc::clone(&load.over), Arc::clone(&load.served));
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    call(address).unwrap_or_else(|error| panic!("lost at {address}: {error}"));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        load.clients = clients.collect();
        load
    }

    /// The servers alone.
    fn of_nobody(listeners: &[TcpListener]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let servers = listeners.iter().map(|listener| {
            let (listener, over) = (listener.try_clone().unwrap(), Arc::clone(&over));
            setsockopt(&listener, ReceiveTimeout, &TimeVal::milliseconds(20)).unwrap();
            thread::spawn(move || serve(&listener, &over))
        });
        let servers = servers.collect();
        Self { over, served, servers, clients: Vec::new() }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Waits until many more are served.
    fn go_on(&self) {
        let before = self.served();
        wait_until("more are served", || self.served() > before + 200);
    }

    /// How many were served; none must have been lost.
    fn end(self) -> u64 {
        // The servers go on until the last client is served.
        self.over.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        self.servers.into_iter().for_each(|server| server.join().unwrap());
        self.served.load(Ordering::Relaxed)
    }
}

fn serve(listener: &TcpListener, over: &AtomicBool) {
    loop {
        match listener.accept() {
            Ok((mut client, _)) => {
                client.set_read_timeout(Some(deadline())).unwrap();
                if client.read_exact(&mut [0]).is_ok() {
                    let _ = client.write_all(b"!");
                }
            }
            Err(_) if over.load(Ordering::Relaxed) => return,
            Err(_) => {}
        }
    }
}

/// What of a service stays, whatever build looks at it while nobody calls.
fn lasting(json: &Value) -> Value {
    let mut lasting = json.clone();
    // The counters of a build that has more of them.
    lasting.as_object_mut().unwrap().remove("exits");
    lasting
}

/// What no call changes.
fn identity(json: &Value) -> Value {
    let members = json["members"].as_array().unwrap().iter();
    let members: Vec<Value> = members
        .map(|member| {
            ["member", "address", "pid", "state", "weight"].map(|key| member[key].clone())
        })
        .map(Value::from_iter)
        .collect();
    ["name", "policy", "on_full", "redirect", "spread", "port"]
        .into_iter()
        .map(|key| json[key].clone())
        .chain(members)
        .collect()
}

fn requests(json: &Value) -> u64 {
    json["requests"]["placed"].as_u64().unwrap() + json["requests"]["redirected"].as_u64().unwrap()
}

fn is_upgraded(ran: Ran, to: &str) {
    let line = ran.done();
    assert!(line.starts_with("1 service in network namespace ") && line.contains(to), "{line}");
}

/// Up, down and up, while clients come.
fn nobody_is_lost_between(this: &Version, other: &Version, to: &str) {
    world::enter();
    let (service, listeners) = service();
    this.run("set web --weight 0=3 --policy least-loaded --on-full reset").done();
    this.run("drain web 2").done();
    let before = identity(&show(this));
    let load = Load::begin(&listeners);
    load.go_on();
    for _ in 0..TURNS {
        for (version, to) in [(other, to), (this, "to ")] {
            let counted = requests(&show(version));
            is_upgraded(version.run("upgrade"), to);
            load.go_on();
            let after = show(version);
            assert_eq!(identity(&after), before);
            assert!(requests(&after) >= counted + 200, "{after}");
            assert_eq!(folders(), [own_folder()]);
            let again = version.run("upgrade").done();
            assert!(again.ends_with("already at this version\n"), "{again}");
        }
    }
    let served = load.end();
    let after = show(this);
    let counted = requests(&after);
    // While one CPU puts a closed connection in the place of an open one (TIME_WAIT), the
    // client's last segment may find neither on another, and is a request too: a stray one,
    // which the kernel answers with a reset.
    let strays = counted.checked_sub(served).expect("each call is a request");
    assert!(strays <= netstat("OutRsts"), "{served} calls: {after}");
    let of_members: u64 = after["members"].as_array().unwrap().iter().map(placed).sum();
    assert_eq!(of_members, counted, "{after}");
    assert_eq!(after["requests"]["fallback"], 0);
    assert_eq!(after["members"][2]["placed"], 0);
    service.remove().unwrap();
}

fn placed(member: &Value) -> u64 {
    member["placed"].as_u64().unwrap() + member["redirected_in"].as_u64().unwrap()
}

#[test]
fn another_layout_takes_over_under_load_and_gives_back() {
    let other = Version::of_other_layout();
    nobody_is_lost_between(&Version::this(), &other, "layout 9)");
}

#[test]
fn other_rules_take_over_under_load_and_give_back() {
    let other = Version::of_other_rules();
    nobody_is_lost_between(&Version::this(), &other, "layout 8)");
}

/// The connections of a member, as the kernel counts them.
fn established(version: &Version) -> Vec<Value> {
    let json = show(version);
    json["members"].as_array().unwrap().iter().map(|it| it["established"].clone()).collect()
}

#[test]
fn connections_are_counted_on() {
    let (this, other) = (Version::this(), Version::of_other_layout());
    world::enter();
    let (_service, listeners) = service();
    let mut clients: Vec<TcpStream> =
        [0, 0, 1].map(|at_| TcpStream::connect(at(CALLED[at_])).unwrap()).into();
    let mut servers: Vec<TcpStream> = [0, 0, 1].map(|at| listeners[at].accept().unwrap().0).into();
    wait_until("they are counted", || established(&this) == [2, 1, 0]);
    for version in [&other, &this, &other] {
        version.run("upgrade").done();
        assert_eq!(established(version), [2, 1, 0]);
    }
    drop((clients.remove(0), servers.remove(0)));
    wait_until("one has ended", || established(&other) == [1, 1, 0]);
    clients.push(TcpStream::connect(at(CALLED[2])).unwrap());
    wait_until("one has come", || established(&other) == [1, 1, 1]);
}

/// A build that cannot read the record of connections begins a new one, which no connection of
/// before ends up in.
#[test]
fn connections_are_counted_anew_where_builds_keep_another_record_of_them() {
    let (this, other) = (Version::this(), Version::of_other_connections());
    world::enter();
    let (_service, listeners) = service();
    let connect = || (TcpStream::connect(at(CALLED[0])).unwrap(), listeners[0].accept().unwrap());
    let mut old = vec![connect()];
    wait_until("it is counted", || established(&this) == [1, 0, 0]);
    for version in [&other, &this] {
        version.run("upgrade").done();
        assert_eq!(established(version), [Value::Null, Value::Null, Value::Null]);
        old.push(connect());
    }
    drop(old);
    assert_eq!(established(&this), [Value::Null, Value::Null, Value::Null]);
    this.run("rm web").done();
    let again = Service::builder("web").share(&listeners).unwrap();
    let _new = connect();
    wait_until("the new one alone is counted", || established(&this) == [1, 0, 0]);
    again.remove().unwrap();
}

/// The ACK finds the member that sent the cookie, although a sibling has room now.
#[test]
fn a_syn_cookie_is_honoured_by_the_next_build() {
    for version in [Version::of_other_layout(), Version::of_other_rules()] {
        world::enter();
        syn::blackhole();
        let called = at(CALLED[0]);
        let (service, listeners) = service();
        for listener in &listeners {
            listen(listener, Backlog::new(0).unwrap()).unwrap();
        }
        let client = |n| syn::client(false, n);
        let half_open = |expected: [u32; 3]| {
            wait_until(&format!("{expected:?} are half open"), || {
                let members = service.status().unwrap().members;
                members.iter().map(|member| member.half_open).eq(expected)
            });
        };
        (1..=3).for_each(|n| syn::open(client(n), called));
        half_open([1, 1, 1]);
        let wire = Wire::to(client(4).ip());
        syn::open(client(4), called);
        let cookie = wire.answer(client(4), called);
        syn::abort(client(3), called);
        half_open([1, 1, 0]);
        version.run("upgrade").done();
        syn::acknowledge(client(4), called, cookie);
        assert_eq!(listeners[0].accept().unwrap().1, client(4));
    }
}

/// Their answers lie in one place.
#[test]
fn many_read_what_another_build_has_made_at_the_same_time() {
    const READS: usize = 200;
    let other = Version::of_other_layout();
    world::enter();
    let (web, _listeners) = service();
    let called = ["10.0.0.9:81", "10.0.0.8:81", "10.0.0.7:81", "10.0.0.6:81"];
    let (api, _others) = Service::builder("api").listen(called.map(at)).unwrap();
    other.run("upgrade").done();
    let services = [&web, &api];
    let expected = services.map(addresses);
    assert_eq!(expected.each_ref().map(Vec::len), [3, 4]);
    thread::scope(|scope| {
        for (service, expected) in services.into_iter().zip(&expected).cycle().take(4) {
            scope.spawn(move || (0..READS).for_each(|_| assert_eq!(&addresses(service), expected)));
        }
    });
}

fn addresses(service: &Service) -> Vec<Address> {
    service.status().unwrap().members.iter().map(|member| member.address).collect()
}

#[test]
fn a_build_reads_drains_and_removes_what_another_has_made() {
    let (this, other) = (Version::this(), Version::of_other_layout());
    world::enter();
    let (_web, _listeners) = service();
    let (_api, api) = Service::builder("api").listen([at("10.0.0.1:81")]).unwrap();
    let _clients = [0, 1, 1].map(|called| TcpStream::connect(at(CALLED[called])).unwrap());
    wait_until("they wait", || show(&this)["members"][1]["queued"] == 2);
    for (maker, reader) in [(&this, &other), (&other, &this)] {
        maker.run("upgrade").done();
        assert_eq!(lasting(&show(reader)), lasting(&show(maker)));
        assert_eq!(reader.run("ls").done(), maker.run("ls").done());
        reader.run("drain web 0").done();
        assert_eq!(show(maker)["members"][0]["state"], "draining");
        // It takes effect at once, also where the shortest queue is looked for.
        maker.run("set web --policy shortest-queue").done();
        let before = show(maker)["members"][0]["queued"].clone();
        let _client = TcpStream::connect(at(CALLED[0])).unwrap();
        assert_eq!(show(reader)["members"][0]["queued"], before);
        reader.run("resume web 0").done();
        assert_eq!(show(maker)["members"][0]["state"], "active");
        for arguments in ["set web --policy round-robin", "rm web 1", "trace web"] {
            let line = reader.run(arguments).failed();
            assert!(line.contains("; run overspill upgrade to switch to this version"), "{line}");
        }
        let checked = reader.run("check");
        assert!(checked.stdout.contains("overspill upgrade"), "{checked:?}");
    }
    // `other` has it now.
    this.run("rm web").done();
    assert_eq!(this.run("ls").done(), other.run("ls").done());
    assert!(!other.run("ls").done().contains("web"));
    // The kernel's own look-up: nothing in `web` is counted any more, and nobody is refused.
    let _client = TcpStream::connect(at(CALLED[0])).unwrap();
    drop(api);
    this.run("rm api").done();
    assert!(!Path::new("/sys/fs/bpf/overspill").exists());
}

#[test]
fn a_dispatcher_is_still_asked() {
    let versions = [Version::of_other_layout(), Version::this(), Version::of_other_rules()];
    world::enter();
    let folder = tempfile::tempdir().unwrap();
    let object = compile("canary", folder.path());
    let (_service, listeners) = service();
    let this = Version::this();
    this.run(&format!("set web --policy dispatcher={object}")).done();
    let load = Load::begin(&listeners);
    load.go_on();
    for version in &versions {
        version.run("upgrade").done();
        let before = show(version);
        assert_eq!(before["dispatcher"], "canary");
        load.go_on();
        // Those that came while it was swapped are placed all the same, and counted.
        assert_eq!(show(version)["requests"]["fallback"], before["requests"]["fallback"]);
    }
    load.end();
    // Another program can be given, and takes its answers to the programs that are there now.
    let last = &versions[2];
    last.run(&format!("set web --policy dispatcher={object} --on-full reset")).done();
    let before = show(last)["requests"]["fallback"].clone();
    let _client = TcpStream::connect(at(CALLED[0])).unwrap();
    assert_eq!(show(last)["requests"]["fallback"], before);
    assert_eq!(show(last)["policy"], Policy::Dispatcher.name());
}

#[test]
fn requests_at_a_socket_that_ends_go_where_the_new_build_says() {
    let versions = [Version::of_other_layout(), Version::this()];
    for upgrades in 1..=2 {
        world::enter();
        let address = at("127.0.0.1:80");
        let (service, listeners) = Service::builder("web").listen([address; 3]).unwrap();
        service.keep_requests(&listeners[0]).unwrap();
        let mut listeners: Vec<Option<TcpListener>> = listeners.into_iter().map(Some).collect();
        let _clients: Vec<TcpStream> =
            (0..12).map(|_| TcpStream::connect(address).unwrap()).collect();
        versions[..upgrades].iter().for_each(|version| drop(version.run("upgrade").done()));
        let version = &versions[upgrades - 1];
        let queued = |position: usize| show(version)["members"][position]["queued"].as_u64();
        wait_until("all wait", || (0..3).filter_map(queued).sum::<u64>() == 12);
        assert!(queued(0) > Some(0), "the flows' hash gives some to each");
        // Who drains comes last: by the hash some would go there.
        version.run("drain web 1").done();
        let (held, heir) = (queued(0).unwrap(), queued(2).unwrap());
        listeners[0] = None;
        wait_until("they have moved", || queued(2) == Some(heir + held));
    }
}

/// As a supervisor of an older build: it goes on looking, and marking who hangs.
#[test]
fn who_looks_at_queues_goes_on_over_another_layout() {
    let other = Version::of_other_layout();
    world::enter();
    let (service, _listeners) = service();
    let looker = service.looker().unwrap();
    let _client = TcpStream::connect(at(CALLED[0])).unwrap();
    wait_until("it waits", || looker.queues().unwrap()[0].queued == 1);
    for version in [&other, &Version::this(), &other] {
        version.run("upgrade").done();
        let _client = TcpStream::connect(at(CALLED[1])).unwrap();
        let before = looker.queues().unwrap();
        assert_eq!((before[0].queued, before[0].placed), (1, 1));
        looker.set_health(MemberId(1), Health::Hung).unwrap();
        assert_eq!(show(version)["members"][1]["state"], "hung");
        let _client = TcpStream::connect(at(CALLED[1])).unwrap();
        assert_eq!(looker.queues().unwrap()[1].queued, before[1].queued);
        looker.set_health(MemberId(1), Health::Well).unwrap();
        assert_eq!(show(version)["members"][1]["state"], "active");
    }
}

#[test]
fn who_traces_goes_on_within_a_layout() {
    let (rules, layout) = (Version::of_other_rules(), Version::of_other_layout());
    world::enter();
    let (service, _listeners) = service();
    let trace = Trace::begin(service.namespace(), &Filter::default()).unwrap();
    for version in [&rules, &Version::this(), &rules] {
        version.run("upgrade").done();
        let _client = TcpStream::connect(at(CALLED[0])).unwrap();
        assert_eq!(trace.wait(deadline()).unwrap().len(), 1);
        assert!(trace.is_on().unwrap());
    }
    layout.run("upgrade").done();
    assert!(!trace.is_on().unwrap());
}

/// Runs an upgrade under strace, which interferes with one of its system calls.
fn interfered(version: &Version, calls: &str, interference: &str) -> std::process::Output {
    Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:{interference}")])
        .arg(version.path())
        .arg("upgrade")
        .output()
        .expect("strace is installed")
}

/// How often an upgrade makes a system call.
fn times(version: &Version, call: &str) -> usize {
    let mut command = Command::new(version.path());
    let calls = traced(command.arg("upgrade"), call);
    calls.lines().filter(|line| line.contains(&format!("{call}("))).count()
}

/// The moments at which an upgrade is interfered with: all of the last ones, in which the swap
/// is, and some of those before.
fn moments(times: usize) -> impl Iterator<Item = usize> {
    const LAST: usize = 60;
    let early = times.saturating_sub(LAST);
    (1..early).step_by((early / 8).max(1)).chain(early.max(1)..=times)
}

/// Whatever happened to an upgrade: requests are placed, and the next writer of either build
/// leaves one whole state.
fn is_sound(this: &Version, other: &Version, expected: &Value) {
    call(CALLED[0]).unwrap();
    this.run("drain web 1").done();
    this.run("resume web 1").done();
    assert_eq!(folders(), [own_folder()]);
    for version in [this, other] {
        assert_eq!(&identity(&show(version)), expected);
    }
    let before = requests(&show(this));
    call(CALLED[0]).unwrap();
    assert_eq!(requests(&show(this)), before + 1);
    // Back, from wherever it is.
    this.run("upgrade").done();
    assert_eq!(&identity(&show(this)), expected);
    call(CALLED[0]).unwrap();
    assert_eq!(requests(&show(this)), before + 2);
}

fn whatever_happens_at_each_call(call: &str, interference: &str, fails: bool) {
    let (this, other) = (Version::this(), Version::of_other_layout());
    world::enter();
    // Small, so that few calls are the same again and again.
    let capacity = Capacity { services: 4, members: 16 };
    let builder = Service::builder("web").capacity(capacity);
    let (_service, listeners) = builder.listen(CALLED.map(at)).unwrap();
    let servers = Load::of_nobody(&listeners);
    let expected = identity(&show(&this));
    let all = times(&other, call);
    this.run("upgrade").done();
    let mut interfered_with = 0;
    for moment in moments(all) {
        let output = interfered(&other, call, &format!("{interference}:when={moment}"));
        interfered_with += usize::from(!output.status.success());
        if fails && !output.status.success() {
            let ran = Ran::from(output);
            assert!(ran.stderr.starts_with("overspill: "), "{ran:?}");
        }
        is_sound(&this, &other, &expected);
    }
    assert!(interfered_with > 0, "{all} calls");
    servers.end();
}

#[test]
fn an_upgrade_that_is_killed_leaves_what_the_next_writer_repairs() {
    whatever_happens_at_each_call("bpf", "signal=KILL", false);
}

#[test]
fn an_upgrade_that_is_killed_at_the_folders_is_repaired_as_well() {
    for call in ["renameat2", "mkdir", "unlink", "rmdir"] {
        whatever_happens_at_each_call(call, "signal=KILL", false);
    }
}

#[test]
fn an_upgrade_that_fails_changes_nothing_or_is_finished() {
    whatever_happens_at_each_call("bpf", "error=ENOMEM", true);
}
