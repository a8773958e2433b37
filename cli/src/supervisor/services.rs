//! The services that the workers' sockets make up: one for each port.

use std::net::TcpListener;

use overspill::{Error, MemberId, MemberState, Name, Service};

use super::sockets::Sockets;
use super::{Plan, log};
use crate::failure::Failure;

/// The services, and which of the sockets each of their members is.
#[derive(Debug, Default)]
pub(crate) struct Services {
    made: Vec<Made>,
    /// The workers whose members drain because they wait.
    draining: Vec<bool>,
}

#[derive(Debug)]
struct Made {
    service: Service,
    /// Each with the position of its socket.
    members: Vec<(usize, MemberId)>,
}

impl Services {
    /// Makes them, all or none; none at all where nothing is to be redirected.
    pub(crate) fn make(plan: &Plan, sockets: &Sockets) -> overspill::Result<Self> {
        let mut services = Self { made: Vec::new(), draining: vec![false; sockets.workers()] };
        if !plan.rules.redirect {
            return Ok(services);
        }
        let ports = sockets.ports();
        for &port in &ports {
            let name = if ports.len() == 1 { plan.name.clone() } else { plan.name.with_port(port) };
            match Made::make(&name, plan, sockets, port) {
                Ok(made) => services.made.push(made),
                Err(error) => {
                    // The cause is reported, not the trouble on the way back.
                    let _ = services.remove();
                    return Err(error);
                }
            }
        }
        Ok(services)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.made.iter().map(|made| made.service.name())
    }

    /// Notes which process serves a worker's sockets now.
    pub(crate) fn set_pid(&self, sockets: &Sockets, worker: usize, pid: u32) {
        self.each_member(sockets.positions(worker), |service, member| service.set_pid(member, pid));
    }

    /// Lets the members of exactly these workers drain.
    pub(crate) fn set_draining(&mut self, sockets: &Sockets, draining: Vec<bool>) {
        // Resumed before others drain, so that there is always one that takes requests.
        for drain in [false, true] {
            for (worker, &wanted) in draining.iter().enumerate() {
                if wanted == drain && wanted != self.draining[worker] {
                    self.each_member(sockets.positions(worker), |service, member| {
                        if drain { service.drain(member) } else { service.resume(member) }
                    });
                }
            }
        }
        self.draining = draining;
    }

    /// Removes them all, and gives the first failure. One that is gone already, by
    /// `overspill rm`, is no failure.
    pub(crate) fn remove(&mut self) -> overspill::Result<()> {
        let mut result = Ok(());
        for made in self.made.drain(..) {
            match made.service.remove() {
                Ok(()) | Err(Error::NoSuchService { .. }) => {}
                failed => result = result.and(failed),
            }
        }
        result
    }

    /// Does something to the members that these sockets are. What fails is told, no more:
    /// the worker serves its sockets either way.
    fn each_member(
        &self,
        positions: impl Iterator<Item = usize>,
        act: impl Fn(&Service, MemberId) -> overspill::Result<()>,
    ) {
        for position in positions {
            for made in &self.made {
                for &(_, member) in made.members.iter().filter(|&&(own, _)| own == position) {
                    act(&made.service, member).unwrap_or_else(tell);
                }
            }
        }
    }
}

fn tell(error: Error) {
    log::line(format_args!("{}", Failure::from(error)));
}

impl Made {
    fn make(name: &Name, plan: &Plan, sockets: &Sockets, port: u16) -> overspill::Result<Self> {
        take_over(name)?;
        let (positions, listeners): (Vec<usize>, Vec<&TcpListener>) = sockets.on(port).unzip();
        let mut builder = Service::builder(name.as_str()).rules(plan.rules);
        if let Some(capacity) = plan.capacity {
            builder = builder.capacity(capacity);
        }
        let service = builder.share(&listeners)?;
        let members = service.status()?.members.into_iter().map(|member| member.member);
        Ok(Self { members: positions.into_iter().zip(members).collect(), service })
    }
}

/// Removes a service of that name that nobody serves any more: its supervisor was killed
/// and its workers ended. Any other keeps its name.
fn take_over(name: &Name) -> overspill::Result<()> {
    let old = match Service::open(name.as_str()) {
        Ok(old) => old,
        Err(Error::NoSuchService { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    if old.status()?.members.iter().any(|member| member.state != MemberState::Gone) {
        return Ok(());
    }
    log::line(format_args!("service {name} exists, but all its members are gone; making it anew"));
    old.remove()
}
