//! `overspill share`

use overspill::adopt::{self, Adopted};
use overspill::{
    Capacity, Error, Families, MemberId, Name, Namespace, Policy, Result, Rules, Service, Status,
};

use crate::args::{self, RuleArgs};
use crate::failure::Outcome;
use crate::help;
use crate::output;

/// Make a service of the sockets that running processes listen on
///
/// Takes every TCP socket that the processes listen on at the port, in the order of the
/// list, in the network namespace of the first process. The processes notice nothing.
/// Where one of the sockets can't be a member, nothing is changed.
///
/// A server may have an IPv4 socket and an IPv6-only one, as with listen 80 and
/// listen [::]:80 in nginx. Neither can take the other's requests, so the IPv6-only
/// ones make a service of their own, NAME-ipv6.
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
    let mut shared: Vec<Shared> = Vec::new();
    for sockets in by_family(sockets)? {
        let result = if args.join {
            join(&args.name, &namespace, &sockets)
        } else {
            make(args, &namespace, &sockets, !shared.is_empty())
        };
        match result {
            Ok(it) => shared.push(it),
            Err(error) => {
                shared.into_iter().try_for_each(Shared::undo)?;
                return Err(error.into());
            }
        }
    }
    shared.iter().try_for_each(Shared::print)
}

/// Those that take IPv4, and those that do not: where there are both they can't be in one service.
fn by_family(sockets: Vec<Adopted>) -> Result<Vec<Vec<Adopted>>> {
    let mut all = [Vec::new(), Vec::new()];
    for socket in sockets {
        let takes_ipv4 = socket.address()?.families.ipv4;
        all[usize::from(!takes_ipv4)].push(socket);
    }
    Ok(all.into_iter().filter(|sockets| !sockets.is_empty()).collect())
}

/// Makes the service, or its twin for the family of these sockets.
fn make(args: &Args, namespace: &Namespace, sockets: &[Adopted], twin: bool) -> Result<Shared> {
    let name = if twin {
        args.name.with_family(sockets[0].address()?.families)?
    } else {
        args.name.clone()
    };
    let rules = args.rules.of_new(Policy::default(), args.spread);
    let builder = Service::builder(name.as_str()).rules(rules).namespace(namespace.clone());
    let builder = match args.rules.dispatcher() {
        Some(dispatcher) => builder.dispatcher(dispatcher),
        None => builder,
    };
    let builder = match args.capacity {
        Some(capacity) => builder.capacity(capacity),
        None => builder,
    };
    Ok(Shared { service: builder.share_adopted(sockets)?, joined: None })
}

/// Lets them join the service or its twin, whichever they fit. A twin that is not there yet gets
/// the service's rules.
fn join(name: &Name, namespace: &Namespace, sockets: &[Adopted]) -> Result<Shared> {
    let service = Service::open_in(name.as_str(), namespace)?;
    let status = service.status()?;
    let own = sockets[0].address()?.families;
    let fits = |it: Families| own.ipv4 && it.ipv4 || own.ipv6 && it.ipv6;
    let service = if status.members.iter().all(|member| fits(member.address.families)) {
        service
    } else {
        let twin = name.with_family(own)?;
        match Service::open_in(twin.as_str(), namespace) {
            Err(Error::NoSuchService { .. }) => {
                let Status { policy, on_full, redirect, spread, .. } = status;
                let rules = Rules { policy, on_full, redirect, spread };
                let builder = Service::builder(twin.as_str()).rules(rules);
                let service = builder.namespace(namespace.clone()).share_adopted(sockets)?;
                return Ok(Shared { service, joined: None });
            }
            twin => twin?,
        }
    };
    let joined = service.join_adopted(sockets)?;
    Ok(Shared { service, joined: Some(joined) })
}

/// A service that was made, or that these members have joined.
struct Shared {
    service: Service,
    joined: Option<Vec<MemberId>>,
}

impl Shared {
    fn undo(self) -> Result<()> {
        match self.joined {
            None => self.service.remove(),
            Some(members) => members.into_iter().try_for_each(|it| self.service.leave(it)),
        }
    }

    fn print(&self) -> Outcome {
        let status = self.service.status()?;
        let members = output::count(status.members.len(), "member");
        let new = self.joined.as_ref().map(|new| format!(", {} of them new", new.len()));
        let (name, port, new) = (status.name, status.port, new.unwrap_or_default());
        output::print(&format!("{name}: {members} on port {port}{new}"))
    }
}
