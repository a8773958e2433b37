//! How workers end: who is told, what they may finish, and what the log says of the rest.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::TcpStream;
use std::path::Path;

use nix::sys::signal::Signal;
use overspill::{Namespace, moved_connections};
use world::{at, deadline, wait_until};

use crate::run::{Run, assert_no_state, freeze, pids, send};
use crate::tool::overspill;

const CALLED: &str = "10.0.0.1:80";

fn worker(kind: &str) -> [&str; 5] {
    ["python3", "-c", include_str!("leaving.py"), kind, CALLED]
}

/// Starts a worker of that kind, and waits until it is a member.
fn serving(options: &str, kind: &str) -> Run {
    let run = Run::start(&format!("--name web -n 1 {options}"), &worker(kind));
    run.line(" listens on ");
    run
}

/// A connection that lasts until its client has had enough.
struct Client {
    stream: BufReader<TcpStream>,
    /// The process that has it.
    server: u32,
}

impl Client {
    fn connect() -> Self {
        Self::greeted(open())
    }

    fn greeted(stream: TcpStream) -> Self {
        let mut client = Self { stream: BufReader::new(stream), server: 0 };
        client.server = client.read().trim().parse().unwrap();
        client
    }

    /// The next line; nothing where the connection was cut.
    fn read(&mut self) -> String {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => line,
        }
    }

    /// Finishes, and is served to the end.
    fn finishes(mut self) {
        self.stream.get_mut().write_all(b"done\n").unwrap();
        assert_eq!(self.read(), "bye\n");
    }

    fn finds_itself_cut(mut self) {
        assert_eq!(self.read(), "");
    }
}

/// A connection whose client has not been greeted yet.
fn open() -> TcpStream {
    let stream = TcpStream::connect_timeout(&at(CALLED), deadline()).unwrap();
    stream.set_read_timeout(Some(deadline())).unwrap();
    stream
}

/// Ends by itself, with exit status 0, and leaves nothing.
fn ended(run: Run) -> Vec<String> {
    let (status, lines) = run.end();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert_no_state();
    lines
}

fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn the_first_process_is_told_to_end_and_ends_the_others_as_it_wants() {
    world::enter();
    let run = serving("--grace 60", "primary");
    let client = Client::connect();
    run.signal(Signal::SIGTERM);
    run.line("SIGTERM: ending 1 worker");
    client.finishes();
    let lines = ended(run);
    assert!(lines.iter().any(|line| line.ends_with("ended with status 0")), "{lines:#?}");
}

#[test]
fn the_first_process_alone_is_told_at_a_restart_too() {
    world::enter();
    let run = serving("--drain 0 --grace 60", "primary");
    let client = Client::connect();
    overspill("restart web").done();
    run.line(": 0 s are over with 1 connection: ending it with SIGTERM");
    client.finishes();
    run.line(" ended with status 0");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn the_first_process_alone_is_told_by_the_next_supervisor_too() {
    world::enter();
    let mut killed = serving("", "primary");
    let client = Client::connect();
    killed.supervisor.kill().unwrap();
    killed.supervisor.wait().unwrap();
    let run = Run::start("--name web -n 1 --drain 0 --grace 60", &worker("primary"));
    run.line("done, 1 worker replaced");
    run.line(": 0 s are over with 1 connection: ending it with SIGTERM");
    client.finishes();
    run.line("worker 0 (taken over) ended");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn all_processes_are_told_where_that_is_wanted() {
    world::enter();
    let run = serving("--kill-mode group --grace 60", "primary");
    let client = Client::connect();
    run.signal(Signal::SIGTERM);
    client.finds_itself_cut();
    ended(run);
}

/// A descriptor table of a thread's own is not that of its process.
#[test]
fn a_connection_that_a_thread_holds_alone_is_waited_for() {
    world::enter();
    let run = serving("--drain 60", "threads");
    let client = Client::connect();
    let old = client.server;
    // While the second one starts, it is looked at several times.
    for _ in 0..2 {
        overspill("restart web").done();
    }
    client.finishes();
    run.line(&format!("(pid {old}) was ended by SIGTERM"));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_drain_may_be_without_end() {
    world::enter();
    let run = serving("--drain inf", "threads");
    let client = Client::connect();
    for _ in 0..2 {
        overspill("restart web").done();
    }
    client.finishes();
    run.line("was ended by SIGTERM");
    run.ends_at(Signal::SIGTERM);
}

/// Sessions of sshd and vsftpd go on when the process has ended that has accepted them.
#[test]
fn who_has_connections_and_does_not_listen_finishes_after_the_first_process() {
    world::enter();
    let run = serving("--drain 60 --grace 60", "forks");
    let first = pids("web")[0];
    let client = Client::connect();
    send(first, Signal::SIGKILL);
    run.line("was ended by SIGKILL; 1 process with 1 connection may finish them; next start");
    run.line(" listens on ");
    let next = Client::connect();
    client.finishes();
    run.line(&format!("what worker 0 (pid {first}) left ended"));
    // So it is at a stop.
    run.signal(Signal::SIGTERM);
    run.line("ended with status 0; 1 process with 1 connection may finish them");
    next.finishes();
    ended(run);
}

#[test]
fn who_does_not_finish_in_time_is_ended_and_told() {
    world::enter();
    let run = serving("--drain 1 --grace 1", "stays");
    let clients = [Client::connect(), Client::connect()];
    overspill("restart web").done();
    run.line(": 1 s are over with 2 connections: ending it with SIGTERM");
    run.line(" ended with status 0; 2 processes with 2 connections may finish them");
    run.line("left: 1 s are over with 2 connections: ending it with SIGTERM");
    run.line("left: 1 s are over: killing it");
    run.line("left ended; 2 processes and 2 connections ended with it");
    clients.into_iter().for_each(Client::finds_itself_cut);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn what_is_killed_at_a_stop_is_told() {
    world::enter();
    let run = serving("--grace 1", "stays");
    let client = Client::connect();
    run.signal(Signal::SIGTERM);
    run.line("1 s are over: killing 1 worker");
    run.line("ended; 1 process and 1 connection ended with it");
    client.finds_itself_cut();
    ended(run);
}

#[test]
fn who_has_no_connections_ends_with_the_first_process() {
    world::enter();
    let run = serving("--drain 60", "forks");
    let client = Client::connect();
    let session = client.server;
    client.finishes();
    wait_until("the session has ended", || !runs(session));
    send(pids("web")[0], Signal::SIGKILL);
    let line = run.line("was ended by SIGKILL");
    assert!(!line.contains("may finish"), "{line}");
    run.ends_at(Signal::SIGTERM);
}

/// A connection that was moved is that of the worker that has it now.
#[test]
fn a_connection_that_was_moved_is_waited_for_where_it_is() {
    world::enter();
    let run = Run::start("--name web -n 2 --drain 60 --grace 60", &worker("primary"));
    for _ in 0..2 {
        run.line(" listens on ");
    }
    let hung = pids("web")[0];
    freeze(hung);
    let moved = || moved_connections(&Namespace::current().unwrap()).unwrap();
    let mut clients = Vec::new();
    wait_until("a connection is moved", || {
        clients.push(open());
        !moved().is_empty()
    });
    send(hung, Signal::SIGCONT);
    // One may have been put there on trial.
    let clients = clients.into_iter().map(Client::greeted);
    let (own, clients): (Vec<Client>, Vec<Client>) = clients.partition(|it| it.server == hung);
    own.into_iter().for_each(Client::finishes);
    assert!(!moved().is_empty());
    overspill("restart web").done();
    // One has none, and the other one all.
    run.line("worker 0 (pid ");
    run.line(" ended with status 0");
    for _ in 0..2 {
        overspill("restart web").done();
    }
    clients.into_iter().for_each(Client::finishes);
    run.ends_at(Signal::SIGTERM);
}

/// Its own connection goes to a sibling or to its successor, as any other.
#[test]
fn who_wakes_itself_by_a_connection_ends_at_a_restart() {
    world::enter();
    for called in [CALLED, "10.0.0.WORKER:80"] {
        let command = ["python3", "-c", include_str!("leaving.py"), "wakes", called];
        let run = Run::start("--name web -n 2 --drain 0 --grace 60", &command);
        for _ in 0..2 {
            run.line(" listens on ");
        }
        overspill("restart web").done();
        for _ in 0..2 {
            run.line(" ended with status 0");
        }
        Client::connect().finishes();
        let lines = run.ends_at(Signal::SIGTERM);
        assert!(!lines.iter().any(|line| line.contains("killing")), "{lines:#?}");
    }
}

#[test]
fn who_wakes_itself_by_a_connection_ends_at_a_stop() {
    world::enter();
    for called in [CALLED, "10.0.0.WORKER:80"] {
        let command = ["python3", "-c", include_str!("leaving.py"), "wakes", called];
        let run = Run::start("--name web -n 2 --grace 4", &command);
        for _ in 0..2 {
            run.line(" listens on ");
        }
        let lines = run.ends_at(Signal::SIGTERM);
        assert!(!lines.iter().any(|line| line.contains("killing")), "{lines:#?}");
    }
}
