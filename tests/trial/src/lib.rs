//! A trial: a server under `overspill run`, clients that come at a steady rate, and a
//! [`Trouble`] that befalls the workers all the while. What became of each client is counted:
//! who was served, who was cut off with the worker that had accepted it, and who was lost
//! before any worker had.
//!
//! A trial runs in the caller's network namespace, in which it must be alone.

mod crowd;
mod mixed;
mod record;
mod staff;
mod trouble;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use overspill::{Namespace, Service};

pub use crowd::{End, Fate};
pub use staff::{NAME, PORT, Staff, Work};
pub use trouble::Trouble;

use crowd::Crowd;

/// What is tried.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The program `overspill`.
    pub program: PathBuf,
    /// With a service, or without one: then workers that end are only started again.
    pub redirect: bool,
    /// What befalls the workers.
    pub trouble: Trouble,
    /// How many workers there are.
    pub workers: usize,
    /// How long one works on a request.
    pub work: Duration,
    /// Between two clients.
    pub interval: Duration,
    /// How long clients come.
    pub time: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What became of each client.
    pub fates: Vec<Fate>,
    /// How often trouble was made.
    pub troubles: u32,
    /// The kernel's own counts that tell of lost requests and of moved ones.
    pub counts: Vec<(String, u64)>,
    /// What the supervisors had to say.
    pub log: String,
}

impl Outcome {
    /// How many clients ended so.
    #[must_use]
    pub fn count(&self, end: End) -> usize {
        self.fates.iter().filter(|fate| fate.end == end).count()
    }

    /// How many were refused, reset or timed out before a worker had accepted them.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.fates.iter().filter(|fate| fate.end.is_lost()).count()
    }
}

impl Trial {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// Something other than a client failed: then nothing can be said.
    pub fn run(&self) -> Result<Outcome> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let before = kernel_counts()?;
        let work = Work { workers: self.workers, time: self.work };
        let mut staff = Staff::start(&self.program, self.redirect, work)?;
        let (fates, troubles) = self.run_with(&mut staff)?;
        let counts = kernel_counts()?
            .into_iter()
            .zip(before)
            .map(|((name, after), (_, before))| (name, after - before))
            .collect();
        let log = staff.end()?;
        let left = Service::all(&Namespace::current()?)?;
        let left: Vec<&str> = left.iter().map(|service| service.name().as_str()).collect();
        ensure!(left.is_empty(), "services are left, {}:\n{log}", left.join(", "));
        Ok(Outcome { fates, troubles, counts, log })
    }

    fn run_with(&self, staff: &mut Staff) -> Result<(Vec<Fate>, u32)> {
        let record = staff.record();
        thread::scope(|scope| {
            let until = Instant::now() + self.time;
            let trouble = scope.spawn(move || self.trouble.make(staff, until));
            let crowd = Crowd::new(world::at(&format!("10.0.0.1:{PORT}")), &record)?;
            let fates = crowd.come(self.interval, self.time)?;
            let troubles = trouble.join().expect("it returns its errors");
            Ok((fates, troubles.with_context(|| format!("{:?}", self.trouble))?))
        })
    }
}

/// The counts of this network namespace that tell of requests lost and moved.
fn kernel_counts() -> Result<Vec<(String, u64)>> {
    const TOLD: [&str; 7] = [
        "ListenOverflows",
        "ListenDrops",
        "TCPMigrateReqSuccess",
        "TCPMigrateReqFailure",
        "TCPAbortOnData",
        "TCPAbortOnClose",
        "TCPReqQFullDrop",
    ];
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let names = lines.next().unwrap_or_default().split(' ');
    let values = lines.next().unwrap_or_default().split(' ');
    let told = names.zip(values).filter(|(name, _)| TOLD.contains(name));
    told.map(|(name, value)| Ok((name.to_owned(), value.parse()?))).collect()
}
