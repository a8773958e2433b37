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
use crate::tool::{Ran, overspill};

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
