//! `overspill allow`: peers join a service, with no supervisor that has started them.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use overspill::{Cgroup, MemberState, Service};
use world::wait_until;

use crate::run::{connect, freeze, members, pids, send};
use crate::tool::overspill;

const OPTION: &str = include_str!("option.py");

/// Answers with its process id.
pub(crate) const SERVE: &str = "
serve_pid([listening((address, 80)) for address in sys.argv[1:]])
";

/// A control group of the test's own.
pub(crate) struct Group(Cgroup);

impl Group {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("overspill-test-{}-{number}", std::process::id());
        Self(Cgroup::own().unwrap().make(&name).unwrap())
    }

    pub(crate) fn path(&self) -> String {
        self.0.path().display().to_string()
    }

    /// A process in it that runs a script, when it is ready.
    pub(crate) fn start(&self, script: &str, arguments: &[&str]) -> Process {
        start_in(&self.path(), script, arguments)
    }

    pub(crate) fn server(&self, addresses: &[&str]) -> Process {
        self.start(SERVE, addresses)
    }
}

/// A command of a process in the control group with this folder.
pub(crate) fn command_in(group: &str, program: &str) -> Command {
    let enter = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", enter, group, program]);
    command
}

/// A process in a control group that runs a script, when it is ready.
pub(crate) fn start_in(group: &str, script: &str, arguments: &[&str]) -> Process {
    let mut child = command_in(group, "python3")
        .args(["-c", &format!("{OPTION}\n{script}")])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Process(child)
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.0.kill();
        wait_until("the cgroup is empty", || self.0.is_empty().unwrap());
        let _ = self.0.remove();
    }
}

/// A process; dropping it ends it.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running `overspill allow`.
pub(crate) struct Allow(Process);

impl Allow {
    pub(crate) fn start(arguments: &str) -> Self {
        Self::named("web", arguments)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    fn named(name: &str, arguments: &str) -> Self {
        let mut child = Command::new("env")
            .args(["--default-signal", env!("CARGO_BIN_EXE_overspill"), "allow", name])
            .args(arguments.split(' '))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("peers may join") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it has ended");
            eprint!("{line}");
        }
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|it| eprintln!("{it}"));
        });
        Self(Process(child))
    }

    pub(crate) fn end(mut self) {
        send(self.0.pid(), Signal::SIGTERM);
        assert!(self.0.0.wait().unwrap().success());
    }
}

pub(crate) fn wait_members(count: usize) {
    wait_until("they are members", || {
        Service::open("web").is_ok_and(|it| it.status().unwrap().members.len() == count)
    });
}

/// Who has answered.
pub(crate) fn answer(mut stream: TcpStream) -> u32 {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.parse().unwrap()
}

#[test]
fn the_longest_name_will_do() {
    world::enter();
    let group = Group::new();
    let name = "a".repeat(64);
    let allow = Allow::named(&name, &format!("--cgroup {} --port 80", group.path()));
    let server = group.server(&["10.0.0.1"]);
    wait_until("it is a member", || {
        Service::open(&name)
            .is_ok_and(|it| it.status().unwrap().members.iter().any(|m| m.pid == server.pid()))
    });
    allow.end();
}

#[test]
fn peers_of_two_groups_join_one_service_at_different_times() {
    world::enter();
    let (one, two) = (Group::new(), Group::new());
    let first = Allow::start(&format!("--cgroup {} --port 80", one.path()));
    let mut blue = one.server(&["10.0.0.1"]);
    wait_members(1);
    let second = Allow::start(&format!("--cgroup {} --port 80", two.path()));
    let green = two.server(&["10.0.0.1"]);
    wait_members(2);
    assert_eq!(pids("web"), [blue.pid(), green.pid()]);

    // Those that wait at one that dies are answered by the other.
    freeze(blue.pid());
    let clients: Vec<TcpStream> = (0..20).map(|_| connect("10.0.0.1:80")).collect();
    blue.kill();
    for client in clients {
        assert_eq!(answer(client), green.pid());
    }
    for _ in 0..20 {
        assert_eq!(answer(connect("10.0.0.1:80")), green.pid());
    }

    // A successor takes its place.
    let red = one.server(&["10.0.0.1"]);
    wait_until("it is a member", || pids("web").contains(&red.pid()));
    assert_eq!(members("web").len(), 2);
    first.end();
    second.end();
    assert_eq!(members("web").len(), 2);
    assert!([red.pid(), green.pid()].contains(&answer(connect("10.0.0.1:80"))));
    overspill("rm web").done();
    crate::run::assert_no_state();
}

#[test]
fn what_waits_at_another_address_waits_for_the_successor() {
    world::enter();
    let group = Group::new();
    let keeper = Allow::start(&format!("--cgroup {} --port 80 --hang 0", group.path()));
    let mut blue = group.server(&["10.0.0.1"]);
    let _green = group.server(&["10.0.0.2"]);
    wait_members(2);
    freeze(blue.pid());
    let clients: Vec<TcpStream> = (0..5).map(|_| connect("10.0.0.1:80")).collect();
    blue.kill();
    let red = group.server(&["10.0.0.1"]);
    for client in clients {
        assert_eq!(answer(client), red.pid());
    }
    keeper.end();
    overspill("rm web").done();
}

#[test]
fn it_is_ended_and_started_again() {
    world::enter();
    let group = Group::new();
    let server = group.server(&["10.0.0.1", "10.0.0.2"]);
    let arguments = format!("--cgroup {} --port 80 --policy shortest-queue", group.path());
    // What listens already is taken.
    let keeper = Allow::start(&arguments);
    wait_members(2);
    keeper.end();
    assert_eq!(answer(connect("10.0.0.1:80")), server.pid());
    let late = group.server(&["10.0.0.3"]);
    assert_eq!(members("web").len(), 2, "nobody looks");
    let keeper = Allow::start(&arguments);
    wait_members(3);
    assert_eq!(pids("web"), [server.pid(), server.pid(), late.pid()]);
    assert!(members("web").iter().all(|member| member.state == MemberState::Active));
    keeper.end();
    overspill("rm web").done();
}

#[test]
fn the_option_needs_no_port() {
    world::enter();
    let group = Group::new();
    let keeper = Allow::start(&format!("--cgroup {}", group.path()));
    let script = "
other = listening(('10.0.0.1', 81))
made = [bound((f'10.0.0.{n}', 80)) for n in (1, 2)]
assert join(80, made) == 'ok'
made[1].listen()
made[0].listen()
waits_for('1 of web', lambda: place(made[1]))
print('ready' if place(made[0]) == '0 of web' else place(made[0]), flush=True)
time.sleep(60)
";
    let _server = group.start(script, &[]);
    assert_eq!(members("web").len(), 2);
    assert_eq!(Service::all(&overspill::Namespace::current().unwrap()).unwrap().len(), 1);
    keeper.end();
    overspill("rm web").done();
}

/// The control group of a unit that runs, as systemd would make it.
pub(crate) struct Unit(std::path::PathBuf);

impl Unit {
    pub(crate) fn new(name: &str) -> Self {
        let mut root = Cgroup::own().unwrap();
        while let Some(parent) = root.parent().filter(|it| it.path().join("cgroup.procs").exists())
        {
            root = parent;
        }
        let slice = root.path().join("system.slice");
        // Another test may have just removed the slice.
        wait_until("the unit's control group is made", || {
            let made = root.make("system.slice").is_ok();
            made && Cgroup::at(slice.clone()).make(name).is_ok()
        });
        Self(slice.join(name))
    }

    pub(crate) fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).unwrap();
        // Where systemd runs it is not empty, and stays.
        let _ = std::fs::remove_dir(self.0.parent().unwrap());
    }
}

#[test]
fn what_can_not_be_a_control_group_is_refused() {
    world::enter();
    let line = overspill("allow web --cgroup /etc --port 80").failed();
    assert!(line.contains("/etc is no control group; give its folder below"), "{line}");
}

/// Serves at 10.0.0.1 until it is told to close its socket, and goes on running.
const CLOSES: &str = "
import os, select, signal
made = [listening(('10.0.0.1', 80))]
signal.signal(signal.SIGUSR1, lambda *_: made.pop().close())
print('ready', flush=True)
while made:
    try:
        if select.select(made, [], [], 0.05)[0]:
            connection, _ = made[0].accept()
            connection.sendall(b'%d' % os.getpid())
            connection.close()
    except (OSError, ValueError, IndexError):
        pass
time.sleep(60)
";

#[test]
fn what_its_server_has_closed_is_closed() {
    world::enter();
    let group = Group::new();
    let keeper = Allow::start(&format!("--cgroup {} --port 80", group.path()));
    let [blue, green] = [0, 1].map(|_| group.start(CLOSES, &[]));
    wait_members(2);
    send(blue.pid(), Signal::SIGUSR1);
    wait_members(1);
    for _ in 0..10 {
        assert_eq!(answer(connect("10.0.0.1:80")), green.pid());
    }
    send(green.pid(), Signal::SIGUSR1);
    // With the last member goes the service, and clients are refused.
    wait_until("nobody listens", || TcpStream::connect("10.0.0.1:80").is_err());
    wait_until("the service is gone", || Service::open("web").is_err());
    keeper.end();
    crate::run::assert_no_state();
}

/// No hook sees a socket that is brought along (socket activation).
#[test]
fn a_socket_that_was_made_elsewhere_joins() {
    world::enter();
    let (group, elsewhere) = (Group::new(), Group::new());
    let keeper = Allow::start(&format!("--cgroup {} --port 80", group.path()));
    let script = format!(
        "{}\n{SERVE}",
        "made = [listening((address, 80)) for address in sys.argv[1:-1]]
with open(sys.argv.pop(), 'w') as processes:
    processes.write('0')
listening = lambda address: made[[it.getsockname() for it in made].index(address)]"
    );
    let procs = format!("{}/cgroup.procs", group.path());
    let server = elsewhere.start(&script, &["10.0.0.1", "10.0.0.2", &procs]);
    wait_members(2);
    assert_eq!(pids("web"), [server.pid(); 2]);
    assert_eq!(answer(connect("10.0.0.2:80")), server.pid());
    keeper.end();
    overspill("rm web").done();
}
