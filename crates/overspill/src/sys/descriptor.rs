//! What neither the standard library nor rustix does with a descriptor.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// `SIOCGSKNS` (`include/uapi/linux/sockios.h`): a descriptor of a socket's namespace.
const SIOCGSKNS: libc::c_ulong = 0x894c;

/// The network namespace that a socket lives in.
pub(crate) fn netns_of(socket: BorrowedFd<'_>) -> io::Result<File> {
    // SAFETY: SIOCGSKNS reads no argument, and `socket` is open for the call.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Moves this thread into a network namespace of its own, which ends with it.
pub(crate) fn enter_new_netns() -> io::Result<()> {
    // SAFETY: NEWNET gives this thread another network namespace. It shares no memory and no
    // descriptor table anew, so nothing that other threads rely on changes.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?)
}

/// `BPF_PROG_TEST_RUN` (`enum bpf_cmd`).
const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// The part of `union bpf_attr` that belongs to `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    zero: u32,
}

/// Runs a loaded program once with the context given. libbpf-rs does this only for
/// programs that it has loaded itself, not for pinned ones.
pub(crate) fn test_run(program: BorrowedFd<'_>, context: &[u8]) -> io::Result<u32> {
    let mut attributes = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd()).expect("an open descriptor"),
        ctx_size_in: u32::try_from(context.len()).expect("a context is small"),
        ctx_in: context.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: `attributes` is as long as the size given and lives through the call;
    // `ctx_in` points to `ctx_size_in` readable bytes that do too; no output is asked for.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes.retval) }
}

/// `BPF_MAP_LOOKUP_BATCH` (`enum bpf_cmd`).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The part of `union bpf_attr` that belongs to `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
struct LookupBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Fills `values`, each of `size` bytes as the kernel gives them out, with those of an array
/// from number `first` on. libbpf-rs reads whole maps.
pub(crate) fn read_array(
    map: BorrowedFd<'_>,
    first: u32,
    values: &mut [u8],
    size: usize,
) -> io::Result<()> {
    let wanted = values.len() / size;
    let mut keys = vec![0; wanted * size_of::<u32>()];
    // The kernel begins behind this one; behind what is no number with the first.
    let before = first.wrapping_sub(1);
    if lookup_batch(map, Some(before), wanted, &mut keys, values)? < wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// The keys and the values of a hash of up to `entries`, in the same order, each of as many
/// bytes as `sizes` says. libbpf-rs does not tell an error from the end.
pub(crate) fn read_hash(
    map: BorrowedFd<'_>,
    entries: u32,
    sizes: [usize; 2],
) -> io::Result<[Vec<u8>; 2]> {
    let most = entries as usize;
    let [mut keys, mut values] = sizes.map(|size| vec![0; most * size]);
    let read = lookup_batch(map, None, most, &mut keys, &mut values)?;
    keys.truncate(read * sizes[0]);
    values.truncate(read * sizes[1]);
    Ok([keys, values])
}

/// Reads up to `count` entries, those behind `before` or from the beginning on, and tells how
/// many there were.
fn lookup_batch(
    map: BorrowedFd<'_>,
    before: Option<u32>,
    count: usize,
    keys: &mut [u8],
    values: &mut [u8],
) -> io::Result<usize> {
    let mut last = 0_u32;
    let mut attributes = LookupBatch {
        in_batch: before.as_ref().map_or(0, |before| std::ptr::from_ref(before) as u64),
        out_batch: (&raw mut last) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(count).map_err(io::Error::other)?,
        map_fd: u32::try_from(map.as_raw_fd()).expect("an open descriptor"),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `attributes` is as long as the size given. What it points to lives through the
    // call: numbers of 4 bytes, by which arrays and hashes say where they are, and room for
    // `count` keys and values of the sizes that the callers know to be the map's.
    let result = unsafe {
        let size = size_of::<LookupBatch>();
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size)
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        // The end of the map: what there is before it has been read.
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
    }
    Ok(attributes.count as usize)
}

/// Lets the kernel ask `program` what becomes of the requests of a socket of this group
/// that ends (`SO_ATTACH_REUSEPORT_EBPF`, for the socket's whole `SO_REUSEPORT` group).
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

/// `BPF_LINK_CREATE` and `BPF_OBJ_PIN` (`enum bpf_cmd`).
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_OBJ_PIN: libc::c_long = 6;
/// `BPF_CGROUP_SOCK_OPS` (`enum bpf_attach_type`).
const BPF_CGROUP_SOCK_OPS: u32 = 3;

/// The part of `union bpf_attr` that belongs to `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Lets the kernel call `program` for the TCP sockets of a control group, beside what
/// others have attached, for as long as the link is open or pinned.
pub(crate) fn attach_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).expect("an open descriptor");
    let attributes = LinkCreate {
        prog_fd: number(program),
        target_fd: number(cgroup),
        attach_type: BPF_CGROUP_SOCK_OPS,
        flags: 0,
    };
    // SAFETY: `attributes` is as long as the size given and lives through the call.
    let fd = unsafe {
        let size = size_of::<LinkCreate>();
        libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attributes, size)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).expect("a descriptor");
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_LINK_UPDATE` (`enum bpf_cmd`).
const BPF_LINK_UPDATE: libc::c_long = 29;

/// The part of `union bpf_attr` that belongs to `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Puts a program in the place of the one that a link has attached, in one step. libbpf-rs
/// does this only with programs that it has loaded itself.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).expect("an open descriptor");
    let attributes = LinkUpdate {
        link_fd: number(link),
        new_prog_fd: number(program),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: `attributes` is as long as the size given and lives through the call.
    let result = unsafe {
        let size = size_of::<LinkUpdate>();
        libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const attributes, size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The part of `union bpf_attr` that belongs to `BPF_OBJ_PIN`.
#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Keeps a link alive under a name in a BPF file system. libbpf-rs does this only for what
/// it has made itself.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjPin {
        pathname: path.as_ptr() as u64,
        bpf_fd: u32::try_from(object.as_raw_fd()).expect("an open descriptor"),
        file_flags: 0,
    };
    // SAFETY: `attributes` is as long as the size given; it and the string that `pathname`
    // points to, which ends with a zero, live through the call.
    let result = unsafe {
        let size = size_of::<ObjPin>();
        libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw const attributes, size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A duplicate of the descriptor with that number, which the process was started with.
pub(crate) fn own_descriptor(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl reads nothing but the numbers.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a descriptor that this process has from the program that it was before `execve(2)`, and
/// closes it at the next. `EBADF` where there is none, or where it is closed on exec: it is
/// somebody's then.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: F_GETFD reads a flag of a number, whatever is behind it.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // Standard input, output and error belong to the standard library.
    if number < 3 || flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD changes that flag alone, of a descriptor that is open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open. It had no FD_CLOEXEC, which all that a Rust program opens
    // has: nobody in this process owns it. From now on it has, so that nobody takes it again.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
