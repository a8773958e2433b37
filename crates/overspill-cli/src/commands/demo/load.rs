//! Real clients: each connects, asks, and waits for the whole answer, with a thread of its
//! own and an end to its patience.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::stage::failed;
use crate::failure::Failure;

/// How long a client waits before it gives up.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Clients come in bursts, as they do to a server that is in use.
pub(super) const BURST: u32 = 20;
/// Bursts in a second.
pub(super) const BURSTS: u32 = 10;

/// A client and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Visit {
    /// Until the whole answer was there, or until the client gave up.
    pub(super) waited: Duration,
    pub(super) answer: Option<Answer>,
}

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) server: String,
    /// The address that its socket for this client has, if the server asks the kernel.
    pub(super) address: Option<String>,
}

/// Lets clients come for `seconds`, at a steady rate whatever becomes of them, and waits
/// for the last of them.
pub(super) fn run(target: SocketAddrV4, seconds: u32) -> Result<Vec<Visit>, Failure> {
    let start = Instant::now();
    let mut clients = Vec::new();
    for burst in 0..seconds * BURSTS {
        let due = start + Duration::from_secs(1) / BURSTS * burst;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        for _ in 0..BURST {
            let client = thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(move || visit(target))
                .map_err(failed("start a client"))?;
            clients.push(client);
        }
    }
    Ok(clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect())
}

fn visit(target: SocketAddrV4) -> Visit {
    let start = Instant::now();
    let answer = ask(target, start + PATIENCE).ok().and_then(|text| parse(&text));
    Visit { waited: start.elapsed(), answer }
}

fn ask(target: SocketAddrV4, deadline: Instant) -> io::Result<String> {
    let mut connection = call(target)?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero is an error, as is the time being up.
        connection.set_read_timeout(Some(left))?;
        match connection.read(&mut part)? {
            0 => return String::from_utf8(answer).map_err(io::Error::other),
            length => answer.extend_from_slice(&part[..length]),
        }
    }
}

/// Connects and asks, without waiting for the answer.
pub(super) fn call(target: SocketAddrV4) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect_timeout(&SocketAddr::V4(target), PATIENCE)?;
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    Ok(connection)
}

/// Reads an answer; `None` if it is not a good one.
fn parse(text: &str) -> Option<Answer> {
    let (head, _) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    if lines.next()?.split(' ').nth(1)? != "200" {
        return None;
    }
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    let header = |name: &str| {
        let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|&(_, value)| value.to_owned())
    };
    Some(Answer { server: header("X-Server")?, address: header("X-Address") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_its_server() {
        let text = "HTTP/1.1 200 OK\r\nx-server: nginx\r\nX-Address: 192.0.2.1\r\n\r\nhello\n";
        let answer = Answer { server: "nginx".to_owned(), address: Some("192.0.2.1".to_owned()) };
        assert_eq!(parse(text), Some(answer));
    }

    #[test]
    fn half_an_answer_and_an_error_are_none() {
        assert_eq!(parse("HTTP/1.1 200 OK\r\nX-Server: nginx\r\n"), None);
        assert_eq!(parse("HTTP/1.1 200 OK\r\nX-Address: b\r\n\r\n"), None);
        assert_eq!(parse("HTTP/1.1 503 No\r\nX-Server: a\r\nX-Address: b\r\n\r\n"), None);
        assert_eq!(parse(""), None);
    }
}
