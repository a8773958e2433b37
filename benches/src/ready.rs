//! Which of many listeners a connection has come to.

use std::net::TcpListener;

use anyhow::{Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// An epoll over listeners, told only of what is new (`EPOLLET`).
#[derive(Debug)]
pub(crate) struct Ready(rustix::fd::OwnedFd);

impl Ready {
    pub(crate) fn new(listeners: &[TcpListener]) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (n, listener) in (0..).zip(listeners) {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, listener, epoll::EventData::new_u64(n), flags)?;
        }
        Ok(Self(epoll))
    }

    /// Waits until a connection has come to one of them: which.
    pub(crate) fn wait(&self) -> Result<usize> {
        let mut events = Vec::with_capacity(1);
        let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| {
            epoll::wait(&self.0, spare_capacity(&mut events), Some(&patience))
        })?;
        match events.first() {
            Some(event) => Ok(usize::try_from(event.data.u64())?),
            None => bail!("no connection has come within five seconds"),
        }
    }

    /// Takes the oldest connection out of the queue that a new one has come to.
    pub(crate) fn accept(&self, listeners: &[TcpListener]) -> Result<usize> {
        let n = self.wait()?;
        drop(listeners[n].accept()?);
        Ok(n)
    }
}
