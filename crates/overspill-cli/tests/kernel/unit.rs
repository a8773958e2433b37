//! The systemd unit: its capabilities are those that are needed, and what else it closes
//! keeps nothing from working.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use overspill::Cgroup;
use tempfile::TempDir;
use world::{at, wait_until};

use crate::run::{Run, WORKER, ask, assert_no_state, pid};
use crate::server::{Server, get};
use crate::tool::{Ran, overspill};

const UNIT: &str = include_str!("../../../../dist/systemd/overspill@.service");
const EXPORTER: &str = include_str!("../../../../dist/systemd/overspill-metrics.service");
const ALLOW: &str = include_str!("../../../../dist/systemd/overspill-allow@.service");
/// The units that the package has.
const UNITS: [(&str, &str); 3] = [
    ("overspill@.service", UNIT),
    ("overspill-allow@.service", ALLOW),
    ("overspill-metrics.service", EXPORTER),
];
const OVERSPILL: &str = env!("CARGO_BIN_EXE_overspill");

/// A control group as systemd gives one to a unit; what is left in it in the end is killed.
struct Slot(Cgroup);

impl Slot {
    fn new(name: &str) -> Self {
        let name = format!("overspill-test-{name}-{}", std::process::id());
        Self(Cgroup::own().unwrap().make(&name).unwrap())
    }

    /// A command that is run in it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        let enter = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        command.args(["-c", enter]).arg(self.0.path()).arg(program);
        command
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let start = std::time::Instant::now();
        while self.0.remove().is_err() && start.elapsed() < world::deadline() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The capabilities that the unit names.
fn capabilities() -> Vec<&'static str> {
    let lines = UNIT.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    lines.flat_map(str::split_whitespace).collect()
}

/// The two kinds of services, of a user without privilege: servers that make their sockets,
/// and use their stdout by its name, and workers that get theirs, at a low port.
struct Files {
    _folder: TempDir,
    unchanged: PathBuf,
    handed_over: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let python = include_str!("unchanged.py");
        let unchanged = write(
            "unchanged.toml",
            format!(
                "workers = 1\nuser = 'nobody'\ngrace = 1\ncommand = ['sh', '-c', 'echo up > \
                 /dev/stdout; exec python3 -c \"$0\" 10.0.0.1:8080', '''{python}''']"
            ),
        );
        let [program, option, script] = WORKER;
        let handed_over = write(
            "handed.toml",
            format!(
                "workers = 1\nuser = 'nobody'\nlisten = '10.0.0.2:80'\n\
                 command = ['{program}', '{option}', '''{script}''']"
            ),
        );
        Self { _folder: folder, unchanged, handed_over }
    }
}

/// overspill run with these capabilities, as root without any other.
fn start(slot: &Slot, capabilities: &[&str], file: &Path) -> Run {
    let set: Vec<String> = capabilities
        .iter()
        .map(|name| format!("+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
        .collect();
    let mut command = slot.command("setpriv");
    command
        .args(["--bounding-set", &format!("-all,{}", set.join(","))])
        .args(["--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"])
        .args(["env", "--default-signal", OVERSPILL, "run", "--config"])
        .arg(file)
        .stdout(Stdio::null());
    Run::watch(command)
}

#[test]
fn it_works_with_the_units_capabilities() {
    world::enter();
    let slot = Slot::new("all");
    let files = Files::new();
    let run = start(&slot, &capabilities(), &files.unchanged);
    run.line("member 0 of unchanged");
    assert_eq!(get(at("10.0.0.1:8080"), "/uid"), "65534");
    run.signal(Signal::SIGHUP);
    run.line("restart: done, 1 worker replaced");
    assert_eq!(get(at("10.0.0.1:8080"), "/uid"), "65534");
    let lines = run.ends_at(Signal::SIGTERM);
    assert!(!lines.iter().any(|line| line.contains("killing")), "{lines:#?}");

    let run = start(&slot, &capabilities(), &files.handed_over);
    run.line("service handed");
    let first = pid(&ask("10.0.0.2:80"));
    run.signal(Signal::SIGHUP);
    run.line(&format!("worker 0 (pid {first}) was ended by SIGTERM"));
    assert_eq!(ask("10.0.0.2:80")["ids"][0], 65534);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn with_any_capability_less_it_does_not() {
    world::enter();
    let slot = Slot::new("less");
    let files = Files::new();
    let (unchanged, handed_over) = (&files.unchanged, &files.handed_over);
    // What is missed without it; the last ones only when the worker is told to end.
    let missed = [
        ("CAP_SYS_ADMIN", unchanged, "no permission to load the hooks"),
        ("CAP_NET_ADMIN", unchanged, "no permission to find the network namespace of socket"),
        ("CAP_DAC_READ_SEARCH", unchanged, "no permission to read the descriptors of process"),
        // Its socket can't be taken: to overspill it is as if there were none.
        ("CAP_SYS_PTRACE", unchanged, "has not listened on a TCP port"),
        ("CAP_NET_BIND_SERVICE", handed_over, "no permission to bind to 10.0.0.2:80"),
        ("CAP_SETUID", handed_over, "cannot become user nobody"),
        ("CAP_SETGID", handed_over, "cannot become user nobody"),
        ("CAP_KILL", unchanged, "1 s are over: killing 1 worker"),
        ("CAP_CHOWN", unchanged, ""),
    ];
    let mut named = capabilities();
    named.sort_unstable();
    let mut known = missed.map(|(name, ..)| name);
    known.sort_unstable();
    assert_eq!(named, known, "each has its reason");
    for (name, file, line) in missed {
        println!("without {name}");
        let rest: Vec<&str> = named.iter().copied().filter(|&it| it != name).collect();
        let run = start(&slot, &rest, file);
        match name {
            "CAP_KILL" => {
                run.line("member 0 of unchanged");
                let lines = run.ends_at(Signal::SIGTERM);
                assert!(lines.iter().any(|it| it.contains(line)), "{lines:#?}");
            }
            "CAP_CHOWN" => {
                let complaint = run.line("/dev/stdout");
                assert!(complaint.contains("Permission denied"), "{complaint}");
                run.ends_at(Signal::SIGTERM);
            }
            _ => drop(run.line_within(Duration::from_secs(20), line)),
        }
    }
}

/// systemd, as the first process of namespaces of its own, with no units but our own.
struct Systemd {
    _slot: Slot,
    outer: Child,
    /// The pid of its first process here.
    pid: String,
    folder: TempDir,
}

/// Becomes it; $1 is a folder with units and programs. All else is closed to it: as a first
/// process it would set the machine's limits.
const BOOT: &str = r#"
    mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /etc/systemd &&
    mount -t cgroup2 none /sys/fs/cgroup && mount --bind "$1" /mnt &&
    mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /var/tmp &&
    mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys &&
    mount -o remount,bind,ro / &&
    exec env -i container=other PATH="$PATH" SYSTEMD_UNIT_PATH=/mnt/units \
        /lib/systemd/systemd --system --unit=none.target --log-target=null --show-status=0"#;

impl Systemd {
    /// Boots it with the units, but for where their program and their files lie, in
    /// a control group with that name.
    fn boot(slot: &str) -> Self {
        let slot = Slot::new(slot);
        let folder = tempfile::tempdir().unwrap();
        let units = folder.path().join("units");
        fs::create_dir(&units).unwrap();
        for (name, unit) in UNITS {
            let unit = unit
                .replace("/usr/bin/overspill", "/mnt/overspill")
                .replace("/etc/overspill/", "/mnt/")
                .replace("/etc/default/", "/mnt/");
            fs::write(units.join(name), unit).unwrap();
        }
        for target in ["none", "sysinit", "basic", "shutdown", "network-online", "multi-user"] {
            let text = "[Unit]\nDefaultDependencies=no\n";
            fs::write(units.join(format!("{target}.target")), text).unwrap();
        }
        fs::copy(OVERSPILL, folder.path().join("overspill")).unwrap();
        let outer = slot
            .command("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--cgroup", "--ipc", "--uts"])
            .args(["--propagation", "private", "sh", "-c", BOOT, "sh"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let pid = || fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
        wait_until("its first process runs", || !pid().is_empty());
        let systemd = Self { pid: pid(), _slot: slot, outer, folder };
        wait_until("systemd is up", || {
            systemd.systemctl("is-system-running").stdout == "running\n"
        });
        systemd
    }

    fn run(&self, command: &str) -> Ran {
        let mut inside = Command::new("nsenter");
        inside.args(["-t", &self.pid, "-m", "-p", "-C", "-u", "-i"]).args(command.split(' '));
        Ran::from(inside.output().unwrap())
    }

    fn systemctl(&self, arguments: &str) -> Ran {
        self.run(&format!("systemctl --no-pager {arguments}"))
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // With its first process the kernel ends all of that namespace.
        let _ = Command::new("kill").args(["-KILL", &self.pid]).status();
        let _ = self.outer.wait();
    }
}

#[test]
fn systemd_starts_reloads_and_ends_it() {
    world::enter();
    let systemd = Systemd::boot("workers");
    let file = systemd.folder.path().join("web.toml");
    let [program, option, script, address] =
        ["python3", "-c", include_str!("unchanged.py"), "10.0.0.1:80"];
    let write = |first: &str| {
        let command = format!("command = ['{program}', '{option}', '''{script}''', '{address}']");
        fs::write(&file, format!("{first}\nworkers = 2\n{command}\n")).unwrap();
    };
    write("policy = 'round-robin'");
    let started = systemd.systemctl("start overspill@web");
    assert_eq!(
        started.code,
        Some(0),
        "{started:?}\n{}",
        systemd.systemctl("status overspill@web").stdout
    );
    // It has started when both listen.
    let shown = || systemd.run("/mnt/overspill show web --json").done();
    let web = || serde_json::from_str::<serde_json::Value>(&shown()).unwrap();
    let pids = || -> Vec<u64> {
        web()["members"].as_array().unwrap().iter().map(|it| it["pid"].as_u64().unwrap()).collect()
    };
    let before = pids();
    assert_eq!((before.len(), &web()["policy"]), (2, &"round-robin".into()));
    assert!(["0", "1"].contains(&&*get(at(address), "/")));

    write("policy = 'shortest-queue'");
    systemd.systemctl("reload overspill@web").done();
    let after = pids();
    assert_eq!(web()["policy"], "shortest-queue");
    assert!(after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
    assert!(["0", "1"].contains(&&*get(at(address), "/")));

    write("polcy = 'shortest-queue'");
    assert_eq!(systemd.systemctl("reload overspill@web").code, Some(1));
    assert_eq!(systemd.systemctl("is-active overspill@web").stdout, "active\n");
    assert_eq!(pids(), after);

    systemd.systemctl("stop overspill@web").done();
    assert_no_state();
    // A wrong file is not tried again and again.
    assert_eq!(systemd.systemctl("start overspill@web").code, Some(1));
    let told = systemd.systemctl("show -P Result -P NRestarts -P ExecMainStatus overspill@web");
    assert_eq!(told.stdout.split_whitespace().collect::<Vec<_>>(), ["exit-code", "0", "2"]);
    assert_eq!(systemd.systemctl("is-failed overspill@web").stdout, "failed\n");
}

/// Started before one of its peers, and after the other; they are restarted.
#[test]
fn systemd_starts_allow_before_and_after_its_peers() {
    world::enter();
    let systemd = Systemd::boot("peers");
    let folder = systemd.folder.path();
    fs::write(folder.join("server.py"), include_str!("unchanged.py")).unwrap();
    for name in ["blue", "green"] {
        let unit = "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\n\
                    Environment=OVERSPILL_WORKER=0\n\
                    ExecStart=/usr/bin/python3 /mnt/server.py 10.0.0.1:80\n";
        fs::write(folder.join(format!("units/{name}.service")), unit).unwrap();
    }
    let arguments = "ARGS=--unit blue --unit green --port 80\n";
    fs::write(folder.join("overspill-allow-web"), arguments).unwrap();
    systemd.systemctl("daemon-reload").done();
    let pids = || {
        let Ok(service) = overspill::Service::open("web") else { return Vec::new() };
        let members = service.status().unwrap().members;
        let open = members.iter().filter(|it| it.state != overspill::MemberState::Gone);
        open.map(|it| it.pid).collect::<Vec<_>>()
    };
    systemd.systemctl("start blue").done();
    wait_until("blue listens", || TcpStream::connect("10.0.0.1:80").is_ok());
    systemd.systemctl("start overspill-allow@web").done();
    wait_until("blue is a member", || pids().len() == 1);
    systemd.systemctl("start green").done();
    wait_until("green is a member", || pids().len() == 2);
    for _ in 0..5 {
        for name in ["blue", "green"] {
            let before = pids();
            systemd.systemctl(&format!("restart {name}")).done();
            wait_until("it is a member again", || {
                let now = pids();
                now.len() == 2 && now.iter().filter(|pid| before.contains(pid)).count() == 1
            });
            get(at("10.0.0.1:80"), "/");
        }
    }
    let failed = systemd.systemctl("list-units --failed --plain --no-legend").stdout;
    assert_eq!(failed, "");
    // What serves, goes on without it.
    systemd.systemctl("stop overspill-allow@web").done();
    assert_eq!(pids().len(), 2);
    get(at("10.0.0.1:80"), "/");
    systemd.systemctl("stop blue green").done();
    overspill("rm web").done();
    assert_no_state();
}

/// What the unit closes besides capabilities keeps the exporter from nothing.
#[test]
fn systemd_runs_the_exporter() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    let systemd = Systemd::boot("exporter");
    fs::write(systemd.folder.path().join("overspill-metrics"), "ARGS=--listen 10.0.0.3:9090\n")
        .unwrap();
    systemd.systemctl("start overspill-metrics").done();
    wait_until("it listens", || TcpStream::connect("10.0.0.3:9090").is_ok());
    let told = get(at("10.0.0.3:9090"), "/metrics");
    assert!(told.contains("overspill_service_info{") && told.contains("} 1\n"), "{told}");
    let pid = systemd.systemctl("show -P MainPID overspill-metrics").done();
    let status = systemd.run(&format!("cat /proc/{}/status", pid.trim())).done();
    let field = |name: &str| status.lines().find_map(|it| it.strip_prefix(name)).unwrap().trim();
    // CAP_DAC_OVERRIDE (1) and CAP_SYS_ADMIN (21), a filter, and a user that is not root.
    assert_eq!((field("CapEff:"), field("Seccomp:")), ("0000000000200002", "2"), "{status}");
    assert!(!field("Uid:").starts_with("0\t"), "{status}");
    systemd.systemctl("stop overspill-metrics").done();
    let ended = systemd.systemctl("show -P Result -P ExecMainStatus overspill-metrics").stdout;
    assert_eq!(ended.split_whitespace().collect::<Vec<_>>(), ["success", "0"]);
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let folder = tempfile::tempdir().unwrap();
    for (name, unit) in UNITS {
        let file = folder.path().join(name);
        fs::write(&file, unit.replace("/usr/bin/overspill", OVERSPILL)).unwrap();
        let mut analyze = Command::new("systemd-analyze");
        let verified = analyze.args(["verify", "--man=no"]).arg(&file).output();
        assert_eq!(Ran::from(verified.expect("systemd is installed")).done(), "");
    }
}
