//! What can be seen of a process in `/proc`.

use std::fs;

use nix::libc::{SYS_accept, SYS_accept4};
use procfs::FromRead as _;
use procfs::process::Stat;

/// Its state and figures; nothing of one that is not there or may not be seen.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    Stat::from_file(format!("/proc/{pid}/stat")).ok()
}

/// The process that has started it.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.ppid.try_into().ok()
}

/// Whether it is known to accept from a listening socket, with that descriptor and inode number: it
/// is in `accept(2)` there, or has the socket in an epoll set. Of others it can't be told.
pub(crate) fn accepts(pid: u32, descriptor: i32, inode: u64) -> bool {
    let waits = |task: String| {
        let call = fs::read_to_string(format!("{task}/syscall")).unwrap_or_default();
        let calls = [SYS_accept, SYS_accept4];
        calls.iter().any(|number| call.starts_with(&format!("{number} {descriptor:#x} ")))
    };
    let inode = format!("ino:{inode:x} ");
    // proc_pid_fdinfo(5): a line for each file in an epoll set.
    let watches = |set: String| {
        let text = fs::read_to_string(set).unwrap_or_default();
        text.lines().any(|line| line.starts_with("tfd:") && format!("{line} ").contains(&inode))
    };
    entries(&format!("/proc/{pid}/task")).any(waits)
        || entries(&format!("/proc/{pid}/fdinfo")).any(watches)
}

fn entries(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.path().into_os_string().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    use rustix::event::epoll;

    fn own_accepts(listener: &TcpListener) -> bool {
        let descriptor = listener.as_raw_fd();
        let inode = fs::metadata(format!("/proc/self/fd/{descriptor}")).unwrap().ino();
        accepts(std::process::id(), descriptor, inode)
    }

    #[test]
    fn who_waits_in_accept_accepts() {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        assert!(!own_accepts(&listener));
        let other = Arc::clone(&listener);
        let accepting = thread::spawn(move || other.accept().map(|_| ()));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !own_accepts(&listener) {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        accepting.join().unwrap().unwrap();
        assert!(!own_accepts(&listener));
    }

    #[test]
    fn who_has_it_in_an_epoll_set_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        epoll::add(&set, &other, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
        assert!(!own_accepts(&listener));
        epoll::add(&set, &listener, epoll::EventData::new_u64(1), epoll::EventFlags::IN).unwrap();
        assert!(own_accepts(&listener));
    }

    #[test]
    fn a_child_has_a_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(parent(child.id()), Some(std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(parent(child.id()), None);
    }
}
