//! Real servers, taken while clients load them: no request may fail or be answered wrongly,
//! whatever is done to the service meanwhile.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use overspill::adopt::{self, Adopted};
use overspill::{Change, MemberState, Namespace, OnFull, Policy, Service};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use world::{at, wait_until};

use crate::tools::connect;

/// A server, ended with the test whatever becomes of it.
struct Server {
    child: Child,
    /// The processes that hold its sockets.
    pids: Vec<u32>,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its own group: the workers end with the master.
        if let Some(pid) = Pid::from_raw(i32::try_from(self.child.id()).unwrap()) {
            let _ = rustix::process::kill_process_group(pid, Signal::TERM);
            // One that is stopped takes the signal only when it goes on.
            let _ = rustix::process::kill_process_group(pid, Signal::CONT);
        }
        let _ = self.child.wait();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// One whole HTTP request on a connection of its own.
fn answer(address: SocketAddr) -> Result<String, String> {
    let mut client = connect(address).map_err(|error| format!("connect: {error}"))?;
    let request = format!("GET / HTTP/1.0\r\nHost: {}\r\n\r\n", address.ip());
    client.write_all(request.as_bytes()).map_err(|error| format!("write: {error}"))?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).map_err(|error| format!("read: {error}"))?;
    if answer.contains(" 200 ") && answer.ends_with("hello\n") {
        Ok(answer)
    } else {
        Err(format!("answered {answer:?}"))
    }
}

impl Server {
    fn start(
        folder: TempDir,
        command: &mut Command,
        addresses: &[SocketAddr],
        pids: impl Fn(u32) -> Vec<u32>,
    ) -> Self {
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .current_dir(folder.path())
            .spawn()
            .unwrap();
        let mut server = Self { child, pids: Vec::new(), _folder: folder };
        for &address in addresses {
            wait_until("the server answers", || answer(address).is_ok());
        }
        wait_until("its processes are there", || {
            server.pids = pids(server.child.id());
            !server.pids.is_empty()
        });
        server
    }

    /// nginx with two workers, on two addresses of port 80.
    fn nginx(option: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        // Its workers read the page as another user.
        open_to_all(path);
        fs::write(path.join("index.html"), "hello\n").unwrap();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};", path.display()))
            .join(" ");
        let configuration = format!(
            "daemon off; worker_processes 2; pid {path}/pid; error_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log off; {temporary}\n\
             server {{ listen 10.0.0.1:80 {option}; listen 10.0.0.2:80 {option}; root {path}; }} }}",
            path = path.display(),
        );
        fs::write(path.join("nginx.conf"), configuration).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(path).arg("-c").arg(path.join("nginx.conf"));
        let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80")];
        Self::start(folder, &mut command, &addresses, |pid| {
            let workers = children(pid);
            if workers.len() == 2 { workers } else { Vec::new() }
        })
    }

    fn haproxy() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let configuration = "\
global
    nbthread 2
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend web
    bind 10.0.0.1:80
    bind 10.0.0.2:80
    http-request return status 200 content-type text/plain string \"hello\\n\"
";
        fs::write(folder.path().join("haproxy.cfg"), configuration).unwrap();
        let mut command = Command::new("/usr/sbin/haproxy");
        command.args(["-db", "-f", "haproxy.cfg"]);
        let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80")];
        Self::start(folder, &mut command, &addresses, |pid| vec![pid])
    }

    /// Python's own HTTP server, on one address.
    fn python(address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("index.html"), "hello\n").unwrap();
        let mut command = Command::new("python3");
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        command.args(["-m", "http.server", &port, "--bind", &ip]);
        Self::start(folder, &mut command, &[address], |pid| vec![pid])
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Lets clients ask all addresses until `work` is done. Every outcome counts: the first
/// failure fails the test, and `work` is told how many were served.
fn under_load(addresses: &[SocketAddr], work: impl FnOnce(&dyn Fn())) {
    let stop = AtomicBool::new(false);
    let served = AtomicU32::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for n in 0..3 {
            let (stop, served, failures) = (&stop, &served, &failures);
            scope.spawn(move || {
                for &address in addresses.iter().cycle().skip(n) {
                    match answer(address) {
                        _ if stop.load(Ordering::Relaxed) => return,
                        Ok(_) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failures.lock().unwrap().push(format!("{address}: {error}")),
                    }
                }
            });
        }
        let goes_on = || {
            let before = served.load(Ordering::Relaxed);
            wait_until("clients are served meanwhile", || {
                served.load(Ordering::Relaxed) >= before + 30
                    || !failures.lock().unwrap().is_empty()
            });
        };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            goes_on();
            work(&goes_on);
            goes_on();
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    let failures = failures.into_inner().unwrap();
    let served = served.into_inner();
    assert!(failures.is_empty(), "{} of {served}: {:?}", failures.len(), failures[0]);
}

/// Everything that can be done to a service, while clients use it.
fn live_through_everything(addresses: &[SocketAddr], sockets: &[Adopted]) {
    under_load(addresses, |goes_on| {
        for round in 0..3 {
            let service = Service::builder("web").share_adopted(sockets).unwrap();
            goes_on();
            for policy in Policy::ALL {
                service.set(&Change { policy: Some(policy), ..Change::default() }).unwrap();
                goes_on();
            }
            service
                .set(&Change {
                    spread: Some(round % 2 == 0),
                    on_full: Some(OnFull::ALL[round % 2]),
                    ..Change::default()
                })
                .unwrap();
            goes_on();
            let members = service.status().unwrap().members;
            assert_eq!(members.len(), sockets.len());
            for (member, socket) in members.iter().zip(sockets) {
                if members.len() > 1 {
                    service.drain(member.member).unwrap();
                    goes_on();
                    service.resume(member.member).unwrap();
                    service.leave(member.member).unwrap();
                    goes_on();
                    service.join_adopted(std::slice::from_ref(socket)).unwrap();
                    goes_on();
                }
            }
            let status = service.status().unwrap();
            assert!(status.members.iter().all(|member| member.state == MemberState::Active));
            assert!(status.requests.placed > 0);
            let requests = status.requests;
            assert_eq!((requests.dropped, requests.reset, requests.left), (0, 0, 0));
            service.remove().unwrap();
            goes_on();
        }
    });
    assert!(!Path::new("/sys/fs/bpf/overspill").exists());
}

const TWO: [&str; 2] = ["10.0.0.1:80", "10.0.0.2:80"];

#[test]
fn nginx_with_inherited_sockets() {
    world::enter();
    let server = Server::nginx("");
    let sockets = adopt::listeners(&server.pids, 80).unwrap();
    // The workers share what the master has made: one socket an address.
    assert_eq!(sockets.len(), 2);
    assert!(sockets.iter().all(|socket| socket.pid() == server.pids[0]));
    live_through_everything(&TWO.map(at), &sockets);
}

#[test]
fn nginx_with_a_socket_for_each_worker() {
    world::enter();
    let server = Server::nginx("reuseport");
    let sockets = adopt::listeners(&server.pids, 80).unwrap();
    // The workers inherit each other's sockets, so all are found with the first.
    assert_eq!(sockets.len(), 4);
    live_through_everything(&TWO.map(at), &sockets);
}

#[test]
fn haproxy() {
    world::enter();
    let server = Server::haproxy();
    let sockets = adopt::listeners(&server.pids, 80).unwrap();
    live_through_everything(&TWO.map(at), &sockets);
}

#[test]
fn python() {
    world::enter();
    let servers = TWO.map(|text| Server::python(at(text)));
    let pids = [servers[0].pids[0], servers[1].pids[0]];
    let sockets = adopt::listeners(&pids, 80).unwrap();
    assert_eq!(sockets.iter().map(Adopted::pid).collect::<Vec<_>>(), pids);
    live_through_everything(&TWO.map(at), &sockets);
}

/// A stopped server keeps no client waiting: what finds its queue full is served by its
/// sibling, and what it holds is served when it goes on.
#[test]
fn a_server_that_hangs() {
    world::enter();
    let servers = TWO.map(|text| Server::python(at(text)));
    let pids = [servers[0].pids[0], servers[1].pids[0]];
    let sockets = adopt::listeners(&pids, 80).unwrap();
    let service =
        Service::builder("web").policy(Policy::ShortestQueue).share_adopted(&sockets).unwrap();
    drop(sockets);
    let stopped = Pid::from_raw(i32::try_from(pids[0]).unwrap()).unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    let status = service.status().unwrap();
    let places = status.members[0].capacity;
    // Python's http.server has a backlog of 5.
    let waiting: Vec<_> = (0..places).map(|_| connect(at(TWO[0])).unwrap()).collect();
    wait_until("its queue is full", || service.status().unwrap().members[0].queued == places);
    for _ in 0..20 {
        answer(at(TWO[0])).unwrap();
    }
    assert_eq!(service.status().unwrap().members[0].redirected_out, 20);
    kill_process(stopped, Signal::CONT).unwrap();
    for mut client in waiting {
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("hello\n"), "{text}");
    }
}

/// The servers, their clients and the service live in a network namespace that the
/// caller is not in.
#[test]
fn in_another_network_namespace() {
    const SERVER: &str = "\
import socket, sys
listener = socket.create_server((sys.argv[1], 80))
print('ready', flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(connection.getsockname()[0].encode())
    connection.close()
";
    const CLIENT: &str = "\
import socket, sys
for n in range(600):
    address = f'127.0.0.{n % 2 + 1}'
    client = socket.create_connection((address, 80), timeout=5)
    answer = client.recv(64).decode()
    assert answer == address, answer
    client.close()
print('served')
";
    world::enter();
    let first = Background::start(
        Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && exec python3 -c \"$0\" 127.0.0.1"])
            .arg(SERVER),
    );
    let inside = |script: &str, argument: &str| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", first.0.id()));
        command.args(["python3", "-c", script, argument]).stdout(Stdio::piped());
        command
    };
    let second = Background::start(&mut inside(SERVER, "127.0.0.2"));
    let pids = [first.0.id(), second.0.id()];
    let namespace = Namespace::of_process(pids[0]).unwrap();
    let sockets = adopt::listeners(&pids, 80).unwrap();
    let mut client = inside(CLIENT, "").spawn().unwrap();
    let mut rounds = 0;
    while client.try_wait().unwrap().is_none() {
        let builder = Service::builder("web").namespace(namespace.clone());
        let service = builder.share_adopted(&sockets).unwrap();
        assert_eq!(Service::open_in("web", &namespace).unwrap(), service);
        Service::open("web").unwrap_err();
        let member = service.status().unwrap().members[0].member;
        service.drain(member).unwrap();
        service.leave(member).unwrap();
        service.join_adopted(&sockets[..1]).unwrap();
        service.remove().unwrap();
        rounds += 1;
    }
    let output = client.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "served\n");
    assert!(rounds > 0);
}

/// A process that says when it is ready, and ends with the test.
struct Background(Child);

impl Background {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
