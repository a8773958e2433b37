//! What neither the standard library nor rustix does: the only module here with `unsafe`.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

/// Lets `program` choose among the sockets of this one's `SO_REUSEPORT` group.
pub(crate) fn attach_to_group(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = program.as_raw_fd();
    // SAFETY: `program` lives through the call, and its size is the one given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            (&raw const program).cast(),
            libc::socklen_t::try_from(size_of_val(&program)).expect("small"),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
