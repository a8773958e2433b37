//! What the workers of `overspill run` write.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::sys::signal::Signal;
use world::{at, deadline, wait_until};

use crate::run::send;
use crate::server::get;

/// Says so on both streams when it starts and when it is asked; the last word has no end.
const SERVER: &str = r#"
import os, socket, sys
def say(out, err):
    sys.stdout.write(out); sys.stdout.flush()
    sys.stderr.write(err); sys.stderr.flush()
say("up\n", "ready\n")
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    asked = b""
    while not asked.endswith(b"\r\n\r\n"):
        asked += connection.recv(100)
    say("asked\n", "served\n")
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
    connection.close()
    if b"/last" in asked:
        say("last", "words")
        os._exit(0)
"#;

/// A running `overspill run`, and the lines of each stream.
struct Run {
    supervisor: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Run {
    fn start(options: &str) -> Self {
        let mut supervisor = Command::new(env!("CARGO_BIN_EXE_overspill"))
            .args(["run", "--name", "web", "--listen", "10.0.0.1:80"])
            .args(options.split(' '))
            .args(["--", "python3", "-c", SERVER])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = lines(supervisor.stdout.take().unwrap());
        let stderr = lines(supervisor.stderr.take().unwrap());
        Self { supervisor, stdout, stderr }
    }

    /// Its only worker has said that it is up.
    #[track_caller]
    fn is_up(&self) {
        expect(&self.stdout, "0 | up");
        expect(&self.stderr, "0 | ready");
    }

    /// Its only worker was asked for the last word, has ended, and has a successor.
    #[track_caller]
    fn is_succeeded(&self) {
        for line in ["0 | asked", "0 | last", "0 | up"] {
            expect(&self.stdout, line);
        }
        for line in ["0 | served", "0 | words", "0 | ready"] {
            expect(&self.stderr, line);
        }
    }

    /// Ends it, and gives what is left of stdout and stderr.
    fn end(mut self) -> [Vec<String>; 2] {
        self.stop();
        assert!(self.supervisor.wait().unwrap().success());
        [self.stdout.iter().collect(), self.stderr.iter().collect()]
    }

    fn stop(&self) {
        send(self.supervisor.id(), Signal::SIGTERM);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Only after a failed test does it still run.
        if let Ok(None) = self.supervisor.try_wait() {
            self.stop();
            let _ = self.supervisor.wait();
        }
    }
}

fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|it| sender.send(it))
    });
    lines
}

/// Waits for that line; the supervisor's own are passed over, any other is wrong.
#[track_caller]
fn expect(stream: &Receiver<String>, line: &str) {
    loop {
        let next = stream.recv_timeout(deadline()).unwrap_or_else(|_| panic!("no line {line:?}"));
        if !next.starts_with("overspill: ") {
            return assert_eq!(next, line);
        }
    }
}

/// The same for the first lines of two workers, which come in any order.
#[track_caller]
fn expect_both(stream: &Receiver<String>, expected: [&str; 2]) {
    let next = || stream.iter().find(|line| !line.starts_with("overspill: ")).unwrap();
    let mut got = [next(), next()];
    got.sort();
    assert_eq!(got, expected);
}

#[test]
fn each_line_has_its_workers_number_and_stays_on_its_stream() {
    world::enter();
    let run = Run::start("-n 2");
    expect_both(&run.stdout, ["0 | up", "1 | up"]);
    expect_both(&run.stderr, ["0 | ready", "1 | ready"]);
    let [stdout, stderr] = run.end();
    assert!(stdout.is_empty(), "the supervisor writes to stderr alone: {stdout:#?}");
    assert!(stderr.iter().all(|line| line.starts_with("overspill: ")), "{stderr:#?}");
}

#[test]
fn a_broken_off_line_is_not_mixed_with_the_successors() {
    world::enter();
    let run = Run::start("-n 1");
    run.is_up();
    get(at("10.0.0.1:80"), "/last");
    run.is_succeeded();
    run.end();
}

#[test]
fn workers_write_and_serve_on_when_the_supervisor_is_killed() {
    world::enter();
    let mut run = Run::start("-n 1");
    run.is_up();
    run.supervisor.kill().unwrap();
    run.supervisor.wait().unwrap();
    let pid = get(at("10.0.0.1:80"), "/");
    assert_eq!(get(at("10.0.0.1:80"), "/last"), pid, "the same process serves on");
    for line in ["0 | asked", "0 | asked", "0 | last"] {
        expect(&run.stdout, line);
    }
    // With the last worker the relay ends, and so do the streams.
    assert!(
        run.stdout.recv_timeout(deadline()) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
    );
}

/// The processes that pass on what the workers write.
fn relays(run: &Run) -> Vec<u32> {
    let pid = run.supervisor.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    let is_relay = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.starts_with(b"overspill\0relay\0")
    };
    children.filter(is_relay).collect()
}

#[test]
fn a_killed_relay_is_started_again_and_breaks_no_request() {
    world::enter();
    let run = Run::start("-n 1");
    run.is_up();
    let pid = get(at("10.0.0.1:80"), "/");
    expect(&run.stdout, "0 | asked");
    expect(&run.stderr, "0 | served");
    for _ in 0..2 {
        let killed = relays(&run);
        assert_eq!(killed.len(), 2, "one for each stream");
        // The worker writes while nobody can start it again.
        send(run.supervisor.id(), Signal::SIGSTOP);
        for &pid in &killed {
            send(pid, Signal::SIGKILL);
        }
        wait_until("they have ended", || killed.iter().all(|&pid| is_zombie(pid)));
        assert_eq!(get(at("10.0.0.1:80"), "/"), pid, "the worker lives");
        send(run.supervisor.id(), Signal::SIGCONT);
        // Nothing is lost.
        expect(&run.stdout, "0 | asked");
        expect(&run.stderr, "0 | served");
        assert!(relays(&run).iter().all(|pid| !killed.contains(pid)));
    }
    assert_eq!(get(at("10.0.0.1:80"), "/last"), pid);
    run.is_succeeded();
    run.end();
}

#[test]
fn that_a_relay_was_killed_is_logged() {
    world::enter();
    let run = Run::start("-n 1");
    expect(&run.stderr, "0 | ready");
    for pid in relays(&run) {
        send(pid, Signal::SIGKILL);
    }
    let told = "overspill relay, which passes on the output of workers, was ended by SIGKILL; \
                started again";
    let told = format!("overspill: {told}");
    let first = std::iter::from_fn(|| run.stderr.recv_timeout(deadline()).ok());
    assert!(first.into_iter().any(|line| line == told));
    let [_, stderr] = run.end();
    assert!(stderr.iter().filter(|&line| *line == told).count() <= 1, "{stderr:#?}");
}

/// A pipe is held no longer than somebody can write to it.
#[test]
fn no_pipe_of_an_ended_process_is_kept() {
    world::enter();
    let run = Run::start("-n 1");
    expect(&run.stdout, "0 | up");
    let pipes = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", run.supervisor.id())).unwrap();
        let links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("pipe:")).count()
    };
    let before = pipes();
    for _ in 0..3 {
        get(at("10.0.0.1:80"), "/last");
        expect(&run.stdout, "0 | asked");
        expect(&run.stdout, "0 | last");
        expect(&run.stdout, "0 | up");
    }
    wait_until("the pipes of the last process are left", || pipes() == before);
    run.end();
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn workers_serve_on_when_nobody_reads() {
    world::enter();
    let mut run = Run::start("-n 1");
    expect(&run.stdout, "0 | up");
    // Its reader ends at the next line, and the line after that finds nobody.
    drop(std::mem::replace(&mut run.stdout, channel().1));
    let pid = get(at("10.0.0.1:80"), "/");
    for _ in 0..5 {
        assert_eq!(get(at("10.0.0.1:80"), "/"), pid);
    }
    run.end();
}

#[test]
fn the_output_may_stay_as_it_is() {
    world::enter();
    let run = Run::start("-n 2 --output as-is");
    expect_both(&run.stdout, ["up", "up"]);
    expect_both(&run.stderr, ["ready", "ready"]);
    run.end();
}
