//! `overspill trace`

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write as _};
use std::net::IpAddr;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::sys::signal::{SigSet, Signal};
use overspill::trace::{Event, Filter, Glimpse, Outcome, Trace};
use overspill::{MemberId, Name, Namespace, Service};
use serde::Serialize;

use crate::args::{self, Place};
use crate::complete;
use crate::failure::{Failure, Outcome as Done};
use crate::help;
use crate::identified::Identifier;
use crate::output;

/// Tell of each request where it was placed, and why
///
/// A line a request: when, who asked, the address that was called, what became of it and why,
/// the member called and the member chosen, each with its number and its queue at that moment,
/// and the number of the chosen member's worker where overspill run supervises the service.
/// How many requests were lost, as they came too fast, is said on stderr. Tracing ends with
/// the service, and at a signal. man overspill-trace tells of every column.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("trace.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill trace web --redirected
  overspill trace --dropped                   # of all services
  overspill trace web --member 2 --client 192.0.2.0/24
  overspill trace web --json | jq -r '[.client, .why] | @tsv'")]
pub(crate) struct Args {
    /// The service's name [default: all services of the network namespace]
    #[arg(value_parser = args::name, add = complete::services())]
    name: Option<Name>,

    /// Those that went to a sibling
    #[arg(long)]
    redirected: bool,

    /// Those that no member got: dropped, reset, left
    #[arg(long)]
    dropped: bool,

    /// Those that called this member or were put on it
    #[arg(long, value_parser = args::member)]
    member: Option<MemberId>,

    /// Those of this client, or of this network
    #[arg(long, value_name = "ADDR[/BITS]", value_parser = client)]
    client: Option<IpNet>,

    /// End after so many lines
    #[arg(short = 'n', long, value_name = "N",
          value_parser = args::number("a whole number of lines", 0..=u64::MAX))]
    count: Option<u64>,

    /// Print a JSON object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    place: Place,
}

/// How long is waited at most before it is looked whether tracing has ended.
const LOOK: Duration = Duration::from_millis(200);
/// How long what is known of the workers is believed.
const RENEWED: Duration = Duration::from_secs(1);
/// How long it may take to end after a signal. Where a reader of the output stands still it
/// would take for ever; the kernel takes the place back by itself.
const GRACE: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &Args) -> Done {
    let namespace = args.place.namespace()?;
    args.check_member(&namespace)?;
    let told_to_end = end_at_signal()?;
    let filter = Filter { service: args.name.clone(), outcomes: args.outcomes() };
    let trace = Trace::begin(&namespace, &filter)?;
    let mut workers = Workers::look(args, namespace);
    let mut out = Output::new(args, !workers.known.is_empty());
    let mut told = Told::default();
    let (mut on, mut looked) = (true, Instant::now());
    out.head()?;
    while out.wants_more() && !told_to_end.load(Ordering::Acquire) {
        // Asked for first: what was told before the end is written.
        if looked.elapsed() >= LOOK {
            (on, looked) = (trace.is_on()?, Instant::now());
        }
        let events = trace.wait(if on { LOOK } else { Duration::ZERO })?;
        for event in events.iter().filter(|event| args.wants(event)) {
            out.line(event, workers.now())?;
        }
        out.flush()?;
        told.tell(&trace);
        if !on && events.is_empty() {
            return Err(Failure::new(ended(args, &trace)));
        }
    }
    Ok(())
}

fn ended(args: &Args, trace: &Trace) -> String {
    if trace.is_displaced() {
        return "stopped for so long that another traces in its place; start it again".to_owned();
    }
    let what =
        args.name.as_ref().map_or("the last service".to_owned(), |name| format!("service {name}"));
    format!("{what} was removed, or upgraded to another layout; overspill ls lists what there is")
}

/// Becomes true at a signal, so that the kernel is told that nobody listens any more.
fn end_at_signal() -> Result<Arc<AtomicBool>, Failure> {
    let failed =
        |error: io::Error| Failure::new(format!("cannot wait for signals: {error}; try again"));
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // Before there is another thread, which would be ended by them.
    signals.thread_block().map_err(|error| failed(error.into()))?;
    let ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ended);
    let wait = move || {
        if signals.wait().is_ok() {
            told.store(true, Ordering::Release);
            thread::sleep(GRACE);
            process::exit(0);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
    Ok(ended)
}

impl Args {
    fn outcomes(&self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        if self.redirected {
            outcomes.push(Outcome::Redirected);
        }
        if self.dropped {
            outcomes.extend([Outcome::Dropped, Outcome::Reset, Outcome::Left]);
        }
        outcomes
    }

    /// Of a member that is not there nothing would ever be told.
    fn check_member(&self, namespace: &Namespace) -> Done {
        let (Some(name), Some(member)) = (&self.name, self.member) else { return Ok(()) };
        let members = Service::open_in(name.as_str(), namespace)?.status()?.members;
        if members.iter().any(|known| known.member == member) {
            return Ok(());
        }
        let known: Vec<String> = members.iter().map(|known| known.member.to_string()).collect();
        let (service, known) = (name.to_string(), known.join(", "));
        Err(overspill::Error::NoSuchMember { service, member, known }.into())
    }

    fn wants(&self, event: &Event) -> bool {
        let members = [event.member, event.chosen];
        let met = |id| members.iter().flatten().any(|glimpse| glimpse.member == id);
        self.member.is_none_or(met)
            && self.client.is_none_or(|net| net.contains(&event.client.ip()))
    }
}

/// An address, or a network.
fn client(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse::<IpNet>()).map_err(|_| {
        "give an address or a network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32".to_owned()
    })
}

/// The numbers of the members' workers.
struct Workers<'a> {
    /// The service, if it is one alone.
    name: Option<&'a Name>,
    namespace: Namespace,
    identifier: Identifier,
    known: Known,
    looked: Instant,
}

/// By service and member.
type Known = HashMap<String, HashMap<MemberId, usize>>;

impl<'a> Workers<'a> {
    fn look(args: &'a Args, namespace: Namespace) -> Self {
        let (name, looked) = (args.name.as_ref(), Instant::now());
        let identifier = Identifier::new(namespace.clone());
        let mut workers = Self { name, namespace, identifier, known: Known::new(), looked };
        workers.look_again();
        workers
    }

    /// As they were less than a second ago.
    fn now(&mut self) -> &Known {
        if self.looked.elapsed() >= RENEWED {
            self.look_again();
        }
        &self.known
    }

    /// What can't be read now, of a service that has gone for instance, stays as it was.
    fn look_again(&mut self) {
        self.looked = Instant::now();
        let statuses = match self.name {
            Some(name) => Service::open_in(name.as_str(), &self.namespace)
                .and_then(|service| Ok(vec![service.status()?])),
            None => Service::statuses(&self.namespace),
        };
        for service in statuses.map(|them| self.identifier.identify(them)).unwrap_or_default() {
            let members = service.status.members.iter().map(|it| it.member);
            let workers = members.zip(service.identity.workers);
            let workers = workers.filter_map(|(id, worker)| Some((id, worker?)));
            let workers: HashMap<MemberId, usize> = workers.collect();
            if !workers.is_empty() {
                self.known.insert(service.status.name, workers);
            }
        }
    }
}

fn worker(known: &Known, service: &str, glimpse: Option<Glimpse>) -> Option<usize> {
    known.get(service)?.get(&glimpse?.member).copied()
}

/// What was lost, said as it happens.
#[derive(Default)]
struct Told {
    lost: u64,
    paused: Duration,
}

impl Told {
    fn tell(&mut self, trace: &Trace) {
        let (lost, paused) = (trace.lost(), trace.paused());
        if lost > self.lost {
            let lost = usize::try_from(lost - self.lost).unwrap_or(usize::MAX);
            let requests = output::count(lost, "request");
            say(&format!("{requests} lost: more came than were written"));
        }
        if paused > self.paused {
            let seconds = paused.saturating_sub(self.paused).as_secs_f64();
            say(&format!("stopped for {seconds:.1} s: what came meanwhile is not known"));
        }
        *self = Self { lost, paused };
    }
}

fn say(what: &str) {
    // Where it can't be said, nobody reads it.
    let _ = writeln!(io::stderr(), "overspill: {what}");
}

/// The lines.
struct Output<'a> {
    out: BufWriter<io::Stdout>,
    json: bool,
    /// The service, where it is the same on every line.
    name: Option<&'a Name>,
    /// Some of the members have workers.
    workers: bool,
    left: Option<u64>,
    zone: TimeZone,
    widths: [usize; HEADINGS.len()],
}

const HEADINGS: [&str; 9] =
    ["TIME", "CLIENT", "CALLED", "SERVICE", "OUTCOME", "WHY", "MEMBER", "CHOSEN", "WORKER"];
/// What most lines need.
const WIDTHS: [usize; HEADINGS.len()] = [15, 21, 17, 8, 10, 8, 11, 11, 0];

impl<'a> Output<'a> {
    fn new(args: &'a Args, workers: bool) -> Self {
        Self {
            out: BufWriter::new(io::stdout()),
            json: args.json,
            name: args.name.as_ref(),
            workers,
            left: args.count,
            zone: TimeZone::system(),
            widths: WIDTHS,
        }
    }

    fn wants_more(&self) -> bool {
        self.left != Some(0)
    }

    fn head(&mut self) -> Done {
        if self.json {
            return Ok(());
        }
        let line = self.columns(HEADINGS);
        self.write(&line)?;
        self.flush()
    }

    fn line(&mut self, event: &Event, workers: &Known) -> Done {
        if !self.wants_more() {
            return Ok(());
        }
        self.left = self.left.map(|left| left - 1);
        let line = if self.json { json(event, workers) } else { self.text(event, workers) };
        self.write(&line)
    }

    fn text(&mut self, event: &Event, workers: &Known) -> String {
        let time = Timestamp::try_from(event.time).expect("a time of today");
        let time = time.to_zoned(self.zone.clone()).strftime("%H:%M:%S.%6f").to_string();
        let cells = [
            &time,
            &event.client.to_string(),
            &event.called.to_string(),
            &event.service,
            event.outcome.name(),
            event.why.name(),
            &member(event.member),
            &member(event.chosen),
            &output::known(worker(workers, &event.service, event.chosen)),
        ];
        self.columns(cells)
    }

    /// Lined up; a column that something was too wide for stays as wide.
    fn columns(&mut self, cells: [&str; HEADINGS.len()]) -> String {
        let mut line = String::new();
        for ((cell, heading), width) in cells.into_iter().zip(HEADINGS).zip(&mut self.widths) {
            let left_out = match heading {
                "SERVICE" => self.name.is_some(),
                "WORKER" => !self.workers,
                _ => false,
            };
            if left_out {
                continue;
            }
            *width = cell.len().max(*width);
            let _ = write!(line, "{cell:<width$} ");
        }
        line.trim_end().to_owned()
    }

    fn write(&mut self, line: &str) -> Done {
        let written = writeln!(self.out, "{line}");
        self.written(written)
    }

    fn flush(&mut self) -> Done {
        let flushed = self.out.flush();
        self.written(flushed)
    }

    /// A reader that has seen enough (`| head`) is no failure, and an end.
    fn written(&mut self, result: io::Result<()>) -> Done {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.left = Some(0),
            Err(error) => {
                return Err(Failure::new(format!(
                    "cannot write the output: {error}; look where it goes"
                )));
            }
            Ok(()) => {}
        }
        Ok(())
    }
}

/// "2:3+1/17": member 2 holds 3 connections and 1 half open, of 17.
fn member(glimpse: Option<Glimpse>) -> String {
    let Some(Glimpse { member, queued, half_open, capacity, .. }) = glimpse else {
        return "-".to_owned();
    };
    let half_open = if half_open == 0 { String::new() } else { format!("+{half_open}") };
    format!("{member}:{queued}{half_open}/{capacity}")
}

/// An event with its time, and with the members' workers where they are known.
#[derive(Serialize)]
struct Line<'a> {
    /// UTC, as RFC 3339 has it.
    time: Timestamp,
    #[serde(flatten)]
    event: &'a Event,
}

fn json(event: &Event, workers: &Known) -> String {
    let time = Timestamp::try_from(event.time).expect("a time of today");
    let mut line = serde_json::to_value(Line { time, event }).expect("its keys are text");
    for (key, glimpse) in [("member", event.member), ("chosen", event.chosen)] {
        if let Some(worker) = worker(workers, &event.service, glimpse) {
            line[key]["worker"] = worker.into();
        }
    }
    line.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use overspill::trace::Why;
    use overspill::{MemberState, Policy};
    use std::time::SystemTime;

    fn event(client: &str) -> Event {
        let glimpse = Glimpse {
            member: MemberId(2),
            state: MemberState::Active,
            queued: 3,
            half_open: 1,
            capacity: 17,
        };
        Event {
            time: SystemTime::UNIX_EPOCH,
            service: "web".to_owned(),
            client: client.parse().unwrap(),
            called: "10.0.0.1:80".parse().unwrap(),
            outcome: Outcome::Placed,
            why: Why::Policy,
            policy: Policy::default(),
            member: Some(glimpse),
            chosen: Some(glimpse),
        }
    }

    #[test]
    fn a_wide_address_moves_all_that_comes_after_it() {
        let mut out = Output {
            out: BufWriter::new(io::stdout()),
            json: false,
            name: None,
            workers: false,
            left: None,
            zone: TimeZone::UTC,
            widths: WIDTHS,
        };
        let mut called_at =
            |client: &str| out.text(&event(client), &Known::new()).find("10.0.0.1:80").unwrap();
        let usual = "198.51.100.200:54321";
        let wide = "[2001:db8:1111:2222:3333:4444:5555:6666]:54321";
        let places = [usual, wide, usual].map(&mut called_at);
        assert_eq!(places, [38, 63, 63]);
    }

    /// The words, columns and fields that the manual has a line for.
    #[test]
    fn the_manual_tells_of_each_column_word_and_field() {
        let manual = include_str!("trace.manual");
        let lines = manual.lines().filter_map(|line| line.strip_prefix("  "));
        let words = lines.filter_map(|line| line.split(' ').next());
        let mut told: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let event = serde_json::to_value(event("10.0.0.2:1")).unwrap();
        let fields = [&event, &event["member"]].map(|it| it.as_object().unwrap().keys().cloned());
        let mut known = vec!["time".to_owned(), "worker".to_owned()];
        known.extend(HEADINGS.map(str::to_owned));
        known.extend(Outcome::ALL.map(|it| it.to_string()));
        known.extend(Why::ALL.map(|it| it.to_string()));
        known.extend(fields.into_iter().flatten());
        told.sort_unstable();
        known.sort_unstable();
        assert_eq!(told, known);
    }
}
