//! `overspill restart`

use std::path::PathBuf;

use overspill::{MemberState, Name, Namespace, Service};

use crate::args::{self, Place};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::help;
use crate::nearest;
use crate::output;
use overspill_supervisor::control::{self, Client, Request};
use overspill_supervisor::identity;

/// Replace the workers of overspill run, one after another
///
/// Asks the supervisor of that name, and shows how it gets on. It goes on even if this
/// command is ended meanwhile. A supervisor with a configuration file reads it again
/// first; if it is wrong, nothing is changed. When a new worker does not start, it stops
/// there: the workers that were not replaced yet stay.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("restart.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill restart web
  overspill restart web --netns blue
  overspill restart --config /etc/overspill/web.toml    # by what it says now
  overspill restart web:443    # the same: web:443 is a service of it")]
pub(crate) struct Args {
    /// The supervisor's name, or one of its services
    #[arg(value_parser = args::name, add = complete::supervisors())]
    #[arg(required_unless_present = "config")]
    name: Option<Name>,

    /// The file that the supervisor was started with; if it is wrong nothing is
    /// asked
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    config: Option<PathBuf>,

    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let name = match (&args.config, &args.name) {
        (Some(file), _) => super::run::read(file)?.name,
        (None, name) => name.as_ref().expect("one of both is given").without_port(),
    };
    let namespace = args.place.enter()?;
    match Client::connect(&name)? {
        Some(supervisor) => supervisor.ask(&Request::Restart, output::print),
        None => Err(nobody(&name, &namespace)),
    }
}

/// Whether a killed supervisor of that name has left it, so that a new one takes it over.
fn is_left(service: &Service, name: &Name) -> bool {
    let members = service.status().map(|status| status.members).unwrap_or_default();
    let mut alive = members.iter().filter(|member| member.state != MemberState::Gone);
    alive.all(|member| identity::worker(member.pid, name).is_some())
}

/// Why no supervisor answers.
fn nobody(name: &Name, namespace: &Namespace) -> Failure {
    // Who may not look at services is told the rest.
    let services = Service::all(namespace).unwrap_or_default();
    if let Some(service) = services.iter().find(|service| service.name().without_port() == *name) {
        let again = format!("start overspill run --name {name} again");
        let why = if is_left(service, name) {
            format!("that was killed; {again} to take over")
        } else {
            format!(
                "others have started its servers, or one that was killed; restart them as they \
                     were started, or end them and {again}"
            )
        };
        return Failure::new(format!("service {} has no supervisor: {why}", service.name()));
    }
    let hint = nearest::hint(name.as_str(), control::names().iter().map(ToString::to_string));
    Failure::new(format!(
        "there is no supervisor of {name} in this network namespace{hint}; overspill run --name \
         {name} starts one, --netns looks elsewhere"
    ))
}
