//! What the kernel tells of its queues and of processes, with or without overspill.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use super::stage::failed;
use crate::failure::{Failure, Outcome};

/// How long a server may take to start, to stop and the like.
const DEADLINE: Duration = Duration::from_secs(10);

/// A listening TCP socket of this network namespace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listening {
    pub(super) address: SocketAddrV4,
    /// Connections that wait to be accepted.
    pub(super) queued: u32,
}

/// Every listening IPv4 socket.
pub(super) fn listening() -> Result<Vec<Listening>, Failure> {
    let table = fs::read_to_string("/proc/thread-self/net/tcp")
        .map_err(failed("read the kernel's table of sockets"))?;
    Ok(table.lines().filter_map(parse_listening).collect())
}

/// A line of `/proc/net/tcp`: `sl local_address rem_address st tx_queue:rx_queue ...`.
fn parse_listening(line: &str) -> Option<Listening> {
    let mut fields = line.split_whitespace().skip(1);
    let (ip, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    let (_, queued) = fields.next()?.split_once(':')?;
    // TCP_LISTEN; the address stands there as it lies in memory.
    let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
    let port = u16::from_str_radix(port, 16).ok()?;
    (state == "0A").then_some(Listening {
        address: SocketAddrV4::new(Ipv4Addr::from(ip), port),
        queued: u32::from_str_radix(queued, 16).ok()?,
    })
}

/// How many requests the kernel has dropped because a queue was full (`nstat` shows it
/// as `TcpExtListenOverflows`).
pub(super) fn dropped() -> Result<u64, Failure> {
    let table = fs::read_to_string("/proc/thread-self/net/netstat")
        .map_err(failed("read the kernel's counters"))?;
    parse_counter(&table, "TcpExt:", "ListenOverflows")
        .ok_or_else(|| Failure::new("demo finds no ListenOverflows in /proc/net/netstat"))
}

/// Pairs of lines: a group's names, then its values.
fn parse_counter(table: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = table.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let (_, value) = names.split(' ').zip(values.split(' ')).find(|&(each, _)| each == name)?;
    value.parse().ok()
}

/// Whether a process has been stopped by a signal.
pub(super) fn is_stopped(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        // The state follows the name, which is in brackets and may hold anything.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// Waits until `condition` holds.
pub(super) fn wait_until(
    what: &str,
    mut condition: impl FnMut() -> Result<bool, Failure>,
) -> Outcome {
    let start = Instant::now();
    while !condition()? {
        if start.elapsed() > DEADLINE {
            return Err(Failure::new(format!(
                "demo waited {} s in vain: {what}",
                DEADLINE.as_secs()
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_read_from_its_line() {
        let ip = u32::from_ne_bytes([192, 0, 2, 1]);
        let line = format!("   0: {ip:08X}:1F90 00000000:0000 0A 00000000:00000009 00:00000000");
        let address = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 8080);
        assert_eq!(parse_listening(&line), Some(Listening { address, queued: 9 }));
        assert_eq!(parse_listening(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse_listening("  sl  local_address rem_address   st tx_queue"), None);
    }

    #[test]
    fn a_counter_is_found_by_its_name() {
        let table = "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: 1 2\nIpExt: In\nIpExt: 3\n";
        assert_eq!(parse_counter(table, "TcpExt:", "ListenOverflows"), Some(2));
        assert_eq!(parse_counter(table, "TcpExt:", "ListenDrops"), None);
    }
}
