//! The table of kernels, for people and as Markdown.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::choice::Kernel;
use crate::measurements::Comparison;
use crate::programs::{Loading, Verdict};
use crate::series::{self, Outcome};

/// What is known of a kernel at the end.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) kernel: Kernel,
    pub(crate) loading: Option<(Loading, Comparison)>,
    pub(crate) tests: Option<Outcome>,
    /// A line each.
    pub(crate) failures: Vec<String>,
}

impl Row {
    pub(crate) fn new(kernel: Kernel) -> Self {
        Self { kernel, loading: None, tests: None, failures: Vec::new() }
    }

    fn cells(&self) -> [String; 8] {
        let nothing = || "-".to_owned();
        let loading = |cell: &dyn Fn(&Loading, &Comparison) -> String| {
            self.loading
                .as_ref()
                .map_or_else(nothing, |(loading, compared)| cell(loading, compared))
        };
        [
            self.kernel.version.to_string(),
            self.kernel.architecture.clone(),
            loading(&|loading, _| {
                let loaded = loading.programs.iter().filter(|program| program.loaded).count();
                format!("{loaded} of {}", loading.programs.len())
            }),
            loading(&|loading, _| format!("{:.1}", loading.elapsed)),
            loading(&|loading, _| format!("{:.1}", loading.cpu)),
            loading(&|_, compared| compared.steps.map_or_else(nothing, growth)),
            loading(&|loading, _| loading.verdict.as_ref().map_or_else(nothing, said)),
            self.tests.as_ref().map_or_else(nothing, tests),
        ]
    }
}

const TITLES: [&str; 8] = [
    "Linux",
    "architecture",
    "programs that load",
    "time (s)",
    "CPU (s)",
    "verifier's steps",
    "overspill check",
    "tests",
];

/// The table as Markdown, whose columns are aligned for people.
pub(crate) fn table(rows: &[Row]) -> String {
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    let titles = TITLES.map(str::to_owned);
    let width = |column: usize| {
        let all = cells.iter().chain([&titles]);
        all.map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let mut table = String::new();
    let mut line = |row: &[String; 8]| {
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(table, "| {cell:<0$} ", width(column));
        }
        table.push_str("|\n");
    };
    line(&titles);
    line(&std::array::from_fn(|column| "-".repeat(width(column))));
    cells.iter().for_each(&mut line);
    table
}

/// Writes the table with a title.
pub(crate) fn write(rows: &[Row], path: &Path) -> Result<()> {
    let text = format!("# Kernels\n\nMade by `make test-kernels`.\n\n{}", table(rows));
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn growth((before, now): (u64, u64)) -> String {
    let tenths = (now.cast_signed() - before.cast_signed()) * 1000 / before.max(1).cast_signed();
    let sign = if tenths < 0 { '-' } else { '+' };
    format!("{now} ({sign}{}.{} %)", tenths.abs() / 10, tenths.abs() % 10)
}

fn said(verdict: &Verdict) -> String {
    if !verdict.missing.is_empty() {
        return format!("missing: {}", verdict.missing.join(", "));
    }
    match verdict.notes.len() {
        0 => "OK".to_owned(),
        1 => format!("OK, a note: {}", verdict.notes[0]),
        count => format!("OK, {count} notes"),
    }
}

fn tests(outcome: &Outcome) -> String {
    let mut passed = format!("{} of {} pass", outcome.passed, outcome.all());
    if outcome.passed_again > 0 {
        let _ = write!(passed, " ({} when run again)", outcome.passed_again);
    }
    let features = series::features(&outcome.failed);
    if features.is_empty() { passed } else { format!("{passed}; fails: {}", features.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_has_a_sign() {
        assert_eq!(growth((1000, 1013)), "1013 (+1.3 %)");
        assert_eq!(growth((1000, 995)), "995 (-0.5 %)");
        assert_eq!(growth((0, 0)), "0 (+0.0 %)");
    }

    #[test]
    fn a_missing_thing_goes_before_notes() {
        let verdict = |missing: &[&str], notes: &[&str]| Verdict {
            missing: missing.iter().map(|&name| name.to_owned()).collect(),
            notes: notes.iter().map(|&name| name.to_owned()).collect(),
        };
        assert_eq!(said(&verdict(&["BTF"], &["limits"])), "missing: BTF");
        assert_eq!(said(&verdict(&[], &["limits"])), "OK, a note: limits");
        assert_eq!(said(&verdict(&[], &[])), "OK");
    }
}
