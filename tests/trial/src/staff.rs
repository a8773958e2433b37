//! The workers, and the supervisors that they have one after another.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overspill::{Cgroup, Service};
use tempfile::NamedTempFile;

use crate::record::{Order, Record};

/// The supervisor's name, and the service's.
pub const NAME: &str = "survive";
/// Where the workers listen.
pub const PORT: u16 = 8080;

/// How long anything but a client may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// How many workers, and how long each works on a request.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// How many there are.
    pub workers: usize,
    /// On each request.
    pub time: Duration,
}

/// The workers of a trial.
#[derive(Debug)]
pub struct Staff {
    program: PathBuf,
    /// With a service.
    pub(crate) redirect: bool,
    work: Work,
    record: Arc<Record>,
    log: NamedTempFile,
    supervisor: Child,
    /// Of this supervisor and of those that were killed.
    cgroups: Vec<Cgroup>,
}

impl Staff {
    /// Starts them, and returns when all take requests.
    ///
    /// # Errors
    ///
    /// They don't start.
    pub fn start(program: PathBuf, redirect: bool, work: Work) -> Result<Self> {
        let record = Arc::new(Record::new()?);
        let log = NamedTempFile::new()?;
        let supervisor = supervise(&program, redirect, work, &record, &log)?;
        let cgroups = vec![cgroup_of(&supervisor)?];
        let staff = Self { program, redirect, work, record, log, supervisor, cgroups };
        staff.wait_until("all workers take requests", |staff| {
            Ok(staff.workers()?.len() == work.workers
                && (!redirect || Self::members().is_ok_and(|all| all == work.workers)))
        })?;
        Ok(staff)
    }

    pub(crate) fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record)
    }

    fn members() -> Result<usize> {
        Ok(Service::open(NAME)?.status()?.members.len())
    }

    /// The processes of all workers that listen.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub fn workers(&self) -> Result<Vec<u32>> {
        let mut workers = Vec::new();
        for cgroup in self.cgroups.iter().filter(|it| it.path().exists()) {
            workers.extend(cgroup.processes().unwrap_or_default());
        }
        workers.retain(|&pid| self.record.listens(pid).unwrap_or(false));
        Ok(workers)
    }

    /// Sends a signal to a worker, which may have ended.
    pub(crate) fn signal(pid: u32, signal: Signal) {
        let _ = kill(Pid::from_raw(pid.try_into().expect("ids are positive")), signal);
    }

    pub(crate) fn signal_all(pids: &[u32], signal: Signal) {
        for &pid in pids {
            Self::signal(pid, signal);
        }
    }

    pub(crate) fn order(&self, pid: u32, order: Order) -> Result<()> {
        Ok(self.record.order(pid, order)?)
    }

    /// Runs a command of overspill, which has to succeed.
    pub(crate) fn overspill(&self, arguments: &str) -> Result<()> {
        let output = Command::new(&self.program).args(arguments.split(' ')).output()?;
        ensure!(
            output.status.success(),
            "overspill {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// What the supervisors had to say so far.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log.path())?)
    }

    /// Kills the supervisor alone.
    pub(crate) fn kill_supervisor(&mut self) -> Result<()> {
        self.supervisor.kill()?;
        self.supervisor.wait()?;
        Ok(())
    }

    /// Starts another supervisor in the place of one that was killed, and returns when its
    /// workers have taken over from the other's.
    pub(crate) fn start_supervisor(&mut self) -> Result<()> {
        let told = self.log()?.len();
        self.supervisor =
            supervise(&self.program, self.redirect, self.work, &self.record, &self.log)?;
        self.cgroups.push(cgroup_of(&self.supervisor)?);
        self.wait_until("the workers have been replaced", |staff| {
            Ok(staff.log()?[told..].contains("restart: done"))
        })
    }

    pub(crate) fn wait_until(
        &self,
        what: &str,
        mut condition: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        while !condition(self)? {
            if start.elapsed() > DEADLINE {
                bail!("waited in vain until {what}; the supervisors said:\n{}", self.log()?);
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends them, and gives what the supervisors said.
    ///
    /// # Errors
    ///
    /// The supervisor does not end well.
    pub fn end(mut self) -> Result<String> {
        Self::signal(self.supervisor.id(), Signal::SIGTERM);
        let status = self.supervisor.wait()?;
        let log = self.log()?;
        ensure!(status.success(), "the supervisor ended with {status}:\n{log}");
        Ok(log)
    }
}

impl Drop for Staff {
    fn drop(&mut self) {
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
        // Those that a killed supervisor leaves.
        for cgroup in self.cgroups.iter().filter(|it| it.path().exists()) {
            let _ = cgroup.kill();
            let start = Instant::now();
            while cgroup.remove().is_err() && start.elapsed() < DEADLINE {
                sleep(Duration::from_millis(5));
            }
        }
    }
}

fn supervise(
    program: &PathBuf,
    redirect: bool,
    work: Work,
    record: &Record,
    log: &NamedTempFile,
) -> Result<Child> {
    let (workers, seconds) = (work.workers.to_string(), work.time.as_secs_f64().to_string());
    let redirect = if redirect { "on" } else { "off" };
    let log = fs::OpenOptions::new().append(true).open(log.path())?;
    // Whatever the caller ignores, the supervisor is not to.
    let child = Command::new("env")
        .arg("--default-signal")
        .arg(program)
        .args(["run", "--name", NAME, "-n", &workers, "--redirect", redirect, "--grace", "2"])
        .args(["--", "python3", "-I", "-S", "-c", include_str!("worker.py")])
        .arg(PORT.to_string())
        .arg(record.path())
        .arg(seconds)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(child)
}

/// Where a supervisor's workers are.
fn cgroup_of(supervisor: &Child) -> Result<Cgroup> {
    let own = Cgroup::own()?;
    Ok(Cgroup::at(own.path().join(format!("overspill-{NAME}-{}", supervisor.id()))))
}
