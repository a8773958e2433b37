//! What libbpf-rs does not do: the only module with `unsafe`.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;

fn check(result: i32) -> io::Result<i32> {
    // libbpf returns the negated errno.
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// Lets the kernel keep run-time statistics for as long as the descriptor is open.
pub(crate) fn enable_statistics() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) })?;
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How often a program ran while statistics were kept, and for how many nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunTime {
    pub(crate) nanoseconds: u64,
    pub(crate) runs: u64,
}

/// The statistics of a program.
pub(crate) fn run_time(program: BorrowedFd<'_>) -> io::Result<RunTime> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut size = u32::try_from(size_of_val(&info)).expect("a small structure");
    // SAFETY: `info` is writable for the size given and asks for no further buffers.
    check(unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut size)
    })?;
    Ok(RunTime { nanoseconds: info.run_time_ns, runs: info.run_cnt })
}

/// The mean duration, in nanoseconds, of `repeat` runs of a program with this context.
pub(crate) fn test_run(program: BorrowedFd<'_>, context: &[u8], repeat: u32) -> io::Result<u32> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        ctx_in: context.as_ptr().cast(),
        ctx_size_in: u32::try_from(context.len()).expect("a context is small"),
        repeat: i32::try_from(repeat).expect("a modest number"),
        ..Default::default()
    };
    // SAFETY: `ctx_in` points to `ctx_size_in` readable bytes; no output is asked for.
    check(unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) })?;
    Ok(options.duration)
}
