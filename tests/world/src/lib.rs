//! A fresh network namespace and BPF file system for each test, gone with it.

pub mod syn;

use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

/// How long an observable event may take before a test fails. `OVERSPILL_PATIENCE=N`
/// multiplies it by N, for emulated machines.
///
/// # Panics
///
/// When the variable is not a number.
#[must_use]
pub fn deadline() -> Duration {
    let factor = env::var("OVERSPILL_PATIENCE")
        .map_or(1, |text| text.parse().unwrap_or_else(|_| panic!("OVERSPILL_PATIENCE={text}")));
    Duration::from_secs(10) * factor
}

/// Puts the calling test's thread into its own network and mount namespace, and gives it
/// descriptors of its own. What the thread starts lives there too; the kernel removes all
/// of it when the last that uses it ends.
///
/// Were the descriptors shared with other tests, a process that one of these starts would
/// hold a copy of them until it executes its program: a listener that is closed here would
/// go on listening for that long.
///
/// # Panics
///
/// Without the privilege: such a test must run, or be left out knowingly.
pub fn enter() {
    unshare(CloneFlags::CLONE_FILES).unwrap();
    enter_namespaces();
    // libbpf looks its descriptors up in /proc/self: that shows those of the first thread.
    for folder in ["fd", "fdinfo"] {
        let (own, first) = (format!("/proc/thread-self/{folder}"), format!("/proc/self/{folder}"));
        mount(Some(&*own), &*first, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
}

/// The namespaces of [`enter`] alone: descriptors stay shared with the threads that they
/// are shared with, so that another one can take over what is opened here.
///
/// # Panics
///
/// As [`enter`] does.
pub fn enter_namespaces() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap_or_else(|error| {
        panic!("the kernel tests need root ({error}); leave them out with: make test-unprivileged")
    });
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
    ip("link set lo up");
    // Every address of these is local at once, without being added one by one.
    ip("route add local 10.0.0.0/8 dev lo");
    ip("route add local fd00::/16 dev lo");
    sysctl("net/ipv4/ip_nonlocal_bind", "1");
    sysctl("net/ipv6/ip_nonlocal_bind", "1");
    sysctl("net/core/somaxconn", "4096");
}

/// Runs `ip` with the arguments given.
pub fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Sets a setting of the network namespace.
pub fn sysctl(name: &str, value: &str) {
    // /proc/thread-self/net follows the thread; /proc/sys/net follows the caller.
    fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// A counter of this network namespace (`nstat -a` shows them all).
///
/// # Panics
///
/// When there is no such counter.
#[must_use]
pub fn netstat(name: &str) -> u64 {
    let text = ["netstat", "snmp"]
        .map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap())
        .concat();
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks(2) {
        let names = pair[0].split(' ');
        if let Some((_, value)) = names.zip(pair[1].split(' ')).find(|(found, _)| *found == name) {
            return value.parse().unwrap();
        }
    }
    panic!("no counter {name}");
}

/// Keeps the thread on one CPU: what it does is then one history.
pub fn pin_to_cpu(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

/// Waits until `condition` holds.
///
/// # Panics
///
/// When it does not within [`deadline`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < deadline(), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The n-th test address of IPv4 (10.0.0.0/8) or IPv6 (`fd00::/16`).
#[must_use]
pub fn address(ipv6: bool, n: u32) -> IpAddr {
    if ipv6 {
        IpAddr::V6(std::net::Ipv6Addr::from_bits((0xfd00_u128 << 112) + u128::from(n) + 1))
    } else {
        IpAddr::V4(std::net::Ipv4Addr::from_bits((10 << 24) + n + 1))
    }
}

/// A socket address from text.
#[must_use]
pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}
