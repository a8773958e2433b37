//! What is wanted of a supervisor.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::Signal;
use overspill::{Capacity, Name, Rules};

use crate::relay::Output;

/// The workers of a server, as `overspill run` is to start and keep them.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The supervisor's name, and that of its first service.
    pub name: Name,
    /// How many workers there are.
    pub workers: usize,
    /// For each socket that is handed to a worker, the address that it has in each worker;
    /// nothing where the workers make their sockets themselves.
    pub addresses: Vec<Vec<SocketAddr>>,
    /// Ports that each worker is to have for itself.
    pub private: Vec<u16>,
    /// The length of the queue of a socket that is handed over, in connections.
    pub backlog: u32,
    /// The rules of the services.
    pub rules: Rules,
    /// The object of the program that chooses, where the policy is `dispatcher`.
    pub dispatcher: Option<PathBuf>,
    /// What the network namespace is to hold, where its first service is made.
    pub capacity: Option<Capacity>,
    /// Whether the workers get the words of the members, to write their own.
    pub words: bool,
    /// Whom the workers run as, by name or number.
    pub user: Option<String>,
    /// How long a worker that was told to end may take until it is killed.
    pub grace: Duration,
    /// How long a worker that is replaced may go on with the connections it has; [`Duration::MAX`]
    /// is without end.
    pub drain: Duration,
    /// How long a worker's successor may take until it listens.
    pub ready: Duration,
    /// What tells a worker that is replaced to end.
    pub stop_signal: Signal,
    /// Which processes of a worker get it.
    pub kill_mode: KillMode,
    /// How long a request may wait at the head of a worker's queue, while others accept,
    /// until the worker is taken to hang; 0 disables.
    pub patience: Duration,
    /// How what the workers write comes out.
    pub output: Output,
    /// The program of a worker, and its arguments.
    pub command: Vec<OsString>,
}

/// Which processes of a worker are told to end; after the grace time all are killed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum KillMode {
    /// Its first process, which ends the others as it wants
    #[default]
    Mixed,
    /// All its processes
    Group,
}

impl Plan {
    /// Whether the sockets are made by the supervisor and handed to the workers.
    #[must_use]
    pub fn hands_over(&self) -> bool {
        !self.addresses.is_empty()
    }
}

/// Who may join a service whose processes others start, as `overspill allow` is to keep it.
#[derive(Debug)]
pub struct Peers {
    /// The service's name; that of each port's service where there are several.
    pub name: Name,
    /// The control groups whose processes may join. They need not exist yet.
    pub places: Vec<Place>,
    /// The ports on which listening is enough to join.
    pub ports: Vec<u16>,
    /// The rules of a service that is made.
    pub rules: Rules,
    /// The object of the program that chooses, where the policy is `dispatcher`.
    pub dispatcher: Option<PathBuf>,
    /// What the network namespace is to hold, where its first service is made.
    pub capacity: Option<Capacity>,
    /// As in [`Plan::patience`].
    pub patience: Duration,
}

/// A control group whose processes may join a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// By its folder, or by its path below a cgroup2 mount.
    Cgroup(PathBuf),
    /// That of a systemd unit, by the unit's name.
    Unit(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "control group {}", path.display()),
            Self::Unit(unit) => write!(f, "unit {unit}"),
        }
    }
}
