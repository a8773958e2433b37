//! `overspill ls`

use overspill::{MemberState, Namespace, Service, Status};
use serde::Serialize;

use crate::args::Place;
use crate::failure::{Failure, Outcome};
use crate::help;
use crate::identified::{self, Identified, Identifier};
use crate::output::{self, Column, numbers, words};

/// List the services
///
/// MEMBERS are the active of all members; QUEUED is what their queues hold, half-open
/// requests included, of what they can hold. The other figures count requests since the
/// service was made: placed, redirected, dropped, reset. SUPERVISOR is the command that
/// supervises the service, with its process.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("ls.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill ls
  overspill ls --netns blue
  overspill ls --all --json | jq -r '.[] | select(.requests.dropped > 0).name'")]
pub(crate) struct Args {
    /// Print an array of what show --json prints
    #[arg(long)]
    json: bool,

    /// List those of every network namespace (in JSON: with the field netns)
    #[arg(long, conflicts_with = "netns")]
    all: bool,

    #[command(flatten)]
    place: Place,
}

/// A service, with its network namespace where that is not clear.
#[derive(Debug, Serialize)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    #[serde(flatten)]
    service: Identified,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let (entries, failure) = if args.all { everywhere()? } else { (at(&args.place)?, None) };
    match (&failure, args.json) {
        (Some(_), _) if entries.is_empty() => {}
        (_, true) => output::print_json(&entries)?,
        (_, false) => output::print(&table(&entries, args.all))?,
    }
    failure.map_or(Ok(()), Err)
}

fn at(place: &Place) -> Result<Vec<Entry>, Failure> {
    let namespace = place.namespace()?;
    let statuses = Service::statuses(&namespace)?;
    Ok(entries(namespace, None, statuses).collect())
}

fn entries(
    namespace: Namespace,
    netns: Option<u64>,
    statuses: Vec<Status>,
) -> impl Iterator<Item = Entry> {
    let services = Identifier::new(namespace).identify(statuses).into_iter();
    services.map(move |service| Entry { netns, service })
}

/// The services of every network namespace, and why those of one can't be read: the others
/// are worth showing.
fn everywhere() -> Result<(Vec<Entry>, Option<Failure>), Failure> {
    let mut all = Vec::new();
    let mut failure = None;
    for namespace in Namespace::with_services()? {
        let netns = Some(namespace.inode());
        match Service::statuses(&namespace) {
            Ok(statuses) => all.extend(entries(namespace, netns, statuses)),
            Err(error) => failure = failure.or(Some(Failure::from(error))),
        }
    }
    Ok((all, failure))
}

/// With every namespace's services, NETNS takes the place of POLICY: 80 columns are few.
fn table(entries: &[Entry], all: bool) -> String {
    let netns_or_policy = if all { numbers("NETNS") } else { words("POLICY") };
    let mut columns: Vec<Column<'_>> = vec![
        words("NAME"),
        numbers("PORT"),
        netns_or_policy,
        numbers("MEMBERS"),
        numbers("QUEUED"),
        numbers("PLACED"),
        numbers("REDIR"),
        numbers("DROPPED"),
        numbers("RESET"),
    ];
    let mut rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    if entries.iter().any(|entry| entry.service.supervisor().is_some()) {
        columns.push(words("SUPERVISOR"));
        for (row, entry) in rows.iter_mut().zip(entries) {
            row.push(output::known(entry.service.supervisor().map(identified::briefly)));
        }
    }
    output::table(&columns, rows)
}

fn row(Entry { netns, service }: &Entry) -> Vec<String> {
    let status = &service.status;
    let members = &status.members;
    let active = members.iter().filter(|member| member.state == MemberState::Active).count();
    let held: u64 = members.iter().map(|m| u64::from(m.queued) + u64::from(m.half_open)).sum();
    let capacity: u64 = members.iter().map(|member| u64::from(member.capacity)).sum();
    vec![
        status.name.clone(),
        status.port.to_string(),
        netns.map_or_else(|| status.policy.to_string(), |inode| inode.to_string()),
        format!("{active}/{}", members.len()),
        format!("{held}/{capacity}"),
        status.requests.placed.to_string(),
        status.requests.redirected.to_string(),
        status.requests.dropped.to_string(),
        status.requests.reset.to_string(),
    ]
}
