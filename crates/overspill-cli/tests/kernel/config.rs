//! `overspill run --config`: what a file says is run, and read again at each restart.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;
use overspill::{OnFull, Policy, Service, Status};
use tempfile::TempDir;
use world::{at, deadline, wait_until};

use crate::dispatcher::compile;
use crate::run::{Run, WORKER, ask, freeze, pid, pids, send};
use crate::server::get;
use crate::tool::overspill;

const ADDRESS: &str = "10.0.0.1:80";
/// An HTTP server that knows nothing of overspill, and answers with its worker's number.
const UNCHANGED: [&str; 4] = ["python3", "-c", include_str!("unchanged.py"), ADDRESS];
/// What answers nothing, and leaves its socket to itself.
const SLEEP: [&str; 2] = ["sleep", "60"];

/// The file web.toml, in a folder of its own.
struct File(TempDir);

impl File {
    fn new(lines: &str, command: &[&str]) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(lines, command);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("web.toml")
    }

    fn write(&self, lines: &str, command: &[&str]) {
        let command: Vec<String> = command.iter().map(|word| format!("'''{word}'''")).collect();
        let text = format!("{lines}\ncommand = [{}]\n", command.join(", "));
        fs::write(self.path(), text).unwrap();
    }

    fn start(&self) -> Run {
        Run::start_from(&[], &self.path())
    }

    /// Starts it, and waits until so many workers listen by themselves.
    fn start_listening(&self, workers: usize) -> Run {
        let run = self.start();
        (0..workers).for_each(|_| drop(run.line(" listens on ")));
        run
    }

    /// Reloads it, which has to succeed, and gives what that said.
    fn reload(&self) -> String {
        overspill(&format!("restart --config {}", self.path().display())).done()
    }
}

fn status() -> Status {
    Service::open("web").unwrap().status().unwrap()
}

/// Clients that ask without end, one after another, and fail if one gets no answer.
struct Clients {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU32>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn come() -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let client = || {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert!(!get(at(ADDRESS), "/").is_empty());
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = vec![client(), client()];
        Self { stop, served, threads }
    }

    /// Waits until another one has been served.
    fn wait(&self) {
        let served = self.served.load(Ordering::Relaxed);
        wait_until("a client is served", || self.served.load(Ordering::Relaxed) > served + 2);
    }

    fn leave(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("every client is served");
        }
    }
}

#[test]
fn nginx_is_reloaded_by_every_policy_and_no_request_is_lost() {
    world::enter();
    let file = File::new("", &SLEEP);
    compile("canary", file.0.path());
    let folder = file.0.path().display().to_string();
    let write = |policy: &str| {
        let conf = format!(
            "daemon off; error_log stderr; worker_processes 1;\nevents {{}}\nhttp {{\n  \
             access_log off;\n  server {{ listen {ADDRESS}; location / {{ return 200 {policy}; }} }}\n}}\n"
        );
        let conf_file = format!("{folder}/{policy}.conf");
        fs::write(&conf_file, conf).unwrap();
        let script = format!(
            "PATH=$PATH:/usr/sbin; exec nginx -e stderr -c {conf_file} -g \"pid {folder}/$$.pid;\""
        );
        let given = if policy == "dispatcher" { "dispatcher=canary.bpf.o" } else { policy };
        let lines = format!("workers = 2\nstop-signal = 'QUIT'\npolicy = '{given}'");
        file.write(&lines, &["sh", "-c", &script]);
    };
    write("next-available");
    let run = file.start_listening(2);
    let clients = Clients::come();
    for policy in Policy::ALL {
        clients.wait();
        write(policy.name());
        let checked = overspill(&format!("check {}", file.path().display())).done();
        assert_eq!(checked, format!("{}: right\n", file.path().display()));
        assert!(file.reload().ends_with("done, 2 workers replaced\n"));
        assert_eq!(status().policy, policy);
        for _ in 0..4 {
            assert_eq!(get(at(ADDRESS), "/"), policy.name(), "by the new command alone");
        }
    }
    clients.wait();
    clients.leave();
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn the_rules_of_a_file_are_those_of_the_service_again_at_each_reload() {
    world::enter();
    let first = "workers = 2\non-full = 'reset'\nspread = true\nredirect = false";
    let file = File::new(&first.replace("redirect = false", "redirect = true"), &UNCHANGED);
    let run = file.start_listening(2);
    let told = || {
        let it = status();
        (it.policy, it.on_full, it.spread, it.redirect)
    };
    assert_eq!(told(), (Policy::ShortestQueue, OnFull::Reset, true, true));
    overspill("set web --policy round-robin --spread off").done();
    file.write(first, &UNCHANGED);
    file.reload();
    run.line("done, 2 workers replaced");
    assert_eq!(told(), (Policy::ShortestQueue, OnFull::Reset, true, false), "the file wins");
    file.write("workers = 2", &UNCHANGED);
    run.signal(Signal::SIGHUP);
    run.line("done, 2 workers replaced");
    assert_eq!(told(), (Policy::ShortestQueue, OnFull::Drop, false, true));
    get(at(ADDRESS), "/");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_wrong_file_changes_nothing() {
    world::enter();
    let file = File::new("workers = 2\npolicy = 'round-robin'", &UNCHANGED);
    let run = file.start_listening(2);
    let before = pids("web");
    let shown = file.path().display().to_string();
    let wrong = |lines: &str, said: &str, first: bool| {
        file.write(lines, &UNCHANGED);
        if first {
            let ran = overspill(&format!("restart --config {shown}"));
            assert_eq!(ran.code, Some(2), "nobody is asked");
            assert_eq!(ran.complaint(), format!("overspill: {said}"));
        }
        let line = overspill("restart web").failed();
        assert_eq!(line, format!("overspill: cannot restart web: {said}; nothing is changed"));
        run.line(&format!("overspill: {said}; nothing is changed"));
        run.signal(Signal::SIGHUP);
        run.line(&format!("overspill: {said}; nothing is changed"));
        assert_eq!((pids("web"), status().policy), (before.clone(), Policy::RoundRobin));
        get(at(ADDRESS), "/");
    };
    wrong(
        "polcy = 1\npolicy = 'next-available'",
        &format!("{shown}:1:1: there is no key \"polcy\"; there is policy"),
        true,
    );
    // The file is right, the machine has not what it needs.
    wrong(
        "workers = 2\nuser = 'no-such-user'\nlisten = []\npolicy = 'dispatcher=none.o'",
        &format!(
            "{} is not a dispatcher: No such file or directory (os error 2); give one that is made \
             from a C file with OVERSPILL_DISPATCHER in it: clang -target bpf -O2 -g -c",
            shown.replace("web.toml", "none.o")
        ),
        false,
    );
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn what_a_running_supervisor_cannot_change_is_named_and_stays() {
    world::enter();
    let file = File::new("workers = 2", &UNCHANGED);
    let run = file.start_listening(2);
    file.write(
        "name = 'other'\nworkers = 3\nprivate-port = 9000\nbacklog = 7\ncapacity = [1, 1]\n\
         user = 'nobody'\npolicy = 'round-robin'",
        &UNCHANGED,
    );
    let said = "name, workers, private-port, backlog, capacity, user changed in the file: left as \
                before until overspill run is started anew";
    let told = overspill("restart web").done();
    assert_eq!(told.lines().next(), Some(said), "{told}");
    run.line(&format!("overspill: restart: {said}"));
    assert_eq!((status().members.len(), status().policy), (2, Policy::RoundRobin));
    assert_eq!(get(at(ADDRESS), "/uid"), "0");
    run.ends_at(Signal::SIGTERM);

    let file = File::new("workers = 2\nredirect = false", &UNCHANGED);
    let run = file.start_listening(2);
    file.write("workers = 2\nredirect = true", &UNCHANGED);
    let told = overspill("restart web").done();
    assert!(told.starts_with("redirect changed in the file: left as before"), "{told}");
    assert!(Service::open("web").is_err(), "there was to be none");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn successors_are_started_as_the_file_says_now() {
    world::enter();
    let lines = "workers = 2\nlisten = '10.0.0.1:80'\n";
    let file = File::new(&format!("{lines}hang = 0\ngrace = 20"), &WORKER);
    let run = file.start();
    run.line("service web");
    let first = ask(ADDRESS);
    assert_eq!(first["ids"], serde_json::json!([0, 0, 0, 0, 0, 0]));
    let script = format!("import sys\nprint('up', file=sys.stderr, flush=True)\n{}", WORKER[2]);
    let settings = "user = 'nobody'\noutput = 'as-is'\nhang = 50\ngrace = 1\nstop-signal = 'KILL'";
    file.write(&format!("{lines}{settings}"), &["python3", "-c", &script]);
    assert!(file.reload().ends_with("done, 2 workers replaced\n"));
    assert_eq!(run.line("up"), "up", "without the worker's number");
    // Until they have ended they share their sockets with their successors.
    run.line("was ended by SIGKILL");
    run.line("was ended by SIGKILL");
    let second = ask(ADDRESS);
    assert_ne!(pid(&second), pid(&first));
    assert_eq!(second["ids"], serde_json::json!([65534, 65534, 65534, 65534, 65534, 65534]));

    // Whoever hangs is noticed now. Half of the clients come to it first.
    freeze(pids("web")[0]);
    let clients: Vec<_> = (0..4).map(|_| crate::run::connect(ADDRESS)).collect();
    run.line("worker 0 hangs (service web");
    send(pids("web")[0], Signal::SIGCONT);
    drop(clients);

    file.write(&format!("{lines}output = 'prefixed'"), &["python3", "-c", &script]);
    file.reload();
    assert!(run.line(" up").ends_with("| up"));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn where_no_successor_comes_up_workers_are_started_as_before() {
    world::enter();
    let file = File::new("workers = 2\nready = 10", &UNCHANGED);
    let run = file.start_listening(2);
    let before = pids("web");
    for bad in [&["no-such-command"][..], &["false"]] {
        file.write("workers = 2\npolicy = 'round-robin'", bad);
        let line = overspill("restart web").complaint();
        assert!(line.ends_with("stopped after 0 workers replaced, 2 kept as before"), "{line}");
        assert_eq!(pids("web"), before);
    }
    assert_eq!(status().policy, Policy::RoundRobin, "the rules are the file's");
    send(before[0], Signal::SIGKILL);
    run.line("was ended by SIGKILL; next start now");
    run.line(" listens on ");
    let served: Vec<String> = (0..4).map(|_| get(at(ADDRESS), "/")).collect();
    assert!(served.contains(&"0".to_owned()) && served.contains(&"1".to_owned()), "{served:?}");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn whoever_started_it_is_told_when_all_workers_listen() {
    world::enter();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(deadline())).unwrap();
    let hear = || {
        let mut word = [0; 64];
        let length = socket.recv(&mut word).unwrap();
        String::from_utf8(word[..length].to_vec()).unwrap()
    };
    let variable = format!("NOTIFY_SOCKET={}", path.display());

    // The second listens only when it is let.
    let gate = folder.path().join("gate");
    let script = format!(
        "test $OVERSPILL_WORKER = 0 || while ! test -e {}; do sleep 0.01; done; exec \"$@\"",
        gate.display()
    );
    let file = File::new("workers = 2", &[&["sh", "-c", &script, "sh"], &UNCHANGED[..]].concat());
    let run = Run::start_from(&[&variable], &file.path());
    run.line(" listens on ");
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 64]).is_err(), "not before all listen");
    socket.set_nonblocking(false).unwrap();
    fs::write(&gate, "").unwrap();
    assert_eq!(hear(), "READY=1");
    run.ends_at(Signal::SIGTERM);
    assert_eq!(hear(), "STOPPING=1");

    let file = File::new("workers = 2\nlisten = '10.0.0.1:80'", &WORKER);
    let run = Run::start_from(&[&variable], &file.path());
    assert_eq!(hear(), "READY=1");
    assert!(ask(ADDRESS)["environment"].get("NOTIFY_SOCKET").is_none(), "it is not the workers'");
    run.ends_at(Signal::SIGTERM);
    assert_eq!(hear(), "STOPPING=1");
}
