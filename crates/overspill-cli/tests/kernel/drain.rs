//! Draining by hand: what it says, what it waits for, and what ends it.

use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use overspill::{Health, MemberId, MemberState, Service};
use world::wait_until;

use crate::run::{Run, WORKER, connect, members, pids, send};
use crate::server::Server;
use crate::tool::{self, Ran, overspill};
use crate::unchanged::{kill, python};

const CALLED: &str = "10.0.0.1:80";
const LISTEN: &str = "--listen 10.0.0.1:80";

/// Two workers that make their sockets themselves.
fn unchanged() -> Run {
    let run = Run::start("--name web -n 2", &python(&[CALLED]));
    for _ in 0..2 {
        run.line(" listens on ");
    }
    run
}

fn states() -> Vec<MemberState> {
    members("web").iter().map(|member| member.state).collect()
}

#[test]
fn who_drains_the_last_member_is_warned() {
    world::enter();
    let run = unchanged();
    overspill("drain web 1").done();
    let ran = overspill("drain web 0");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    let told = "overspill: no member of web is active: new requests are refused; resume one";
    assert_eq!(ran.complaint(), told);
    assert_eq!(states(), [MemberState::Draining; 2]);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn who_leaves_only_members_that_hang_is_warned() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    // Nobody watches these, so that the mark stays for 10 s.
    Service::open("web").unwrap().set_health(MemberId(1), Health::Hung).unwrap();
    let ran = overspill("drain web 0");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let told = "overspill: no member of web is active: requests go to those that hang; resume one";
    assert_eq!(ran.complaint(), told);
    overspill("rm web").done();
}

/// Starts it, and waits until the member drains.
fn drain(arguments: &str) -> Child {
    let child =
        tool::command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the member drains", || states().contains(&MemberState::Draining));
    child
}

#[test]
fn a_drain_waits_until_the_member_holds_nothing() {
    world::enter();
    let run = unchanged();
    overspill("drain web 1").done();
    let mut client = connect(CALLED);
    wait_until("it is counted", || members("web")[0].established == Some(1));
    overspill("resume web 1").done();
    let line = overspill("drain web 0 --wait 1").failed();
    assert!(line.contains("member 0 of web holds 1 connection after 1 s"), "{line}");
    let mut waits = drain("drain web 0 --wait");
    assert!(waits.try_wait().unwrap().is_none());
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    Ran::from(waits.wait_with_output().unwrap()).done();
    assert_eq!(members("web")[0].established, Some(0));
    // What holds nothing is not waited for.
    overspill("drain web 0 --wait 0").done();
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_drain_that_is_ended_is_not_waited_for() {
    world::enter();
    let run = unchanged();
    overspill("drain web 1").done();
    let client = connect(CALLED);
    wait_until("it is counted", || members("web")[0].established == Some(1));
    overspill("resume web 1").done();
    let waits = drain("drain web 0 --wait");
    overspill("resume web 0").done();
    let line = Ran::from(waits.wait_with_output().unwrap()).failed();
    assert!(line.contains("it gets requests again"), "{line}");
    drop(client);
    run.ends_at(Signal::SIGTERM);
}

/// A person drains a member for the sake of its process.
#[test]
fn a_new_process_is_active() {
    world::enter();
    for listen in [false, true] {
        let run =
            if listen { Run::serving(&format!("--name web -n 2 {LISTEN}")) } else { unchanged() };
        let drains = || {
            overspill("drain web 1").done();
            assert_eq!(states(), [MemberState::Active, MemberState::Draining]);
        };
        drains();
        overspill("restart web").done();
        wait_until("all are active", || states() == [MemberState::Active; 2]);
        drains();
        let killed = pids("web")[1];
        kill_worker(killed, listen);
        wait_until("it is succeeded", || pids("web")[1] != killed);
        wait_until("all are active", || states() == [MemberState::Active; 2]);
        // One that is not replaced drains on.
        drains();
        let killed = pids("web")[0];
        kill_worker(killed, listen);
        wait_until("it is succeeded", || pids("web")[0] != killed);
        run.line("next start");
        assert_eq!(states()[1], MemberState::Draining);
        run.ends_at(Signal::SIGTERM);
    }
}

fn kill_worker(pid: u32, listen: bool) {
    // With --listen it has no control group of its own.
    if listen { send(pid, Signal::SIGKILL) } else { kill(pid) }
}

/// What the supervisor wants of a member holds also if it failed at first, or if somebody else
/// changed it.
#[test]
fn a_worker_that_waits_drains_whatever_comes_between() {
    world::enter();
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("good");
    std::fs::write(&file, "").unwrap();
    let script = "test -e \"$1\" || exit 3; shift; exec \"$@\"";
    let mut command = vec!["sh", "-c", script, "sh", file.to_str().unwrap()];
    command.extend(WORKER);
    let run = Run::start(&format!("--name web -n 2 {LISTEN}"), &command);
    run.line("service web");
    std::fs::remove_file(&file).unwrap();
    let remount = |how: &str| {
        let options = format!("remount,{how}");
        let mut mount = std::process::Command::new("mount");
        assert!(mount.args(["-o", &options, "/sys/fs/bpf"]).status().unwrap().success());
    };
    let killed = pids("web")[1];
    remount("ro");
    send(killed, Signal::SIGKILL);
    run.line("next start in 400 ms");
    remount("rw");
    wait_until("it drains", || states()[1] == MemberState::Draining);
    overspill("resume web 1").done();
    wait_until("it drains again", || states()[1] == MemberState::Draining);
    std::fs::write(&file, "").unwrap();
    wait_until("it is active again", || states()[1] == MemberState::Active);
    assert!(crate::run::ask(CALLED)["pid"].is_u64());
    run.ends_at(Signal::SIGTERM);
}
