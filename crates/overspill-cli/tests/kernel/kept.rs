//! Workers that live are served, whatever went wrong before: what is missing is found by looking.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use overspill::{Cgroup, MemberState, Service};
use rustix::pipe::{PipeFlags, pipe_with};
use tempfile::TempDir;
use world::{at, deadline, wait_until};

use crate::run::{Run, assert_no_state, freeze, members, pids, send, starts};
use crate::server::Server;
use crate::tool::overspill;
use crate::unchanged::{all_answer, ask, kill};
use crate::versions::Version;

const CALLED: &str = "10.0.0.1:80";

fn worker<'a>(words: &[&'a str]) -> Vec<&'a str> {
    ["python3", "-c", include_str!("kept.py"), CALLED]
        .into_iter()
        .chain(words.iter().copied())
        .collect()
}

/// Starts so many workers, and waits until each is a member.
fn serving(workers: usize, options: &str, words: &[&str]) -> Run {
    let run = Run::start(&format!("--name web -n {workers} {options}"), &worker(words));
    for _ in 0..workers {
        run.line(" listens on ");
    }
    run
}

fn all_active(workers: usize) {
    wait_until("all are members", || {
        let members = Service::open("web").and_then(|service| service.status());
        members.is_ok_and(|status| {
            let active = status.members.iter().filter(|it| it.state == MemberState::Active);
            active.count() == workers && status.members.len() == workers
        })
    });
}

#[test]
fn a_worker_that_dies_as_soon_as_it_listens_is_started_again() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("died");
    let run = serving(1, "", &[&format!("dies={}", file.display())]);
    assert!(file.exists());
    all_answer(1, || ask(at(CALLED)));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn worker_n_is_member_n() {
    world::enter();
    let run = serving(4, "", &[]);
    for (number, member) in members("web").iter().enumerate() {
        let worker = fs::read_to_string(format!("/proc/{}/environ", member.pid)).unwrap();
        assert!(worker.contains(&format!("OVERSPILL_WORKER={number}\0")), "{worker}");
    }
    run.ends_at(Signal::SIGTERM);
}

/// Each takes the place of the one that has ended.
#[test]
fn successors_need_no_room() {
    world::enter();
    let run = serving(2, "--capacity 1,2", &[]);
    for worker in [0, 1, 0] {
        let before = pids("web");
        kill(before[worker]);
        wait_until("it is succeeded", || pids("web")[worker] != before[worker]);
        all_active(2);
        all_answer(2, || ask(at(CALLED)));
    }
    run.ends_at(Signal::SIGTERM);
}

fn remount(how: &str) {
    let options = format!("remount,{how}");
    let status = Command::new("mount").args(["-o", &options, "/sys/fs/bpf"]).status().unwrap();
    assert!(status.success());
}

#[test]
fn what_fails_is_tried_again_until_it_works() {
    world::enter();
    let run = serving(2, "", &[]);
    let killed = pids("web")[1];
    remount("ro");
    kill(killed);
    run.line("next start");
    // Longer than anything that is tried once: until its successor serves by the kernel's hash.
    wait_until("the successor listens", || listening() >= 2);
    remount("rw");
    run.line(" listens on ");
    all_active(2);
    all_answer(2, || ask(at(CALLED)));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_service_that_is_removed_is_made_anew() {
    world::enter();
    let run = serving(3, "", &[]);
    let pid = run.supervisor.id();
    let line = overspill("rm web").failed();
    assert!(line.contains(&format!("is kept by overspill run --name web (pid {pid})")), "{line}");
    assert!(line.contains(&format!("end that with kill {pid}, or give --force")), "{line}");
    let line = overspill("rm web 1").failed();
    assert!(line.contains("overspill drain web 1, or give --force"), "{line}");
    for arguments in ["rm web --force", "rm web 1 --force"] {
        overspill(arguments).done();
        all_active(3);
        kill(pids("web")[0]);
        run.line("next start");
        all_active(3);
        all_answer(3, || ask(at(CALLED)));
    }
    run.ends_at(Signal::SIGTERM);
}

/// A name may begin with another one's.
#[test]
fn a_run_is_nobody_else_s() {
    world::enter();
    let other = Run::start("--name a-ipv6 -n 1", &worker(&[]));
    other.line(" listens on ");
    let before = pids("a-ipv6");
    let own =
        Run::start("--name a -n 1", &["python3", "-c", include_str!("kept.py"), "10.0.0.2:81"]);
    own.line(" listens on ");
    assert_eq!(pids("a-ipv6"), before);
    own.ends_with(Signal::SIGTERM);
    assert_eq!(pids("a-ipv6"), before);
    other.ends_at(Signal::SIGTERM);
}

/// Their supervisor was killed before it could make its first service.
#[test]
fn workers_without_a_service_are_taken_over() {
    world::enter();
    fs::create_dir("/sys/fs/bpf/overspill").unwrap();
    let lock = File::open("/sys/fs/bpf/overspill").unwrap();
    lock.lock().unwrap();
    let mut killed = Run::start("--name web -n 2", &worker(&[]));
    wait_until("the workers listen", || listening() == 2);
    let left = cgroup(&killed);
    killed.supervisor.kill().unwrap();
    killed.supervisor.wait().unwrap();
    drop(lock);
    let run = Run::start("--name web -n 2", &worker(&[]));
    run.line("taking over 2 workers");
    run.line("done, 2 workers replaced");
    wait_until("none is left", || !left.path().exists());
    all_active(2);
    all_answer(2, || ask(at(CALLED)));
    run.ends_at(Signal::SIGTERM);
}

/// How many TCP sockets listen.
fn listening() -> usize {
    overspill::listening().unwrap().len()
}

/// A member that a person has added is neither touched nor in the way.
#[test]
fn who_takes_over_leaves_others_alone() {
    world::enter();
    let mut killed = serving(2, "", &[]);
    let guest = Server::start("tcp=10.0.0.9:80");
    overspill(&format!("share web --join --pid {} --port 80", guest.pid())).done();
    killed.supervisor.kill().unwrap();
    killed.supervisor.wait().unwrap();
    let run = Run::start("--name web -n 2", &worker(&[]));
    run.line("done, 2 workers replaced");
    assert!(pids("web").contains(&guest.pid()), "{:?}", members("web"));
    all_active(3);
    run.ends_with(Signal::SIGTERM);
}

#[test]
fn a_worker_that_listens_again_and_again_harms_itself_alone() {
    world::enter();
    let run = serving(2, "", &["again"]);
    for _ in 0..3 {
        let before = pids("web");
        kill(before[1]);
        wait_until("it is succeeded", || pids("web")[1] != before[1]);
    }
    all_active(2);
    wait_until("each start is counted", || starts("web") == [1, 4]);
    run.ends_at(Signal::SIGTERM);
}

/// The right to change services may be somebody else's for long: workers are told all the same.
#[test]
fn a_held_lock_delays_no_signal() {
    world::enter();
    let run = serving(2, "", &[]);
    let lock = File::open("/sys/fs/bpf/overspill").unwrap();
    lock.lock().unwrap();
    kill(pids("web")[1]);
    run.line("next start now");
    run.signal(Signal::SIGTERM);
    run.line("SIGTERM: ending");
    run.line("was ended by SIGTERM");
    lock.unlock().unwrap();
    let (status, lines) = run.end();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert_no_state();
}

/// A pipe that is full, and that nobody reads.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    let mut file = File::from(writer.try_clone().unwrap());
    while file.write(&[b'x'; 4096]).is_ok() {}
    while file.write(b"x").is_ok() {}
    // Who writes to it waits.
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::empty()).unwrap();
    (reader, writer)
}

#[test]
fn nobody_has_to_read_what_is_told() {
    world::enter();
    let (_reader, writer) = full_pipe();
    let mut supervisor = Command::new(Version::this().path())
        .args("run --name web -n 2 --output as-is --".split(' '))
        .args(worker(&[]))
        .stdin(Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    all_active(2);
    for _ in 0..2 {
        let before = pids("web");
        kill(before[0]);
        wait_until("it is succeeded", || pids("web")[0] != before[0]);
    }
    send(supervisor.id(), Signal::SIGTERM);
    wait_until("it ends", || supervisor.try_wait().unwrap().is_some());
    assert_no_state();
}

/// Servers close their sockets when they have had enough, and finish what they have.
#[test]
fn who_closes_its_sockets_is_succeeded_at_once() {
    world::enter();
    let run = serving(2, "--drain 1", &["closes"]);
    let before = pids("web");
    for &pid in &before {
        send(pid, Signal::SIGUSR1);
    }
    for _ in 0..2 {
        run.line("has closed its sockets; next start");
    }
    // What comes until then waits, and none is refused.
    all_answer(2, || ask(at(CALLED)));
    all_active(2);
    assert!(before.iter().all(|pid| !pids("web").contains(pid)));
    for &pid in &before {
        send(pid, Signal::SIGKILL);
    }
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_server_that_replaces_itself_stays() {
    world::enter();
    let run = serving(2, "", &["upgrades"]);
    let before = pids("web");
    send(before[0], Signal::SIGUSR2);
    run.line("goes on with its sockets");
    wait_until("it is noted", || pids("web")[0] != before[0]);
    all_answer(2, || ask(at(CALLED)));
    assert_eq!(starts("web"), [1, 1]);
    // Its end is seen like that of any other.
    let heir = pids("web")[0];
    kill(heir);
    wait_until("it is succeeded", || pids("web")[0] != heir);
    all_answer(2, || ask(at(CALLED)));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn the_stop_signal_is_that_of_every_stop() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("told");
    let run = serving(1, "--stop-signal USR2", &[&format!("notes={}", file.display())]);
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(file.exists(), "{lines:#?}");
}

/// A stopped worker's clients do not wait for a step that failed before.
#[test]
fn both_ports_of_a_worker_are_served_after_a_restart_that_failed() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let command = [
        "sh",
        "-c",
        "test -e \"$0/bad\" && exec python3 -c \"$1\" 10.0.0.1:80; exec python3 -c \"$1\" \
         10.0.0.1:80,10.0.0.1:81",
        folder.path().to_str().unwrap(),
        include_str!("kept.py"),
    ];
    let run = Run::start("--name web -n 2 --ready 2", &command);
    for _ in 0..4 {
        run.line(" listens on ");
    }
    let before = pids("web:80");
    fs::write(folder.path().join("bad"), "").unwrap();
    let failed = overspill("restart web");
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stderr.contains("was not ready within 2 s"), "{failed:?}");
    assert_eq!([pids("web:80"), pids("web:81")], [before.clone(), before]);
    for address in [CALLED, "10.0.0.1:81"] {
        all_answer(2, || ask(at(address)));
    }
    fs::remove_file(folder.path().join("bad")).unwrap();
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_stopped_worker_delays_nothing() {
    world::enter();
    let run = serving(2, "", &[]);
    freeze(pids("web")[0]);
    let before = pids("web")[1];
    kill(before);
    wait_until("it is succeeded", || pids("web")[1] != before);
    send(pids("web")[0], Signal::SIGCONT);
    all_answer(2, || ask(at(CALLED)));
    let start = std::time::Instant::now();
    run.ends_at(Signal::SIGTERM);
    assert!(start.elapsed() < deadline());
}

#[test]
fn a_first_start_that_fails_late_ends_the_run() {
    world::enter();
    let run = Run::start("--name web -n 2 --grace 2", &["sh", "-c", "sleep 0.3; exit 3"]);
    let (status, lines) = run.end();
    assert_eq!(status.code(), Some(1));
    assert!(lines.iter().any(|line| line.contains("ended with status 3 before it listened")));
}

#[test]
fn without_redirection_workers_are_kept_as_well() {
    world::enter();
    let run = serving(2, "--redirect off", &[]);
    let groups = groups(&run);
    for _ in 0..2 {
        let pid = groups().into_iter().flatten().next().unwrap();
        kill(pid);
        run.line(" listens on ");
        wait_until("there are two", || groups().len() == 2);
    }
    run.ends_at(Signal::SIGTERM);
}

/// The control group of a supervisor's workers.
fn cgroup(run: &Run) -> Cgroup {
    let own = format!("overspill-web-{}", run.supervisor.id());
    Cgroup::at(Cgroup::own().unwrap().path().join(own))
}

/// The processes of each instance that a supervisor has started and that runs.
fn groups(run: &Run) -> impl Fn() -> Vec<Vec<u32>> + use<> {
    let own = cgroup(run);
    move || {
        let all = own.children().unwrap().into_iter();
        let processes = all.map(|it| it.processes().unwrap_or_default());
        processes.filter(|processes| !processes.is_empty()).collect()
    }
}

/// A cleaner takes it for one that nobody needs: between two processes it is empty.
#[test]
fn a_control_group_that_is_removed_is_made_anew() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let good = folder.path().join("good");
    fs::write(&good, "").unwrap();
    let script = "test -e \"$1\" || exit 3; shift; exec \"$@\"";
    let mut command = vec!["sh", "-c", script, "sh", good.to_str().unwrap()];
    command.extend(worker(&[]));
    let run = Run::start("--name web -n 1", &command);
    run.line(" listens on ");
    let group = cgroup(&run);
    for _ in 0..2 {
        fs::remove_file(&good).unwrap();
        kill(pids("web")[0]);
        run.line("next start in 400 ms");
        wait_until("it is removed", || group.remove().is_ok());
        assert!(!group.path().exists());
        fs::write(&good, "").unwrap();
        run.line(" listens on ");
        all_answer(1, || ask(at(CALLED)));
        assert!(group.path().exists());
    }
    all_active(1);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_worker_that_dies_while_it_is_replaced_leaves_nobody_behind() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let slow = folder.path().join("slow");
    let run = serving(2, "", &[&format!("slow={}", slow.display())]);
    let groups = groups(&run);
    fs::write(&slow, "").unwrap();
    run.signal(Signal::SIGHUP);
    wait_until("the successor runs", || groups().len() == 3);
    kill(pids("web")[0]);
    run.line("done, 2 workers replaced");
    all_active(2);
    wait_until("there are two", || groups().len() == 2);
    all_answer(2, || ask(at(CALLED)));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_worker_that_listens_again_is_one_of_as_many_as_before() {
    world::enter();
    let run = serving(2, "--drain 0", &["reopens"]);
    let groups = groups(&run);
    for _ in 0..2 {
        send(pids("web")[0], Signal::SIGUSR1);
        run.line("has closed its sockets");
        all_active(2);
        wait_until("there are two", || groups().len() == 2);
        all_answer(2, || ask(at(CALLED)));
    }
    run.ends_at(Signal::SIGTERM);
}

/// Predecessor and successor have one socket, which the first shuts down as it ends.
#[test]
fn a_socket_that_is_shut_down_in_a_restart_is_opened_again() {
    world::enter();
    let script = "
import signal, socket, sys, time
listener = socket.socket(fileno=3)
def end(*_):
    listener.shutdown(socket.SHUT_RDWR)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    try:
        connection, _ = listener.accept()
    except OSError:
        time.sleep(0.01)
        continue
    connection.recv(1024)
    connection.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n0')
    connection.close()
";
    let run = Run::start("--name web -n 2 --listen 10.0.0.1:80", &["python3", "-c", script]);
    run.line("service web");
    assert_eq!(ask(at(CALLED)), 0);
    overspill("restart web").done();
    // Whoever is in the queue when its socket is shut down is refused: by the server's own doing.
    for _ in 0..2 {
        run.line(" ended with status 0");
    }
    all_active(2);
    for _ in 0..4 {
        assert_eq!(ask(at(CALLED)), 0);
    }
    run.ends_at(Signal::SIGTERM);
}
