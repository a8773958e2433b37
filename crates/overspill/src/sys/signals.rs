//! Keeping signals off for a while.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr;

/// Does something while no signal comes to this thread: those for the process go to another
/// thread, or wait. The kernel leaves off verifying a program at a signal (`do_check` in
/// kernel/bpf/verifier.c answers EAGAIN), and one that comes often, as of a profiler or of a
/// runtime that interrupts its threads, would never let it end.
pub(crate) fn without_signals<T>(act: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: both are valid for writes of a sigset_t; sigfillset has filled `all` before
    // pthread_sigmask reads it.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr()) == 0
    };
    let _given_back = blocked.then(|| {
        // SAFETY: pthread_sigmask has succeeded, and so has filled it.
        Mask(unsafe { before.assume_init() })
    });
    act()
}

/// The signals that are blocked once this is dropped.
struct Mask(libc::sigset_t);

impl Drop for Mask {
    fn drop(&mut self) {
        // SAFETY: the set was filled by pthread_sigmask; the old mask is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}
