//! `overspill allow`

use std::path::PathBuf;
use std::time::Duration;

use overspill::{Capacity, Cgroup, Name, Policy};

use crate::args::{self, RuleArgs};
use crate::failure::{Failure, Outcome};
use crate::help;
use overspill_supervisor::{Peers, Place, allow};

/// Let the servers of control groups or systemd units join a service
///
/// Their processes join by listening on one of the ports, unchanged, or by the
/// socket option (overspill.h). Those that listen already when it starts are
/// taken too. Units and control groups may be started before or after it, and
/// restarted. Runs until a signal ends it; the service and its members stay, and
/// serve on. What waits at a process that dies meanwhile is kept for others.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("allow.manual")))]
#[command(group(clap::ArgGroup::new("peers").required(true).multiple(true).args(["cgroup", "unit"])))]
#[command(override_usage = "overspill allow [OPTIONS] <--cgroup <PATH>|--unit <UNIT>> <NAME>")]
#[command(after_help = "\
EXAMPLE
  overspill allow web --unit blue --unit green --port 80")]
#[command(after_long_help = "\
EXAMPLES
  Two units share port 80:
    overspill allow web --unit blue --unit green --port 80

  Later a third one joins them:
    overspill allow web --unit red --port 80

  Only what programs ask for by the socket option:
    overspill allow web --cgroup /sys/fs/cgroup/web")]
pub(crate) struct Args {
    /// The service's name; with several ports it is followed by :PORT
    #[arg(value_parser = args::base_name)]
    name: Name,

    /// A control group, by its folder, there or not; may be repeated
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<PathBuf>,

    /// A systemd unit, running or not; may be repeated
    #[arg(long, value_name = "UNIT")]
    unit: Vec<String>,

    /// Who listens on this port joins; may be repeated
    #[arg(long, value_parser = args::port())]
    port: Vec<u16>,

    #[command(flatten)]
    rules: RuleArgs,

    /// Let every member take requests to every address, not only when one is full
    #[arg(long, hide_short_help = true)]
    spread: bool,

    /// How long a process may let a request wait, while others accept, until it
    /// is taken to hang; 0 for ever
    #[arg(long, hide_short_help = true, value_name = "MS", default_value_t = 100,
          value_parser = args::milliseconds())]
    hang: u32,

    /// How many services and members the network namespace is to hold; only
    /// with its first service [default: 1024,4096]
    #[arg(long, hide_short_help = true, value_name = "N,M", value_parser = args::capacity)]
    capacity: Option<Capacity>,
}

pub(crate) fn run(args: Args) -> Outcome {
    args.rules.check_dispatcher()?;
    let cgroups = args.cgroup.into_iter().map(cgroup).collect::<Result<Vec<_>, _>>()?;
    let units = args.unit.into_iter().map(Place::Unit);
    Ok(allow::run(Peers {
        places: cgroups.into_iter().chain(units).collect(),
        name: args.name,
        ports: args.port,
        rules: args.rules.of_new(Policy::default(), args.spread),
        dispatcher: args.rules.dispatcher(),
        capacity: args.capacity,
        patience: Duration::from_millis(args.hang.into()),
    })?)
}

/// One that does not exist may be made later; another folder can't become one.
fn cgroup(path: PathBuf) -> Result<Place, Failure> {
    if path.exists() && Cgroup::find(&path)?.is_none() {
        return Err(Failure::new(format!(
            "{} is no control group; give its folder below a cgroup2 mount",
            path.display()
        )));
    }
    Ok(Place::Cgroup(path))
}
