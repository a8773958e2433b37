//! `HAProxy` before the workers: one thread, TCP, each connection to the server that has the
//! fewest. It copies every byte once more, and sees what is asked and answered end.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::{self, Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::arena::Arena;
use crate::client;
use crate::contestant::PORT;

/// Where it listens; workers have addresses of their own.
pub(crate) const ADDRESS: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 100, 0, 1)), PORT);

/// A running `HAProxy`.
pub(crate) struct Proxy(Child);

impl Proxy {
    /// Starts one before these.
    pub(crate) fn start(arena: &Arena, listeners: &[TcpListener], backlog: u32) -> Result<Self> {
        let servers = listeners
            .iter()
            .enumerate()
            .map(|(n, listener)| Ok(format!("    server worker{n} {}\n", listener.local_addr()?)));
        let servers: String = servers.collect::<Result<_>>()?;
        let text = include_str!("haproxy.cfg")
            .replace("@ADDRESS@", &ADDRESS.to_string())
            .replace("@BACKLOG@", &backlog.to_string())
            .replace("@SERVERS@\n", &servers);
        let path = Configuration::write(&text)?;
        let network = format!("--net=/proc/{}/fd/{}", process::id(), arena.network().as_raw_fd());
        // It ends with the thread that starts it, even if that is killed.
        let child = Command::new("nsenter")
            .args([&network, "setpriv", "--pdeathsig", "KILL", "haproxy", "-db", "-f"])
            .arg(&path.0)
            // Where servers are although many a PATH leaves it out.
            .env("PATH", "/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
            .stdout(Stdio::null())
            .spawn()
            .context("start nsenter, setpriv and haproxy; tools/setup test installs them")?;
        let proxy = Self(child);
        let listens = || Ok(client::connect(None, ADDRESS).is_ok());
        world::wait_until("haproxy listens (tools/setup test installs it)", || {
            arena.inside(listens).is_ok_and(|listens| listens)
        });
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file that is gone when it has been read.
struct Configuration(PathBuf);

impl Configuration {
    fn write(text: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("overspill-tail-{}.cfg", process::id()));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
