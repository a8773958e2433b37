//! The workers, and the supervisors that they have one after another.

use std::fs;
use std::io::{PipeReader, Read as _, Write as _, pipe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overspill::{Cgroup, Service};
use tempfile::{NamedTempFile, TempDir};

use crate::record::{Order, Record};

/// The supervisor's name, and the service's.
pub const NAME: &str = "survive";
/// Where the workers listen.
pub const PORT: u16 = 8080;

/// How many services and members there is room for.
pub(crate) const CAPACITY: &str = "4,12";

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
    program: Program,
    /// With a service.
    pub(crate) redirect: bool,
    work: Work,
    record: Arc<Record>,
    log: NamedTempFile,
    /// Whether what the supervisor tells is read.
    reads: Arc<AtomicBool>,
    /// The program again, as another file: another build, as far as a supervisor knows.
    other: Program,
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
    pub fn start(program: &Path, redirect: bool, work: Work) -> Result<Self> {
        let record = Arc::new(Record::new()?);
        let log = NamedTempFile::new()?;
        let reads = Arc::new(AtomicBool::new(true));
        let other = Program::copy(program)?;
        let program = Program { path: program.to_owned(), _folder: None };
        let supervisor = supervise(&program.path, redirect, work, &record, &log, &reads)?;
        let cgroups = vec![cgroup_of(&supervisor)?];
        let staff =
            Self { program, redirect, work, record, log, reads, other, supervisor, cgroups };
        staff.are_there()?;
        Ok(staff)
    }

    fn are_there(&self) -> Result<()> {
        self.wait_until("all workers take requests", |staff| {
            let all = staff.work.workers;
            Ok(staff.workers()?.len() == all
                && (!staff.redirect || Self::members().is_ok_and(|members| members == all)))
        })
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
        let output = Command::new(&self.program.path).args(arguments.split(' ')).output()?;
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
        self.begin_supervisor()?;
        self.wait_until("the workers have been replaced", |staff| {
            Ok(staff.log()?[told..].contains("restart: done"))
        })
    }

    /// Starts another supervisor in the place of one that was killed.
    pub(crate) fn begin_supervisor(&mut self) -> Result<()> {
        let Self { program, redirect, work, record, log, reads, .. } = &*self;
        self.supervisor = supervise(&program.path, *redirect, *work, record, log, reads)?;
        self.cgroups.push(cgroup_of(&self.supervisor)?);
        Ok(())
    }

    /// Asks the supervisor for something by a command that goes on by itself, or by a signal.
    pub(crate) fn ask(&self, command: &str, signal: Signal) -> Result<()> {
        // To wait for it would be to leave the workers in peace meanwhile.
        let mut asked = Command::new(&self.program.path)
            .args([command, NAME])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::spawn(move || asked.wait());
        if self.is_up()? {
            Self::signal(self.supervisor.id(), signal);
        }
        Ok(())
    }

    /// Has the supervisor become the other build, or this one again.
    pub(crate) fn upgrade(&mut self) -> Result<()> {
        std::mem::swap(&mut self.program, &mut self.other);
        self.attempt("upgrade")
    }

    /// Whether the supervisor takes signals: before that, one would end it as it ends any process.
    fn is_up(&self) -> Result<bool> {
        Ok(cgroup_of(&self.supervisor)?.path().exists())
    }

    /// Lets what the supervisor tells be read, or not.
    pub(crate) fn read_log(&self, reads: bool) {
        self.reads.store(reads, Ordering::Relaxed);
    }

    /// Runs a command of overspill, which may fail as commands do.
    pub(crate) fn attempt(&self, arguments: &str) -> Result<()> {
        let output = Command::new(&self.program.path).args(arguments.split(' ')).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            matches!(output.status.code(), Some(0 | 1)),
            "overspill {arguments}: {}: {stderr}",
            output.status
        );
        Ok(())
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
        self.wait_until("the supervisor takes signals", Self::is_up)?;
        self.are_there()?;
        Self::signal(self.supervisor.id(), Signal::SIGTERM);
        let status = self.supervisor.wait()?;
        let log = self.log()?;
        ensure!(status.success(), "the supervisor ended with {status}:\n{log}");
        let left: Vec<_> = self.cgroups.iter().filter(|it| it.path().exists()).collect();
        ensure!(left.is_empty(), "control groups are left, {left:?}:\n{log}");
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

/// A file of the program, gone with this value.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    /// Of a copy, the folder that it lies in.
    _folder: Option<TempDir>,
}

impl Program {
    fn copy(program: &Path) -> Result<Self> {
        let folder = TempDir::new()?;
        let path = folder.path().join("overspill");
        fs::copy(program, &path)?;
        Ok(Self { path, _folder: Some(folder) })
    }
}

fn supervise(
    program: &Path,
    redirect: bool,
    work: Work,
    record: &Record,
    log: &NamedTempFile,
    reads: &Arc<AtomicBool>,
) -> Result<Child> {
    let (workers, seconds) = (work.workers.to_string(), work.time.as_secs_f64().to_string());
    let redirect = if redirect { "on" } else { "off" };
    let (reader, stderr) = pipe()?;
    // Whatever the caller ignores, the supervisor is not to.
    let child = Command::new("env")
        .arg("--default-signal")
        .arg(program)
        .args(["run", "--name", NAME, "-n", &workers, "--redirect", redirect, "--grace", "2"])
        .args(["--capacity", CAPACITY])
        .args(["--", "python3", "-I", "-S", "-c", include_str!("worker.py")])
        .arg(PORT.to_string())
        .arg(record.path())
        .arg(seconds)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()?;
    let log = fs::OpenOptions::new().append(true).open(log.path())?;
    let reads = Arc::clone(reads);
    // It ends with the last process that holds the pipe.
    std::thread::spawn(move || pass_on(reader, log, &reads));
    Ok(child)
}

/// Passes on what a supervisor tells, while it is to be read.
fn pass_on(mut reader: PipeReader, mut log: fs::File, reads: &AtomicBool) {
    let mut part = [0; 4096];
    loop {
        while !reads.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(5));
        }
        match reader.read(&mut part) {
            Ok(0) | Err(_) => return,
            // The file outlives whoever reads it.
            Ok(count) => drop(log.write_all(&part[..count])),
        }
    }
}

/// Where a supervisor's workers are.
fn cgroup_of(supervisor: &Child) -> Result<Cgroup> {
    let own = Cgroup::own()?;
    Ok(Cgroup::at(own.path().join(format!("overspill-{NAME}-{}", supervisor.id()))))
}
