//! A server with three listening sockets on three addresses, which share their queues.
//!
//! ```sh
//! cargo build --example masterslave
//! sudo overspill run --name web -n 1 -- target/debug/examples/masterslave 8080
//! overspill show web
//! ```
//!
//! Started by something else, it joins while this runs:
//!
//!     sudo overspill allow web --cgroup PATH
//!
//! Each connection is answered with the number of the socket that has accepted it.

// The option is not one that a crate knows.
#![allow(unsafe_code)]

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

const SOL_OVERSPILL: i32 = 0x6f76;
const SO_MASTERSLAVE: i32 = 1;

/// Lets the sockets join the service of a port, and waits until they have.
fn join(port: u16, listeners: &[TcpListener]) -> io::Result<()> {
    let count = u16::try_from(listeners.len()).map_err(io::Error::other)?;
    let mut list = [port.to_ne_bytes(), count.to_ne_bytes()].concat();
    list.extend(listeners.iter().flat_map(|listener| listener.as_raw_fd().to_ne_bytes()));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // SAFETY: `list` lives through the call, and its length is the one given.
        let result = unsafe {
            libc::setsockopt(
                listeners[0].as_raw_fd(),
                SOL_OVERSPILL,
                SO_MASTERSLAVE,
                list.as_ptr().cast(),
                libc::socklen_t::try_from(list.len()).map_err(io::Error::other)?,
            )
        };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        let under_way = [libc::EINPROGRESS, libc::EALREADY].map(Some);
        if !under_way.contains(&error.raw_os_error()) || Instant::now() > deadline {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).map_or(Ok(8080), |port| port.parse());
    let port = port.map_err(io::Error::other)?;
    let listeners = (1..=3)
        .map(|host| TcpListener::bind((Ipv4Addr::new(127, 0, 0, host), port)))
        .collect::<io::Result<Vec<_>>>()?;
    join(port, &listeners)?;
    println!("joined");
    let serve = |number: usize, listener: &TcpListener| {
        for connection in listener.incoming() {
            // A client that has gone is nobody to answer.
            let _ = connection.and_then(|mut connection| writeln!(connection, "{number}"));
        }
    };
    thread::scope(|scope| {
        for (number, listener) in listeners.iter().enumerate() {
            scope.spawn(move || serve(number, listener));
        }
    });
    Ok(())
}
