//! `overspill demo` plays on real servers and leaves nothing behind, however it ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use world::wait_until;

/// A demo that can be told from others: whatever it starts inherits the variable.
struct Demo {
    mark: String,
    /// Where its temporary files would be, were it to make any there.
    folder: TempDir,
}

impl Demo {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { mark: format!("OVERSPILL_TEST={}", folder.path().display()), folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let (name, value) = self.mark.split_once('=').unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_overspill"));
        command.arg("demo").args(arguments).env(name, value);
        command.env("TMPDIR", self.folder.path()).env("LC_ALL", "C.UTF-8");
        command
    }

    /// The processes that it has started.
    fn processes(&self) -> Vec<String> {
        let numbered = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        numbered
            .filter(|path| {
                // A process that ends meanwhile is none of them any more.
                let environment = fs::read(path.join("environ")).unwrap_or_default();
                environment.split(|&byte| byte == 0).any(|each| each == self.mark.as_bytes())
            })
            .map(|path| fs::read_to_string(path.join("stat")).unwrap_or_default())
            .collect()
    }

    fn has_hung_server(&self) -> bool {
        self.processes().iter().any(|stat| stat.contains("(nginx) T"))
    }

    /// With the last process of its namespaces they are gone, and their mounts and pins.
    fn assert_nothing_is_left(&self) {
        wait_until("its processes are gone", || self.processes().is_empty());
        let left: Vec<_> = fs::read_dir(self.folder.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!Path::new("/sys/fs/bpf/overspill").exists());
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.lines().any(|line| line.split(' ').nth(4) == Some("/sys/fs")), "{mounts}");
    }
}

/// The two values of a line of the table, once for each scene.
fn values(text: &str, label: &str) -> Vec<[u64; 2]> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix(label));
    lines
        .map(|line| {
            // "108 (27.0 %)" is the value 108.
            let words: Vec<&str> = line.split("  ").filter(|word| !word.is_empty()).collect();
            let value = |word: &str| word.trim().split(' ').next().unwrap().parse().unwrap();
            [value(words[0]), value(words[1])]
        })
        .collect()
}

/// Of each member: the clients that it answered with overspill, and how many requests
/// overspill says to have put on it.
fn answered_and_counted(text: &str) -> Vec<[u64; 2]> {
    // Only the members' lines end with three numbers.
    let rows = text.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().rev().map_while(|word| word.parse::<u64>().ok());
        let (redirected, placed) = (numbers.next()?, numbers.next()?);
        Some([numbers.next()?, placed + redirected])
    });
    rows.collect()
}

fn output_of(demo: &Demo, arguments: &[&str]) -> Output {
    let output = demo.command(arguments).stdin(Stdio::null()).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn clients_fail_without_overspill_and_none_with_it() {
    world::enter();
    let demo = Demo::new();
    let pictures = tempfile::tempdir().unwrap();
    let svg = pictures.path().join("demo.svg");
    let output = output_of(&demo, &["--seconds", "1", "--svg", svg.to_str().unwrap()]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(values(&text, "clients  "), [[200, 200], [200, 200]]);
    let failed = values(&text, "no answer in 2 s");
    assert!(failed[0][0] > 0, "a quarter of the clients calls the hung server");
    assert_eq!(failed[1][0], 200, "all clients call the hung server");
    assert_eq!([failed[0][1], failed[1][1]], [0, 0]);
    let members = answered_and_counted(&text);
    assert_eq!(members.len(), 8, "four members in each scene");
    for [answered, counted] in members {
        assert_eq!(answered, counted);
    }
    assert!(text.contains(&format!("Without overspill {} of 200 and 200 of 200", failed[0][0])));
    let picture = fs::read_to_string(svg).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    demo.assert_nothing_is_left();
}

#[test]
fn the_picture_is_plain_where_the_locale_is() {
    world::enter();
    let demo = Demo::new();
    let output =
        demo.command(&["--seconds", "1"]).env("LC_ALL", "C").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_ascii());
    demo.assert_nothing_is_left();
}

/// Starts a demo and waits until one of its servers hangs: what is stopped can't end by
/// itself.
fn with_hung_server(demo: &Demo) -> Child {
    let wanted = demo.command(&["--seconds", "60"]);
    // What a shell runs in the background ignores SIGINT, and so would the demo.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(wanted.get_program()).args(wanted.get_args());
    command.envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_until("a server hangs", || demo.has_hung_server());
    child
}

#[test]
fn nothing_is_left_when_it_is_interrupted() {
    world::enter();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let demo = Demo::new();
        let mut child = with_hung_server(&demo);
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        assert!(!child.wait().unwrap().success());
        demo.assert_nothing_is_left();
    }
}

#[test]
fn a_missing_server_is_named_with_its_package() {
    // Nothing in PATH, and nothing in /usr/sbin: an empty file system lies over it.
    world::enter();
    let none = None::<&str>;
    mount(Some("tmpfs"), "/usr/sbin", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let demo = Demo::new();
    let output = demo.command(&[]).env("PATH", "").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("apt-get install nginx haproxy python3 iproute2"), "{line}");
    demo.assert_nothing_is_left();
}

#[test]
fn without_root_the_remedy_is_told() {
    world::enter();
    // `nobody` may not get at the folder of the build: the program is shown elsewhere.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("overspill");
    fs::write(&program, "").unwrap();
    let none = None::<&str>;
    mount(Some(env!("CARGO_BIN_EXE_overspill")), &program, none, MsFlags::MS_BIND, none).unwrap();
    let output = Command::new(&program).arg("demo").uid(65534).output().unwrap();
    umount2(&program, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("sudo"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}
