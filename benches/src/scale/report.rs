//! What was found, as tables.

use std::fmt::Write as _;
use std::time::Duration;

use overspill::Capacity;

use crate::Findings;
use crate::field::Shape;
use crate::machine::Machine;
use crate::memory::{CAPACITIES, Charge, ENTRIES, ROSTERS, STORAGE};
use crate::operation::{Operation, Sample};

/// Every operation.
pub(crate) fn samples(findings: &Findings) -> String {
    let mut text = String::from("services,members each,operation,ms\n");
    for sample in &findings.samples {
        let Shape { services, members } = sample.shape;
        let (operation, ms) = (sample.operation, milliseconds(sample.time));
        line(&mut text, format_args!("{services},{members},\"{operation}\",{ms:.4}"));
    }
    text
}

/// Reads what [`samples`] has written.
pub(crate) fn read(text: &str) -> Option<Findings> {
    let mut findings = Findings::default();
    for line in text.lines().skip(1) {
        let (head, rest) = line.split_once(",\"")?;
        let (services, members) = head.split_once(',')?;
        let shape = Shape { services: services.parse().ok()?, members: members.parse().ok()? };
        let (name, ms) = rest.split_once("\",")?;
        let operation = Operation::ALL.into_iter().find(|it| it.name() == name)?;
        let time = Duration::from_secs_f64(ms.parse::<f64>().ok()? / 1e3);
        if !findings.shapes.contains(&shape) {
            findings.shapes.push(shape);
        }
        findings.samples.push(Sample { shape, operation, time });
    }
    Some(findings)
}

/// What the kernel holds in each state.
pub(crate) fn memory(findings: &Findings) -> String {
    let mut text =
        String::from("capacity services,capacity members,services,members each,what,bytes\n");
    for it in &findings.charges {
        let Capacity { services, members } = it.capacity;
        let Shape { services: own, members: each } = it.shape;
        let (what, bytes) = (&it.what, it.bytes);
        line(&mut text, format_args!("{services},{members},{own},{each},{what},{bytes}"));
    }
    text
}

/// A page in Markdown.
pub(crate) fn page(machine: &Machine, quick: bool, findings: &Findings) -> String {
    let Machine { date, kernel, processor, processors, load, commit } = machine;
    let quick = if quick { "; **a quick run, not to be believed**" } else { "" };
    let mut page = format!(
        "# What services cost to change, to read and to keep, measured on {date}\n\n\
         Linux {kernel}, {processors} × {processor}; load before: {load}; commit {commit}{quick}. \
         Each time is that of one call of the library, from opening the state to the answer; \
         nothing is kept between calls, but for *again*. Each member has an address of its own, \
         each service a port. Services and members are taken at random.\n\n\
         ![What a call takes, by operation and shape](picture.svg)\n\n\
         ## Time\n\n\
         Median / 99th percentile, in ms, at services × members each. A change waits for a grace \
         period of RCU, in which no program reads the old list any more; a mark and reading do \
         not. Every call is in [samples.csv](samples.csv).\n\n"
    );
    times(&mut page, findings);
    page += "\n## Memory\n\n\
             What the kernel charges for a state with a single member, in KiB, by capacity \
             (services / members), and what one more of each adds, in bytes. Maps are as long as \
             the capacity from the start. More is in [memory.csv](memory.csv).\n\n";
    states(&mut page, findings);
    page += "\nWhat services and members hold beyond that, in bytes:\n\n";
    services(&mut page, findings);
    page
}

fn times(page: &mut String, findings: &Findings) {
    let heads = findings.shapes.iter().map(Shape::to_string);
    head(page, "to", heads);
    for operation in Operation::ALL {
        let cells = findings.shapes.iter().map(|&shape| {
            let own = findings.samples.iter();
            let own = own.filter(|it| it.shape == shape && it.operation == operation);
            let mut times: Vec<Duration> = own.map(|it| it.time).collect();
            times.sort_unstable();
            let last = times.len().saturating_sub(1) as f64;
            let at = |share: f64| format!("{:.2}", milliseconds(times[(share * last) as usize]));
            match times.len() {
                0 => String::new(),
                1 => at(1.0),
                _ => format!("{} / {}", at(0.5), at(0.99)),
            }
        });
        row(page, operation.name(), cells);
    }
}

/// The states that differ in their capacity alone.
fn states(page: &mut String, findings: &Findings) {
    let heads = CAPACITIES.map(|it| format!("{} / {}", it.services, it.members));
    let adds = ["a service", "a member"].map(str::to_owned);
    head(page, "", heads.into_iter().chain(adds));
    let one = Shape { services: 1, members: 1 };
    let states = CAPACITIES.map(|capacity| {
        let own = findings.charges.iter().filter(|it| it.capacity == capacity && it.shape == one);
        own.map(|it| (it.what.as_str(), it.bytes as f64)).collect::<Vec<_>>()
    });
    let [usual, more_members, more_services] = CAPACITIES;
    let services = f64::from(more_services.services - more_members.services);
    let members = f64::from(more_members.members - usual.members);
    let line = |page: &mut String, what: &str, bytes: [f64; 3]| {
        let kib = bytes.map(|bytes| format!("{:.1}", bytes / 1024.0));
        let adds = [(bytes[2] - bytes[1]) / services, (bytes[1] - bytes[0]) / members];
        row(page, what, kib.into_iter().chain(adds.map(|bytes| format!("{bytes:.1}"))));
    };
    for (at, &(what, _)) in states[0].iter().enumerate() {
        line(page, what, [0, 1, 2].map(|state: usize| states[state][at].1));
    }
    let sum = |state: &Vec<(&str, f64)>| state.iter().map(|(_, bytes)| bytes).sum();
    line(page, "**together**", states.each_ref().map(sum));
}

/// What grows with those that there are.
fn services(page: &mut String, findings: &Findings) {
    let of = |shape: Shape, kind: &str, among: u32| {
        let own = |it: &&Charge| it.shape == shape && it.what == kind;
        let bytes = findings.charges.iter().find(own).map_or(0, |it| it.bytes);
        format!("{:.1}", bytes as f64 / f64::from(among))
    };
    let sockets = [STORAGE, ENTRIES];
    let heads = sockets.iter().map(|kind| format!("{kind}, a member"));
    head(page, "services × members", [format!("{ROSTERS}, a service")].into_iter().chain(heads));
    for &shape in &findings.shapes {
        let rosters = of(shape, ROSTERS, shape.services);
        let sockets = sockets.map(|kind| of(shape, kind, shape.services * shape.members));
        row(page, &shape.to_string(), [rosters].into_iter().chain(sockets));
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn head(page: &mut String, first: &str, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.collect();
    let lines = cells.iter().map(|_| "---:".to_owned()).collect::<Vec<_>>();
    row(page, first, cells);
    row(page, "---", lines);
}

fn row(page: &mut String, first: &str, cells: impl IntoIterator<Item = String>) {
    write!(page, "| {first} ").expect("a String takes everything");
    for cell in cells {
        write!(page, "| {cell} ").expect("a String takes everything");
    }
    page.push_str("|\n");
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_as_they_were_written() {
        let shape = Shape { services: 1, members: 4 };
        let all = Operation::ALL.map(|operation| {
            let time = Duration::from_micros(1_500 + operation as u64);
            Sample { shape, operation, time }
        });
        let written = samples(&Findings { samples: all.to_vec(), ..Findings::default() });
        let read = read(&written).unwrap();
        assert_eq!(read.shapes, [shape]);
        assert_eq!(samples(&read), written);
    }
}
