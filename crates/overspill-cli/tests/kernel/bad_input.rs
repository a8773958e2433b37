//! What can't be done is refused with one line that says what, why and what to do, and
//! changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use overspill::Namespace;

use crate::server::{Server, add_namespace};
use crate::tool::{Ran, cells, overspill};

/// A service beside which everything goes wrong.
struct Bystander {
    server: Server,
    before: String,
}

impl Bystander {
    /// `good`, with two members on port 1000.
    fn new(options: &str) -> Self {
        let server = Server::start("tcp=10.9.0.1:1000 tcp=10.9.0.2:1000");
        overspill(&format!("share good --pid {} --port 1000{options}", server.pid())).done();
        Self { server, before: overspill("show good --json").done() }
    }

    fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The arguments are refused with a line that has these parts in this order.
    #[track_caller]
    fn refuses(&self, arguments: &str, parts: &[&str]) {
        self.is_refused(overspill(arguments), parts);
    }

    #[track_caller]
    fn is_refused(&self, ran: Ran, parts: &[&str]) {
        let line = ran.failed();
        let mut rest = line.as_str();
        for part in parts {
            let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part:?}: {line}"));
            rest = after;
        }
        assert_eq!(overspill("show good --json").done(), self.before);
        assert_eq!(cells(&overspill("ls --all").done()).len(), 2, "only good is there");
    }
}

#[test]
fn sockets_that_cannot_be_members() {
    world::enter();
    let good = Bystander::new("");
    let cases: [(&str, &[&str]); 6] = [
        ("tcp=10.0.0.1:81", &["(python", "no TCP socket", "port 80", "10.0.0.1:81", "ss -ltnp"]),
        ("udp=10.0.0.1:80", &["no TCP socket", "10.0.0.1:80 is a UDP socket", "ss -ltnp"]),
        ("unix=socket", &["no TCP socket that listens on port 80", "ss -ltnp"]),
        ("bound=10.0.0.1:80", &["no TCP socket", "10.0.0.1:80 does not listen", "ss -ltnp"]),
        ("device=10.0.0.1:80", &["10.0.0.1:80 is bound to the device lo", "address of the device"]),
        ("mptcp=10.0.0.1:80", &["10.0.0.1:80 is an MPTCP socket", "GODEBUG=multipathtcp=0"]),
    ];
    for (sockets, parts) in cases {
        let server = Server::start(sockets);
        good.refuses(&format!("share web --pid {} --port 80", server.pid()), parts);
    }
    // An unfit socket beside a fit one of the same process spoils it all,
    for (unfit, what) in [("mptcp", "is an MPTCP socket"), ("device", "is bound to the device lo")]
    {
        for (first, second) in [(unfit, "tcp"), ("tcp", unfit)] {
            let server = Server::start(&format!("{first}=10.0.0.1:80 {second}=10.0.0.2:80"));
            let address = if first == unfit { "10.0.0.1:80" } else { "10.0.0.2:80" };
            for command in ["share web --pid", "share good --join --pid"] {
                let arguments = format!("{command} {} --port 80", server.pid());
                good.refuses(&arguments, &[address, what, "; "]);
            }
        }
    }
    // but none on another port, or that does not listen, or is not TCP;
    let others = "tcp=10.0.0.1:80 mptcp=10.0.0.2:81 bound=10.0.0.3:80 udp=10.0.0.4:80";
    let server = Server::start(others);
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    overspill("rm web").done();
    drop(server);
    // and one unfit process among fit ones does.
    let (fit, unfit) = (Server::start("tcp=10.0.0.1:80"), Server::start("udp=10.0.0.2:80"));
    let pids = format!("{},{}", fit.pid(), unfit.pid());
    good.refuses(&format!("share web --pid {pids} --port 80"), &[&unfit.pid().to_string(), "UDP"]);
}

#[test]
fn sockets_that_are_members_already() {
    world::enter();
    let good = Bystander::new("");
    let pid = good.pid();
    let member = &["10.9.0.1:1000 is already a member of service good", "(overspill rm good 0)"];
    good.refuses(&format!("share web --pid {pid} --port 1000"), member);
    good.refuses(&format!("share good --pid {pid} --port 1000 --join"), member);
    let rival = Server::start("tcp=0.0.0.0:1001 tcp=0.0.0.0:80");
    let port = &["listens on port 80, the service on 1000", "one service for each port"];
    good.refuses(&format!("share good --pid {} --port 80 --join", rival.pid()), port);
    let port = &["listens on port 80, the service on 81", "one service for each port"];
    good.refuses(&format!("share web:81 --pid {} --port 80", rival.pid()), port);
}

/// What is to be typed is what it says.
#[test]
fn the_only_member_already() {
    world::enter();
    add_namespace("blue");
    for (netns, option) in [(None, ""), (Some("/run/netns/blue"), " --netns ")] {
        let sockets = "tcp=0.0.0.0:80";
        let server =
            netns.map_or_else(|| Server::start(sockets), |at| Server::start_in(at, sockets));
        let share = |name| overspill(&format!("share {name} --pid {} --port 80", server.pid()));
        share("one").done();
        let line = share("two").failed();
        let (_, remedy) = line.split_once("remove that service first (overspill ").unwrap();
        let remedy = remedy.strip_suffix(')').unwrap();
        assert!(remedy.starts_with(&format!("rm one{option}")), "{line}");
        overspill(remedy).done();
        share("two").done();
        overspill(&remedy.replace("one", "two")).done();
    }
}

#[test]
fn an_address_that_another_service_serves() {
    world::enter();
    let servers = ["one", "two"].map(|_| Server::start("reuseport=10.0.0.1:80"));
    let [one, two] = servers.each_ref().map(Server::pid);
    overspill(&format!("share one --pid {one} --port 80")).done();
    let before = overspill("show one --json").done();
    let line = overspill(&format!("share two --pid {two} --port 80")).failed();
    assert!(line.contains("10.0.0.1:80 is served by service one; let the socket join"), "{line}");
    assert_eq!(overspill("show one --json").done(), before);
    overspill(&format!("share one --pid {two} --port 80 --join")).done();
}

#[test]
fn processes_that_are_not_there() {
    world::enter();
    let good = Bystander::new("");
    let ended = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    let parts: &[&str] = &["there is no process", &ended.to_string(), "ps or ss -ltnp"];
    good.refuses(&format!("share web --pid {ended} --port 80"), parts);
    let server = Server::start("tcp=10.0.0.1:80");
    good.refuses(&format!("share web --pid {},{ended} --port 80", server.pid()), parts);

    let mut unreaped = Command::new("true").spawn().unwrap();
    let pid = unreaped.id();
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    world::wait_until("it has ended", || state().contains(") Z "));
    let parts = [&format!("there is no process {pid}"), "ps or ss -ltnp"];
    good.refuses(&format!("share web --pid {pid} --port 80"), &parts);
    unreaped.wait().unwrap();
    // A thread's number leads to a folder in /proc, and is no process's.
    let ask = || {
        let thread = nix::unistd::gettid();
        let parts = [&format!("there is no process {thread}"), "ps or ss -ltnp"];
        good.refuses(&format!("share web --pid {thread} --port 80"), &parts);
    };
    std::thread::scope(|scope| scope.spawn(ask).join().unwrap());
}

#[test]
fn names_members_and_namespaces_that_are_not_there() {
    world::enter();
    let good = Bystander::new("");
    let server = Server::start("tcp=10.0.0.1:80");
    let pid = server.pid();
    let taken = &["the name good is taken", "choose another name", "--join", "overspill rm"];
    good.refuses(&format!("share good --pid {pid} --port 80"), taken);
    for arguments in ["show god", "set god --redirect off", "drain god 0", "resume god 0", "rm god"]
    {
        good.refuses(arguments, &["there is no service god", "there is good", "overspill ls"]);
    }
    good.refuses(&format!("share god --pid {pid} --port 80 --join"), &["there is no service god"]);
    for arguments in ["drain good 2", "resume good 2", "rm good 2"] {
        good.refuses(arguments, &["service good has no member 2", "it has 0, 1"]);
    }
    let nowhere = &["/run/netns/nowhere", "No such file", "ip netns"];
    good.refuses("ls --netns nowhere", nowhere);
    good.refuses("rm good --netns nowhere", nowhere);
    good.refuses("ls --netns /etc/passwd", &["/etc/passwd", "not a namespace", "ip netns"]);
    for arguments in ["ls --netns 5", "show good --netns 5", "rm good --netns 5"] {
        good.refuses(arguments, &["there is no network namespace 5", "lsns -t net"]);
    }
    // One without services is there all the same, by its name alone too.
    add_namespace("blue");
    let blue = Namespace::at("/run/netns/blue").unwrap().inode();
    assert_eq!(cells(&overspill(&format!("ls --netns {blue}")).done()).len(), 1);
    good.refuses(&format!("show good --netns {blue}"), &["there is no service good", "--netns"]);
    good.refuses("ls --netns bleu", &["/run/netns/bleu", "No such file", "; there is blue; "]);
    good.refuses("run --user rot -- true", &["there is no user rot; there is root; ", "getent"]);
}

#[test]
fn the_last_member_stays() {
    world::enter();
    let good = Bystander::new("");
    let server = Server::start("tcp=10.0.0.1:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    let line = overspill("rm web 0").failed();
    assert!(line.contains("web would be left without members; remove the service"), "{line}");
    overspill("rm web").done();
    assert_eq!(overspill("show good --json").done(), good.before);
}

#[test]
fn over_capacity() {
    world::enter();
    let good = Bystander::new(" --capacity 2,4");
    let three = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80 tcp=10.0.0.3:80");
    let members = &["members over capacity: 5 wanted, 4 possible", "--capacity"];
    good.refuses(&format!("share web --pid {} --port 80", three.pid()), members);
    let one = Server::start("tcp=10.0.0.1:81 tcp=10.0.0.1:82");
    overspill(&format!("share one --pid {} --port 81", one.pid())).done();
    let line = overspill(&format!("share two --pid {} --port 82", one.pid())).failed();
    assert!(line.contains("services over capacity: 3 wanted, 2 possible"), "{line}");
    overspill("rm one").done();
    let other = &["capacity", "set up for 2 services and 4 members", "last service is removed"];
    good.refuses(&format!("share two --pid {} --port 82 --capacity 9,9", one.pid()), other);
}

#[test]
fn check_tells_of_what_a_killed_writer_has_left() {
    world::enter();
    let half = format!("/sys/fs/bpf/overspill/new-{}", Namespace::current().unwrap().inode());
    fs::create_dir_all(&half).unwrap();
    let report = overspill("check").done();
    assert!(report.contains(&format!("{half}: incomplete state")), "{report}");
    assert!(report.contains("-> the next change of any service, or overspill upgrade"), "{report}");
    let good = Bystander::new("");
    let report = overspill("check").done();
    assert!(!report.contains(&half), "{report}");
    assert_eq!(overspill("show good --json").done(), good.before);
}

#[test]
fn a_failed_first_service_leaves_nothing_behind() {
    world::enter();
    // The first of two services alone finds room as well: it is taken away again.
    for sockets in ["tcp=10.0.0.1:80 tcp=10.0.0.2:80", "tcp=10.0.0.1:80 tcp=[fd00::1]:80"] {
        let server = Server::start(sockets);
        let share = format!("share web --pid {} --port 80 --capacity 1,1", server.pid());
        overspill(&share).failed();
        assert!(!std::path::Path::new("/sys/fs/bpf/overspill").exists(), "{sockets}");
    }
}

/// The binary where everybody may run it.
pub(crate) fn public_copy() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("overspill");
    fs::copy(env!("CARGO_BIN_EXE_overspill"), &copy).unwrap();
    (folder, copy)
}

#[test]
fn without_privilege() {
    world::enter();
    let good = Bystander::new("");
    let server = Server::start("tcp=10.0.0.1:80");
    let share = format!("share web --pid {} --port 80", server.pid());
    let (_folder, copy) = public_copy();
    let nobody: &[&str] = &["--reuid=65534", "--regid=65534", "--clear-groups"];
    let bare_root: &[&str] = &["--bounding-set=-all", "--inh-caps=-all"];
    for options in [nobody, bare_root] {
        let run = |arguments: &str| {
            let mut command = Command::new("setpriv");
            command.args(options).arg(&copy).args(arguments.split(' '));
            Ran::from(command.output().unwrap())
        };
        for arguments in [
            share.as_str(),
            "ls",
            "ls --all",
            "show good",
            "set good --redirect off",
            "drain good 0",
            "resume good 0",
            "rm good 0",
            "rm good",
        ] {
            good.is_refused(run(arguments), &["no permission to", "run as root", "CAP_SYS_ADMIN"]);
        }
        let check = run("check");
        assert_eq!(check.code, Some(1));
        assert!(check.stdout.contains("missing  CAP_NET_ADMIN"), "{}", check.stdout);
        assert!(check.complaint().contains("CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"));
    }
}

/// Run by a user who has these capabilities and no others.
fn as_nobody_with(capabilities: &str, copy: &Path, arguments: &str) -> Ran {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    for set in ["bounding-set", "inh-caps", "ambient-caps"] {
        command.arg(format!("--{set}=-all,{capabilities}"));
    }
    Ran::from(command.arg(copy).args(arguments.split(' ')).output().unwrap())
}

/// What the message names is what is lacking, and what suffices.
#[test]
fn what_root_has_made_takes_a_capability_of_its_own() {
    world::enter();
    let good = Bystander::new("");
    let (_folder, copy) = public_copy();
    for arguments in ["ls", "show good", "resume good 0"] {
        let named = "with CAP_DAC_OVERRIDE too where another user has made the state";
        let all_others = "+net_admin,+sys_admin,+sys_ptrace,+dac_read_search";
        good.is_refused(as_nobody_with(all_others, &copy, arguments), &[named]);
        as_nobody_with("+sys_admin,+dac_override", &copy, arguments).done();
    }
    let check = as_nobody_with("+net_admin,+sys_admin", &copy, "check").done();
    assert!(check.contains("note     CAP_DAC_OVERRIDE"), "{check}");
}

/// With what README asks for, and no more, another user than root does it all.
#[test]
fn the_documented_capabilities_suffice() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80");
    let (folder, copy) = public_copy();
    let dispatcher = crate::dispatcher::compile("canary", folder.path());
    let documented = "+bpf,+perfmon,+net_admin,+sys_admin,+sys_ptrace,+dac_read_search";
    let run = |arguments: &str| as_nobody_with(documented, &copy, arguments);
    run("check").done();
    run(&format!("share web --pid {} --port 80", server.pid())).done();
    let ask = format!("set web --policy dispatcher={dispatcher}");
    for arguments in
        ["drain web 0", "resume web 0", &ask, "show web", "set web --redirect off", "rm web 0"]
    {
        run(arguments).done();
    }
    let shown = run("show web --json").done();
    assert_eq!(shown, overspill("show web --json").done(), "root may look");
    for arguments in ["drain web 1", "rm web"] {
        let line = overspill(arguments).failed();
        let whose = "the state in /sys/fs/bpf/overspill belongs to user 65534; do it as that user";
        assert!(line.contains(whose), "{line}");
    }
    run("rm web").done();
    assert!(!std::path::Path::new("/sys/fs/bpf/overspill").exists());
}

/// Each capability by itself: what can't be done without it is refused for want of
/// permission, and for nothing else.
#[test]
fn without_one_capability() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80");
    let share = format!("share web --pid {} --port 80", server.pid());
    for capability in ["net_admin", "sys_admin", "sys_ptrace"] {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", &format!("-{capability}")]);
        command.arg(env!("CARGO_BIN_EXE_overspill")).args(share.split(' '));
        let line = Ran::from(command.output().unwrap()).failed();
        assert!(line.contains("no permission to") && line.contains("run as root"), "{line}");
        assert!(!std::path::Path::new("/sys/fs/bpf/overspill").exists(), "{capability}");
    }
}

#[test]
fn without_a_bpf_file_system() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80");
    assert!(Command::new("umount").args(["-a", "-t", "bpf"]).status().unwrap().success());
    let share = format!("share web --pid {} --port 80", server.pid());
    for arguments in [&share, "ls", "ls --all", "show web", "rm web"] {
        let line = overspill(arguments).failed();
        let expected =
            "no BPF file system is mounted; mount it: mount -t bpf -o mode=700 bpf /sys/fs/bpf";
        assert!(line.contains(expected), "{line}");
    }
    let check = overspill("check");
    assert_eq!(check.code, Some(1));
    assert!(check.complaint().ends_with("missing: bpffs; each comes with what to do about it"));
}

#[test]
fn a_bpf_file_system_that_is_read_only() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80");
    let remount = ["-o", "remount,ro", "/sys/fs/bpf"];
    assert!(Command::new("mount").args(remount).status().unwrap().success());
    let line = overspill(&format!("share web --pid {} --port 80", server.pid())).failed();
    assert!(line.contains("/sys/fs/bpf/overspill: Read-only file system"), "{line}");
    assert!(line.ends_with("; mount it writable (mount -o remount,rw)"), "{line}");
}

/// A kernel without BTF is one that does not show it.
#[test]
fn without_btf() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80");
    let hide = ["-t", "tmpfs", "none", "/sys/kernel/btf"];
    assert!(Command::new("mount").args(hide).status().unwrap().success());
    let line = overspill(&format!("share web --pid {} --port 80", server.pid())).failed();
    let expected = "this kernel has no BTF (/sys/kernel/btf/vmlinux); use a kernel built with";
    assert!(line.contains(expected), "{line}");
    assert!(!std::path::Path::new("/sys/fs/bpf/overspill").exists());
    assert_eq!(overspill("check").code, Some(1));
}

/// Overwrites one byte of the state's description, as another version might have
/// written it; gives what it was.
fn overwrite(offset: usize, byte: u8) -> u8 {
    let inode = Namespace::current().unwrap().inode();
    let map = MapHandle::from_pinned_path(format!("/sys/fs/bpf/overspill/{inode}/state")).unwrap();
    let mut state = map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
    let before = std::mem::replace(&mut state[offset], byte);
    map.update(&0_u32.to_ne_bytes(), &state, MapFlags::ANY).unwrap();
    before
}

#[test]
fn a_state_of_another_build_is_said_to_be_one() {
    world::enter();
    let _good = Bystander::new("");
    overwrite(std::mem::offset_of!(State, build), 0);
    let report = overspill("check").done();
    assert!(
        report.contains("note     services") && report.contains(", of overspill 0"),
        "{report}"
    );
    assert!(report.contains("-> run overspill upgrade to switch to this version"), "{report}");
    overspill("set good --redirect off").done();
    let line = overspill("upgrade").done();
    assert!(
        line.starts_with("1 service in network namespace ") && line.contains(": upgraded from 0"),
        "{line}"
    );
    let line = overspill("upgrade").done();
    assert!(line.ends_with(": already at this version\n"), "{line}");
    assert!(overspill("check").done().contains(", of this build"));
}

#[test]
fn a_state_of_another_layout_is_left_alone() {
    world::enter();
    let good = Bystander::new("");
    let own = overwrite(std::mem::offset_of!(State, layout), 200);
    let share = format!("share new --pid {} --port 1000", good.pid());
    let join = format!("share good --pid {} --port 1000 --join", good.pid());
    for arguments in [&join, &share, "set good --redirect off", "rm good 0", "trace"] {
        let parts =
            &["/sys/fs/bpf/overspill/", "has layout 200 (overspill 0", "; run overspill upgrade"];
        good.refuses(arguments, parts);
    }
    overwrite(std::mem::offset_of!(State, layout), own);
    assert_eq!(overspill("show good --json").done(), good.before);
}

#[test]
fn a_state_from_before_upgrades_is_not_even_read() {
    world::enter();
    let good = Bystander::new("");
    let own = overwrite(std::mem::offset_of!(State, layout), 7);
    for arguments in
        ["ls", "ls --all", "show good", "set good --redirect off", "rm good", "upgrade"]
    {
        let line = overspill(arguments).failed();
        assert!(line.contains("has layout 7") && line.contains("use that version"), "{line}");
    }
    // What can be listed is listed all the same.
    add_namespace("blue");
    let other = Server::start_in("/run/netns/blue", "tcp=0.0.0.0:80");
    overspill(&format!("share other --pid {} --port 80", other.pid())).done();
    let ran = overspill("ls --all");
    assert_eq!((ran.code, cells(&ran.stdout)[1][0]), (Some(1), "other"));
    assert!(ran.complaint().contains("has layout 7"));
    let ran = overspill("upgrade");
    assert!(ran.stdout.ends_with("already at this version\n"), "{ran:?}");
    assert!(ran.complaint().contains("has layout 7"));
    overwrite(std::mem::offset_of!(State, layout), own);
    assert_eq!(overspill("show good --json").done(), good.before);
}

/// `struct ov_state` in `bpf/overspill.h`, as far as it matters here.
#[repr(C)]
struct State {
    layout: u32,
    rest: [u32; 3],
    tag: [u8; 8],
    build: [u8; 32],
}
