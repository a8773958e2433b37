//! A running `overspill metrics`, and clients of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tool::command;

/// Longer than the exporter's own patience with a client.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// The process; dropping it ends it.
pub(crate) struct Exporter {
    process: Child,
    stderr: BufReader<ChildStderr>,
    pub(crate) address: SocketAddr,
}

impl Exporter {
    /// One that listens on a port that the kernel chooses.
    pub(crate) fn start() -> Self {
        Self::start_with("--listen 127.0.0.1:0")
    }

    pub(crate) fn start_with(options: &str) -> Self {
        let mut command = command(&format!("metrics {options}"));
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let line = line(&mut stderr);
        let address = line
            .strip_prefix("overspill: metrics at http://")
            .and_then(|rest| rest.strip_suffix("/metrics")?.parse().ok())
            .unwrap_or_else(|| panic!("it says {line:?}"));
        Self { process, stderr, address }
    }

    /// The next line that it has to say.
    pub(crate) fn says(&mut self) -> String {
        line(&mut self.stderr)
    }

    /// What it answers to a request with these headers.
    pub(crate) fn ask(&self, request: &str, headers: &str) -> Answer {
        self.send(&format!("{request} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"))
    }

    pub(crate) fn send(&self, text: &str) -> Answer {
        let mut client = self.connect();
        client.write_all(text.as_bytes()).unwrap();
        Answer::read(&mut client)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let client = TcpStream::connect_timeout(&self.address, world::deadline()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// A scrape in Prometheus's older text format.
    #[track_caller]
    pub(crate) fn scrape(&self) -> String {
        let answer = self.ask("GET /metrics", "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// Sends it that signal, and gives the status that it ends with.
    pub(crate) fn end(mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
        self.process.wait().unwrap().code()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn line(stderr: &mut BufReader<ChildStderr>) -> String {
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// An answer over HTTP, as long as the server has sent it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(client: &mut TcpStream) -> Self {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap();
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}
