//! Word to whoever has started this process, as systemd wants it (`sd_notify(3)`): a datagram
//! to the socket that `NOTIFY_SOCKET` names.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where the socket is said to be. What the workers say there would be taken for ours.
pub(crate) const VARIABLE: &str = "NOTIFY_SOCKET";

/// All workers serve.
pub(crate) const READY: &str = "READY=1";
/// They are being ended.
pub(crate) const STOPPING: &str = "STOPPING=1";

/// Sends it, if somebody wants to know. Who does not listen any more misses it.
pub(crate) fn tell(word: &str) {
    if let Some(path) = env::var_os(VARIABLE) {
        let _ = send(path.as_bytes(), word);
    }
}

fn send(path: &[u8], word: &str) -> io::Result<usize> {
    let address = match path.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(word.as_bytes(), &address)
}
