//! What `overspill run` says of servers that can't share their port unchanged.

use nix::sys::signal::Signal;
use tempfile::TempDir;
use world::{at, wait_until};

use crate::run::{Run, pids, send};
use crate::unchanged::{all_answer, ask, python, services};

/// How the server ADDRESS PORT HOW FILE begins. "looks": it listens unless it finds somebody at its
/// port, as `CherryPy` does. "always": it looks, and listens in any case. "lock": it listens unless
/// FILE is there. The second worker waits until FILE is.
const SERVER: &str = "
import os, socket, sys, time
host, port, how, file = sys.argv[1:]
family = socket.AF_INET6 if ':' in host else socket.AF_INET
first = os.environ['OVERSPILL_WORKER'] == '0'
while not first and not os.path.exists(file):
    time.sleep(0.01)
if how == 'lock' and os.path.exists(file):
    sys.exit(4)
if how != 'lock':
    with socket.socket(family) as other:
        found = other.connect_ex((host, int(port))) == 0
    if found and how == 'looks':
        sys.exit(5)
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, int(port)))
listener.listen(64)
open(file, 'w').close()
while True:
    connection, _ = listener.accept()
    connection.recv(1024)
    page = os.environ['OVERSPILL_WORKER'].encode()
    connection.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n' + page)
    connection.close()
";

/// Two workers of that server.
fn start(host: &str, how: &str, folder: &TempDir) -> Run {
    let file = folder.path().join("up");
    let command = ["python3", "-c", SERVER, host, "80", how, file.to_str().unwrap()];
    Run::start("--name web -n 2", &command)
}

#[test]
fn who_looks_whether_its_port_is_free_is_told_of_listen() {
    world::enter();
    for host in ["10.0.0.1", "127.0.0.1", "::1"] {
        let folder = TempDir::new().unwrap();
        let run = start(host, "looks", &folder);
        let line = run.line("it connected to it first and found worker 0 (pid ");
        assert!(line.starts_with("overspill: worker 1 (pid "), "{line}");
        assert!(line.contains(" does not listen on port 80: "), "{line}");
        assert!(line.ends_with(" there; give each worker its socket with --listen"), "{line}");
        // It is said once.
        run.line("next start in");
        run.line("next start in");
        let lines = run.ends_at(Signal::SIGTERM);
        assert!(!lines.iter().any(|line| line.contains("--listen")), "{lines:#?}");
    }
}

/// Who looks, and listens all the same, and who ends for another reason.
#[test]
fn nobody_else_is_told_of_listen() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let run = start("10.0.0.1", "always", &folder);
    for _ in 0..2 {
        run.line(" listens on ");
    }
    let killed = pids("web")[1];
    send(killed, Signal::SIGKILL);
    wait_until("it is succeeded", || pids("web")[1] != killed);
    all_answer(2, || ask(at("10.0.0.1:80")));
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(!lines.iter().any(|line| line.contains("--listen")), "{lines:#?}");
    let folder = TempDir::new().unwrap();
    let run = start("10.0.0.1", "lock", &folder);
    run.line(" listens on ");
    let mut told = vec![run.line("ended with status 4; next start")];
    told.push(run.line("ended with status 4; next start in"));
    told.extend(run.ends_at(Signal::SIGTERM));
    assert!(!told.iter().any(|line| line.contains("--listen")), "{told:#?}");
}

/// Each worker starts a helper in the background, which serves all of them: a program of the name
/// of Erlang's port mapper.
const HELPED: &str = "
import os, subprocess, sys
helper, server, *arguments = sys.argv[1:]
lines = ['import socket, time', 'held = socket.socket()',
         'held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)',
         'held.bind((\"127.0.0.1\", 4369))', 'held.listen()', 'time.sleep(3600)']
subprocess.Popen([helper, '-c', '\\n'.join(lines)], stderr=subprocess.DEVNULL)
os.execvp(server, [server] + arguments)
";

#[test]
fn who_relies_on_a_port_in_use_is_told_of_private_port() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let helper = folder.path().join("epmd");
    std::os::unix::fs::symlink("/usr/bin/python3", &helper).unwrap();
    let mut command = vec!["python3", "-c", HELPED, helper.to_str().unwrap()];
    command.extend(python(&["10.0.0.1:80"]));
    let told = "give --private-port 4369";
    let run = Run::start("--name web -n 2", &command);
    let line = run.line(told);
    assert!(line.contains("port 4369 is shared by several epmd, "), "{line}");
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(!lines.iter().any(|line| line.contains(told)), "{lines:#?}");
    let run = Run::start("--name web -n 2 --private-port 4369", &command);
    for _ in 0..2 {
        run.line(" listens on 10.0.0.1:80");
    }
    all_answer(2, || ask(at("10.0.0.1:80")));
    assert_eq!(services(), ["web"]);
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(!lines.iter().any(|line| line.contains(told)), "{lines:#?}");
}
