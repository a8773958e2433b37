//! `overspill share`

use overspill::{Capacity, Name, Namespace, Policy, Service, adopt};

use crate::args::{self, RuleArgs};
use crate::failure::Outcome;
use crate::help;
use crate::output;

/// Make a service of the sockets that running processes listen on
///
/// Takes every TCP socket that the processes listen on at the port, in the order of the
/// list, in the network namespace of the first process. The processes notice nothing.
/// Where one of the sockets can't be a member, nothing is changed.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("share.manual")))]
#[command(after_help = "\
EXAMPLE
  overspill share web --pid 1201,1202 --port 80")]
#[command(after_long_help = "\
EXAMPLES
  Two servers on two addresses share their queues:
    overspill share web --pid 1201,1202 --port 80

  Four workers, each request to the shortest queue, refused when all are full:
    overspill share api --pid 1301,1302,1303,1304 --port 8080 \\
        --policy shortest-queue --on-full reset --spread

  A fifth worker joins:
    overspill share api --pid 1305 --port 8080 --join")]
pub(crate) struct Args {
    /// The service's name: letters, digits, '.', '_' and '-'
    #[arg(value_parser = args::name)]
    name: Name,

    /// The processes whose sockets join, in this order
    #[arg(long = "pid", value_name = "PID", required = true, value_delimiter = ',',
          value_parser = args::number("the number of a process", 1..=u32::MAX))]
    pids: Vec<u32>,

    /// The port that the sockets listen on
    #[arg(long, value_parser = args::port())]
    port: u16,

    #[command(flatten)]
    rules: RuleArgs,

    /// Count every member as called, whatever its address
    #[arg(long, hide_short_help = true)]
    spread: bool,

    /// Let the sockets join the existing service NAME
    #[arg(long, conflicts_with_all = ["policy", "on_full", "redirect", "spread", "capacity"])]
    join: bool,

    /// How many services and members the network namespace is to hold; only
    /// with its first service [default: 1024,4096]
    #[arg(long, hide_short_help = true, value_name = "N,M", value_parser = args::capacity)]
    capacity: Option<Capacity>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let namespace = Namespace::of_process(args.pids[0])?;
    let sockets = adopt::listeners(&args.pids, args.port)?;
    let service = if args.join {
        let service = Service::open_in(args.name.as_str(), &namespace)?;
        service.join_adopted(&sockets)?;
        service
    } else {
        let rules = args.rules.of_new(Policy::default(), args.spread);
        let mut builder = Service::builder(args.name.as_str()).rules(rules).namespace(namespace);
        if let Some(dispatcher) = args.rules.dispatcher() {
            builder = builder.dispatcher(dispatcher);
        }
        if let Some(capacity) = args.capacity {
            builder = builder.capacity(capacity);
        }
        builder.share_adopted(&sockets)?
    };
    let status = service.status()?;
    let members = output::count(status.members.len(), "member");
    let new = if args.join { format!(", {} of them new", sockets.len()) } else { String::new() };
    output::print(&format!("{}: {members} on port {}{new}", status.name, status.port))
}
