//! Dispatchers, from the command line.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::run::{Run, connect};
use crate::server::Server;
use crate::tool::overspill;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// One of the examples, compiled into a folder in the way that its README gives.
pub(crate) fn compile(name: &str, folder: &Path) -> String {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let object = folder.join(format!("{name}.bpf.o"));
    let status = Command::new("clang")
        .args(["-target", "bpf", "-O2", "-g", "-I", "include", "-c"])
        .arg(format!("examples/dispatchers/{name}.bpf.c"))
        .arg("-o")
        .arg(&object)
        .current_dir(REPOSITORY)
        .status()
        .expect("clang is installed: the build needs it");
    assert!(status.success());
    object.to_str().unwrap().to_owned()
}

fn show(service: &str) -> Value {
    serde_json::from_str(&overspill(&format!("show {service} --json")).done()).unwrap()
}

#[test]
fn a_dispatcher_comes_and_goes() {
    world::enter();
    let folder = tempfile::tempdir().unwrap();
    let object = compile("canary", folder.path());
    let server = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80");
    let share = format!("share web --pid {} --port 80", server.pid());
    overspill(&format!("{share} --policy dispatcher={object}")).done();
    let told = |json: &Value| (json["policy"].clone(), json["dispatcher"].clone());
    assert_eq!(told(&show("web")), ("dispatcher".into(), "canary".into()));
    let shown = overspill("show web").done();
    assert!(shown.contains("policy dispatcher canary, on-full drop"), "{shown}");
    overspill("set web --policy round-robin").done();
    assert_eq!(told(&show("web")), ("round-robin".into(), Value::Null));
    overspill(&format!("set web --policy dispatcher={object} --on-full reset")).done();
    assert_eq!(told(&show("web")), ("dispatcher".into(), "canary".into()));
    overspill("set web --on-full drop").done();
    assert_eq!(told(&show("web")), ("dispatcher".into(), "canary".into()));
}

#[test]
fn what_is_wrong_with_a_dispatcher_is_said_on_one_line() {
    world::enter();
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.bpf.o");
    fs::write(&text, "int main() {}").unwrap();
    let text = text.to_str().unwrap();
    let server = Server::start("tcp=10.0.0.1:80");
    let share = format!("share web --pid {} --port 80", server.pid());
    let refused = |arguments: &str, why: &str| {
        let line = overspill(arguments).failed();
        assert!(line.contains(why), "{line}");
    };
    for path in [text, "/dev/null"] {
        let why = "is not a dispatcher: it is not an object file; give one";
        refused(&format!("{share} --policy dispatcher={path}"), why);
        refused(&format!("run --policy dispatcher={path} -- true"), why);
    }
    let why = "/nonexistent is not a dispatcher: No such file";
    refused("run --policy dispatcher=/nonexistent -- true", why);
    overspill(&share).done();
    let before = show("web");
    refused("set web --policy dispatcher=/nonexistent", why);
    assert_eq!(show("web"), before);
    for policy in ["dispatcher", "dispatcher="] {
        let ran = overspill(&format!("set web --policy {policy}"));
        assert_eq!(ran.code, Some(2));
        assert!(ran.stderr.contains("dispatcher=FILE"), "{}", ran.stderr);
    }
    let ran = overspill("run --words -- true");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("--words is for workers that get their sockets"), "{}", ran.stderr);
}

/// Workers without any privilege direct their own requests.
#[test]
fn workers_publish_how_busy_they_are() {
    world::enter();
    let folder = tempfile::tempdir().unwrap();
    let object = compile("published", folder.path());
    let worker = include_str!("../../../../examples/dispatchers/published.py");
    for workers in [1, 3] {
        let run = Run::start(
            &format!(
                "--name web -n {workers} --listen 10.0.0.1:80 --words --user nobody \
                 --policy dispatcher={object}"
            ),
            &["python3", "-c", worker],
        );
        run.line("service");
        let mut clients: Vec<(usize, TcpStream)> = (0..4 * workers).map(|_| greeted()).collect();
        let busy = |clients: &[(usize, TcpStream)]| -> Vec<usize> {
            let of = |number| clients.iter().filter(|(worker, _)| *worker == number).count();
            (0..workers).map(of).collect()
        };
        assert_eq!(busy(&clients), vec![4; workers]);
        // One gets free; it is the one that is called from then on.
        clients.retain(|(worker, _)| *worker != 0);
        let word = || show("web")["members"][0]["established"].as_u64();
        world::wait_until("its clients have left it", || word() == Some(0));
        world::wait_until("it has told so", || {
            let (worker, client) = greeted();
            drop(client);
            worker == 0
        });
        run.ends_at(Signal::SIGTERM);
    }
}

/// Connects; the worker that has taken it, and has published that it has.
fn greeted() -> (usize, TcpStream) {
    let client = connect("10.0.0.1:80");
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line).unwrap();
    let worker = line.trim().strip_prefix("worker ").unwrap().parse().unwrap();
    (worker, client)
}
