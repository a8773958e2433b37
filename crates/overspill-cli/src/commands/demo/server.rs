//! Real servers, started on the stage and ended by their ids.

use std::fs::{self, File};
use std::net::SocketAddrV4;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::kernel;
use super::stage::{failed, make_folder};
use super::tools;
use crate::failure::{Failure, Outcome};

/// Which program serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nginx,
    Haproxy,
    Python,
}

/// A server that is to be started.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// How the report and its own answers call it.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) address: SocketAddrV4,
    /// Whether others listen on the same address (`SO_REUSEPORT`).
    pub(super) reuseport: bool,
}

/// A running server. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) plan: Plan,
    process: Child,
    log: PathBuf,
}

impl Plan {
    /// Starts the server with files in `folder`, which is made for it.
    pub(super) fn start(&self, folder: &Path, backlog: u32) -> Result<Server, Failure> {
        make_folder(folder)?;
        let log = folder.join("log");
        let output = File::create(&log).map_err(failed("make a log"))?;
        let process = self
            .command(folder, backlog)?
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(failed("make a log"))?)
            .stderr(output)
            // ^C is for the demo, which takes its servers with it.
            .process_group(0)
            .spawn()
            .map_err(failed("start a server"))?;
        Ok(Server { plan: self.clone(), process, log })
    }

    fn command(&self, folder: &Path, backlog: u32) -> Result<Command, Failure> {
        Ok(match self.kind {
            Kind::Nginx => {
                let configuration = self.configure(include_str!("nginx.conf"), folder, backlog)?;
                let mut command = Command::new(tools::NGINX.find()?);
                command.arg("-p").arg(folder).arg("-c").arg(configuration);
                command
            }
            Kind::Haproxy => {
                let configuration = self.configure(include_str!("haproxy.cfg"), folder, backlog)?;
                let mut command = Command::new(tools::HAPROXY.find()?);
                command.arg("-db").arg("-f").arg(configuration);
                command
            }
            Kind::Python => {
                let mut command = Command::new(tools::PYTHON.find()?);
                command.arg("-c").arg(include_str!("server.py"));
                command.arg(self.address.ip().to_string()).arg(self.address.port().to_string());
                command.arg(backlog.to_string()).arg(&self.name);
                command
            }
        })
    }

    fn configure(&self, template: &str, folder: &Path, backlog: u32) -> Result<PathBuf, Failure> {
        let text = template
            .replace("@FOLDER@", &folder.display().to_string())
            .replace("@ADDRESS@", &self.address.ip().to_string())
            .replace("@PORT@", &self.address.port().to_string())
            .replace("@BACKLOG@", &backlog.to_string())
            .replace("@REUSEPORT@", if self.reuseport { "reuseport" } else { "" })
            .replace("@NAME@", &self.name);
        let path = folder.join("configuration");
        fs::write(&path, text).map_err(failed("write a configuration"))?;
        Ok(path)
    }
}

impl Server {
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Fails, with what the server says, if it has ended.
    pub(super) fn check(&mut self) -> Outcome {
        let ended = self.process.try_wait().map_err(failed("look after a server"))?;
        let Some(status) = ended else { return Ok(()) };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let said = log.lines().next_back().unwrap_or("it says nothing");
        Err(Failure::new(format!("the demo's server {} ended ({status}): {said}", self.plan.name)))
    }

    /// Stops it as a debugger would: its sockets stay, and nobody serves them.
    pub(super) fn hang(&self) -> Outcome {
        let pid = i32::try_from(self.pid()).map(Pid::from_raw).map_err(failed("stop a server"))?;
        kill(pid, Signal::SIGSTOP).map_err(failed("stop a server"))?;
        kernel::wait_until("a server to stop", || Ok(kernel::is_stopped(self.pid())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; if it can't be killed now, the end of the process
        // namespace will do it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
