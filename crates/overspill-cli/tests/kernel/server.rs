//! Servers that know nothing of overspill.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A process with listening sockets; dropping it ends it.
pub(crate) struct Server(Child);

impl Server {
    /// A process that holds the sockets described, as in `tcp=10.0.0.1:80 udp=10.0.0.1:80`.
    pub(crate) fn start(sockets: &str) -> Self {
        Self::start_with(Command::new("python3"), sockets)
    }

    /// The same in the network namespace at `path`.
    pub(crate) fn start_in(path: &str, sockets: &str) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={path}")).arg("python3");
        Self::start_with(command, sockets)
    }

    fn start_with(mut command: Command, sockets: &str) -> Self {
        let script = include_str!("server.py");
        command.args(["-c", script]).args(sockets.split(' '));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the server can't open {sockets}");
        Self(child)
    }

    /// Python's own HTTP server for a folder.
    pub(crate) fn http(address: SocketAddr, folder: &Path) -> Self {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", &port, "--bind", &ip, "--directory"]).arg(folder);
        let server = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        world::wait_until("the HTTP server listens", || TcpStream::connect(address).is_ok());
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a network namespace with a name, as `ip netns` does, that this test alone sees.
pub(crate) fn add_namespace(name: &str) {
    let mount = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status().unwrap();
    assert!(mount.success());
    world::ip(&format!("netns add {name}"));
}

/// The body of what an HTTP server answers.
pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&address, world::deadline()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // In one piece: a server that has read the first may answer and close.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").expect("an HTTP answer").1.to_owned()
}
