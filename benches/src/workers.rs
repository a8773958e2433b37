//! Workers: threads that accept, answer one byte, and close.

use std::io::{self, Write as _};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::Result;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};

const STOP: u64 = 0;
const CONNECTION: u64 = 1;

/// Running workers.
pub(crate) struct Workers {
    threads: Vec<JoinHandle<Result<()>>>,
    stop: Arc<OwnedFd>,
}

impl Workers {
    /// One worker for each listener; all of them at a single one. The hung one has its
    /// socket and its place in the epolls, but never comes to look.
    pub(crate) fn start(listeners: &[TcpListener], count: u32, hung: Option<u32>) -> Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut threads = Vec::new();
        let cpus = thread::available_parallelism()?.get();
        for n in 0..count {
            let listener = listeners[n as usize % listeners.len()].try_clone()?;
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            // Of those that wait at one socket, one is woken for a connection.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
            epoll::add(&epoll, &listener, epoll::EventData::new_u64(CONNECTION), flags)?;
            let stop = Arc::clone(&stop);
            let only_stop = hung == Some(n);
            threads.push(thread::spawn(move || {
                if only_stop {
                    return wait_for(&stop);
                }
                world::pin_to_cpu(n as usize % cpus);
                let data = epoll::EventData::new_u64(STOP);
                epoll::add(&epoll, &*stop, data, epoll::EventFlags::IN)?;
                work(&epoll, &listener)
            }));
        }
        Ok(Self { threads, stop })
    }

    /// Ends them all, the hung one too.
    pub(crate) fn stop(self) -> Result<()> {
        rustix::io::write(&*self.stop, &1_u64.to_ne_bytes())?;
        self.threads
            .into_iter()
            .try_for_each(|worker| worker.join().expect("workers return their errors"))
    }
}

fn work(epoll: &OwnedFd, listener: &TcpListener) -> Result<()> {
    loop {
        let mut events = Vec::with_capacity(2);
        rustix::io::retry_on_intr(|| epoll::wait(epoll, spare_capacity(&mut events), None))?;
        if events.iter().any(|event| event.data.u64() == STOP) {
            return Ok(());
        }
        match listener.accept() {
            // A client that has gone meanwhile is none of the worker's business.
            Ok((mut connection, _)) => drop(connection.write_all(b"!")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn wait_for(stop: &OwnedFd) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(stop, PollFlags::IN)], None))?;
    Ok(())
}
