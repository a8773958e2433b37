//! Connections that were asked on once and then stay open, as browsers and proxies keep theirs.
//!
//! Two of the workers hold them. A contestant that counts connections takes these two for busy
//! although they have nothing to do.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::client;
use crate::worker::{WORKERS, encode};

/// The workers before this one hold idle connections.
const HOLDERS: usize = 2;
/// How many each of them holds.
const EACH: usize = 50;

/// What asking once costs. While a worker is occupied it accepts nothing, so that at a shared
/// socket the others get connections too.
const COST: Duration = Duration::from_millis(1);
/// More are needed only where a worker gets nearly none.
const MOST: usize = 4_000;
/// Within this time workers have noticed who has left.
const SETTLE: Duration = Duration::from_millis(20);

/// Opens connections until each holder has enough, and closes all others. So every contestant
/// places them as it places all connections.
pub(crate) fn open(to: SocketAddr) -> Result<Vec<TcpStream>> {
    let mut held: [Vec<TcpStream>; WORKERS] = Default::default();
    let mut opened = 0;
    while held[..HOLDERS].iter().any(|own| own.len() < EACH) {
        ensure!(opened < MOST, "{MOST} connections, and workers hold {:?}", held.map(|h| h.len()));
        let asked: Vec<TcpStream> = (0..WORKERS).map(|_| ask(to)).collect::<Result<_>>()?;
        for mut connection in asked {
            let mut worker = [0];
            connection.read_exact(&mut worker).context("an answer before it is idle")?;
            held[usize::from(worker[0])].push(connection);
        }
        opened += WORKERS;
    }
    let idle = held.into_iter().take(HOLDERS).flat_map(|own| own.into_iter().take(EACH)).collect();
    thread::sleep(SETTLE);
    Ok(idle)
}

fn ask(to: SocketAddr) -> Result<TcpStream> {
    let mut connection = client::connect(None, to)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(client::PATIENCE))?;
    connection.write_all(&encode(COST, false))?;
    Ok(connection)
}
