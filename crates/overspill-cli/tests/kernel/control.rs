//! The control socket of `overspill run`, and `overspill restart`, which uses it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use world::{deadline, wait_until};

use crate::bad_input::public_copy;
use crate::run::{Run, WORKER, ask, assert_no_state, pid, pids, send};
use crate::server::Server;
use crate::tool::{self, Ran, overspill};
use crate::unchanged::python;

const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// A conversation with the supervisor `web`.
fn converse() -> UnixStream {
    let address = SocketAddr::from_abstract_name("overspill/web").unwrap();
    let stream = UnixStream::connect_addr(&address).unwrap();
    stream.set_read_timeout(Some(deadline())).unwrap();
    stream
}

/// The answer to these bytes.
fn answer(bytes: &[u8]) -> String {
    let mut stream = converse();
    // It may be refused before all of it is read.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    read_line(stream)
}

fn read_line(stream: UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[track_caller]
fn restart_fails(arguments: &str, parts: &[&str]) {
    fails(overspill(&format!("restart {arguments}")), parts);
}

/// The supervisor was reached, and has done it.
#[track_caller]
fn restarts(ran: Ran) {
    let told = ran.done();
    assert!(told.starts_with("replacing ") && told.ends_with(" replaced\n"), "{told}");
}

#[track_caller]
fn fails(ran: Ran, parts: &[&str]) {
    let line = ran.failed();
    for part in parts {
        assert!(line.contains(part), "{part:?}: {line}");
    }
}

#[test]
fn a_name_has_one_supervisor() {
    world::enter();
    for redirect in ["on", "off"] {
        let options = format!("-n 1 --redirect {redirect}");
        let first = Run::serving(&format!("--name web {options} --listen 10.0.0.1:80"));
        let held = format!("a supervisor of web already runs (pid {});", first.supervisor.id());
        for other in ["on --listen 10.0.0.2:80", "off --listen 10.0.0.1:80"] {
            let line = format!("--name web -n 1 --redirect {other}");
            Run::start(&line, &WORKER).fails(&held);
        }
        // Another name is another matter, and the first has noticed nothing.
        let second = Run::serving(&format!("--name api {options} --listen 10.0.0.2:80"));
        second.signal(Signal::SIGTERM);
        assert!(second.end().0.success());
        ask("10.0.0.1:80");
        first.ends_at(Signal::SIGTERM);
    }
}

#[test]
fn a_name_that_is_held_by_something_else() {
    world::enter();
    let held = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let address = UnixAddr::new_abstract(b"overspill/web").unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&held), &address).unwrap();
    Run::start("--name web -n 1 --listen 10.0.0.1:80", &WORKER)
        .fails("a process that does not answer");
    restart_fails("web", &["there is no supervisor of web"]);
    drop(held);
    Run::serving("--name web -n 1 --listen 10.0.0.1:80").ends_at(Signal::SIGTERM);
}

#[test]
fn a_supervisor_is_found_by_its_name_and_by_its_services() {
    world::enter();
    let run = Run::serving("--name web -n 1 --listen 10.0.0.1:80 --listen 10.0.0.1:81");
    for name in ["web", "web:80", "web:81"] {
        restarts(overspill(&format!("restart {name}")));
    }
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_supervisor_is_found_in_its_network_namespace() {
    world::enter();
    let run = Run::serving("--name web -n 1 --listen 10.0.0.1:80");
    let path = format!("/proc/{}/ns/net", run.supervisor.id());
    let inode = Path::new(&path).metadata().unwrap().ino().to_string();
    let elsewhere = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net", env!("CARGO_BIN_EXE_overspill"), "restart", "web"]);
        Ran::from(command.args(arguments).output().unwrap())
    };
    for netns in [&path, &inode] {
        restarts(elsewhere(&["--netns", netns]));
        restarts(overspill(&format!("restart web --netns {netns}")));
    }
    fails(elsewhere(&[]), &["there is no supervisor of web", "--netns looks elsewhere"]);
    restart_fails("web --netns 1", &["there is no network namespace 1", "lsns"]);
    restart_fails("web --netns nowhere", &["/run/netns/nowhere", "No such file", "ip netns"]);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_supervisor_that_is_not_there() {
    world::enter();
    restart_fails("web", &["there is no supervisor of web in this", "run --name web starts one"]);
    let run = Run::serving("--name web -n 1 --redirect off --listen 10.0.0.1:80");
    restart_fails("wbe:80", &["there is no supervisor of wbe", "; there is web; "]);
    run.ends_at(Signal::SIGTERM);
    let server = Server::start("tcp=10.0.0.1:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    restart_fails("web", &["no supervisor: others have started its servers", "restart them as"]);
}

#[test]
fn clients_that_misbehave_do_no_harm() {
    world::enter();
    let run = Run::serving("--name web -n 1 --listen 10.0.0.1:80");
    let threads = || {
        let path = format!("/proc/{}/task", run.supervisor.id());
        std::fs::read_dir(path).unwrap().count()
    };
    let without_clients = threads();
    let reached = "progress: replacing 1 worker, one after another\n";
    assert_eq!(answer(b"restart\n"), reached);
    let unknown = answer(b"\xff\0restart\n");
    assert!(unknown.starts_with("failed: there is no request "), "{unknown}");
    assert!(unknown.ends_with("(known requests: restart, hand-over)\n"), "{unknown}");
    assert_eq!(answer(&vec![b'x'; 1 << 20]), "failed: the request is longer than 4160 bytes\n");
    assert_eq!(answer(b"rest"), "failed: the request is not a whole line\n");
    for bytes in [&b""[..], b"rest", b"restart\n"] {
        for _ in 0..100 {
            // Where too many are there already it is refused meanwhile.
            let _ = converse().write_all(bytes);
        }
    }
    // The restarts that they asked for are carried out, once the last of them has asked.
    wait_until("those that left are forgotten", || threads() == without_clients);
    let silent: Vec<UnixStream> = (0..16).map(|_| converse()).collect();
    assert_eq!(
        answer(b"restart\n"),
        "failed: its supervisor listens to 16 clients already; try later\n"
    );
    ask("10.0.0.1:80");
    for stream in silent {
        assert_eq!(read_line(stream), "failed: no request came within 5 s\n");
    }
    assert_eq!(answer(b"restart\n"), reached);
    run.ends_at(Signal::SIGTERM);
}

/// The program as nobody runs it.
struct Nobody {
    copy: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Nobody {
    fn new() -> Self {
        let (folder, copy) = public_copy();
        Self { copy, _folder: folder }
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(NOBODY).arg(&self.copy).args(arguments.split(' '));
        command
    }

    fn overspill(&self, arguments: &str) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    /// A supervisor; it makes no service, which takes privilege.
    fn supervise(&self) -> Child {
        let options = "--name web -n 1 --redirect off --listen 10.0.0.1:8080";
        let mut command = self.command(&format!("run {options} -- sleep 60"));
        let supervisor = command.stderr(Stdio::null()).spawn().unwrap();
        wait_until("it runs", || !self.overspill("restart web").stderr.contains("no supervisor"));
        supervisor
    }
}

#[test]
fn another_user_is_not_served() {
    world::enter();
    let nobody = Nobody::new();
    let run = Run::serving("--name web -n 1 --listen 10.0.0.1:80");
    let refused = ["cannot restart web: its supervisor listens to root alone"];
    fails(nobody.overspill("restart web"), &refused);
    restarts(overspill("restart web"));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn the_supervisor_of_another_user_is_not_believed() {
    world::enter();
    let nobody = Nobody::new();
    let mut supervisor = nobody.supervise();
    restarts(nobody.overspill("restart web"));
    let whose = format!("(pid {}, of user 65534)", supervisor.id());
    restart_fails("web", &["is not root's nor your own", &whose]);
    Run::start("--name web -n 1 --listen 10.0.0.1:80", &WORKER)
        .fails(&format!("a supervisor of web already runs {whose}"));
    send(supervisor.id(), Signal::SIGTERM);
    assert!(supervisor.wait().unwrap().success());
    assert_no_state();
}

#[test]
fn a_killed_supervisor_leaves_its_name_free() {
    world::enter();
    let options = "--name web -n 2 --listen 10.0.0.1:80";
    let mut killed = Run::serving(options);
    let orphans = pids("web");
    let begun = converse();
    killed.supervisor.kill().unwrap();
    killed.supervisor.wait().unwrap();
    assert!(orphans.contains(&pid(&ask("10.0.0.1:80"))), "the orphans still serve");
    assert_eq!(read_line(begun), "", "nobody holds the other end");
    restart_fails(
        "web",
        &["service web has no supervisor: ", "or end them and start overspill run"],
    );
    for orphan in orphans {
        send(orphan, Signal::SIGKILL);
    }
    wait_until("all members are gone", || {
        crate::run::members("web").iter().all(|it| it.state == overspill::MemberState::Gone)
    });
    restart_fails("web", &["that was killed; start overspill run --name web again to take over"]);
    let run = Run::start(options, &WORKER);
    run.line("policy shortest-queue");
    restarts(overspill("restart web"));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_supervisor_that_ends_says_so_and_holds_its_name() {
    world::enter();
    let options = "--name web -n 1 --listen 10.0.0.1:80 --grace 60";
    let script = "trap '' TERM; echo deaf >&2; while :; do sleep 1; done";
    let mut run = Run::start(options, &["sh", "-c", script]);
    run.line("deaf");
    run.signal(Signal::SIGTERM);
    run.line("ending 1 worker");
    restart_fails("web", &["cannot restart web: the supervisor is ending"]);
    Run::start(options, &WORKER).fails("a supervisor of web already runs");
    wait_until("a second signal kills it", || {
        let ended = run.supervisor.try_wait().unwrap();
        if ended.is_none() {
            run.signal(Signal::SIGTERM);
        }
        ended.is_some()
    });
    assert!(run.end().0.success());
    assert_no_state();
}

/// A process that makes the socket of `web` and ends, which its child goes on to hold: so does
/// one that is killed, for a moment. The child says "asked" when somebody looks who that is.
const ENDING: &str = "
import os, socket, sys
held = socket.socket(socket.AF_UNIX)
held.bind('\\0overspill/web')
held.listen(8)
if os.fork():
    os._exit(0)
for _ in range(3):
    held.accept()
print('asked', flush=True)
sys.stdin.read()
";

#[test]
fn a_name_that_a_dying_process_holds_is_waited_for() {
    world::enter();
    let mut dying = Command::new("python3")
        .args(["-c", ENDING])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut asked = BufReader::new(dying.stdout.take().unwrap());
    let stat = format!("/proc/{}/stat", dying.id());
    // It is not waited for, and stays what it is.
    wait_until("it has ended", || std::fs::read_to_string(&stat).unwrap().contains(") Z "));
    let run = Run::start("--name web -n 1 --listen 10.0.0.1:80", &WORKER);
    let mut line = String::new();
    asked.read_line(&mut line).unwrap();
    assert_eq!(line, "asked\n");
    drop(dying.stdin.take());
    run.line("service web");
    dying.wait().unwrap();
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn restarts_that_are_asked_for_at_once_are_each_told_their_own() {
    world::enter();
    let run = Run::serving("--name web -n 3 --listen 10.0.0.1:80");
    let before = pids("web");
    let mut first = BufReader::new(converse());
    first.get_mut().write_all(b"restart\n").unwrap();
    let mut line = || {
        let mut line = String::new();
        first.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(line(), "progress: replacing 3 workers, one after another\n");
    // Worker 0 is being replaced, by one that was started before the second restart was wanted.
    let second = overspill("restart web").done();
    let mut told = Vec::new();
    loop {
        match line() {
            last if !last.starts_with("progress: ") => {
                assert_eq!(last, "done\n");
                break;
            }
            progress => told.push(progress),
        }
    }
    let replaced = |worker: usize| format!("progress: worker {worker} replaced (pid ");
    for (worker, line) in told[..3].iter().enumerate() {
        assert!(line.starts_with(&replaced(worker)), "{told:?}");
    }
    assert_eq!(told[3..], ["progress: done, 3 workers replaced\n"]);
    let lines: Vec<&str> = second.lines().collect();
    assert_eq!(lines[0], "replacing 3 workers, one after another, behind the restart under way");
    for (line, worker) in lines[1..4].iter().zip([1, 2, 0]) {
        assert!(line.starts_with(&format!("worker {worker} replaced (pid ")), "{second}");
    }
    assert_eq!(lines[4..], ["done, 3 workers replaced"]);
    assert!(pids("web").iter().all(|pid| !before.contains(pid)));
    assert_eq!(crate::run::starts("web"), [3, 2, 2]);
    run.ends_at(Signal::SIGTERM);
}

/// Who has mended what the first restart fails by is not told that it fails.
#[test]
fn a_restart_that_fails_is_no_failure_of_a_later_one() {
    world::enter();
    let folder = tempfile::TempDir::new().unwrap();
    let bad = folder.path().join("bad");
    let script = "if test -e \"$1\"; then : >\"$1.seen\"; \
                  while test -e \"$1\"; do sleep 0.01; done; exit 3; fi; shift; exec \"$@\"";
    let mut command = vec!["sh", "-c", script, "sh", bad.to_str().unwrap()];
    command.extend(python(&["10.0.0.1:80"]));
    let run = Run::start("--name web -n 2", &command);
    for _ in 0..2 {
        run.line(" listens on ");
    }
    std::fs::write(&bad, "").unwrap();
    let mut first = BufReader::new(converse());
    first.get_mut().write_all(b"restart\n").unwrap();
    let mut line = String::new();
    first.read_line(&mut line).unwrap();
    assert_eq!(line, "progress: replacing 2 workers, one after another\n");
    let mut second = tool::command("restart web");
    let second = second.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    run.line("replacing 2 workers, one after another, behind the restart under way");
    wait_until("the successor is a bad one", || folder.path().join("bad.seen").exists());
    std::fs::remove_file(&bad).unwrap();
    line.clear();
    first.read_line(&mut line).unwrap();
    assert!(line.starts_with("failed: worker 0 (pid "), "{line}");
    let end = "ended with status 3 before it was ready; stopped after 0 workers replaced, 2 kept \
               as before\n";
    assert!(line.ends_with(end), "{line}");
    restarts(Ran::from(second.wait_with_output().unwrap()));
    run.ends_at(Signal::SIGTERM);
}
