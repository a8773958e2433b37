//! The committed measurements of the programs on each kernel, and what has become of them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::choice::Kernel;
use crate::programs::Program;

/// Where they lie, from the project's root.
pub(crate) const FILE: &str = "tests/kernels/programs.csv";
/// By how much the verifier's steps may grow before that is a failure, in percent.
const ALLOWANCE: u64 = 20;

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    kernel: String,
    /// Of the kernel.
    #[serde(default)]
    version: String,
    architecture: String,
    object: String,
    program: String,
    steps: u64,
    instructions: u64,
    machine_code: u64,
}

type Key = (String, String, String, String);

impl Line {
    fn of(kernel: &Kernel, program: &Program) -> Self {
        Self {
            kernel: kernel.label.clone(),
            version: kernel.version.to_string(),
            architecture: kernel.architecture.clone(),
            object: program.object.clone(),
            program: program.name.clone(),
            steps: program.steps.unwrap_or_default(),
            instructions: program.instructions.unwrap_or_default(),
            machine_code: program.machine_code.unwrap_or_default(),
        }
    }

    fn key(&self) -> Key {
        let Self { kernel, architecture, object, program, .. } = self;
        (architecture.clone(), kernel.clone(), object.clone(), program.clone())
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Measurements {
    lines: BTreeMap<Key, Line>,
}

/// What a kernel's programs are beside the committed measurements.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Programs that have grown beyond the allowance: a line each.
    pub(crate) grown: Vec<String>,
    /// Programs without committed measurements, with what was measured now.
    pub(crate) unknown: Vec<String>,
    /// The steps of all compared programs, committed and now.
    pub(crate) steps: Option<(u64, u64)>,
}

impl Measurements {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let lines = csv::Reader::from_path(path)?.into_deserialize();
        let lines = lines.map(|line: csv::Result<Line>| line.map(|line| (line.key(), line)));
        let lines = lines.collect::<csv::Result<_>>();
        let lines = lines.with_context(|| {
            format!("{} cannot be read; make it anew with --update", path.display())
        })?;
        Ok(Self { lines })
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut writer = csv::Writer::from_path(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        self.lines.values().try_for_each(|line| writer.serialize(line))?;
        Ok(writer.flush()?)
    }

    /// Takes the programs of `kernel` for all that is known of it.
    pub(crate) fn set(&mut self, kernel: &Kernel, programs: &[Program]) {
        self.lines.retain(|_, line| {
            (&line.kernel, &line.architecture) != (&kernel.label, &kernel.architecture)
        });
        let loaded = programs.iter().filter(|program| program.loaded);
        self.lines.extend(loaded.map(|program| {
            let line = Line::of(kernel, program);
            (line.key(), line)
        }));
    }

    pub(crate) fn compare(&self, kernel: &Kernel, programs: &[Program]) -> Comparison {
        let mut comparison = Comparison::default();
        for program in programs.iter().filter(|program| program.loaded) {
            let now = Line::of(kernel, program);
            let Some(committed) = self.lines.get(&now.key()) else {
                let Line { object, program, steps, instructions, machine_code, .. } = now;
                comparison.unknown.push(format!(
                    "{object} {program}: {steps} steps, {instructions} instructions, \
                     {machine_code} bytes of machine code"
                ));
                continue;
            };
            let (before, after) = comparison.steps.unwrap_or_default();
            comparison.steps = Some((before + committed.steps, after + now.steps));
            let grown = now.steps * 100 > committed.steps * (100 + ALLOWANCE);
            if grown && now.version != committed.version {
                // A stable update may bring another verifier: that is no change of ours.
                comparison.unknown.push(format!(
                    "{} {}: {} steps on {}, {} on {}",
                    now.object,
                    now.program,
                    now.steps,
                    now.version,
                    committed.steps,
                    committed.version
                ));
            } else if grown {
                comparison.grown.push(format!(
                    "program \"{}\" of {} takes the verifier {} steps, {} when last committed: more \
                     than {ALLOWANCE} % growth; make it smaller, or commit this with --update",
                    program.name, program.object, now.steps, committed.steps
                ));
            }
        }
        comparison
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice;
    use crate::packages::Package;

    fn kernel() -> Kernel {
        kernel_of("6.1.192-2")
    }

    fn kernel_of(version: &str) -> Kernel {
        let package = Package {
            name: "linux-image-6.1.0-56-cloud-amd64".to_owned(),
            version: version.to_owned(),
            architecture: "amd64".to_owned(),
        };
        choice::choose(&[package], "amd64").remove(0)
    }

    fn program(name: &str, steps: u64) -> Program {
        let name = name.to_owned();
        let object = "overspill".to_owned();
        let [steps, instructions, machine_code] = [steps, 7, 9].map(Some);
        Program { object, name, loaded: true, steps, instructions, machine_code, error: None }
    }

    #[test]
    fn growth_beyond_the_allowance_is_found() {
        let mut measurements = Measurements::default();
        measurements.set(&kernel(), &[program("one", 100), program("two", 100)]);
        let now = [program("one", 120), program("two", 121), program("three", 5)];
        let comparison = measurements.compare(&kernel(), &now);
        assert_eq!(comparison.grown.len(), 1);
        assert!(comparison.grown[0].contains("\"two\""), "{:?}", comparison.grown);
        assert_eq!(
            comparison.unknown,
            ["overspill three: 5 steps, 7 instructions, 9 bytes of machine code"]
        );
        assert_eq!(comparison.steps, Some((200, 241)));
    }

    #[test]
    fn growth_on_another_version_of_the_kernel_is_only_told() {
        let mut measurements = Measurements::default();
        measurements.set(&kernel(), &[program("one", 100)]);
        let comparison = measurements.compare(&kernel_of("6.1.193-1"), &[program("one", 200)]);
        assert_eq!(comparison.grown, [""; 0]);
        let told = "overspill one: 200 steps on 6.1.193, 100 on 6.1.192";
        assert_eq!(comparison.unknown, [told]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("programs.csv");
        let mut measurements = Measurements::default();
        measurements.set(&kernel(), &[program("one", 100)]);
        measurements.set(&kernel(), &[program("two", 50)]);
        measurements.write(&path).unwrap();
        let read = Measurements::read(&path).unwrap();
        assert_eq!(read.lines, measurements.lines);
        assert_eq!(read.lines.len(), 1);
    }
}
