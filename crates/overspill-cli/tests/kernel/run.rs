//! `overspill run` with real workers.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overspill::{MemberState, MemberStatus, Service};
use serde_json::Value;

use world::{at, deadline, wait_until};

use crate::versions::Version;

pub(crate) const WORKER: [&str; 3] = ["python3", "-c", include_str!("worker.py")];

/// A worker that ends with status 3 unless a file exists: `sh -c NEEDS_FILE sh FILE COMMAND`.
const NEEDS_FILE: &str = r#"test -e "$1" || exit 3; shift; exec "$@""#;

/// A running `overspill run` and what it writes to stderr.
pub(crate) struct Run {
    pub(crate) supervisor: Child,
    lines: Receiver<String>,
}

impl Run {
    pub(crate) fn start(options: &str, command: &[&str]) -> Self {
        Self::start_with(&[], options, command)
    }

    /// With more options for `env`.
    pub(crate) fn start_with(env: &[&str], options: &str, command: &[&str]) -> Self {
        Self::start_as(&Version::this(), env, options, command)
    }

    /// By a build of overspill.
    pub(crate) fn start_by(version: &Version, options: &str, command: &[&str]) -> Self {
        Self::start_as(version, &[], options, command)
    }

    fn start_as(version: &Version, env: &[&str], options: &str, command: &[&str]) -> Self {
        let mut run = Self::command(version, env);
        run.args(options.split_whitespace()).arg("--").args(command);
        Self::watch(run)
    }

    /// What a configuration file says, with more options for `env`.
    pub(crate) fn start_from(env: &[&str], file: &Path) -> Self {
        let mut run = Self::command(&Version::this(), env);
        run.arg("--config").arg(file);
        Self::watch(run)
    }

    fn command(version: &Version, env: &[&str]) -> Command {
        // Whatever the tests' own parent ignores, the supervisor is not to.
        let mut run = Command::new("env");
        run.arg("--default-signal").args(env).arg(version.path()).arg("run");
        run
    }

    /// Starts a command that becomes a supervisor.
    pub(crate) fn watch(mut run: Command) -> Self {
        let mut supervisor = run.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(supervisor.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = sender.send(line);
            }
        });
        Self { supervisor, lines }
    }

    /// With Python workers that answer; returns when all are started.
    pub(crate) fn serving(options: &str) -> Self {
        let run = Self::start(options, &WORKER);
        run.line("service");
        run
    }

    /// The next line with that text in it.
    pub(crate) fn line(&self, text: &str) -> String {
        self.line_within(deadline(), text)
    }

    /// The same where it may take longer.
    pub(crate) fn line_within(&self, deadline: Duration, text: &str) -> String {
        let start = Instant::now();
        loop {
            let left = deadline.saturating_sub(start.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(_) => {}
                Err(error) => panic!("waited in vain for a line with {text:?}: {error}"),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.supervisor.id(), signal);
    }

    /// Its exit status and the lines that were not read yet, when it has ended by itself.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        let mut lines = Vec::new();
        let start = Instant::now();
        // The workers hold stderr as well: the last of them has ended with it.
        loop {
            let left = deadline().saturating_sub(start.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {lines:#?}"),
            }
        }
        (self.supervisor.wait().unwrap(), lines)
    }

    /// Fails to start with exit status 1 and this one line, and leaves nothing.
    pub(crate) fn fails(self, line: &str) {
        let (status, lines) = self.end();
        assert_eq!(status.code(), Some(1), "{lines:#?}");
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].starts_with("overspill: ") && lines[0].contains(line), "{}", lines[0]);
    }

    /// Ends at a signal with exit status 0.
    pub(crate) fn ends_with(self, signal: Signal) -> Vec<String> {
        self.signal(signal);
        let (status, lines) = self.end();
        assert_eq!(status.code(), Some(0), "{lines:#?}");
        lines
    }

    /// Ends at a signal with exit status 0 and leaves nothing.
    pub(crate) fn ends_at(self, signal: Signal) -> Vec<String> {
        let lines = self.ends_with(signal);
        assert_no_state();
        lines
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Only after a failed test does it still run.
        if let Ok(None) = self.supervisor.try_wait() {
            self.signal(Signal::SIGTERM);
            let _ = self.supervisor.wait();
        }
    }
}

pub(crate) fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect_timeout(&at(address), deadline()).unwrap();
    stream.set_read_timeout(Some(deadline())).unwrap();
    stream
}

/// What a worker has to say on a connection.
fn answer(mut connection: TcpStream) -> Value {
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

pub(crate) fn ask(address: &str) -> Value {
    answer(connect(address))
}

/// The number of the worker that answered.
fn worker(answer: &Value) -> usize {
    answer["environment"]["OVERSPILL_WORKER"].as_str().unwrap().parse().unwrap()
}

pub(crate) fn pid(answer: &Value) -> u32 {
    answer["pid"].as_u64().unwrap().try_into().unwrap()
}

pub(crate) fn members(service: &str) -> Vec<MemberStatus> {
    Service::open(service).unwrap().status().unwrap().members
}

pub(crate) fn pids(service: &str) -> Vec<u32> {
    members(service).iter().map(|member| member.pid).collect()
}

pub(crate) fn starts(service: &str) -> Vec<u64> {
    members(service).iter().map(|member| member.starts).collect()
}

/// Stops a process, and waits until it has stopped.
pub(crate) fn freeze(pid: u32) {
    send(pid, Signal::SIGSTOP);
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    wait_until("it has stopped", || state().contains(") T "));
}

fn wait_queued(service: &str, member: usize, count: u32) {
    wait_until("the clients are queued", || members(service)[member].queued == count);
}

/// The descriptors that any process started from here has.
fn inherited() -> Vec<u32> {
    let list = "import os; print(*(f for f in os.listdir('/proc/self/fd') \
                if os.path.exists('/proc/self/fd/' + f)))";
    let output = Command::new("python3").args(["-c", list]).output().unwrap().stdout;
    String::from_utf8(output).unwrap().split_whitespace().map(|fd| fd.parse().unwrap()).collect()
}

pub(crate) fn assert_no_state() {
    assert!(!Path::new("/sys/fs/bpf/overspill").exists());
}

fn assert_ended(pid: u32) {
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} still runs");
}

#[test]
fn each_worker_gets_its_own_sockets_as_from_systemd() {
    world::enter();
    let run = Run::serving(
        "--name web -n 3 --policy round-robin --listen 10.0.0.1:80 --listen [fd00::1]:81",
    );
    let mut descriptors = inherited();
    descriptors.extend([3, 4]);
    descriptors.sort_unstable();
    descriptors.dedup();
    let mut served = Vec::new();
    for (address, port, descriptor) in [("10.0.0.1:80", 80, 3), ("[fd00::1]:81", 81, 4)] {
        let service = format!("web:{port}");
        let answers: Vec<Value> = (0..3).map(|_| ask(address)).collect();
        for answer in &answers {
            let environment = &answer["environment"];
            assert_eq!(environment["LISTEN_FDS"], "2");
            assert_eq!(environment["LISTEN_PID"], answer["pid"].to_string());
            assert_eq!(environment["LISTEN_FDNAMES"], "10.0.0.1-80:[fd00--1]-81");
            assert_eq!(answer["descriptor"], descriptor);
            assert_eq!(answer["descriptors"], Value::from(descriptors.as_slice()));
            assert_eq!(answer["stdin"], "/dev/null");
            assert_eq!(answer["blocked"], "0000000000000000");
            assert_eq!(pids(&service)[worker(answer)], pid(answer));
        }
        let mut workers: Vec<usize> = answers.iter().map(worker).collect();
        workers.sort_unstable();
        assert_eq!(workers, [0, 1, 2], "round-robin gives each its turn");
        // Each has a socket of its own: one that all share would count all three.
        assert!(members(&service).iter().all(|member| member.placed == 1));
        served.extend(pids(&service));
    }
    run.ends_at(Signal::SIGTERM);
    served.into_iter().for_each(assert_ended);
}

#[test]
fn sigint_ends_it_as_well() {
    world::enter();
    // Not Python: it may pass over a SIGINT while it starts, and has much to say of one later.
    let run = Run::start("-n 2 --listen 10.0.0.1:80", &["sleep", "60"]);
    run.line("service");
    let served = pids("sleep");
    let lines = run.ends_at(Signal::SIGINT);
    assert_eq!(lines[0], "overspill: SIGINT: ending 2 workers");
    assert_eq!(lines.len(), 3, "and a line for each worker: {lines:#?}");
    served.into_iter().for_each(assert_ended);
}

#[test]
fn clients_in_the_queue_of_a_killed_worker_are_served_by_its_successor() {
    world::enter();
    let run = Run::serving("--name web --listen-each 10.0.0.1:80,10.0.0.2:80");
    let killed = pids("web")[0];
    freeze(killed);
    let clients: Vec<TcpStream> = (0..5).map(|_| connect("10.0.0.1:80")).collect();
    wait_queued("web", 0, 5);
    send(killed, Signal::SIGKILL);
    for client in clients {
        let answer = answer(client);
        assert_eq!(worker(&answer), 0);
        assert_ne!(pid(&answer), killed);
    }
    let line = run.line("worker 0");
    assert_eq!(
        line,
        format!("overspill: worker 0 (pid {killed}) was ended by SIGKILL; next start now")
    );
    let successor = pid(&ask("10.0.0.1:80"));
    wait_until("the successor is noted", || pids("web")[0] == successor);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_full_worker_is_helped_by_its_sibling_at_another_address() {
    world::enter();
    let run = Run::serving("--name web --backlog 1 --listen-each 10.0.0.1:80,10.0.0.2:80");
    let full = pids("web")[0];
    freeze(full);
    let waiting: Vec<TcpStream> = (0..2).map(|_| connect("10.0.0.1:80")).collect();
    wait_queued("web", 0, 2);
    let helped = ask("10.0.0.1:80");
    assert_eq!(worker(&helped), 1);
    assert_eq!(helped["called"], "10.0.0.1:80");
    assert_eq!(helped["environment"]["LISTEN_FDNAMES"], "10.0.0.2-80");
    send(full, Signal::SIGCONT);
    for client in waiting {
        assert_eq!(worker(&answer(client)), 0);
    }
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn with_redirection_off_there_is_no_service() {
    world::enter();
    let run = Run::serving("-n 2 --redirect off --listen 10.0.0.1:80");
    assert_no_state();
    assert_eq!(ask("10.0.0.1:80")["environment"]["LISTEN_FDS"], "1");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn the_workers_run_as_the_user() {
    world::enter();
    let run = Run::serving("-n 2 --user nobody --listen 10.0.0.1:80");
    let answer = ask("10.0.0.1:80");
    assert_eq!(answer["ids"], serde_json::json!([65534, 65534, 65534, 65534, 65534, 65534]));
    assert_eq!(answer["groups"], serde_json::json!([65534]));
    assert_eq!(answer["environment"]["USER"], "nobody");
    run.ends_at(Signal::SIGTERM);
    Run::start("--user no-such-user --listen 10.0.0.1:80", &["true"])
        .fails("there is no user no-such-user");
}

#[test]
fn a_command_that_is_not_there_fails_and_leaves_nothing() {
    world::enter();
    let address = at("10.0.0.1:80");
    Run::start("-n 2 --listen 10.0.0.1:80", &["no-such-command"])
        .fails("cannot start no-such-command: No such file");
    assert_no_state();
    TcpListener::bind(address).unwrap();
}

#[test]
fn an_address_in_use_fails_and_leaves_nothing() {
    world::enter();
    let _holder = TcpListener::bind(at("10.0.0.2:80")).unwrap();
    Run::start("--listen-each 10.0.0.1:80,10.0.0.2:80", &WORKER)
        .fails("cannot bind to 10.0.0.2:80: Address already in use");
    assert_no_state();
    TcpListener::bind(at("10.0.0.1:80")).unwrap();
}

#[test]
fn a_name_in_use_fails_and_leaves_what_was_there() {
    world::enter();
    let addresses: [SocketAddr; 1] = [at("10.0.0.1:81")];
    let (service, _listeners) = Service::builder("web:81").listen(addresses).unwrap();
    Run::start("--name web -n 2 --listen 10.0.0.2:80 --listen 10.0.0.2:81", &WORKER)
        .fails("the name web:81 is taken");
    let all = Service::all(&overspill::Namespace::current().unwrap()).unwrap();
    assert_eq!(all, [service]);
    TcpListener::bind(at("10.0.0.2:80")).unwrap();
}

#[test]
fn wrong_usage_is_told_with_exit_status_2() {
    for (options, said) in [
        ("--private-port 80 --listen 10.0.0.1:80", "leave it out"),
        ("-n 3 --listen-each 10.0.0.1:80,10.0.0.2:80", "one address for each worker"),
    ] {
        let (status, lines) = Run::start(options, &["true"]).end();
        assert_eq!(status.code(), Some(2), "{lines:#?}");
        assert!(lines[0].contains(said), "{lines:#?}");
    }
}

/// A file that is not there yet.
fn absent_file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ready");
    (folder, file)
}

#[test]
fn a_worker_that_keeps_ending_waits_longer_and_drains_meanwhile() {
    world::enter();
    let (_folder, file) = absent_file();
    let first_or_file = format!("test $OVERSPILL_WORKER = 0 && shift && exec \"$@\"; {NEEDS_FILE}");
    let mut command = vec!["sh", "-c", &first_or_file, "sh", file.to_str().unwrap()];
    command.extend(WORKER);
    let run = Run::start("--name web --listen-each 10.0.0.1:80,10.0.0.2:80", &command);
    for pause in ["now", "in 100 ms", "in 200 ms", "in 400 ms", "in 800 ms", "in 1.6 s"] {
        let line = run.line("next start");
        let expected = format!("ended with status 3; next start {pause}");
        assert!(line.starts_with("overspill: worker 1") && line.ends_with(&expected), "{line}");
    }
    wait_until("it drains", || members("web")[1].state == MemberState::Draining);
    assert_eq!(members("web")[0].state, MemberState::Active);
    let answer = ask("10.0.0.2:80");
    assert_eq!((worker(&answer), &answer["called"]), (0, &Value::from("10.0.0.2:80")));
    std::fs::write(&file, "").unwrap();
    wait_until("it takes requests again", || members("web")[1].state == MemberState::Active);
    assert_eq!(worker(&ask("10.0.0.2:80")), 1);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn while_no_worker_runs_requests_wait() {
    world::enter();
    let (_folder, file) = absent_file();
    let mut command = vec!["sh", "-c", NEEDS_FILE, "sh", file.to_str().unwrap()];
    command.extend(WORKER);
    let run = Run::start("--name web -n 1 --listen 10.0.0.1:80", &command);
    run.line("in 400 ms");
    let mut clients = Vec::new();
    // The pause lasts until the next line.
    while run.lines.recv_timeout(Duration::from_millis(20)).is_err() {
        assert_eq!(members("web")[0].state, MemberState::Active, "the last one never drains");
        clients.push(connect("10.0.0.1:80"));
    }
    assert!(!clients.is_empty());
    std::fs::write(&file, "").unwrap();
    for client in clients {
        answer(client);
    }
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_socket_that_a_worker_shut_down_serves_its_successor() {
    world::enter();
    let (_folder, file) = absent_file();
    let script = format!(
        "import os, socket\nif not os.path.exists({file:?}):\n    open({file:?}, 'w').close()\n    \
         socket.socket(fileno=3).shutdown(socket.SHUT_RDWR)\n    os._exit(0)\n{}",
        WORKER[2]
    );
    let run = Run::start("--name web -n 1 --listen 10.0.0.1:80", &["python3", "-c", &script]);
    run.line("worker 0 had shut 10.0.0.1:80 down; listening again");
    let answer = ask("10.0.0.1:80");
    wait_until("the successor is noted", || pids("web") == [pid(&answer)]);
    assert_eq!(members("web")[0].state, MemberState::Active);
    assert_eq!(members("web")[0].placed, 1);
    assert_eq!(members("web")[0].member.to_string(), "0", "it is the member that it was");
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(!lines.iter().any(|line| line.contains("already a member")), "{lines:#?}");
}

#[test]
fn no_signal_is_ignored_or_blocked_in_a_worker() {
    world::enter();
    let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status >&2; exec sleep 30";
    let run = Run::start("-n 1 --listen 10.0.0.1:80", &["sh", "-c", script]);
    for field in ["SigBlk:", "SigIgn:"] {
        let line = run.line(field);
        let mask = u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap();
        // Beyond them are those for the C library's own use, whatever they are set to.
        let standard = mask & ((1 << 31) - 1);
        assert_eq!(standard, 0, "{line}");
    }
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn sighup_replaces_the_workers() {
    world::enter();
    let run = Run::serving("--name web -n 2 --listen 10.0.0.1:80");
    let before = pids("web");
    assert_eq!(starts("web"), [1, 1]);
    run.signal(Signal::SIGHUP);
    run.line("restart: done, 2 workers replaced");
    let after = pids("web");
    assert!(after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
    assert_eq!(starts("web"), [2, 2]);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn an_ignored_signal_stays_ignored() {
    world::enter();
    let options = "--name web -n 1 --listen 10.0.0.1:80";
    let run = Run::start_with(&["--ignore-signal=HUP"], options, &WORKER);
    run.line("service");
    run.signal(Signal::SIGHUP);
    // Signals are taken in the order of their numbers: SIGHUP would come before SIGTERM.
    let lines = run.ends_at(Signal::SIGTERM);
    assert_eq!(lines[0], "overspill: SIGTERM: ending 1 worker");
}

#[test]
fn with_sigchld_ignored_nothing_is_made() {
    world::enter();
    let options = "--name web -n 1 --listen 10.0.0.1:80";
    Run::start_with(&["--ignore-signal=CHLD"], options, &WORKER).fails("SIGCHLD is ignored");
    assert_no_state();
}

#[test]
fn a_worker_that_left_its_process_group_is_killed() {
    world::enter();
    let script = "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
                  os.setpgid(0, os.getpgid(os.getppid()))\nprint('left', file=sys.stderr)\n\
                  time.sleep(60)";
    let run = Run::start("-n 1 --listen 10.0.0.1:80 --grace 1", &["python3", "-c", script]);
    run.line("left");
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(lines.iter().any(|line| line.ends_with("was ended by SIGKILL")), "{lines:#?}");
}

#[test]
fn the_signal_reaches_what_a_worker_started() {
    world::enter();
    // The shell outlasts the signal, and waits for the one that it started.
    let script = "trap : TERM; sh -c 'trap \"echo told >&2; exit\" TERM; echo up >&2; \
                  while :; do sleep 0.1; done' & wait; wait; exit 7";
    let options = "-n 1 --listen 10.0.0.1:80 --grace 30 --kill-mode group";
    let run = Run::start(options, &["sh", "-c", script]);
    run.line("up");
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(lines.contains(&"0 | told".to_owned()), "{lines:#?}");
    assert!(lines.iter().any(|line| line.ends_with("ended with status 7")), "{lines:#?}");
}

#[test]
fn what_a_worker_leaves_running_ends_with_it() {
    world::enter();
    let script = "sleep 30 & echo left $! >&2; exit 0";
    let run = Run::start("-n 1 --listen 10.0.0.1:80", &["sh", "-c", script]);
    let left: u32 = run.line("left").rsplit(' ').next().unwrap().parse().unwrap();
    // Its end may be told before its line: then it is the next one's.
    run.line("ended with status 0; next start");
    wait_until("it has ended", || {
        // Whoever inherits it may take its time to reap it.
        std::fs::read_to_string(format!("/proc/{left}/stat"))
            .map_or(true, |stat| stat.contains(") Z "))
    });
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_worker_that_will_not_end_is_killed() {
    world::enter();
    let script = "trap '' TERM; echo deaf >&2; while :; do sleep 1; done";
    let start = |grace: &str| {
        let run = Run::start(
            &format!("-n 1 --listen 10.0.0.1:80 --grace {grace}"),
            &["sh", "-c", script],
        );
        run.line("deaf");
        run
    };
    let lines = start("1").ends_at(Signal::SIGTERM);
    assert!(lines.contains(&"overspill: 1 s are over: killing 1 worker".to_owned()), "{lines:#?}");

    let mut run = start("30");
    run.signal(Signal::SIGTERM);
    run.line("SIGTERM: ending 1 worker");
    // One right after the first counts as the same.
    wait_until("a second signal kills it", || {
        let ended = run.supervisor.try_wait().unwrap();
        if ended.is_none() {
            run.signal(Signal::SIGTERM);
        }
        ended.is_some()
    });
    let (status, lines) = run.end();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    assert!(lines.contains(&"overspill: SIGTERM again: killing 1 worker".to_owned()), "{lines:#?}");
    assert_no_state();
}

#[test]
fn the_name_of_a_killed_supervisor_is_taken_over_when_its_workers_have_ended() {
    world::enter();
    let options = "--name web -n 2 --listen 10.0.0.1:80";
    let mut killed = Run::serving(options);
    let orphans = pids("web");
    killed.supervisor.kill().unwrap();
    killed.supervisor.wait().unwrap();
    assert!(orphans.contains(&pid(&ask("10.0.0.1:80"))), "the orphans still serve");
    Run::start(options, &WORKER).fails("the name web is taken");
    for &orphan in &orphans {
        send(orphan, Signal::SIGKILL);
    }
    wait_until("all members are gone", || {
        members("web").iter().all(|member| member.state == MemberState::Gone)
    });
    let run = Run::start(options, &WORKER);
    run.line("service web exists, but all its members are gone; making it anew");
    run.line("2 workers");
    assert!(pids("web").contains(&pid(&ask("10.0.0.1:80"))));
    run.ends_at(Signal::SIGTERM);
}
