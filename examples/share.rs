//! Makes a service of the listening sockets of running servers, and ends.
//!
//! ```text
//! cargo run --example share -- web 8080 PID [PID]...
//! ```
//!
//! The servers notice nothing, and nothing has to keep running: the service lives in the
//! kernel until `Service::remove` or `overspill rm` takes it away.

use std::error::Error;

use overspill::{Policy, Service, adopt};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, port, pids @ ..] = arguments.as_slice() else {
        return Err("usage: share NAME PORT PID [PID]...".into());
    };
    let pids = pids.iter().map(|pid| pid.parse()).collect::<Result<Vec<u32>, _>>()?;
    let sockets = adopt::listeners(&pids, port.parse()?)?;
    let service = Service::builder(name).policy(Policy::ShortestQueue).share_adopted(&sockets)?;
    for member in service.status()?.members {
        println!(
            "member {} of {name}: {} of process {}",
            member.member, member.address, member.pid
        );
    }
    Ok(())
}
