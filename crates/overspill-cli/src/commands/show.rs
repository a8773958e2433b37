//! `overspill show`

use overspill::{Exits, Figure, MemberStatus, Name, Requests, Service};
use overspill_supervisor::identity::Supervisor;
use serde::Serialize;

use crate::args::{self, Place};
use crate::complete;
use crate::failure::Outcome;
use crate::help;
use crate::identified::{self, Identified, Identifier};
use crate::output::{self, numbers, words};

/// Show a service: its rules, members, queues and requests
///
/// WORKER is the number of a member's worker, PID the process that accepts there.
/// QUEUED wait to be accepted, of what the queue holds; HALF-OPEN are handshakes
/// not yet completed; ESTAB are connections that the server has not closed.
/// PLACED are requests put on the member that they called, IN came from siblings,
/// OUT went to siblings. man overspill-show tells of every column.
#[derive(Debug, clap::Args)]
#[command(add = manual())]
#[command(after_help = "\
EXAMPLES
  overspill show web
  overspill show web --json | jq '.members[] | select(.state != \"active\")'
  watch -n1 overspill show web --netns blue")]
pub(crate) struct Args {
    /// The service's name
    #[arg(value_parser = args::name, add = complete::services())]
    name: Name,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    place: Place,
}

/// A service, and the figures of its network namespace.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    service: Identified,
    namespace: Exits,
}

fn manual() -> help::Manual {
    help::Manual::text(include_str!("show.manual"))
        .with_figures("MEMBERS", MemberStatus::FIGURES)
        .with_figures("REQUESTS", Requests::FIGURES)
        .with_figures("NETWORK NAMESPACE", Exits::FIGURES)
}

pub(crate) fn run(args: &Args) -> Outcome {
    let namespace = args.place.namespace()?;
    let status = Service::open_in(args.name.as_str(), &namespace)?.status()?;
    let mut identified = Identifier::new(namespace.clone()).identify(vec![status]);
    let service = identified.pop().expect("one for each");
    // None when the service has gone this moment, with the last of the namespace.
    let namespace = namespace.exits()?.unwrap_or_default();
    let shown = Shown { service, namespace };
    if args.json {
        return output::print_json(&shown);
    }
    let Shown { service, namespace } = shown;
    let requests = requests(service.status.requests);
    output::print(&[header(&service), members(&service), requests, exits(namespace)].join("\n\n"))
}

fn header(service: &Identified) -> String {
    let status = &service.status;
    let members = output::count(status.members.len(), "member");
    let mut lines = vec![
        format!("{}: {members} on port {}", status.name, status.port),
        format!("policy {}", output::rules(status)),
    ];
    lines.extend(service.supervisor().map(supervised));
    lines.join("\n")
}

fn supervised(by: &Supervisor) -> String {
    let since = by.since.and_then(identified::local);
    let since = since.map(|since| format!(" since {since}")).unwrap_or_default();
    format!("supervised by {}{since}", identified::describe(by))
}

fn members(service: &Identified) -> String {
    let members = &service.status.members;
    let mut columns = vec![
        numbers("MEMBER"),
        words("ADDRESS"),
        numbers("PID"),
        words("STATE"),
        numbers("QUEUED"),
        numbers("HALF-OPEN"),
        numbers("ESTAB"),
        numbers("PLACED"),
        numbers("IN"),
        numbers("OUT"),
    ];
    let mut rows: Vec<Vec<String>> = members.iter().map(row).collect();
    let mut add = |heading, figure: fn(&MemberStatus) -> u64| {
        columns.push(numbers(heading));
        for (row, member) in rows.iter_mut().zip(members) {
            row.push(figure(member).to_string());
        }
    };
    if members.iter().any(|member| member.weight != 1) {
        add("WEIGHT", |member| member.weight.into());
    }
    if members.iter().any(|member| member.special != 0) {
        add("SPECIAL", |member| member.special);
    }
    if members.iter().any(|member| member.starts > 1) {
        add("STARTS", |member| member.starts);
    }
    if service.identity.workers.iter().any(Option::is_some) {
        columns.insert(1, numbers("WORKER"));
        for (row, worker) in rows.iter_mut().zip(&service.identity.workers) {
            row.insert(1, output::known(*worker));
        }
    }
    output::table(&columns, rows)
}

fn row(member: &MemberStatus) -> Vec<String> {
    vec![
        member.member.to_string(),
        member.address.to_string(),
        member.pid.to_string(),
        member.state.name().to_owned(),
        format!("{}/{}", member.queued, member.capacity),
        member.half_open.to_string(),
        output::known(member.established),
        member.placed.to_string(),
        member.redirected_in.to_string(),
        member.redirected_out.to_string(),
    ]
}

fn requests(requests: Requests) -> String {
    let (names, values) = figures(Requests::FIGURES, &requests);
    let headings: Vec<String> = names.iter().map(|name| name.to_uppercase()).collect();
    let columns: Vec<_> = headings.iter().map(|heading| numbers(heading)).collect();
    output::table(&columns, [values])
}

fn exits(exits: Exits) -> String {
    let (names, values) = figures(Exits::FIGURES, &exits);
    let figures: Vec<String> =
        names.iter().zip(values).map(|(name, value)| format!("{name} {value}")).collect();
    let lines: Vec<String> = figures.chunks(4).map(|line| line.join(", ")).collect();
    format!("in the network namespace:\n  {}", lines.join(",\n  "))
}

/// The names of figures, and their values.
fn figures<T>(figures: &[Figure<T>], of: &T) -> (Vec<&'static str>, Vec<String>) {
    let value = |figure: &Figure<T>| output::known((figure.read)(of));
    figures.iter().map(|figure| (figure.name, value(figure))).unzip()
}
