//! The page that says what was found.

use std::fmt::Write as _;

use overspill::Policy;

use crate::contestant::{Contestant, Layout};
use crate::decision::{self, COST, LAYOUTS, REQUEST, STATES, TEST_RUN, Tracer, UNSERVED};
use crate::machine::Machine;
use crate::peer::Peer;
use crate::plan::Plan;
use crate::sample::{Case, Samples};
use crate::statistics::{Spread, mean, quantile};
use crate::{capacity, hang, rate};

/// A page in Markdown.
pub(crate) fn write(plan: &Plan, machine: &Machine, samples: &Samples) -> String {
    let mut page = format!(
        "# Measured on {date}\n\n\
         Linux {kernel}, {processors} × {processor}; load before: {load}; commit {commit}{quick}. \
         Ratios travel, absolute times do not. `a (b .. c)` is the median and its 95 % bootstrap \
         interval over the rounds. Every figure of every round is in [samples.csv](samples.csv).\n\n\
         ![The figures as a picture](picture.svg)\n",
        date = machine.date,
        kernel = machine.kernel,
        processor = machine.processor,
        processors = machine.processors,
        load = machine.load,
        commit = machine.commit,
        quick = if plan.quick { "; **a quick run, not to be believed**" } else { "" },
    );
    for (subject, section) in [
        (capacity::SUBJECT, capacity_section as fn(&Plan, &Samples) -> String),
        (hang::SUBJECT, hang_section),
        (decision::SUBJECT, decision_section),
        (rate::SUBJECT, rate_section),
    ] {
        if !samples.cases(subject).is_empty() {
            page += "\n";
            page += &section(plan, samples);
        }
    }
    page
}

/// A row of a table.
fn row<T: AsRef<str>>(page: &mut String, cells: &[T]) {
    for cell in cells {
        write!(page, "| {} ", cell.as_ref()).expect("a String takes everything");
    }
    page.push_str("|\n");
}

/// A table's head: its first columns are words, the others figures.
fn head<T: AsRef<str>>(page: &mut String, words: &[&str], figures: &[T]) {
    let names = words.iter().copied().chain(figures.iter().map(AsRef::as_ref));
    row(page, &names.collect::<Vec<_>>());
    let lines = words.iter().map(|_| "---").chain(figures.iter().map(|_| "---:"));
    row(page, &lines.collect::<Vec<_>>());
}

fn capacity_section(_: &Plan, samples: &Samples) -> String {
    let mut page = format!(
        "## Capacity used when the first request is dropped\n\n\
         Mean, and least, over {} fillings from random client ports; backlog {}. The shared \
         socket is a single queue with a backlog {} times the number of workers.\n\n",
        rounds(samples, capacity::SUBJECT),
        capacity::BACKLOG,
        capacity::BACKLOG,
    );
    head(
        &mut page,
        &["contestant", "members at"],
        &capacity::SIZES.map(|n| format!("{n} members")),
    );
    for (contestant, layout) in capacity::contestants() {
        let mut cells = vec![contestant.name().to_owned(), layout.name().to_owned()];
        for members in capacity::SIZES {
            let used = samples.of(capacity::case(contestant, layout, members), capacity::USED);
            let least = quantile(&used, 0.0).unwrap_or(f64::NAN);
            cells.push(format!("{:.1} % ({:.1} %)", 100.0 * mean(&used), 100.0 * least));
        }
        row(&mut page, &cells);
    }
    page
}

fn hang_section(plan: &Plan, samples: &Samples) -> String {
    let mut page = format!(
        "## New clients while one of {} workers hangs\n\n\
         Over {} rounds. A client without an answer after a second is stuck; its wait counts as \
         1000 ms. With a long queue, `next-available` and `round-robin` go on filling the queue \
         of the hung worker until it is full: what waits there is stuck.\n\n",
        hang::MEMBERS,
        rounds(samples, hang::SUBJECT),
    );
    let figures = ["clients a round", "stuck", "share", "median wait", "p99", "longest"];
    head(&mut page, &["backlog", "contestant"], &figures);
    for backlog in plan.hang_backlogs {
        for contestant in hang::contestants() {
            let case = hang::case(contestant, *backlog);
            let median = |measure| quantile(&samples.of(case, measure), 0.5).unwrap_or(f64::NAN);
            row(
                &mut page,
                &[
                    backlog.to_string(),
                    contestant.name().to_owned(),
                    format!("{:.0}", median(hang::CLIENTS)),
                    format!("{:.0}", median(hang::STUCK)),
                    format!("{:.1} %", 100.0 * median(hang::SHARE)),
                    format!("{:.2} ms", median(hang::MEDIAN)),
                    format!("{:.1} ms", median(hang::P99)),
                    format!("{:.0} ms", median(hang::MAX)),
                ],
            );
        }
    }
    page
}

fn decision_section(plan: &Plan, samples: &Samples) -> String {
    let mut page = String::from(
        "## What a decision costs\n\n\
         *Request*: real connections, by the kernel's run-time statistics, which include the \
         reading of the clock. *Test run*: the program alone, again and again \
         (`BPF_PROG_TEST_RUN`). Nothing is subtracted: the empty program is the floor. The \
         dispatchers find a socket by address prefix and look at no queue; the one with two \
         prefix matches also counts, as Cloudflare's tubular does. *Full*: the called member is \
         full, the rest is empty. *Crowd*: the called member is full, the rest hold one each. \
         *Even*: all hold one each. The policy `dispatcher` asks a program that answers its \
         first candidate, of which there are 512 at most.\n",
    );
    for way in [REQUEST, TEST_RUN] {
        write!(page, "\n### By {way}\n\n").expect("a String takes everything");
        page += &peers_table(plan, samples, way);
        page += "\nTimes the dispatcher with two prefix matches, measured in the same rounds:\n\n";
        page += &policies_table(plan, samples, way);
        page += "\nA request that is placed, while somebody traces it:\n\n";
        page += &tracers_table(plan, samples, way);
    }
    page
}

fn tracers_table(plan: &Plan, samples: &Samples, way: &'static str) -> String {
    let mut page = String::new();
    let members = plan.decision_sizes[0];
    head(&mut page, &["contestant"], &["cost (ns)", "times without"]);
    let case = |name| decision::case(name, members, Layout::One, STATES[0], way);
    let alone = case(Policy::NextAvailable.name());
    let names = Tracer::ALL.map(Tracer::name).into_iter();
    for name in std::iter::once(Policy::NextAvailable.name()).chain(names) {
        let cost = Spread::of(&samples.of(case(name), COST)).expect("it was measured");
        let ratio = Spread::of(&samples.ratios(case(name), alone, COST)).expect("as above");
        row(&mut page, &[name.to_owned(), format!("{cost:.0}"), format!("{ratio:.2}")]);
    }
    page
}

/// The peers at the first size, and an unserved port: their cost knows no size.
fn peers_table(plan: &Plan, samples: &Samples, way: &'static str) -> String {
    let mut page = String::new();
    let members = plan.decision_sizes[0];
    head(
        &mut page,
        &["contestant"],
        &["served port (ns)", "unserved port (ns)", "times the peer's"],
    );
    let spread = |case| Spread::of(&samples.of(case, COST));
    let text = |spread: Option<Spread>, digits: usize| {
        spread.map_or_else(|| "—".to_owned(), |spread| format!("{spread:.digits$}"))
    };
    let names = Peer::ALL.map(Peer::name).into_iter().chain(["overspill"]);
    for name in names {
        let case = |state| decision::case(name, members, Layout::One, state, way);
        let peer = decision::case(Peer::TwoLookups.name(), members, Layout::One, UNSERVED, way);
        let ratio = Spread::of(&samples.ratios(case(UNSERVED), peer, COST));
        row(
            &mut page,
            &[
                name.to_owned(),
                text(spread(case(STATES[0])), 0),
                text(spread(case(UNSERVED)), 0),
                text(ratio, 2),
            ],
        );
    }
    page
}

fn policies_table(plan: &Plan, samples: &Samples, way: &'static str) -> String {
    let mut page = String::new();
    let sizes: Vec<String> = plan.decision_sizes.iter().map(|n| format!("{n} members")).collect();
    head(&mut page, &["policy", "members at", "state"], &sizes);
    for policy in decision::policies() {
        for layout in LAYOUTS {
            for state in STATES {
                let name = policy.name().to_owned();
                let mut cells = vec![name, layout.name().to_owned(), state.to_owned()];
                cells.extend(plan.decision_sizes.iter().map(|&members| {
                    let case = |name| decision::case(name, members, layout, state, way);
                    let peer = case(Peer::TwoLookups.name());
                    let ratio = Spread::of(&samples.ratios(case(policy.name()), peer, COST));
                    ratio.map_or_else(|| "—".to_owned(), |ratio| format!("{ratio:.2}"))
                }));
                row(&mut page, &cells);
            }
        }
    }
    page
}

fn rate_section(plan: &Plan, samples: &Samples) -> String {
    let mut page = format!(
        "## Connections a second\n\n\
         Connect, accept, close; {} rounds of {} ms each, the contestants in turn. The ratio is \
         that of the same round. `SO_REUSEPORT again` is the same thing twice: what the \
         measuring itself makes of no difference.\n\n",
        rounds(samples, rate::SUBJECT),
        plan.rate_time.as_millis(),
    );
    head(&mut page, &["contestant"], &["connections a second", "times SO_REUSEPORT"]);
    for contestant in rate::contestants() {
        let case = rate::case(contestant);
        let base = rate::case(Contestant::ReusePort);
        let rate = Spread::of(&samples.of(case, rate::RATE)).expect("it was measured");
        let ratio = Spread::of(&samples.ratios(case, base, rate::RATE)).expect("as above");
        let cells = [contestant.name().to_owned(), format!("{rate:.0}"), format!("{ratio:.3}")];
        row(&mut page, &cells);
    }
    page
}

fn rounds(samples: &Samples, subject: &str) -> usize {
    let first: Option<Case> = samples.cases(subject).first().copied();
    first.map_or(0, |case| samples.rounds(case))
}
