//! The sockets of the workers.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::sockopt::AcceptConn;
use nix::sys::socket::{Backlog, getsockopt, listen};
use overspill::adopt::Adopted;

use crate::instance_id::InstanceId;
use crate::sight::Held;

/// Every worker's listening sockets, kept open here as well, so that a socket and what
/// waits in its queue outlive the worker.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// All first sockets in the order of the workers, then all second ones, and so on:
    /// in a service's list, the members at one address are then neighbours.
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    workers: usize,
    backlog: u32,
}

impl Sockets {
    /// Makes them. `addresses` gives, for each socket of a worker, the address that it has
    /// in each worker.
    pub(crate) fn make(addresses: &[Vec<SocketAddr>], backlog: u32) -> overspill::Result<Self> {
        let workers = addresses.first().map_or(0, Vec::len);
        let addresses = addresses.concat();
        let listeners = overspill::listeners(addresses.iter().copied(), backlog)?;
        Ok(Self { listeners, addresses, workers, backlog })
    }

    /// Those that this process has from the program that it was before, in their order.
    pub(crate) fn inherit(
        addresses: &[Vec<SocketAddr>],
        backlog: u32,
        listeners: Vec<OwnedFd>,
    ) -> Self {
        let workers = addresses.first().map_or(0, Vec::len);
        let mut own =
            Self { listeners: Vec::new(), addresses: addresses.concat(), workers, backlog };
        own.settle(listeners);
        own
    }

    /// Other descriptors of the same sockets take the places of these.
    pub(crate) fn settle(&mut self, listeners: Vec<OwnedFd>) {
        self.listeners = listeners.into_iter().map(TcpListener::from).collect();
    }

    /// All of them, in their order.
    pub(crate) fn all(&self) -> &[TcpListener] {
        &self.listeners
    }

    /// The sockets of one worker, each with its address.
    pub(crate) fn of(&self, worker: usize) -> impl Iterator<Item = (SocketAddr, &TcpListener)> {
        let own = self.addresses.iter().copied().zip(&self.listeners);
        own.skip(worker).step_by(self.workers.max(1))
    }

    /// The sockets on one port, each with its worker.
    pub(crate) fn on(&self, port: u16) -> impl Iterator<Item = (usize, &TcpListener)> {
        let all = self.addresses.iter().zip(&self.listeners).enumerate();
        all.filter(move |(_, (address, _))| address.port() == port)
            .map(|(position, (_, listener))| (position % self.workers, listener))
    }

    /// The positions of a worker's sockets.
    pub(crate) fn positions(&self, worker: usize) -> impl Iterator<Item = usize> + use<> {
        (worker..self.listeners.len()).step_by(self.workers.max(1))
    }

    /// Lets a socket listen again if a worker shut it down (`shutdown(2)`), as some servers
    /// do to wake their threads. It then is a member again, the same one as before. `None`
    /// where it listens as it should.
    pub(crate) fn revive(&self, position: usize) -> Option<nix::Result<()>> {
        let listener = &self.listeners[position];
        if getsockopt(listener, AcceptConn) == Ok(true) {
            return None;
        }
        let backlog = i32::try_from(self.backlog).ok().and_then(|it| Backlog::new(it).ok());
        Some(listen(listener, backlog.unwrap_or(Backlog::MAXCONN)))
    }

    pub(crate) fn address(&self, position: usize) -> SocketAddr {
        self.addresses[position]
    }

    /// The ports, in the order of the command line.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let mut ports = Vec::new();
        for port in self.addresses.iter().map(SocketAddr::port) {
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        ports
    }

    /// Copies of those on each port, in the order of the ports, for services to be made of them.
    pub(crate) fn by_port(&self) -> Vec<(u16, Vec<Adopted>)> {
        let copies = |port| {
            self.on(port).filter_map(|(_, listener)| copy(listener, std::process::id())).collect()
        };
        self.ports().into_iter().map(|port| (port, copies(port))).collect()
    }

    /// All of them as workers hold them, which have these processes; and copies of those that are
    /// not known yet.
    pub(crate) fn held(
        &self,
        pids: &HashMap<usize, u32>,
        is_known: impl Fn(u64) -> bool,
    ) -> (Vec<Held>, Vec<Adopted>) {
        let (mut held, mut fresh) = (Vec::new(), Vec::new());
        for (position, listener) in self.listeners.iter().enumerate() {
            let worker = position % self.workers.max(1);
            let pid = pids.get(&worker).copied().unwrap_or_default();
            let Some(socket) = copy(listener, pid) else { continue };
            let (Ok(cookie), Ok(address)) = (socket.cookie(), socket.address()) else { continue };
            let shares_port = socket.shares_port();
            held.push(Held {
                owner: InstanceId::of_worker(worker),
                pid,
                descriptor: listener.as_raw_fd(),
                cookie,
                address,
                shares_port,
            });
            if !is_known(cookie) {
                fresh.push(socket);
            }
        }
        (held, fresh)
    }

    /// Lets go of them: each is now closed with its worker.
    pub(crate) fn close(&mut self) {
        self.listeners.clear();
    }
}

fn copy(listener: &TcpListener, pid: u32) -> Option<Adopted> {
    let copy = listener.try_clone().ok()?;
    let descriptor = copy.as_raw_fd();
    Some(Adopted::new(copy.into(), pid, descriptor))
}

/// A socket's name in `LISTEN_FDNAMES`, where `:` separates the names.
pub(crate) fn descriptor_name(address: SocketAddr) -> String {
    address.to_string().replace(':', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_name_has_no_colon() {
        let name = |text: &str| descriptor_name(text.parse().unwrap());
        assert_eq!(name("10.0.0.1:80"), "10.0.0.1-80");
        assert_eq!(name("[::]:80"), "[--]-80");
    }

    #[test]
    fn each_worker_has_its_sockets() {
        let any = |count| vec!["127.0.0.1:0".parse().unwrap(); count];
        let sockets = Sockets::make(&[any(3), any(3)], 8).unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let all: Vec<u16> = sockets.listeners.iter().map(port).collect();
        for worker in 0..3 {
            let own: Vec<u16> = sockets.of(worker).map(|(_, listener)| port(listener)).collect();
            assert_eq!(own, [all[worker], all[worker + 3]]);
        }
        let workers: Vec<usize> = sockets.on(0).map(|(worker, _)| worker).collect();
        assert_eq!(workers, [0, 1, 2, 0, 1, 2]);
        assert_eq!(sockets.positions(1).collect::<Vec<_>>(), [1, 4]);
    }
}
