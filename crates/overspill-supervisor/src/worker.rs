//! A worker: started as `overspill worker`, which becomes COMMAND.
//!
//! Only the new process can know its own id for `LISTEN_PID`, and give up its own
//! privileges. What goes wrong before COMMAND runs is reported through stdin, a socket to
//! the supervisor that is closed when COMMAND takes the process over.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::unistd::{Uid, User, initgroups, setgid, setuid};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use overspill::{Cgroup, Words, nearest};

use crate::error::{Error, Result};
use crate::handover;
use crate::notify;
use crate::sockets::descriptor_name;

/// The first of the descriptors handed over (`SD_LISTEN_FDS_START`).
const FIRST_DESCRIPTOR: i32 = 3;

/// How long the supervisor waits until a process has become COMMAND.
const PATIENCE: Duration = Duration::from_secs(1);

/// Become a worker (for `overspill run`)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    user: Option<String>,
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// How many descriptors it may have open
    #[arg(long)]
    descriptors: Option<u64>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// A worker that could not become COMMAND.
pub(crate) struct NotStarted {
    pub(crate) pid: Option<u32>,
    pub(crate) error: Error,
}

impl NotStarted {
    pub(crate) fn new(error: Error) -> Self {
        Self { pid: None, error }
    }
}

/// What a process of a worker is started as.
pub(crate) struct Start<'a> {
    pub(crate) number: usize,
    pub(crate) user: Option<&'a str>,
    pub(crate) command: &'a [OsString],
    /// Where it belongs to, if it makes its sockets itself.
    pub(crate) cgroup: Option<&'a Cgroup>,
    /// How many descriptors it may have open, if not as many as the supervisor.
    pub(crate) descriptors: Option<u64>,
    /// What it is to write its words to, if it is to.
    pub(crate) words: Option<&'a Words>,
}

impl Start<'_> {
    /// Starts it with its sockets and these as stdout and stderr, and returns when it has
    /// become COMMAND.
    pub(crate) fn start<'a>(
        &self,
        sockets: impl Iterator<Item = (SocketAddr, &'a TcpListener)>,
        outputs: io::Result<[Stdio; 2]>,
    ) -> Result<Child, NotStarted> {
        let spawned = outputs.and_then(|outputs| self.spawn(sockets, outputs));
        let (mut child, mut report) =
            spawned.map_err(|error| NotStarted::new(Error::system("start a worker", error)))?;
        let mut failure = String::new();
        // One that takes longer tells of its failure itself, and is seen to end.
        let _ = report.set_read_timeout(Some(PATIENCE));
        // A report that breaks off is one that COMMAND's start has closed.
        let _ = report.read_to_string(&mut failure);
        if failure.is_empty() {
            return Ok(child);
        }
        let pid = Some(child.id());
        // It ends by itself after its report.
        let _ = child.wait();
        Err(NotStarted { pid, error: Error::NotStarted(failure) })
    }

    fn spawn<'a>(
        &self,
        sockets: impl Iterator<Item = (SocketAddr, &'a TcpListener)>,
        [stdout, stderr]: [Stdio; 2],
    ) -> io::Result<(Child, UnixStream)> {
        let mut names = Vec::new();
        let mut mappings = Vec::new();
        for ((address, listener), child_fd) in sockets.zip(FIRST_DESCRIPTOR..) {
            names.push(descriptor_name(address));
            mappings.push(FdMapping { parent_fd: listener.try_clone()?.into(), child_fd });
        }
        let words = FIRST_DESCRIPTOR + i32::try_from(names.len()).expect("descriptors are few");
        if let Some(map) = self.words {
            let parent_fd = map.as_fd().try_clone_to_owned()?;
            mappings.push(FdMapping { parent_fd, child_fd: words });
        }
        let (report, stdin) = UnixStream::pair()?;
        let mut worker = Command::new("/proc/self/exe");
        worker.arg0("overspill").arg("worker");
        if let Some(user) = self.user {
            worker.args(["--user", user]);
        }
        if let Some(cgroup) = self.cgroup {
            worker.arg("--cgroup").arg(cgroup.path()).env("GODEBUG", go_debug());
        }
        if let Some(descriptors) = self.descriptors {
            worker.args(["--descriptors", &descriptors.to_string()]);
        }
        if names.is_empty() {
            worker.env_remove("LISTEN_FDS").env_remove("LISTEN_FDNAMES");
        } else {
            worker.env("LISTEN_FDS", names.len().to_string());
            worker.env("LISTEN_FDNAMES", names.join(":"));
        }
        match self.words {
            Some(_) => worker.env(Words::VARIABLE, words.to_string()),
            None => worker.env_remove(Words::VARIABLE),
        };
        worker
            .env_remove(notify::VARIABLE)
            .env_remove(handover::VARIABLE)
            .arg("--")
            .args(self.command)
            .stdin(OwnedFd::from(stdin))
            .stdout(stdout)
            .stderr(stderr)
            // A signal from the terminal reaches the supervisor alone, which passes it on once.
            .process_group(0)
            .env("OVERSPILL_WORKER", self.number.to_string())
            .fd_mappings(mappings)
            .expect("the descriptors are numbered one by one");
        Ok((worker.spawn()?, report))
    }
}

/// The sockets of servers in Go are MPTCP ones since 1.24, if nothing else is said here,
/// and the kernel does not let those into a service.
fn go_debug() -> String {
    let given = std::env::var("GODEBUG").unwrap_or_default();
    match given.contains("multipathtcp=") {
        true => given,
        false if given.is_empty() => "multipathtcp=0".to_owned(),
        false => format!("{given},multipathtcp=0"),
    }
}

/// Becomes COMMAND. Returns never: what fails is reported to the supervisor.
pub fn run(args: &Args) -> Result<()> {
    let report = io::stdin().as_fd().try_clone_to_owned();
    let Err(failure) = become_command(args);
    let report = report.map_err(|error| Error::system("use stdin", error))?;
    // Without a supervisor to read it, it is told as any other failure.
    if File::from(report).write_all(failure.to_string().as_bytes()).is_err() {
        return Err(failure);
    }
    std::process::exit(1)
}

fn become_command(args: &Args) -> Result<Infallible> {
    // The supervisor blocks the signals that it waits for; a worker is to get them.
    SigSet::empty().thread_set_mask().map_err(|error| Error::system("unblock signals", error))?;
    if let Some(current) = args.descriptors {
        let limit = Rlimit { current: Some(current), ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, limit)
            .map_err(|error| Error::system("limit the number of open files", error))?;
    }
    if let Some(cgroup) = &args.cgroup {
        Cgroup::at(cgroup.clone()).enter(std::process::id())?;
    }
    let (program, arguments) = args.command.split_first().expect("COMMAND is required");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    match args.cgroup {
        None => command.env("LISTEN_PID", std::process::id().to_string()),
        Some(_) => command.env_remove("LISTEN_PID"),
    };
    if let Some(name) = &args.user {
        let user = find_user(name)?;
        become_user(&user)?;
        command.env("USER", &user.name).env("LOGNAME", &user.name).env("HOME", &user.dir);
    }
    let operation = format!("start {}", program.display());
    Err(Error::helped(operation, command.exec(), "; give a program in PATH, or its path"))
}

/// Lets this process have as many descriptors as it may: it holds a copy of each socket. Gives
/// what its workers are to have.
pub(crate) fn raise_descriptors() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).ok().and(limit.current)
}

/// The user of that name or number.
pub(crate) fn find_user(name: &str) -> Result<User> {
    let failed =
        |error: Errno| Error::helped(format!("look up user {name}"), error, "; look with getent");
    let user = User::from_name(name).map_err(failed)?;
    let user = match (user, name.parse()) {
        (None, Ok(number)) => User::from_uid(Uid::from_raw(number)).map_err(failed)?,
        (user, _) => user,
    };
    user.ok_or_else(|| {
        // Users that are kept elsewhere, such as in LDAP, are not offered.
        let local = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let local = local.lines().filter_map(|line| line.split(':').next().map(str::to_owned));
        Error::NoSuchUser { name: name.to_owned(), near: nearest(name, local) }
    })
}

fn become_user(user: &User) -> Result<()> {
    let name = CString::new(user.name.as_str()).expect("a name from the system has no NUL");
    initgroups(&name, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .map_err(|error| {
            let operation = format!("become user {}", user.name);
            Error::helped(operation, error, "; run as root, or without --user")
        })
}
