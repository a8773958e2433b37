//! The scenes: which servers, which of them hangs, whom the clients call.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::Path;

use overspill::{Policy, Service, Status, adopt};

use super::kernel;
use super::load::{self, Visit};
use super::report::{Act, MemberRow, Scene};
use super::server::{Kind, Plan, Server};
use super::stage::{failed, make_folder};
use crate::failure::{Failure, Outcome};

/// Small queues, so that one is soon full: a backlog of 8 is 9 places.
pub(super) const BACKLOG: u32 = 8;
const PORT: u16 = 8080;

/// A scene that is to be played.
pub(super) struct Script {
    title: &'static str,
    policy: Policy,
    servers: Vec<Plan>,
    /// Which server hangs.
    hung: usize,
    /// Whom all clients call.
    called: SocketAddrV4,
}

/// Every scene.
pub(super) fn all() -> [Script; 2] {
    [one_address(), four_addresses()]
}

fn one_address() -> Script {
    let called = address(1);
    let server = |number| Plan {
        name: format!("nginx {number}"),
        kind: Kind::Nginx,
        address: called,
        reuseport: true,
    };
    Script {
        title: "1. Four nginx share one address (SO_REUSEPORT); the second hangs",
        policy: Policy::ShortestQueue,
        servers: (1..=4).map(server).collect(),
        hung: 1,
        called,
    }
}

fn four_addresses() -> Script {
    let server = |name: &str, kind, last| Plan {
        name: name.to_owned(),
        kind,
        address: address(last),
        reuseport: false,
    };
    Script {
        title: "2. Four servers, four addresses; all clients call the one that hangs",
        policy: Policy::NextAvailable,
        // The slow one is next in the list: its queue, too, is full at times.
        servers: vec![
            server("nginx", Kind::Nginx, 1),
            server("python3", Kind::Python, 2),
            server("haproxy 1", Kind::Haproxy, 3),
            server("haproxy 2", Kind::Haproxy, 4),
        ],
        hung: 0,
        called: address(1),
    }
}

fn address(last: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), PORT)
}

/// One load and what overspill has to say about it.
struct Played {
    visits: Vec<Visit>,
    dropped: u64,
    status: Option<Status>,
}

impl Script {
    /// Plays the scene without overspill and with it.
    pub(super) fn play(
        &self,
        folder: &Path,
        seconds: u32,
        tell: &mut impl FnMut(&str),
    ) -> Result<Scene, Failure> {
        tell("without overspill");
        let without = self.act(&folder.join("without"), seconds, false)?;
        tell("with overspill");
        let with = self.act(&folder.join("with"), seconds, true)?;
        let status = with.status.as_ref().expect("it was played with a service");
        let called = self.called.ip().to_string();
        let visits = [without.visits.as_slice(), with.visits.as_slice()];
        let row = |(position, plan): (usize, &Plan)| {
            let is = [position == self.hung, plan.address == self.called];
            MemberRow::new(&plan.name, is, visits, status, position)
        };
        Ok(Scene {
            title: self.title.to_owned(),
            policy: self.policy,
            members: self.servers.iter().enumerate().map(row).collect(),
            without: Act::new(&without.visits, &called, without.dropped),
            with: Act::new(&with.visits, &called, with.dropped),
        })
    }

    /// One load: fresh servers, one of them hung, its queue full.
    fn act(&self, folder: &Path, seconds: u32, share: bool) -> Result<Played, Failure> {
        make_folder(folder)?;
        let mut servers = self.start(folder)?;
        servers[self.hung].hang()?;
        let _waiting = self.fill()?;
        let service = if share { Some(self.share(&servers)?) } else { None };
        let before = kernel::dropped()?;
        let visits = load::run(self.called, seconds)?;
        let dropped = kernel::dropped()? - before;
        for server in &mut servers {
            server.check()?;
        }
        let status = service.as_ref().map(Service::status).transpose()?;
        if let Some(service) = service {
            service.remove()?;
        }
        Ok(Played { visits, dropped, status })
    }

    /// Starts the servers and waits until all of them listen.
    fn start(&self, folder: &Path) -> Result<Vec<Server>, Failure> {
        let mut servers = Vec::new();
        for (number, plan) in self.servers.iter().enumerate() {
            servers.push(plan.start(&folder.join(number.to_string()), BACKLOG)?);
        }
        kernel::wait_until("the servers to listen", || {
            for server in &mut servers {
                server.check()?;
            }
            Ok(self.queues()?.len() == self.servers.len())
        })?;
        Ok(servers)
    }

    /// Lets clients come until the hung server's queue is full. They are kept waiting.
    fn fill(&self) -> Result<Vec<TcpStream>, Failure> {
        let mut waiting = Vec::new();
        kernel::wait_until("the hung server's queue to fill", || {
            let queues = self.queues()?;
            if queues.iter().any(|&queued| queued > BACKLOG) {
                // The others serve what has come to them; only the hung one does not.
                return Ok(queues.iter().filter(|&&queued| queued > 0).count() == 1);
            }
            waiting.push(load::call(self.called).map_err(failed("call a server"))?);
            Ok(false)
        })?;
        Ok(waiting)
    }

    /// What waits at each of the servers' sockets.
    fn queues(&self) -> Result<Vec<u32>, Failure> {
        let ours = |address| self.servers.iter().any(|plan| plan.address == address);
        let listening = kernel::listening()?.into_iter();
        Ok(listening.filter(|each| ours(each.address)).map(|each| each.queued).collect())
    }

    /// Takes over the running servers' sockets, as `overspill share` does.
    fn share(&self, servers: &[Server]) -> Result<Service, Failure> {
        let pids: Vec<u32> = servers.iter().map(Server::pid).collect();
        let sockets = adopt::listeners(&pids, PORT)?;
        let service = Service::builder("demo").policy(self.policy).share_adopted(&sockets)?;
        check_members(&service.status()?, servers)?;
        Ok(service)
    }
}

/// The report takes the n-th member for the n-th server.
fn check_members(status: &Status, servers: &[Server]) -> Outcome {
    let members = status.members.iter().map(|member| member.pid);
    if members.eq(servers.iter().map(Server::pid)) {
        return Ok(());
    }
    Err(Failure::new("demo finds other listening sockets than one a server"))
}
