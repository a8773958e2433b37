//! `overspill show`

use overspill::{MemberStatus, Name, Requests, Status};

use crate::args::{self, Place};
use crate::failure::Outcome;
use crate::output::{self, numbers, on_off, words};

/// Show a service: its rules, its members with their queues, and its requests
///
/// Of each member: QUEUED are the connections that wait to be accepted, of what its queue
/// holds; HALF-OPEN are handshakes not yet completed; ESTAB are complete connections that the server
/// has not closed, those that wait among them; WEIGHT is shown where one is not 1; PLACED are requests that called it and were
/// put on it, IN those that called siblings and were put on it, OUT those that called it and
/// were put on siblings.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  overspill show web
  overspill show web --json | jq '.members[] | select(.state != \"active\")'
  watch -n1 overspill show web --netns blue")]
pub(crate) struct Args {
    /// The service's name
    #[arg(value_parser = args::name)]
    name: Name,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let status = args.place.service(&args.name)?.status()?;
    if args.json {
        return output::print_json(&status);
    }
    let parts = [header(&status), members(&status.members), requests(&status.requests)];
    output::print(&parts.join("\n\n"))
}

/// The rules in the words with which `overspill set` changes them.
fn header(status: &Status) -> String {
    format!(
        "{}: {} on port {}\npolicy {}{}, on-full {}, redirect {}, spread {}",
        status.name,
        output::count(status.members.len(), "member"),
        status.port,
        status.policy,
        status.dispatcher.as_ref().map_or_else(String::new, |name| format!(" {name}")),
        status.on_full,
        on_off(status.redirect),
        on_off(status.spread),
    )
}

fn members(members: &[MemberStatus]) -> String {
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
    if members.iter().any(|member| member.weight != 1) {
        columns.push(numbers("WEIGHT"));
        for (row, member) in rows.iter_mut().zip(members) {
            row.push(member.weight.to_string());
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
        member.established.map_or_else(|| "-".to_owned(), |count| count.to_string()),
        member.placed.to_string(),
        member.redirected_in.to_string(),
        member.redirected_out.to_string(),
    ]
}

fn requests(requests: &Requests) -> String {
    let figures = [
        ("PLACED", requests.placed),
        ("REDIRECTED", requests.redirected),
        ("SPECIAL", requests.special),
        ("DROPPED", requests.dropped),
        ("RESET", requests.reset),
        ("FALLBACK", requests.fallback),
        ("LEFT", requests.left),
        ("CROWDED", requests.crowded),
        ("RETURNED", requests.returned),
    ];
    let columns = figures.map(|(heading, _)| numbers(heading));
    output::table(&columns, [figures.map(|(_, figure)| figure.to_string())])
}
