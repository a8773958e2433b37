//! What was measured, raw.

use std::fmt::{self, Write as _};
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// What a figure belongs to. An empty or zero field does not apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) subject: &'static str,
    pub(crate) contestant: &'static str,
    pub(crate) members: u32,
    pub(crate) backlog: u32,
    pub(crate) layout: &'static str,
    pub(crate) state: &'static str,
    pub(crate) way: &'static str,
}

/// One figure of one round.
#[derive(Debug, Clone, Copy)]
struct Sample {
    case: Case,
    round: u32,
    measure: &'static str,
    value: f64,
}

/// All figures, in the order in which they were taken.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Sample>);

impl Samples {
    pub(crate) fn add(&mut self, case: Case, round: u32, measure: &'static str, value: f64) {
        self.0.push(Sample { case, round, measure, value });
    }

    /// The figures of a case, by round.
    pub(crate) fn of(&self, case: Case, measure: &str) -> Vec<f64> {
        self.0
            .iter()
            .filter(|sample| sample.case == case && sample.measure == measure)
            .map(|sample| sample.value)
            .collect()
    }

    /// The figures of two cases that were measured in the same rounds, as ratios.
    pub(crate) fn ratios(&self, case: Case, to: Case, measure: &str) -> Vec<f64> {
        let bases = self.of(to, measure);
        self.of(case, measure).into_iter().zip(bases).map(|(value, base)| value / base).collect()
    }

    /// The cases of a subject, in order.
    pub(crate) fn cases(&self, subject: &str) -> Vec<Case> {
        let mut cases = Vec::new();
        for sample in self.0.iter().filter(|sample| sample.case.subject == subject) {
            if !cases.contains(&sample.case) {
                cases.push(sample.case);
            }
        }
        cases
    }

    /// How many rounds a case was measured in.
    pub(crate) fn rounds(&self, case: Case) -> usize {
        let rounds = self.0.iter().filter(|sample| sample.case == case).map(|sample| sample.round);
        rounds.max().map_or(0, |last| last as usize + 1)
    }

    /// Reads what [`Samples::write`] has written.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let samples = text
            .lines()
            .skip(1)
            .map(|line| Sample::parse(line).with_context(|| format!("{}: {line}", path.display())));
        samples.collect::<Result<_>>().map(Self)
    }

    /// Writes them as a table that any tool reads.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = String::from(
            "subject,contestant,members,backlog,layout,state,way,round,measure,value\n",
        );
        for sample in &self.0 {
            writeln!(text, "{sample}").expect("a String takes everything");
        }
        std::fs::write(path, text)
    }
}

impl fmt::Display for Sample {
    /// A line of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, round, measure, value } = self;
        let Case { subject, contestant, members, backlog, layout, state, way } = case;
        let (members, backlog) = (blank(*members), blank(*backlog));
        write!(
            f,
            "{subject},{contestant},{members},{backlog},{layout},{state},{way},{round},{measure},{value}"
        )
    }
}

impl Sample {
    fn parse(line: &str) -> Result<Self> {
        // The names of cases are constants; one that is read lives as long.
        let name = |text: &str| -> &'static str { String::leak(text.to_owned()) };
        let number = |text: &str| if text.is_empty() { Ok(0) } else { text.parse() };
        let fields: Vec<&str> = line.split(',').collect();
        let [subject, contestant, members, backlog, layout, state, way, round, measure, value] =
            fields[..]
        else {
            bail!("not ten fields");
        };
        let case = Case {
            subject: name(subject),
            contestant: name(contestant),
            members: number(members)?,
            backlog: number(backlog)?,
            layout: name(layout),
            state: name(state),
            way: name(way),
        };
        Ok(Self { case, round: round.parse()?, measure: name(measure), value: value.parse()? })
    }
}

fn blank(number: u32) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for line in [
            "capacity,SO_REUSEPORT,4,16,one address,,,0,used (share),0.8529411764705882",
            "decision,next-available,1,,one address,empty,test run,3,cost (ns),115",
        ] {
            assert_eq!(Sample::parse(line).unwrap().to_string(), line);
        }
        assert!(Sample::parse("rate,1").is_err());
    }
}
