//! The hooks on a control group, with unchanged servers in it; and control groups.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use overspill::{Cgroup, Error, Hooks, HooksEvent, Listening, adopt};
use world::{deadline, wait_until};

/// A control group of the test's own, gone with it.
struct Fresh(Cgroup);

impl Fresh {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("overspill-test-{}-{number}", std::process::id());
        Self(Cgroup::own().unwrap().make(&name).unwrap())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let emptied = self.0.kill().and_then(|()| {
            wait_until("the cgroup is empty", || self.0.is_empty().unwrap());
            self.0.remove()
        });
        if let Err(error) = emptied {
            eprintln!("{} is left behind: {error}", self.0.path().display());
        }
    }
}

/// A Python process that does what it is told, line by line.
struct Python {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Python {
    fn start() -> Self {
        let script = "import socket, sys\n\
                      for line in sys.stdin:\n    \
                          try: exec(line); print('done', flush=True)\n    \
                          except OSError as e: print(e.errno, flush=True)\n";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output }
    }

    fn within(cgroup: &Cgroup) -> Self {
        let python = Self::start();
        cgroup.enter(python.id()).unwrap();
        python
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    /// Does what a line of Python says, or gives the errno of its failure.
    fn run(&mut self, line: &str) -> Result<(), i32> {
        writeln!(self.input, "{line}").unwrap();
        match &*self.output.next().unwrap().unwrap() {
            "done" => Ok(()),
            errno => Err(errno.parse().unwrap()),
        }
    }

    fn listen(&mut self, ip: &str, port: u16) -> Result<(), i32> {
        let family = if ip.contains(':') { "socket.AF_INET6" } else { "socket.AF_INET" };
        self.run(&format!("s = socket.socket({family}); s.bind(('{ip}', {port})); s.listen()"))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next so many sockets that begin to listen.
fn told(hooks: &Hooks, count: usize) -> Receiver<Listening> {
    let (sender, receiver) = mpsc::channel();
    let events = hooks.events().unwrap();
    let mut left = count;
    thread::spawn(move || {
        events.each(|event| {
            let HooksEvent::Listening(listening) = event else { return true };
            left -= 1;
            sender.send(listening).is_ok() && left > 0
        })
    });
    receiver
}

const IN_USE: Result<(), i32> = Err(libc::EADDRINUSE);

#[test]
fn unchanged_servers_share_a_port_and_are_told() {
    world::enter();
    for (ip, port) in [("127.0.0.1", 8080), ("::1", 8080), ("0.0.0.0", 8081), ("::", 8082)] {
        let cgroup = Fresh::new();
        let hooks = Hooks::attach(&cgroup.0, &[]).unwrap();
        let listenings = told(&hooks, 2);
        let mut servers = [(); 2].map(|()| Python::within(&cgroup.0));
        for server in &mut servers {
            assert_eq!(server.listen(ip, port), Ok(()));
            let told = listenings.recv_timeout(deadline()).unwrap();
            assert_eq!((told.pid, told.port), (server.id(), port));
            let socket = adopt::listener(told.pid, told.cookie).unwrap().expect("the socket");
            assert_eq!(socket.pid(), server.id());
            let address = socket.address().unwrap();
            assert_eq!((address.ip.to_string(), address.port), (ip.to_owned(), port));
        }
        assert!(adopt::listener(servers[0].id(), 1).unwrap().is_none());
    }
}

#[test]
fn a_private_port_stays_exclusive_and_untold() {
    world::enter();
    let cgroup = Fresh::new();
    let hooks = Hooks::attach(&cgroup.0, &[8080, 65535]).unwrap();
    let listenings = told(&hooks, 1);
    let [mut one, mut two] = [(); 2].map(|()| Python::within(&cgroup.0));
    for port in [8080, 65535] {
        assert_eq!(one.listen("127.0.0.1", port), Ok(()));
        assert_eq!(two.listen("127.0.0.1", port), IN_USE);
        one.run("kept = s").unwrap();
    }
    assert_eq!(one.listen("127.0.0.1", 8081), Ok(()));
    assert_eq!(listenings.recv_timeout(deadline()).unwrap().port, 8081);
}

/// And no other connection is.
#[test]
fn connections_to_ports_of_the_group_are_told() {
    world::enter();
    let cgroup = Fresh::new();
    let hooks = Hooks::attach(&cgroup.0, &[]).unwrap();
    let (sender, told) = mpsc::channel();
    let events = hooks.events().unwrap();
    thread::spawn(move || events.each(|event| sender.send(event).is_ok()));
    let (mut one, mut two) = (Python::within(&cgroup.0), Python::within(&cgroup.0));
    let mut outside = Python::start();
    let connect = |to: &str, from: &str| {
        format!("socket.create_connection(('{to}', 8080), source_address=('{from}', 0)).close()")
    };
    // Before anybody listens there, and to a port of the host that the group does not listen on.
    assert_eq!(two.run(&connect("127.0.0.1", "127.0.0.1")), Err(libc::ECONNREFUSED));
    assert_eq!(outside.listen("127.0.0.1", 8081), Ok(()));
    assert_eq!(two.run("socket.create_connection(('127.0.0.1', 8081)).close()"), Ok(()));
    for ip in ["127.0.0.1", "::1"] {
        assert_eq!(one.listen(ip, 8080), Ok(()));
        let next = || told.recv_timeout(deadline()).unwrap();
        assert!(matches!(next(), HooksEvent::Listening(it) if it.port == 8080));
        // From outside, and from another address.
        assert_eq!(outside.run(&connect(ip, ip)), Ok(()));
        if ip == "127.0.0.1" {
            assert_eq!(two.run(&connect(ip, "127.0.0.2")), Ok(()));
        }
        assert_eq!(two.run(&connect(ip, ip)), Ok(()));
        let expected = HooksEvent::Connecting { pid: two.id(), port: 8080 };
        assert_eq!(next(), expected);
        assert!(told.try_recv().is_err());
    }
}

#[test]
fn port_0_and_udp_are_left_alone() {
    world::enter();
    let cgroup = Fresh::new();
    let _hooks = Hooks::attach(&cgroup.0, &[]).unwrap();
    let [mut one, mut two] = [(); 2].map(|()| Python::within(&cgroup.0));
    assert_eq!(one.listen("127.0.0.1", 0), Ok(()));
    let shared = "s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)";
    assert_eq!(one.run(&format!("if {shared}: raise OSError(1, '')")), Ok(()));
    assert_eq!(one.listen("127.0.0.1", 8080), Ok(()));
    assert_eq!(one.run(&format!("if {shared}: raise OSError(1, '')")), Err(1));
    let udp = "u = socket.socket(type=socket.SOCK_DGRAM); u.bind(('127.0.0.1', 8080))";
    assert_eq!(one.run(udp), Ok(()));
    assert_eq!(two.run(udp), IN_USE);
}

#[test]
fn who_is_outside_is_untouched() {
    world::enter();
    let cgroup = Fresh::new();
    let _hooks = Hooks::attach(&cgroup.0, &[]).unwrap();
    let (mut inside, mut outside) = (Python::within(&cgroup.0), Python::start());
    assert_eq!(inside.listen("127.0.0.1", 8080), Ok(()));
    assert_eq!(outside.listen("127.0.0.1", 8080), IN_USE);
    assert_eq!(outside.listen("127.0.0.1", 8081), Ok(()));
    assert_eq!(inside.listen("127.0.0.1", 8081), IN_USE);
}

#[test]
fn they_reach_groups_below_and_end_with_the_value() {
    world::enter();
    let cgroup = Fresh::new();
    let below = cgroup.0.make("below").unwrap();
    let hooks = Hooks::attach(&cgroup.0, &[]).unwrap();
    let [mut one, mut two] = [(); 2].map(|()| Python::within(&below));
    assert_eq!(one.listen("127.0.0.1", 8080), Ok(()));
    assert_eq!(two.listen("127.0.0.1", 8080), Ok(()));
    drop(hooks);
    assert_eq!(one.listen("127.0.0.1", 8081), Ok(()));
    assert_eq!(two.listen("127.0.0.1", 8081), IN_USE);
}

/// More sockets begin to listen than there is place to tell of them.
#[test]
fn what_cannot_be_told_does_no_harm() {
    world::enter();
    let cgroup = Fresh::new();
    let hooks = Hooks::attach(&cgroup.0, &[]).unwrap();
    let mut server = Python::within(&cgroup.0);
    let many = "[(s := socket.socket(), s.bind(('127.0.0.1', 8080)), s.listen(), s.close()) \
                for _ in range(44000)]";
    assert_eq!(server.run(many), Ok(()));
    // 24 bytes each in 1 MiB.
    let kept = 1024 * 1024 / 24;
    let listenings = told(&hooks, kept + 1);
    for _ in 0..kept {
        assert_eq!(listenings.recv_timeout(deadline()).unwrap().port, 8080);
    }
    assert_eq!(server.listen("127.0.0.1", 8081), Ok(()));
    assert_eq!(listenings.recv_timeout(deadline()).unwrap().port, 8081);
}

#[test]
fn a_control_group_from_its_making_to_its_end() {
    world::enter();
    let outer = Fresh::new();
    let inner = outer.0.make("inner").unwrap();
    assert_eq!(outer.0.make("inner").unwrap(), inner);
    assert_eq!((inner.name(), inner.parent().as_ref()), ("inner", Some(&outer.0)));
    assert!(outer.0.is_empty().unwrap());
    let (upper, lower) = (Python::within(&outer.0), Python::within(&inner));
    // There may be more: `python3` may be a script that finds the real one.
    let all = outer.0.processes().unwrap();
    assert!(all.contains(&upper.id()) && all.contains(&lower.id()), "{all:?}");
    let within = inner.processes().unwrap();
    assert!(within.contains(&lower.id()) && !within.contains(&upper.id()), "{within:?}");
    assert_eq!(Cgroup::of_process(lower.id()).unwrap(), inner);
    assert!(!outer.0.is_empty().unwrap());
    outer.0.remove().unwrap_err();
    outer.0.kill().unwrap();
    drop((upper, lower));
    wait_until("they have ended", || outer.0.is_empty().unwrap());
    outer.0.remove().unwrap();
    assert!(!inner.path().exists() && !outer.0.path().exists());
}

#[test]
fn a_control_group_that_is_absent() {
    world::enter();
    let absent = Cgroup::at(Cgroup::own().unwrap().path().join("overspill-test-absent"));
    assert!(absent.is_empty().unwrap());
    absent.kill().unwrap();
    absent.remove().unwrap();
    absent.processes().unwrap_err();
    absent.enter(std::process::id()).unwrap_err();
    absent.make("below").unwrap_err();
    Hooks::attach(&absent, &[]).unwrap_err();
    let error = Hooks::attach(&Cgroup::at(PathBuf::from("/tmp")), &[]).unwrap_err();
    assert!(matches!(error, Error::Bpf { .. }), "{error:?}");
}
