//! Which TCP sockets of a network namespace listen.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};

use crate::error::{Error, Result};
use crate::sock_diag::{LISTENING, Sockets};

/// The inode numbers of the TCP sockets that listen in the network namespace of the calling
/// thread, from `sock_diag(7)`. Where the kernel lacks `tcp_diag`, from `/proc/net/tcp`, which
/// costs more: the kernel goes through all connections for it.
///
/// # Errors
///
/// Neither can be read.
pub fn listening() -> Result<HashSet<u64>> {
    by_netlink().or_else(|_| by_proc()).map_err(|error| Error::system("list", "TCP sockets", error))
}

fn by_netlink() -> io::Result<HashSet<u64>> {
    Sockets::list(LISTENING, None)?.map(|found| Ok(found?.inode)).collect()
}

fn by_proc() -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for path in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match File::open(path) {
            Ok(file) => {
                inodes.extend(listening_in(BufReader::new(file).lines().map_while(io::Result::ok)));
            }
            // Without IPv6 there is none.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    Ok(inodes)
}

/// The listening sockets come first (`tcp_seq_start` in `net/ipv4/tcp_ipv4.c`).
fn listening_in(lines: impl Iterator<Item = String>) -> Vec<u64> {
    let fields = |line: String| -> Option<(bool, u64)> {
        let mut fields = line.split_whitespace().skip(3);
        let listens = fields.next()? == "0A";
        Some((listens, fields.nth(5)?.parse().ok()?))
    };
    let sockets = lines.skip(1).map_while(fields);
    sockets.take_while(|(listens, _)| *listens).map(|(_, inode)| inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::TcpListener;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn listeners_are_read_and_no_others() {
        let text = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 22 1 0 100 0 0 10 0
   2: 0100007F:1F90 0100007F:A001 01 00000000:00000000 00:00000000 00000000     0        0 23 1 0 20 4 30 10 -1
";
        assert_eq!(listening_in(text.lines().map(str::to_owned)), [21, 22]);
        assert_eq!(listening_in(std::iter::empty()), Vec::<u64>::new());
    }

    #[test]
    fn both_ways_find_a_listener_and_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let inode = |socket: std::os::fd::OwnedFd| File::from(socket).metadata().unwrap().ino();
        let (listening, connected) =
            (inode(listener.try_clone().unwrap().into()), inode(client.into()));
        for found in [by_netlink().unwrap(), by_proc().unwrap()] {
            assert!(found.contains(&listening) && !found.contains(&connected));
        }
    }
}
