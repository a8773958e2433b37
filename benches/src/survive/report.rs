//! What was found, as tables.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use trial::{End, Outcome, Trouble};

use crate::machine::Machine;
use crate::picture::Losses;

/// What one trial came to.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) trouble: Trouble,
    pub(crate) redirect: bool,
    pub(crate) outcome: Outcome,
    /// How long those that were accepted waited for it, in ascending order.
    waits: Vec<Duration>,
}

impl Row {
    pub(crate) fn new(trouble: Trouble, redirect: bool, outcome: Outcome) -> Self {
        let mut waits: Vec<Duration> =
            outcome.fates.iter().filter_map(|fate| fate.accepted).collect();
        waits.sort_unstable();
        Self { trouble, redirect, outcome, waits }
    }

    pub(crate) fn contestant(&self) -> &'static str {
        contestant(self.redirect)
    }

    /// For the picture.
    pub(crate) fn losses(&self) -> Losses {
        let (clients, lost) = (self.outcome.fates.len(), self.outcome.lost());
        Losses { trouble: self.trouble, redirect: self.redirect, clients, lost }
    }

    fn wait(&self, at: f64) -> f64 {
        let place = (at * self.waits.len().saturating_sub(1) as f64) as usize;
        self.waits.get(place).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
    }
}

impl fmt::Display for Row {
    /// A line of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |end| self.outcome.count(end);
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} | {} | **{}** | {} | {} | {} | {:.1} | {:.0} | {:.0} |",
            self.trouble.name(),
            self.contestant(),
            self.outcome.troubles,
            self.outcome.fates.len(),
            count(End::Served),
            count(End::CutOff),
            count(End::Undecided),
            self.outcome.lost(),
            count(End::Refused),
            count(End::Reset),
            count(End::TimedOut),
            self.wait(0.5),
            self.wait(0.99),
            self.wait(1.0),
        )
    }
}

fn contestant(redirect: bool) -> &'static str {
    if redirect { "overspill" } else { "SO_REUSEPORT" }
}

/// Reads for the picture what [`clients`] has written.
pub(crate) fn read_losses(text: &str) -> Vec<Losses> {
    let of = |trouble: Trouble, redirect: bool| {
        let head = format!("{},{},", trouble.name(), contestant(redirect));
        let ends: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with(&head))
            .filter_map(|line| line.rsplit(',').next())
            .collect();
        let is_lost =
            |end: &&&str| [End::Refused, End::Reset, End::TimedOut].map(End::name).contains(*end);
        let (clients, lost) = (ends.len(), ends.iter().filter(is_lost).count());
        Losses { trouble, redirect, clients, lost }
    };
    Trouble::ALL
        .into_iter()
        .flat_map(|trouble| [true, false].map(|with| of(trouble, with)))
        .collect()
}

/// A page in Markdown.
pub(crate) fn page(machine: &Machine, seconds: u64, rows: &[Row]) -> String {
    let Machine { date, kernel, processor, processors, load, commit } = machine;
    let mut page = format!(
        "# Who is lost, measured on {date}\n\n\
         Linux {kernel}, {processors} × {processor}; load before: {load}; commit {commit}; \
         {seconds} s of clients in each case. Four workers, 4 ms a request, 100 new clients a \
         second. *Lost* is who was refused, reset, or not accepted within 5 s. *Cut off* is who \
         had been accepted by a worker that then ended; *undecided* who was reset by a worker \
         that was killed within accept(). Waits are those until acceptance, in ms. Every client \
         is in [clients.csv](clients.csv), the kernel's counts in [counts.csv](counts.csv).\n\n\
         ![Clients lost](picture.svg)\n\n\
         | workers are | with | times | clients | served | cut off | undecided | **lost** | refused | reset | timed out | p50 | p99 | max |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for row in rows {
        writeln!(page, "{row}").expect("a String takes everything");
    }
    page
}

/// Every client.
pub(crate) fn clients(rows: &[Row]) -> String {
    let mut text = String::from("workers are,with,came (ms),accepted after (ms),end\n");
    for row in rows {
        for fate in &row.outcome.fates {
            let wait = fate.accepted.map(|wait| format!("{:.1}", wait.as_secs_f64() * 1e3));
            writeln!(
                text,
                "{},{},{},{},{}",
                row.trouble.name(),
                row.contestant(),
                fate.came.as_millis(),
                wait.unwrap_or_default(),
                fate.end.name()
            )
            .expect("a String takes everything");
        }
    }
    text
}

/// The kernel's counts in each case.
pub(crate) fn counts(rows: &[Row]) -> String {
    let mut text = String::from("workers are,with,count,value\n");
    for row in rows {
        for (name, value) in &row.outcome.counts {
            let (trouble, contestant) = (row.trouble.name(), row.contestant());
            writeln!(text, "{trouble},{contestant},{name},{value}")
                .expect("a String takes everything");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_lost_is_counted_by_case() {
        let text = "workers are,with,came (ms),accepted after (ms),end\n\
                    killed,overspill,0,2.2,served\n\
                    killed,SO_REUSEPORT,0,,refused\n\
                    killed,SO_REUSEPORT,10,0.7,cut off\n";
        let losses = read_losses(text);
        let of = |redirect| {
            let it =
                losses.iter().find(|it| it.trouble == Trouble::Kill && it.redirect == redirect);
            it.map(|it| (it.clients, it.lost))
        };
        assert_eq!([of(true), of(false)], [Some((1, 0)), Some((2, 1))]);
    }
}
