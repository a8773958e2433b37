//! The socket option, called by workers of `overspill run`.

use std::io::Read as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use world::{at, deadline, wait_until};

use crate::run::{Run, assert_no_state, members};

const HELPERS: &str = include_str!("option.py");

/// A worker that runs this script.
pub(crate) fn start(options: &str, script: &str) -> Run {
    let script = format!("{HELPERS}\n{script}\ntime.sleep(60)\n");
    Run::start(&format!("--name web -n 1 {options}"), &["python3", "-c", &script])
}

/// The script tells these, in this order.
#[track_caller]
fn tells(run: &Run, expected: &[&str]) {
    for expected in expected {
        let line = run.line("told:");
        let told = line.split_once("told: ").unwrap().1;
        assert_eq!(told, *expected);
    }
}

fn answer(address: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&at(address), deadline()).unwrap();
    stream.set_read_timeout(Some(deadline())).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn addresses(service: &str) -> Vec<String> {
    members(service).iter().map(|member| member.address.to_string()).collect()
}

#[test]
fn sockets_that_listen_join_in_the_order_given() {
    world::enter();
    let run = start(
        "",
        "
made = [listening((f'10.0.0.{n}', 80)) for n in (1, 2, 3)]
given = [made[2], made[0], made[1]]
numbers = [each.fileno() for each in given]
tell(ask(made[0], 80, numbers))
tell(join(80, given))
tell(*(place(each) for each in given))
tell(join(80, given))
serve(made)
",
    );
    tells(&run, &["EINPROGRESS"]);
    let line = run.line("told:");
    // The first call was on another socket.
    assert!(line.ends_with("told: ok"), "{line}");
    tells(&run, &["0 of web 1 of web 2 of web", "ok"]);
    assert_eq!(addresses("web"), ["10.0.0.3:80", "10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(answer("10.0.0.3:80"), "2");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn sockets_given_before_they_listen_join_when_they_do() {
    world::enter();
    let run = start(
        "",
        "
made = [bound((f'10.0.0.{n}', 80)) for n in (1, 2, 3)]
tell(join(80, made))
tell(*(place(each) for each in made))
for each in (made[2], made[0], made[1]):
    each.listen(16)
for n in (0, 1, 2):
    waits_for(f'{n} of web', lambda: place(made[n]))
serve(made)
",
    );
    tells(&run, &["ok", "ENOENT ENOENT ENOENT", "0 of web", "1 of web", "2 of web"]);
    assert_eq!(addresses("web"), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    assert_eq!(answer("10.0.0.2:80"), "1");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn unbound_sockets_are_bound() {
    world::enter();
    let run = start(
        "",
        "
made = [socket.socket() for _ in range(3)]
tell(join(80, made))
tell(*(f'{host}:{port}' for host, port in (each.getsockname() for each in made)))
for each in made:
    each.listen(16)
waits_for('0 of web', lambda: place(made[0]))
waits_for('2 of web', lambda: place(made[2]))
serve(made)
",
    );
    tells(&run, &["ok", "0.0.0.0:80 0.0.0.0:80 0.0.0.0:80", "0 of web", "2 of web"]);
    assert_eq!(members("web").len(), 3);
    answer("10.0.0.9:80");
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn what_is_wrong_at_once_has_its_errno() {
    world::enter();
    let run = start(
        "--private-port 90",
        "
good = listening(('10.0.0.1', 80))
number = good.fileno()
file = open('/dev/null')
udp = bound(('10.0.0.1', 80), socket.SOCK_DGRAM)
unix = socket.socket(socket.AF_UNIX)
mptcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
elsewhere = bound(('10.0.0.1', 81))
client = socket.create_connection(('10.0.0.1', 80), source_address=('10.0.0.2', 80))
tell(ask_raw(good, b''), ask_raw(good, b'PP'), ask(good, 80, []), ask(good, 0, [number]))
tell(ask(good, 80, [number], 7), ask(good, 80, [number], 9), ask(good, 80, [number], 4096 * 3))
tell(ask(good, 80, [number] * 65), ask(good, 80, [-1]), ask(good, 80, [number, 999999]))
tell(ask(good, 80, [file.fileno()]), ask(good, 90, [number]))
tell(*(ask(good, 80, [bad.fileno()]) for bad in (udp, unix, mptcp, elsewhere, client)))
try:
    good.setsockopt(SOL_OVERSPILL, 2, b'xxxx')
except OSError as error:
    tell(errno.errorcode[error.errno])
tell(place(socket.socket()))
waits_for('0 of web', lambda: place(good))
tell(place(good, 79))
",
    );
    tells(
        &run,
        &[
            "EINVAL EINVAL EINVAL EINVAL",
            "EINVAL EINVAL EINVAL",
            "E2BIG EBADF EBADF",
            "ENOTSOCK EPERM",
            "EPROTONOSUPPORT EPROTONOSUPPORT EPROTONOSUPPORT EINVAL EISCONN",
            "ENOPROTOOPT",
            "ENOENT",
            "0 of web",
            "EINVAL",
        ],
    );
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn what_user_space_finds_is_told_once() {
    world::enter();
    let _other = std::net::TcpListener::bind(at("10.0.0.1:81")).unwrap();
    let run = start(
        "",
        "
good = listening(('10.0.0.1', 80))
tell(join(80, [good, good]))
tell(join(81, [unbound := socket.socket()]), unbound.getsockname()[1])
tell(join(80, [good]))
device = socket.socket()
device.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'lo')
device.bind(('10.0.0.2', 80))
device.listen()
tell(join(80, [device]))
",
    );
    // Python calls EOPNOTSUPP so.
    tells(&run, &["EINVAL", "EADDRINUSE 0", "ok", "ENOTSUP"]);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_process_that_may_not_bind_the_port_is_refused() {
    world::enter();
    let run = start(
        "--user nobody",
        "
high = listening(('10.0.0.1', 8080))
tell(join(80, [socket.socket()]), join(8081, [socket.socket()]))
",
    );
    tells(&run, &["EACCES ok"]);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn elsewhere_there_is_no_such_option() {
    world::enter();
    let script = format!(
        "{HELPERS}\nmade = socket.socket()\ntell(ask(made, 80, [made.fileno()]), place(made))"
    );
    let output = Command::new("python3").args(["-c", &script]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, "told: ENOPROTOOPT ENOTSUP\n");
}

#[test]
fn many_call_at_once() {
    world::enter();
    let run = start(
        "",
        "
first = listening(('10.0.0.1', 80))
made = [[listening((f'10.0.{t}.{n + 1}', 80)) for n in range(4)] for t in range(1, 17)]
results = []
def call(sockets):
    results.append(join(80, sockets))
    results.append(join(80, [first]))
threads = [threading.Thread(target=call, args=(sockets,)) for sockets in made]
for each in threads: each.start()
for each in threads: each.join()
tell(*sorted(set(results)), len(results))
tell(len({place(each) for sockets in made for each in sockets}))
together = [int(place(each).split()[0]) for each in made[7]]
tell(together == sorted(together))
",
    );
    tells(&run, &["ok 32", "64", "True"]);
    assert_eq!(members("web").len(), 65);
    run.ends_at(Signal::SIGTERM);
}

/// The supervisor lets it join again, and it stands where its server has asked it to.
#[test]
fn a_member_taken_out_comes_back_to_its_place() {
    world::enter();
    let run = start(
        "",
        "
made = [listening((f'10.0.0.{n}', 80)) for n in (1, 2)]
tell(join(80, made))
waits_for('0 of web', lambda: place(made[0]))
waits_for('1 of web', lambda: place(made[1]))
",
    );
    tells(&run, &["ok", "0 of web", "1 of web"]);
    crate::tool::overspill("rm web 0 --force").done();
    wait_until("it is back", || {
        let ids: Vec<u32> = members("web").iter().map(|member| member.member.0).collect();
        ids == [2, 1]
    });
    run.ends_at(Signal::SIGTERM);
}

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The example serves on three addresses, and a full one is helped.
fn serves(command: &[&str]) {
    let run = Run::start("--name web -n 1", command);
    wait_until("three are members", || {
        overspill::Service::open("web").is_ok_and(|it| it.status().unwrap().members.len() == 3)
    });
    for number in 0..3 {
        assert_eq!(answer(&format!("127.0.0.{}:8080", number + 1)), format!("{number}\n"));
    }
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(!lines.iter().any(|line| line.contains("cannot")), "{lines:#?}");
    assert_no_state();
}

#[test]
fn the_example_in_c() {
    world::enter();
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("masterslave");
    let flags =
        ["-std=c99", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Iinclude"];
    let built = Command::new("cc")
        .current_dir(root())
        .args(flags)
        .args(["-o", binary.to_str().unwrap(), "examples/masterslave.c"])
        .status()
        .unwrap();
    assert!(built.success());
    serves(&[binary.to_str().unwrap(), "8080"]);
    // The header is one for C++ as well.
    let source = folder.path().join("it.cc");
    std::fs::write(
        &source,
        "#include <overspill.h>\nint main() { return overspill_length(1) != 8; }\n",
    )
    .unwrap();
    let built = Command::new("c++")
        .current_dir(root())
        .args(["-Wall", "-Wextra", "-Werror", "-Iinclude", "-o", binary.to_str().unwrap()])
        .arg(&source)
        .status()
        .unwrap();
    assert!(built.success() && Command::new(&binary).status().unwrap().success());
}

#[test]
fn the_example_in_python() {
    world::enter();
    let script = root().join("examples/masterslave.py");
    serves(&["python3", script.to_str().unwrap(), "8080"]);
}

#[test]
fn the_example_in_rust() {
    world::enter();
    let folder = tempfile::tempdir().unwrap();
    let target = Path::new(env!("CARGO_BIN_EXE_overspill")).parent().unwrap().parent().unwrap();
    // With what the build of these tests has made.
    let built = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["build", "--quiet", "--offline", "--example", "masterslave", "--target-dir"])
        .arg(target)
        .status()
        .unwrap();
    assert!(built.success());
    let binary = target.join("debug/examples/masterslave");
    drop(folder);
    serves(&[binary.to_str().unwrap(), "8080"]);
}
