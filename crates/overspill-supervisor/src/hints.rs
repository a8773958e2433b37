//! Servers that can't share a port unchanged: what is known to help is told, once for each port.

use overspill::adopt::Adopted;

use crate::instance::Instance;
use crate::log;
use crate::supervisor::Supervisor;

/// Programs that each of several processes starts, and that take a port in use for a sign that one
/// of them runs: Erlang's port mapper.
const ALONE: [&str; 1] = ["epmd"];

impl Supervisor {
    /// A worker that does not listen yet has connected to a port where another one does.
    pub(crate) fn note_connecting(&mut self, pid: u32, port: u16) {
        let silent = self.instances.iter_mut().filter(|it| !it.listened);
        let is_its = |it: &&mut Instance| it.pid() == pid || it.processes().contains(&pid);
        for instance in silent.filter(is_its) {
            instance.connected = Some(port);
        }
    }

    /// A worker that has ended without a socket has looked whether its port is in use, and it was:
    /// by another worker.
    pub(crate) fn tell_in_use(&mut self, ended: &Instance) {
        let Some(port) = ended.connected.filter(|_| !ended.listened) else { return };
        let listens = |it: &&Instance| {
            it.worker != ended.worker && it.holds.iter().any(|address| address.port == port)
        };
        let Some(other) = self.instances.iter().find(listens) else { return };
        if self.told_ports.insert(port) {
            log::line(format_args!(
                "{ended} does not listen on port {port}: it connected to it first and found {other} \
                 there; give each worker its socket with --listen"
            ));
        }
    }

    /// New sockets, some of which are to be the only ones on their port.
    pub(crate) fn tell_alone(&mut self, fresh: &[Adopted]) {
        if self.plan.hands_over() || self.plan.workers < 2 {
            return;
        }
        for socket in fresh.iter().filter(|socket| socket.shares_port()) {
            let (pid, Ok(address)) = (socket.pid(), socket.address()) else { continue };
            let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let (program, port) = (program.trim_end(), address.port);
            if ALONE.contains(&program) && self.told_ports.insert(port) {
                log::line(format_args!(
                    "port {port} is shared by several {program}, of which there should be one for \
                     all workers: it ends only where it finds its port in use; give --private-port \
                     {port}"
                ));
            }
        }
    }
}
