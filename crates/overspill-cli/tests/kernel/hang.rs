//! Who hangs is noticed, and who is slow is not taken to hang.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use overspill::MemberState;
use serde_json::Value;
use world::wait_until;

use crate::run::{Run, freeze, members, send};
use crate::tool::overspill;

/// Answers with its pid, one request at a time, each after a number of seconds.
const SERVER: &str = "import os, socket, sys, time\n\
    listener = socket.create_server(('10.0.0.1', 80), backlog=500)\n\
    while True:\n    \
        connection, _ = listener.accept()\n    \
        time.sleep(float(sys.argv[1]))\n    \
        connection.sendall(b'%d' % os.getpid())\n    \
        connection.close()";

/// The same with epoll.
const EPOLL_SERVER: &str = "import os, select, socket, sys, time\n\
    listener = socket.create_server(('10.0.0.1', 80), backlog=500)\n\
    listener.setblocking(False)\n\
    events = select.epoll()\n\
    events.register(listener, select.EPOLLIN)\n\
    while True:\n    \
        events.poll()\n    \
        try:\n        \
            connection, _ = listener.accept()\n    \
        except BlockingIOError:\n        \
            continue\n    \
        time.sleep(float(sys.argv[1]))\n    \
        connection.sendall(b'%d' % os.getpid())\n    \
        connection.close()";

/// A service `web` of servers that call accept.
fn serve(options: &str, workers: usize, seconds: &str) -> Run {
    serve_with(SERVER, options, workers, seconds)
}

/// A service `web` of such servers.
fn serve_with(server: &str, options: &str, workers: usize, seconds: &str) -> Run {
    let run = Run::start(
        &format!("--name web -n {workers} {options}"),
        &["python3", "-I", "-S", "-c", server, seconds],
    );
    run.line("service web");
    wait_until("all are members", || members("web").len() == workers);
    run
}

fn connect() -> TcpStream {
    crate::run::connect("10.0.0.1:80")
}

/// Who answers.
fn hear(mut client: TcpStream) -> u32 {
    let mut pid = String::new();
    client.read_to_string(&mut pid).unwrap();
    pid.parse().unwrap()
}

fn state(member: usize) -> MemberState {
    members("web")[member].state
}

/// The states as `overspill show --json` gives them.
fn shown() -> Vec<String> {
    let service: Value = serde_json::from_str(&overspill("show web --json").done()).unwrap();
    let members = service["members"].as_array().unwrap();
    members.iter().map(|member| member["state"].as_str().unwrap().to_owned()).collect()
}

/// Ends the traffic, after a failure as well.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does something while clients come one after another, each waiting for its answer, in two
/// rows.
fn with_traffic<T>(act: impl FnOnce() -> T) -> T {
    with_counted_traffic(|_| act())
}

/// The same, told how many clients have had their answer.
fn with_counted_traffic<T>(act: impl FnOnce(&AtomicUsize) -> T) -> T {
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    hear(connect());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _end = End(&over);
        act(&answered)
    })
}

/// All clients come at once and are served; meanwhile nobody is seen to hang.
fn nobody_hangs(run: Run, clients: usize) {
    let crowd: Vec<TcpStream> = (0..clients).map(|_| connect()).collect();
    thread::scope(|scope| {
        let heard = scope.spawn(|| crowd.into_iter().map(hear).count());
        while !heard.is_finished() {
            assert!(!shown().contains(&"hung".to_owned()));
        }
        assert_eq!(heard.join().unwrap(), clients);
    });
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(!lines.iter().any(|line| line.contains("hangs")), "{lines:#?}");
}

#[test]
fn a_steady_worker_with_a_deep_queue_does_not_hang() {
    world::enter();
    nobody_hangs(serve("", 2, "0.02"), 200);
}

#[test]
fn workers_that_are_all_slow_do_not_hang() {
    world::enter();
    nobody_hangs(serve("", 4, "0.15"), 60);
}

#[test]
fn a_stopped_worker_hangs_until_it_is_continued() {
    world::enter();
    let run = serve("--policy round-robin", 3, "0.005");
    let stopped = members("web")[1].pid;
    freeze(stopped);
    let clients: Vec<TcpStream> = (0..30).map(|_| connect()).collect();
    with_traffic(|| {
        wait_until("it hangs", || state(1) == MemberState::Hung);
        assert_eq!(shown(), ["active", "hung", "active"]);
    });
    wait_until("its queue has been moved", || members("web")[1].queued == 0);
    for client in clients {
        assert_ne!(hear(client), stopped);
    }
    send(stopped, Signal::SIGCONT);
    with_traffic(|| {
        wait_until("it is well", || state(1) == MemberState::Active);
        let before = members("web")[1].placed;
        wait_until("it gets requests", || members("web")[1].placed > before + 10);
    });
    wait_until("it answers again", || hear(connect()) == stopped);
    run.ends_at(Signal::SIGTERM);
}

/// A worker that stays stopped costs few clients, and is soon found well.
fn stays_stopped(server: &str) {
    world::enter();
    let run = serve_with(server, "--policy round-robin", 3, "0.005");
    let stopped = members("web")[1].pid;
    freeze(stopped);
    with_counted_traffic(|answered| {
        wait_until("it hangs", || state(1) == MemberState::Hung);
        let placed = || members("web")[1].placed;
        let (before, others) = (placed(), answered.load(Ordering::Relaxed));
        thread::sleep(Duration::from_secs(10));
        assert_eq!(state(1), MemberState::Hung);
        // A trial after about 100 ms and each time in which it has hung twice as long, instead
        // of one a second; each was given one client, and those were answered by others.
        let tried = placed() - before;
        assert!((1..=8).contains(&tried), "{tried}");
        assert!(answered.load(Ordering::Relaxed) > others + 100);

        // That it waits for connections is seen. A pause would be as long as it was stopped.
        let before = answered.load(Ordering::Relaxed);
        send(stopped, Signal::SIGCONT);
        wait_until("it is well", || state(1) == MemberState::Active);
        let meanwhile = answered.load(Ordering::Relaxed) - before;
        assert!(meanwhile < 300, "{meanwhile}");
    });
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_worker_that_stays_stopped_costs_few_clients() {
    stays_stopped(SERVER);
}

#[test]
fn a_worker_with_epoll_that_stays_stopped_costs_few_clients() {
    stays_stopped(EPOLL_SERVER);
}

#[test]
fn with_hang_0_nobody_hangs() {
    world::enter();
    let run = serve("--policy round-robin --hang 0", 2, "0.005");
    let stopped = members("web")[1].pid;
    freeze(stopped);
    let clients: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
    wait_until("the other has served its share", || members("web")[0].queued == 0);
    // Far longer than it takes with the usual patience.
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert_eq!(state(1), MemberState::Active);
    }
    assert!(members("web")[1].queued > 50);
    send(stopped, Signal::SIGCONT);
    let own = clients.into_iter().map(hear).filter(|&pid| pid == stopped).count();
    assert!(own > 50, "{own}");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn the_last_one_that_is_well_is_never_taken_to_hang() {
    world::enter();
    let run = serve("--policy round-robin", 3, "0.005");
    let pids: Vec<u32> = members("web").iter().map(|member| member.pid).collect();
    for &stopped in &pids[1..] {
        freeze(stopped);
    }
    let clients: Vec<TcpStream> = (0..30).map(|_| connect()).collect();
    with_traffic(|| {
        wait_until("two hang", || {
            members("web").iter().filter(|member| member.state == MemberState::Hung).count() == 2
        });
    });
    freeze(pids[0]);
    let more: Vec<TcpStream> = (0..30).map(|_| connect()).collect();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(shown().contains(&"active".to_owned()), "{:?}", shown());
    }
    assert_eq!(state(0), MemberState::Active);
    for &stopped in &pids {
        send(stopped, Signal::SIGCONT);
    }
    clients.into_iter().chain(more).map(hear).for_each(|pid| assert!(pids.contains(&pid)));
    run.ends_at(Signal::SIGTERM);
}
