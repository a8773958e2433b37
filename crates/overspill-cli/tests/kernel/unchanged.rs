//! `overspill run` with servers that know nothing of it and make their sockets themselves.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use overspill::{Cgroup, MemberState, Name, Namespace, Service};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;
use world::{at, deadline, wait_until};

use crate::run::{Run, assert_no_state, members, pids, starts};
use crate::server::{Server, get};
use crate::tool::{self, overspill};
use crate::versions::Version;

const IPV4: &str = "10.0.0.1:80";
const IPV6: &str = "[fd00::1]:80";
const PYTHON: [&str; 3] = ["python3", "-c", include_str!("unchanged.py")];

/// The Python server on these addresses.
pub(crate) fn python<'a>(addresses: &[&'a str]) -> Vec<&'a str> {
    [&PYTHON[..], addresses].concat()
}

/// The number of the worker that answers.
pub(crate) fn ask(address: SocketAddr) -> usize {
    let page = get(address, "/");
    page.trim().parse().unwrap_or_else(|_| panic!("no worker's number: {page:?}"))
}

/// Asks until each of so many workers has answered; every request is to be answered.
pub(crate) fn all_answer(workers: usize, ask: impl Fn() -> usize) {
    let mut seen = BTreeSet::new();
    wait_until("every worker has answered", || {
        seen.insert(ask());
        seen.len() == workers
    });
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), (0..workers).collect::<Vec<_>>());
}

/// Starts three workers that listen on so many sockets each.
fn start(options: &str, command: &[&str], sockets: usize) -> Run {
    let run = Run::start(&format!("--name web -n 3 {options}"), command);
    for _ in 0..3 * sockets {
        run.line(" listens on ");
    }
    run
}

/// Ends it, and looks that nothing is left.
fn end(run: Run) {
    let cgroup = Cgroup::own().unwrap();
    let made = cgroup.path().join(format!("overspill-web-{}", run.supervisor.id()));
    run.ends_at(Signal::SIGTERM);
    assert!(!made.exists(), "{} is left", made.display());
}

/// Kills a worker with all that it has started, and waits until it has closed its sockets:
/// one that waits in `accept()` when the signal comes may still take a request into its grave.
pub(crate) fn kill(pid: u32) {
    let process = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
    Cgroup::of_process(pid).unwrap().kill().unwrap();
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    let deadline = Timespec::try_from(deadline()).unwrap();
    assert_eq!(poll(&mut ended, Some(&deadline)), Ok(1), "process {pid} does not end");
}

/// All workers of the server serve one address. When one is killed every request is
/// answered, and in the end it serves again. When all are replaced every request is too.
fn is_served(options: &str, command: &[&str], address: &str, ask: impl Fn(SocketAddr) -> usize) {
    let address = at(address);
    let run = start(options, command, 1);
    all_answer(3, || ask(address));
    let killed = pids("web")[1];
    kill(killed);
    for _ in 0..30 {
        ask(address);
    }
    run.line(" listens on ");
    all_answer(3, || ask(address));
    let old = pids("web");
    assert!(!old.contains(&killed));
    let mut restart = tool::command("restart web").stdout(Stdio::null()).spawn().unwrap();
    wait_until("the restart is done", || {
        ask(address);
        restart.try_wait().unwrap().is_some()
    });
    assert!(restart.wait().unwrap().success());
    assert!(pids("web").iter().all(|pid| !old.contains(pid)));
    all_answer(3, || ask(address));
    assert!(members("web").iter().all(|member| member.state == MemberState::Active));
    assert_eq!(starts("web"), [2, 3, 2]);
    end(run);
}

/// The same, with a command for a shell in which ADDRESS, HOST and PORT stand for the
/// address, and FOLDER for a folder with these files, for both families.
fn both_families_are_served(options: &str, files: &[(&str, &str)], script: &str) {
    world::enter();
    for address in [IPV4, IPV6] {
        let folder = TempDir::new().unwrap();
        let script = fill(script, address, folder.path());
        for (name, text) in files {
            fs::write(folder.path().join(name), fill(text, address, folder.path())).unwrap();
        }
        is_served(options, &["sh", "-c", &script], address, ask);
    }
}

fn fill(text: &str, address: &str, folder: &Path) -> String {
    let (host, port) = address.rsplit_once(':').unwrap();
    text.replace("ADDRESS", address)
        .replace("HOST", host.trim_matches(['[', ']']))
        .replace("PORT", port)
        .replace("FOLDER", folder.to_str().unwrap())
}

/// The names of all services.
pub(crate) fn services() -> Vec<String> {
    let all = Service::all(&Namespace::current().unwrap()).unwrap();
    let mut names: Vec<String> =
        all.iter().map(Service::name).map(Name::as_str).map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn python_server() {
    world::enter();
    for address in [IPV4, IPV6] {
        is_served("", &python(&[address]), address, ask);
    }
}

#[test]
fn python_module() {
    // A worker's successor leaves the page alone: its predecessor still reads it.
    let script = "cd FOLDER; mkdir $OVERSPILL_WORKER && \
                  echo $OVERSPILL_WORKER > $OVERSPILL_WORKER/index.html; \
                  cd $OVERSPILL_WORKER; exec python3 -m http.server --bind HOST PORT";
    both_families_are_served("", &[], script);
}

#[test]
fn gunicorn() {
    let app = "import os\n\ndef app(environ, start):\n    start('200 OK', [])\n    \
               return [os.environ['OVERSPILL_WORKER'].encode()]\n";
    let script = "exec gunicorn --workers 2 --bind ADDRESS --chdir FOLDER hello:app";
    both_families_are_served("", &[("hello.py", app)], script);
}

#[test]
fn uvicorn() {
    let app = "import os\n\nasync def app(scope, receive, send):\n    \
               await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n    \
               page = os.environ['OVERSPILL_WORKER'].encode()\n    \
               await send({'type': 'http.response.body', 'body': page})\n";
    let script = "exec uvicorn --host HOST --port PORT --lifespan off --app-dir FOLDER hello:app";
    both_families_are_served("", &[("hello.py", app)], script);
}

#[test]
fn node() {
    let app = "require('http').createServer((request, response) => \
               response.end(process.env.OVERSPILL_WORKER)).listen(PORT, 'HOST')";
    both_families_are_served("", &[("hello.js", app)], "exec node FOLDER/hello.js");
}

#[test]
fn nginx() {
    let conf = "daemon off; pid FOLDER/WORKER.pid; error_log stderr; worker_processes 2;\n\
                events {}\n\
                http {\n  access_log off;\n  \
                server { listen ADDRESS; location / { return 200 WORKER; } }\n}\n";
    let script = "sed s/WORKER/$OVERSPILL_WORKER/ FOLDER/nginx.conf > FOLDER/$OVERSPILL_WORKER; \
                  PATH=$PATH:/usr/sbin; exec nginx -e stderr -c FOLDER/$OVERSPILL_WORKER";
    both_families_are_served("--stop-signal QUIT", &[("nginx.conf", conf)], script);
}

#[test]
fn haproxy() {
    let conf = "defaults\n  mode http\n  timeout client 10s\n  timeout server 10s\n  \
                timeout connect 10s\nfrontend web\n  bind ADDRESS\n  \
                http-request return status 200 content-type text/plain \
                lf-string %[env(OVERSPILL_WORKER)]\n";
    let script = "PATH=$PATH:/usr/sbin; exec haproxy -W -f FOLDER/haproxy.cfg";
    both_families_are_served("--stop-signal USR1", &[("haproxy.cfg", conf)], script);
}

#[test]
fn caddy() {
    let conf = "{\n  admin off\n  auto_https off\n}\nhttp://:PORT {\n  bind HOST\n  \
                respond {$OVERSPILL_WORKER}\n}\n";
    let script = "export HOME=FOLDER; exec caddy run --adapter caddyfile --config FOLDER/Caddyfile";
    both_families_are_served("", &[("Caddyfile", conf)], script);
}

/// Workers of redis that listen on the addresses, and whose numbers their files' names tell.
fn redis(addresses: &str) -> String {
    format!(
        "exec redis-server --bind {addresses} --port 80 --protected-mode no --save '' \
         --dir /tmp --dbfilename $OVERSPILL_WORKER.overspill"
    )
}

fn ask_redis(address: SocketAddr) -> usize {
    let mut stream = TcpStream::connect_timeout(&address, deadline()).unwrap();
    stream.set_read_timeout(Some(deadline())).unwrap();
    stream.write_all(b"CONFIG GET dbfilename\r\nQUIT\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let name = answer.lines().find_map(|line| line.strip_suffix(".overspill"));
    name.unwrap_or_else(|| panic!("{answer:?}")).parse().unwrap()
}

#[test]
fn redis_server() {
    world::enter();
    for (address, host) in [(IPV4, "10.0.0.1"), (IPV6, "fd00::1")] {
        is_served("", &["sh", "-c", &redis(host)], address, ask_redis);
    }
}

#[test]
fn families_apart_are_two_services() {
    world::enter();
    let run = start("", &["sh", "-c", &redis("127.0.0.1 ::1")], 2);
    assert_eq!(services(), ["web", "web-ipv6"]);
    for address in ["127.0.0.1:80", "[::1]:80"] {
        all_answer(3, || ask_redis(at(address)));
    }
    end(run);
}

#[test]
fn a_wildcard_serves_both_families() {
    world::enter();
    let script = "require('http').createServer((request, response) => \
                  response.end(process.env.OVERSPILL_WORKER)).listen(80)";
    let run = start("", &["node", "-e", script], 1);
    assert_eq!(services(), ["web"]);
    for address in [IPV4, IPV6] {
        all_answer(3, || ask(at(address)));
    }
    end(run);
}

#[test]
fn each_port_is_a_service() {
    world::enter();
    let run = start("", &python(&[IPV4, "10.0.0.1:81"]), 2);
    assert_eq!(services(), ["web", "web:81"]);
    for address in [IPV4, "10.0.0.1:81"] {
        all_answer(3, || ask(at(address)));
    }
    end(run);
}

#[test]
fn a_private_port_is_left_alone() {
    world::enter();
    let run = start("--private-port 81", &python(&["own:127.0.0.1:81", IPV4]), 1);
    assert_eq!(services(), ["web"]);
    all_answer(3, || ask(at(IPV4)));
    for worker in 0..3 {
        assert_eq!(ask(at(&format!("127.0.0.{}:81", worker + 1))), worker);
    }
    end(run);
}

#[test]
fn a_child_may_be_the_one_that_listens() {
    world::enter();
    let mut command = vec!["sh", "-c", "\"$@\" & wait", "sh"];
    command.extend(python(&[IPV4]));
    is_served("", &command, IPV4, ask);
}

#[test]
fn a_static_binary_is_served() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let (source, program) = (folder.path().join("server.c"), folder.path().join("server"));
    fs::write(&source, include_str!("unchanged.c")).unwrap();
    let built = Command::new("gcc").arg("-static").arg(&source).arg("-o").arg(&program).status();
    assert!(built.unwrap().success());
    is_served("", &[program.to_str().unwrap()], IPV4, ask);
}

#[test]
fn the_workers_run_as_the_user() {
    world::enter();
    let address = "10.0.0.1:8080";
    let run = start("--user nobody", &python(&[address]), 1);
    all_answer(3, || ask(at(address)));
    assert_eq!(get(at(address), "/uid"), "65534");
    end(run);
}

#[test]
fn with_redirection_off_they_share_the_port_by_hash() {
    world::enter();
    let run = start("--redirect off", &python(&[IPV4]), 1);
    assert_no_state();
    all_answer(3, || ask(at(IPV4)));
    end(run);
}

#[test]
fn a_command_that_does_not_start_fails_and_leaves_nothing() {
    world::enter();
    for (command, said) in [
        (&["no-such-command"][..], "cannot start no-such-command: No such file"),
        (&["sh", "-c", "exit 3"], "ended with status 3 before it listened on a TCP port"),
        (&["true"], "ended with status 0 before it listened on a TCP port"),
    ] {
        let run = Run::start("--name web -n 1", command);
        let cgroup = format!("overspill-web-{}", run.supervisor.id());
        run.fails(said);
        assert_no_state();
        assert!(!Cgroup::own().unwrap().path().join(cgroup).exists());
    }
}

#[test]
fn a_worker_that_never_listens_is_told_of() {
    world::enter();
    let script = "sleep 5; echo half way >&2; exec sleep 60";
    let run = Run::start("--name web -n 1", &["sh", "-c", script]);
    run.line("half way");
    run.line("has not listened on a TCP port for 10 s");
    end(run);
}

#[test]
fn a_port_that_others_hold_is_not_taken_from_them() {
    world::enter();
    let _holder = TcpListener::bind(at(IPV4)).unwrap();
    // 98 is EADDRINUSE.
    Run::start("--name web -n 1", &python(&[IPV4])).fails("ended with status 98 before it");
    assert_no_state();
}

#[test]
fn a_port_that_others_share_is_served_by_the_workers() {
    world::enter();
    let _holder = Server::start(&format!("reuseport={IPV4}"));
    let run = start("", &python(&[IPV4]), 1);
    // The holder, which accepts nothing, would let some of these wait.
    for _ in 0..30 {
        ask(at(IPV4));
    }
    end(run);
}

#[test]
fn without_cgroup2_it_says_so() {
    world::enter();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    for mount in mounts.lines().filter(|line| line.contains(" - cgroup2 ")) {
        let point = mount.split(' ').nth(4).unwrap();
        assert!(Command::new("umount").args(["--lazy", point]).status().unwrap().success());
    }
    Run::start("--name web -n 1", &python(&[IPV4])).fails("cgroup2");
    assert_no_state();
}

#[test]
fn a_worker_joins_when_a_stopped_writer_lets_it() {
    world::enter();
    let run = start("", &python(&[IPV4]), 1);
    let lock = File::open("/sys/fs/bpf/overspill").unwrap();
    lock.lock().unwrap();
    kill(pids("web")[1]);
    let line = run.line_within(2 * deadline(), "has kept /sys/fs/bpf/overspill locked for ");
    assert!(line.contains(&format!("(kill -CONT {})", std::process::id())), "{line}");
    lock.unlock().unwrap();
    run.line(" listens on ");
    assert!(members("web").iter().all(|member| member.state == MemberState::Active));
    end(run);
}

#[test]
fn a_restart_that_fails_keeps_the_old_workers() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("fit");
    fs::write(&file, "").unwrap();
    let mut command = vec![
        "sh",
        "-c",
        "test -e \"$1\" || exit 3; shift; exec \"$@\"",
        "sh",
        file.to_str().unwrap(),
    ];
    command.extend(python(&[IPV4]));
    let run = start("", &command, 1);
    let old = pids("web");
    fs::remove_file(&file).unwrap();
    let failed = overspill("restart web");
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stderr.contains("ended with status 3 before it was ready"), "{failed:?}");
    assert_eq!(pids("web"), old);
    all_answer(3, || ask(at(IPV4)));
    fs::write(&file, "").unwrap();
    assert_eq!(overspill("restart web").code, Some(0));
    assert!(pids("web").iter().all(|pid| !old.contains(pid)));
    all_answer(3, || ask(at(IPV4)));
    end(run);
}

#[test]
fn starts_after_which_nothing_listens_are_counted() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("listened");
    let once = r#"test ! -e "$1" || exit 3; : > "$1"; shift; exec "$@""#;
    let command = [&["sh", "-c", once, "sh", file.to_str().unwrap()], &*python(&[IPV4])].concat();
    let run = Run::start("--name web -n 1", &command);
    run.line(" listens on ");
    assert_eq!(starts("web"), [1]);
    kill(pids("web")[0]);
    wait_until("it is started again and again", || starts("web")[0] >= 4);
    end(run);
}

#[test]
fn a_new_supervisor_takes_over_from_a_killed_one() {
    world::enter();
    let command = python(&[IPV4]);
    let mut killed = start("", &command, 1);
    let old = pids("web");
    let left = format!("overspill-web-{}", killed.supervisor.id());
    killed.supervisor.kill().unwrap();
    killed.supervisor.wait().unwrap();
    all_answer(3, || ask(at(IPV4)));
    let told = overspill("restart web").failed();
    assert!(told.contains("that was killed; start overspill run --name web again"), "{told}");
    let run = Run::start("--name web -n 3", &command);
    run.line("taking over 3 workers");
    wait_until("all are replaced", || {
        ask(at(IPV4));
        pids("web").iter().all(|pid| !old.contains(pid))
    });
    all_answer(3, || ask(at(IPV4)));
    run.line("done, 3 workers replaced");
    assert_eq!(starts("web"), [2; 3]);
    wait_until("the old ones have ended", || !Cgroup::own().unwrap().path().join(&left).exists());
    end(run);
}

/// The supervisor of the build before cannot publish what changes after the upgrade.
#[test]
fn the_next_build_s_supervisor_takes_over_after_an_upgrade() {
    let next = Version::of_other_layout();
    world::enter();
    let command = python(&[IPV4]);
    let mut killed = start("", &command, 1);
    let old = pids("web");
    assert!(next.run("upgrade").done().contains("1 service"));
    all_answer(3, || ask(at(IPV4)));
    killed.supervisor.kill().unwrap();
    killed.supervisor.wait().unwrap();
    let run = Run::start_by(&next, "--name web -n 3", &command);
    run.line("taking over 3 workers");
    wait_until("all are replaced", || {
        ask(at(IPV4));
        pids("web").iter().all(|pid| !old.contains(pid))
    });
    run.line("done, 3 workers replaced");
    kill(pids("web")[1]);
    run.line(" listens on ");
    all_answer(3, || ask(at(IPV4)));
    end(run);
}

#[test]
fn a_new_supervisor_with_fewer_workers_takes_over_from_a_killed_one() {
    world::enter();
    let command = python(&[IPV4]);
    let mut killed = start("", &command, 1);
    let old = pids("web");
    killed.supervisor.kill().unwrap();
    killed.supervisor.wait().unwrap();
    let run = Run::start("--name web -n 1", &command);
    run.line("taking over 3 workers");
    wait_until("one is left, and it is a new one", || {
        ask(at(IPV4));
        let now = pids("web");
        now.len() == 1 && !old.contains(&now[0])
    });
    run.line("done, 1 worker replaced");
    all_answer(1, || ask(at(IPV4)));
    end(run);
}
