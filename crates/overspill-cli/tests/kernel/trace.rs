//! `overspill trace`, as a person runs it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overspill::Namespace;
use overspill::trace::{Filter, Trace};
use serde_json::Value;
use world::{at, wait_until};

use crate::server::Server;
use crate::tool::{self, Ran, overspill};

/// It, while it runs; dropping it ends it.
struct Tracer {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Tracer {
    /// Starts it, and waits until it traces: a heading comes first, but with `--json`.
    fn start(arguments: &str) -> Self {
        let mut command = tool::command(format!("trace {arguments}").trim_end());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut heading = String::new();
        lines.read_line(&mut heading).unwrap();
        assert!(heading.starts_with("TIME "), "{heading}");
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// The words of a line, without the time and the client's.
    fn words(&mut self) -> Vec<String> {
        self.line().split_whitespace().skip(2).map(str::to_owned).collect()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// What it said until it ended by itself.
    fn ended(mut self) -> Ran {
        let mut stdout = String::new();
        self.lines.read_to_string(&mut stdout).unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Ran { code: self.child.wait().unwrap().code(), stdout, stderr }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two members of six places each, the first one full; a request that finds no room is
/// refused.
fn service() -> (Server, Vec<TcpStream>) {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80");
    let pid = server.pid();
    overspill(&format!("share web --pid {pid} --port 80 --on-full reset")).done();
    (server, (0..6).map(|_| connect("10.0.0.1:80")).collect())
}

fn connect(address: &str) -> TcpStream {
    TcpStream::connect(at(address)).unwrap()
}

#[test]
fn a_line_a_request() {
    let (_server, _held) = service();
    let mut all = Tracer::start("");
    let mut named = Tracer::start("web");
    let client = connect("10.0.0.1:80");
    let placed = connect("10.0.0.2:80");
    for (tracer, service) in [(&mut all, Some("web")), (&mut named, None)] {
        let line = tracer.line();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], client.local_addr().unwrap().to_string());
        let rest = ["redirected", "full", "0:6/6", "1:0/6"];
        let expected: Vec<&str> = ["10.0.0.1:80"].into_iter().chain(service).chain(rest).collect();
        assert_eq!(words[2..], expected);
        let (time, rest) = words[0].split_at(8);
        assert!(time.parse::<jiff::civil::Time>().is_ok() && rest.starts_with('.'), "{line}");
        let words = tracer.words();
        let expected = ["placed", "policy", "1:1/6", "1:1/6"];
        assert_eq!(words[words.len() - 4..], expected);
    }
    drop(placed);
    all.signal(Signal::SIGINT);
    assert_eq!(all.ended().done(), "");
    named.signal(Signal::SIGTERM);
    assert_eq!(named.ended().done(), "");
}

#[test]
fn what_is_not_asked_for_is_not_told() {
    let (_server, mut held) = service();
    let mut redirected = Tracer::start("--redirected");
    let mut dropped = Tracer::start("--dropped");
    let mut first = Tracer::start("--member 0");
    let nobody = Tracer::start("--client 10.9.9.9");
    let mut net = Tracer::start("--client 10.0.0.0/8");
    held.push(connect("10.0.0.2:80")); // placed
    held.extend((0..5).map(|_| connect("10.0.0.1:80"))); // redirected
    let refused = TcpStream::connect(at("10.0.0.2:80")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for _ in 0..5 {
        assert_eq!(redirected.words()[2], "redirected");
        assert_eq!(first.words()[2], "redirected");
    }
    let expected = ["10.0.0.2:80", "web", "reset", "full", "1:6/6", "-"];
    assert_eq!(dropped.words(), expected);
    let outcomes: Vec<String> = (0..7).map(|_| net.words().swap_remove(2)).collect();
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "placed").count(), 1);
    assert_eq!(outcomes[6], "reset");
    for tracer in [redirected, dropped, first, nobody, net] {
        tracer.signal(Signal::SIGINT);
        assert_eq!(tracer.ended().done(), "", "there was no more");
    }
}

#[test]
fn json_is_an_object_a_line() {
    let (_server, _held) = service();
    let mut command = tool::command("trace web --json --count 1");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    // It says nothing until it is told something.
    let mut clients = Vec::new();
    wait_until("it has told one", || {
        clients.push(TcpStream::connect(at("10.0.0.1:80")).ok());
        child.try_wait().unwrap().is_some()
    });
    let ran = Ran::from(child.wait_with_output().unwrap());
    let line: Value = serde_json::from_str(ran.stdout.trim_end()).unwrap();
    assert_eq!(ran.code, Some(0));
    let client: SocketAddr = line["client"].as_str().unwrap().parse().unwrap();
    let asked = clients.iter().flatten().map(|client| client.local_addr().unwrap());
    let refused = line["outcome"] == "reset";
    assert!(refused || asked.into_iter().any(|asked| asked == client), "{line}");
    assert!(line["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    for (key, expected) in [
        ("service", "web"),
        ("called", "10.0.0.1:80"),
        ("policy", "next-available"),
        ("why", "full"),
    ] {
        assert_eq!(line[key], expected, "{line}");
    }
    let member = &line["member"];
    assert_eq!([&member["member"], &member["queued"], &member["capacity"]], [0, 6, 6]);
    assert_eq!(member["state"], "active");
}

#[test]
fn it_ends_with_the_service_and_with_its_reader() {
    let (_server, _held) = service();
    let named = Tracer::start("web");
    let mut all = Tracer::start("");
    let piped = tool::command("trace").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut piped = piped.unwrap();
    let mut byte = [0];
    piped.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    drop(piped.stdout.take());
    let _client = connect("10.0.0.1:80");
    let ran = Ran::from(piped.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(all.line().contains("redirected"));
    overspill("rm web").done();
    let mut ended = named.ended();
    assert!(std::mem::take(&mut ended.stdout).contains("redirected"));
    assert!(ended.failed().contains("service web was removed"));
    assert!(all.ended().failed().contains("the last service was removed"));
    assert!(overspill("trace").failed().contains("there is no service in this network namespace"));
    assert!(overspill("trace web").failed().contains("no service"));
}

/// What is killed has its place for five seconds more.
#[test]
fn one_that_is_killed_gives_its_place_up() {
    let (_server, _held) = service();
    let mut tracers: Vec<Tracer> = (0..8).map(|_| Tracer::start("web")).collect();
    let line = overspill("trace web").failed();
    assert!(line.contains("8 are tracing this network namespace already; end one"), "{line}");
    tracers.swap_remove(3).signal(Signal::SIGKILL);
    let mut again = None;
    let namespace = Namespace::current().unwrap();
    wait_until("its place is free", || {
        again = Trace::begin(&namespace, &Filter::default()).ok();
        again.is_some()
    });
}

#[test]
fn a_member_that_is_not_there_is_not_waited_for() {
    let (_server, _held) = service();
    let line = overspill("trace web --member 9").failed();
    assert!(line.contains("service web has no member 9 (it has 0, 1)"), "{line}");
}

#[test]
fn a_reader_that_stands_still_does_not_keep_it_from_ending() {
    let (_server, _held) = service();
    let mut tracer = Tracer::start("web");
    // More than a pipe takes, which depends on how its pages are filled.
    let waits_in = format!("/proc/{}/wchan", tracer.child.id());
    wait_until("it can't write any more", || {
        for _ in 0..500 {
            drop(TcpStream::connect(at("10.0.0.1:80")));
        }
        fs::read_to_string(&waits_in).unwrap().contains("pipe_write")
    });
    tracer.signal(Signal::SIGTERM);
    wait_until("it has ended", || tracer.child.try_wait().unwrap().is_some());
    assert!(tracer.child.wait().unwrap().success());
}

#[test]
fn what_is_lost_is_said() {
    let (_server, mut held) = service();
    held.extend((0..6).map(|_| connect("10.0.0.2:80")));
    let folder = tempfile::tempdir().unwrap();
    let [out, err] = ["out", "err"].map(|name| folder.path().join(name));
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let mut command = tool::command("trace web");
    command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let mut child = command.spawn().unwrap();
    let signal = |signal| kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    wait_until("it traces", || read(&out).lines().count() == 1);
    signal(Signal::SIGSTOP);
    let asked = 12_000;
    for _ in 0..asked {
        assert!(TcpStream::connect(at("10.0.0.1:80")).is_err());
    }
    signal(Signal::SIGCONT);
    wait_until("each is told or said to be lost", || {
        let said = read(&err);
        let lost = said
            .strip_prefix("overspill: ")
            .and_then(|said| said.strip_suffix(" requests lost: more came than were written\n"));
        let told = read(&out).lines().count() - 1;
        lost.is_some_and(|lost| told + lost.parse::<usize>().unwrap() == asked)
    });
    signal(Signal::SIGINT);
    assert!(child.wait().unwrap().success());
}

/// One that was stopped for long says whose fault it is, and takes nothing from who came
/// after it.
#[test]
fn one_that_was_stopped_for_long_leaves_its_place() {
    let (_server, _held) = service();
    let stopped = Tracer::start("web");
    let namespace = Namespace::current().unwrap();
    let begin = || Trace::begin(&namespace, &Filter::default());
    let _others: Vec<Trace> = (1..8).map(|_| begin().unwrap()).collect();
    stopped.signal(Signal::SIGSTOP);
    let mut after = None;
    wait_until("its place is free", || {
        after = begin().ok();
        after.is_some()
    });
    stopped.signal(Signal::SIGCONT);
    let line = stopped.ended().failed();
    assert!(line.contains("another traces in its place"), "{line}");
    let _client = connect("10.0.0.1:80");
    let after = after.unwrap();
    let events = after.wait(world::deadline()).unwrap();
    assert_eq!(events.len(), 1, "{events:#?}");
    assert!(after.is_on().unwrap());
}
