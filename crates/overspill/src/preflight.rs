//! What the machine has of what overspill needs, and how to get the rest.
//!
//! Nothing here takes privilege: what can't be seen without it is reported as such.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::process::Resource;
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::datapath::{self, Build, Datapath, Hooks};
pub use crate::datapath::{ProgramReport, programs};
use crate::error::{Error, Result};
use crate::mounts;
use crate::moves;
use crate::namespace::Namespace;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What was looked at.
    pub name: String,
    /// Whether it will do.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What can be done about it; always there when something is missing.
    pub remedy: Option<String>,
}

/// Whether a thing will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It will.
    Ok,
    /// Overspill works, but there is something to know.
    Note,
    /// Overspill does not work without it.
    Missing,
}

impl Verdict {
    /// The name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Missing => "missing",
        }
    }
}

impl Item {
    fn new(name: &str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict, found: found.into(), remedy: None }
    }

    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found)
    }

    fn note(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Note, found)
    }

    fn missing(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Verdict::Missing, found).with_remedy(remedy)
    }

    fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Looks at everything that overspill depends on.
#[must_use]
pub fn report() -> Vec<Item> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let plain = datapath::reads_directly();
    let mut items = vec![kernel(&release, plain), btf(), jit(setting("net/core/bpf_jit_enable"))];
    items.push(lockdown(fs::read_to_string("/sys/kernel/security/lockdown"), plain));
    items.push(user_namespace(fs::metadata("/proc/thread-self/ns/user").map(|file| file.ino())));
    items.extend(match rustix::thread::capabilities(None) {
        Ok(sets) => capabilities(sets.effective),
        Err(error) => vec![Item::note("capabilities", format!("can't be read: {error}"))],
    });
    let loads = !items.iter().any(|item| item.verdict == Verdict::Missing);
    items.push(bpffs());
    let (item, woken) = rehearsal("program", loads, || Datapath::rehearse(moves::wake));
    items.push(item);
    items.push(rehearsal("hooks", loads, Hooks::rehearse).0);
    items.extend(woken.map(moved_connections));
    items.push(cgroup(mounts::points("cgroup2")));
    items.push(longest_queue(setting("net/core/somaxconn")));
    items.push(half_open(
        setting("net/ipv4/tcp_syncookies"),
        setting("net/ipv4/tcp_max_syn_backlog"),
    ));
    items.push(open_files(rustix::process::getrlimit(Resource::Nofile).current));
    items.extend(services());
    // Where nothing has been made, or nothing can be read, there is no more to say.
    let root = datapath::root().unwrap_or_default();
    items.extend(datapath::leftovers(&root).unwrap_or_default().iter().map(|it| leftover(it)));
    items
}

/// `plain`: whether programs can read the kernel's memory directly, where that is known. What
/// else a kernel lacks is found by loading the programs, not by its number: distributions bring
/// features back to older ones.
fn kernel(release: &str, plain: Option<bool>) -> Item {
    match plain {
        Some(false) => Item::note("kernel", format!("{release}: reads queues through a helper"))
            .with_remedy("for full speed use Linux 6.2 or newer (for bpf_rdonly_cast)"),
        _ => Item::ok("kernel", release),
    }
}

fn btf() -> Item {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        return Item::ok("BTF", path);
    }
    missing("BTF", &Error::NoBtf)
}

fn missing(name: &str, error: &Error) -> Item {
    // The usual remedy of these two is to run this report.
    let remedy = match error {
        Error::Permission { .. } => Some("run as root, or with the capabilities above".into()),
        Error::Bpf { .. } => None,
        error => error.remedy(),
    };
    let remedy = remedy.unwrap_or("see the kernel's log (dmesg)".into());
    Item::missing(name, error.with_causes(), remedy)
}

fn jit(setting: io::Result<u64>) -> Item {
    let name = "BPF JIT";
    match setting {
        Ok(0) => Item::missing(name, "off", "sysctl -w net.core.bpf_jit_enable=1"),
        Ok(_) => Item::ok(name, "on"),
        // The setting is the first network namespace's; others don't show it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Item::note(name, "not shown in this network namespace")
        }
        Err(error) => Item::note(name, format!("can't be read: {error}")),
    }
}

/// In the mode "confidentiality" the helper that reads the kernel's memory is forbidden
/// (`bpf_probe_read_kernel`, `kernel/trace/bpf_trace.c`), direct reads are not.
fn lockdown(modes: io::Result<String>, plain: Option<bool>) -> Item {
    let name = "lockdown";
    let modes = match modes {
        Ok(modes) => modes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Item::note(name, "can't be read: no securityfs, or no lockdown");
        }
        Err(error) => return Item::note(name, format!("can't be read: {error}")),
    };
    // "none [integrity] confidentiality": the brackets are around the one in force.
    let mode = modes.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    match mode.map(|(mode, _)| mode) {
        Some("confidentiality") if plain == Some(false) => Item::missing(
            name,
            "confidentiality: programs may not read queues on this kernel",
            "boot with lockdown=integrity, or use Linux 6.2 or newer",
        ),
        Some(mode) => Item::ok(name, mode),
        None => Item::note(name, format!("unknown: {}", modes.trim())),
    }
}

fn user_namespace(inode: io::Result<u64>) -> Item {
    /// `PROC_USER_INIT_INO` (`include/linux/proc_ns.h`)
    const INITIAL: u64 = 0xEFFF_FFFD;
    let name = "user namespace";
    match inode {
        Ok(INITIAL) => Item::ok(name, "the initial one"),
        Ok(_) => Item::missing(
            name,
            "not the initial one: its capabilities don't count",
            "run outside of it (docker run --userns=host)",
        ),
        Err(error) => Item::note(name, format!("can't be told: {error}")),
    }
}

fn capabilities(held: CapabilitySet) -> Vec<Item> {
    let needed = [
        ("CAP_BPF", CapabilitySet::BPF, "to load programs and make maps"),
        ("CAP_PERFMON", CapabilitySet::PERFMON, "to read queues in the kernel"),
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN, "to place requests"),
        ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN, "to read the list of members"),
    ];
    let contained = CapabilitySet::BPF | CapabilitySet::PERFMON;
    let item = |(name, capability, purpose): (&str, CapabilitySet, &str)| {
        if held.contains(capability) {
            Item::ok(name, "held")
        } else if contained.contains(capability) && held.contains(CapabilitySet::SYS_ADMIN) {
            Item::ok(name, "contained in CAP_SYS_ADMIN")
        } else {
            Item::missing(
                name,
                format!("not held; needed {purpose}"),
                "run as root, or grant it (see capabilities(7))",
            )
        }
    };
    let mut items: Vec<Item> = needed.into_iter().map(item).collect();
    let override_too = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE;
    let lacking = [
        ("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE, "share can't take every process's sockets"),
        ("CAP_DAC_READ_SEARCH", override_too, "share can't look into others' processes"),
        ("CAP_DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE, "what others have made is out of reach"),
    ];
    items.extend(lacking.map(|(name, any_of, lack)| {
        if held.intersects(any_of) {
            Item::ok(name, "held")
        } else {
            Item::note(name, format!("not held: {lack}"))
        }
    }));
    items
}

fn bpffs() -> Item {
    let name = "bpffs";
    let path = match datapath::bpffs() {
        Ok(path) => path,
        Err(error) => return missing(name, &error),
    };
    let point = path.display();
    match rustix::fs::accessat(CWD, &path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Item::ok(name, format!("{point}, writable")),
        Err(error) if error == rustix::io::Errno::ROFS => {
            Item::missing(name, format!("{point}: {error}"), format!("mount -o remount,rw {point}"))
        }
        Err(error) => Item::missing(
            name,
            format!("{point}: {error}"),
            format!("run as its owner (ls -ld {point}), or let it be yours"),
        ),
    }
}

/// Whether the kernel takes the programs of an object: those that place requests, or the
/// hooks of `run` and `allow`.
fn rehearsal<T>(name: &str, try_it: bool, load: impl FnOnce() -> Result<T>) -> (Item, Option<T>) {
    if !try_it {
        return (Item::note(name, "not tried, because something above is missing"), None);
    }
    match load() {
        Ok(loaded) => (Item::ok(name, "loads"), Some(loaded)),
        Err(error) => (missing(name, &error), None),
    }
}

/// Whether the kernel wakes the process that waits at a socket when it moves a connection there.
fn moved_connections(woken: io::Result<Option<bool>>) -> Item {
    let name = "moved connections";
    match woken {
        Ok(Some(true)) => Item::ok(name, "the kernel wakes the worker"),
        Ok(Some(false)) => Item::note(
            name,
            "the kernel wakes no worker; run and allow do it themselves; without them (share with \
             net.ipv4.tcp_migrate_req) a moved connection waits for the next one",
        ),
        Ok(None) => Item::note(name, "not checked: the kernel has moved no connection"),
        Err(error) => {
            Item::note(name, format!("not checked: {error}")).with_remedy("ip link set lo up")
        }
    }
}

fn cgroup(points: Result<Vec<std::path::PathBuf>>) -> Item {
    let name = "cgroup v2";
    match points {
        Ok(points) => match points.first() {
            Some(point) => Item::ok(name, format!("{}, to count connections", point.display())),
            None => Item::note(
                name,
                "not mounted: connections are not counted (least-loaded and two-choices go by \
                 queues alone); allow, and run without --listen, do not work",
            )
            .with_remedy("mount -t cgroup2 cgroup2 /sys/fs/cgroup; then make the services anew"),
        },
        Err(error) => Item::note(name, error.with_causes()),
    }
}

fn longest_queue(setting: io::Result<u64>) -> Item {
    /// The default since Linux 5.4.
    const USUAL: u64 = 4_096;
    let name = "somaxconn";
    match setting {
        Ok(limit) if limit < USUAL => Item::note(name, format!("{limit} cuts longer backlogs"))
            .with_remedy(format!(
                "sysctl -w net.core.somaxconn={USUAL}; then start the servers anew"
            )),
        Ok(limit) => Item::ok(name, format!("{limit}, the longest backlog")),
        Err(error) => Item::note(name, format!("can't be read: {error}")),
    }
}

/// Without SYN cookies the kernel drops requests of unknown clients once half-open ones
/// fill three quarters of `tcp_max_syn_backlog` (`tcp_conn_request`), whatever room
/// the queue has.
fn half_open(cookies: io::Result<u64>, limit: io::Result<u64>) -> Item {
    let name = "tcp_max_syn_backlog";
    match (cookies, limit) {
        (Ok(0), Ok(limit)) => {
            Item::note(name, format!("{limit} limits queues: SYN cookies are off"))
                .with_remedy("sysctl -w net.ipv4.tcp_syncookies=1")
        }
        (Ok(_), Ok(limit)) => Item::ok(name, format!("{limit}, with SYN cookies beyond")),
        (Err(error), _) | (_, Err(error)) => Item::note(name, format!("can't be read: {error}")),
    }
}

fn open_files(limit: Option<u64>) -> Item {
    /// What a supervisor of a few hundred sockets can do with.
    const USUAL: u64 = 1_024;
    let name = "open files";
    match limit {
        Some(limit) if limit < USUAL => {
            Item::note(name, format!("{limit}; each shared socket takes one"))
                .with_remedy("ulimit -n 1024")
        }
        Some(limit) => Item::ok(name, format!("{limit} for this process")),
        None => Item::ok(name, "unlimited"),
    }
}

/// The states that exist, each fit for this build or not.
fn services() -> Vec<Item> {
    let namespaces = match Namespace::with_services() {
        Ok(namespaces) if namespaces.is_empty() => return vec![Item::ok("services", "none yet")],
        Ok(namespaces) => namespaces,
        Err(Error::NoBpffs) => return vec![Item::ok("services", "none without bpffs")],
        Err(error) => return vec![Item::note("services", error.with_causes())],
    };
    namespaces
        .iter()
        .filter_map(|namespace| state(namespace).transpose())
        .map(|item| {
            item.unwrap_or_else(|error| Item {
                verdict: Verdict::Note,
                ..missing("services", &error)
            })
        })
        .collect()
}

/// A folder among the states that is none, or none yet.
fn leftover(folder: &Path) -> Item {
    let found =
        format!("{}: incomplete state, a change is running or was interrupted", folder.display());
    let remedy = "the next change of any service, or overspill upgrade, completes or removes it";
    Item::note("services", found).with_remedy(remedy)
}

/// The services of a namespace; `None` when the last has been removed meanwhile.
fn state(namespace: &Namespace) -> Result<Option<Item>> {
    let Some(datapath) = Datapath::open(namespace)? else { return Ok(None) };
    datapath.check_program()?;
    let count = datapath.names().collect::<Result<Vec<_>>>()?.len();
    let found = format!("{count} in network namespace {}", namespace.inode());
    if datapath.is_of_this_build() {
        return Ok(Some(Item::ok("services", format!("{found}, of this build"))));
    }
    let Build { version, digest, layout } = datapath.build();
    let found = format!("{found}, of overspill {version}, build {digest}, layout {layout}");
    let remedy = if layout > Build::current().layout {
        "use that newer overspill (type -a overspill); overspill upgrade goes back to this version"
    } else {
        "run overspill upgrade to switch to this version"
    };
    Ok(Some(Item::note("services", found).with_remedy(remedy)))
}

/// A number in /proc/sys.
fn setting(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name))?;
    text.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn denied<T>() -> io::Result<T> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn absent<T>() -> io::Result<T> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn kernels_are_judged_by_what_they_have() {
        for release in ["5.14.0-570.el9", "6.1.0-56-cloud-amd64", "unheard-of"] {
            assert_eq!(kernel(release, Some(true)).verdict, Verdict::Ok);
            assert_eq!(kernel(release, Some(false)).verdict, Verdict::Note);
            assert_eq!(kernel(release, None).verdict, Verdict::Ok);
        }
    }

    #[test]
    fn the_lockdown_in_force_stands_in_brackets() {
        let judge = |text: &str| lockdown(Ok(text.to_owned()), Some(true));
        assert_eq!(judge("[none] integrity confidentiality\n").verdict, Verdict::Ok);
        let integrity = judge("none [integrity] confidentiality\n");
        assert_eq!((integrity.verdict, integrity.found.as_str()), (Verdict::Ok, "integrity"));
        let confidentiality = "none integrity [confidentiality]\n";
        assert_eq!(judge(confidentiality).verdict, Verdict::Ok);
        let older = lockdown(Ok(confidentiality.to_owned()), Some(false));
        assert_eq!(older.verdict, Verdict::Missing);
        assert_eq!(judge("nonsense").verdict, Verdict::Note);
        assert_eq!(lockdown(absent(), None).verdict, Verdict::Note);
        assert_eq!(lockdown(denied(), None).verdict, Verdict::Note);
    }

    #[test]
    fn the_jit_must_be_on_where_it_can_be_told() {
        assert_eq!(jit(Ok(0)).verdict, Verdict::Missing);
        assert_eq!(jit(Ok(2)).verdict, Verdict::Ok);
        assert_eq!(jit(absent()).verdict, Verdict::Note);
        assert_eq!(jit(denied()).verdict, Verdict::Note);
    }

    #[test]
    fn only_the_first_user_namespace_counts() {
        assert_eq!(user_namespace(Ok(4_026_531_837)).verdict, Verdict::Ok);
        assert_eq!(user_namespace(Ok(4_026_532_999)).verdict, Verdict::Missing);
        assert_eq!(user_namespace(denied()).verdict, Verdict::Note);
    }

    #[test]
    fn the_limits_of_queues_are_never_missing() {
        assert_eq!(longest_queue(Ok(128)).verdict, Verdict::Note);
        assert_eq!(longest_queue(Ok(4_096)).verdict, Verdict::Ok);
        assert_eq!(longest_queue(denied()).verdict, Verdict::Note);
        assert_eq!(half_open(Ok(0), Ok(512)).verdict, Verdict::Note);
        assert_eq!(half_open(Ok(1), Ok(512)).verdict, Verdict::Ok);
        assert_eq!(half_open(Ok(1), absent()).verdict, Verdict::Note);
        assert_eq!(open_files(Some(256)).verdict, Verdict::Note);
        assert_eq!(open_files(None).verdict, Verdict::Ok);
    }

    #[test]
    fn cgroup_v2_is_only_noted() {
        let absent = cgroup(Ok(Vec::new()));
        assert_eq!(absent.verdict, Verdict::Note);
        assert!(absent.found.contains("connections are not counted"), "{absent:?}");
        assert_eq!(cgroup(Ok(vec!["/sys/fs/cgroup".into()])).verdict, Verdict::Ok);
    }

    proptest! {
        #[test]
        fn sys_admin_stands_in_for_bpf_and_perfmon_alone(bits in any::<u64>()) {
            let held = CapabilitySet::from_bits_retain(bits);
            let admin = held.contains(CapabilitySet::SYS_ADMIN);
            for item in capabilities(held) {
                let expected = match item.name.as_str() {
                    "CAP_BPF" => admin || held.contains(CapabilitySet::BPF),
                    "CAP_PERFMON" => admin || held.contains(CapabilitySet::PERFMON),
                    "CAP_NET_ADMIN" => held.contains(CapabilitySet::NET_ADMIN),
                    "CAP_SYS_ADMIN" => admin,
                    _ => continue,
                };
                prop_assert_eq!(item.verdict == Verdict::Ok, expected, "{}", &item.name);
                prop_assert_eq!(item.remedy.is_none(), expected);
            }
        }

        #[test]
        fn any_text_gets_a_verdict(text in ".*") {
            lockdown(Ok(text), None);
        }
    }

    #[test]
    fn what_is_missing_has_a_remedy() {
        for item in report() {
            assert!(item.verdict != Verdict::Missing || item.remedy.is_some(), "{item:?}");
        }
    }
}
