//! The run of a matrix: two guests at a time, each loading all programs or running tests.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::arm64;
use crate::built::Built;
use crate::choice::Kernel;
use crate::machine::{self, Accelerator, Ended, Guest, Kind};
use crate::measurements::Measurements;
use crate::packages::Packages;
use crate::programs::{self, Loading};
use crate::report::Row;
use crate::series::{self, Scripts, Tests};
use crate::signals;
use crate::tree::Tree;

/// Guests at a time. Each has two processors; more guests would only slow each other down.
const GUESTS: usize = 2;
const LOADING_DEADLINE: Duration = Duration::from_secs(5 * 60);
const SERIES_DEADLINE: Duration = Duration::from_secs(30 * 60);
const WHOLE_DEADLINE: Duration = Duration::from_secs(4 * 3600);

/// What a guest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    Load,
    Test(Tests),
}

/// What all guests of a run share.
#[derive(Debug)]
pub(crate) struct Matrix {
    /// The project's root.
    root: PathBuf,
    folder: PathBuf,
    packages: Mutex<Packages>,
    built: Built,
    measurements: Measurements,
    accelerator: OnceLock<Accelerator>,
    arm64: OnceLock<Result<arm64::Guest, String>>,
}

impl Matrix {
    /// `compares`: with the committed measurements, or with none.
    pub(crate) fn new(
        root: &Path,
        folder: &Path,
        packages: Packages,
        compares: bool,
    ) -> Result<Self> {
        let built = Built::read(root)?;
        let measurements = if compares {
            Measurements::read(&root.join(crate::measurements::FILE))?
        } else {
            Measurements::default()
        };
        Ok(Self {
            root: root.to_owned(),
            folder: folder.to_owned(),
            packages: Mutex::new(packages),
            built,
            measurements,
            accelerator: OnceLock::new(),
            arm64: OnceLock::new(),
        })
    }

    /// Runs the jobs in their order, and returns a row for each kernel.
    pub(crate) fn run(&self, kernels: &[Kernel], jobs: VecDeque<(usize, Job)>) -> Vec<Row> {
        let rows = Mutex::new(kernels.iter().cloned().map(Row::new).collect::<Vec<_>>());
        let jobs = Mutex::new(jobs);
        let work = || {
            while let Some((number, job)) = take(&jobs) {
                self.carry_out(&kernels[number], job, |change| {
                    change(&mut rows.lock().expect("no worker panics")[number]);
                });
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..GUESTS {
                scope.spawn(work);
            }
        });
        rows.into_inner().expect("no worker panics")
    }

    fn carry_out(&self, kernel: &Kernel, job: Job, change: impl Fn(&dyn Fn(&mut Row))) {
        let result = match job {
            Job::Load => self.load(kernel, &change),
            Job::Test(tests) => self.test(kernel, tests, &change),
        };
        if let Err(error) = result {
            change(&|row| row.failures.push(format!("Linux {kernel}: {error:#}")));
        }
    }

    fn load(&self, kernel: &Kernel, change: impl Fn(&dyn Fn(&mut Row))) -> Result<()> {
        let script = programs::script(&self.built.overspill);
        let ended = self.boot(kernel, &script, LOADING_DEADLINE)?;
        let loading = programs::read(&ended.output)?;
        progress(kernel, &ended, &loaded(&loading));
        let compared = self.measurements.compare(kernel, &loading.programs);
        let mut failures: Vec<_> =
            loading.programs.iter().filter_map(programs::Program::fault).collect();
        if let Some(missing) = loading.verdict.as_ref().map(|verdict| &verdict.missing)
            && !missing.is_empty()
        {
            failures.push(format!("overspill check finds missing: {}", missing.join(", ")));
        }
        failures.extend_from_slice(&compared.grown);
        change(&|row| {
            row.failures.extend(failures.iter().map(|line| format!("Linux {kernel}: {line}")));
            row.loading = Some((loading.clone(), compared.clone()));
        });
        Ok(())
    }

    fn test(
        &self,
        kernel: &Kernel,
        tests: Tests,
        change: impl Fn(&dyn Fn(&mut Row)),
    ) -> Result<()> {
        let deadline = match tests {
            Tests::Short | Tests::Series => SERIES_DEADLINE,
            Tests::Whole => WHOLE_DEADLINE,
        };
        let emulated = self.accelerator(&self.tree(kernel)?) == Accelerator::Emulation;
        let scripts = Scripts { built: &self.built, root: &self.root, emulated };
        let ended = self.boot(kernel, &scripts.run(tests), deadline)?;
        let mut outcome = series::read(tests, &ended.output);
        let mut output = ended.output.clone();
        // Emulation stops a processor for longer than some tests wait. What is broken fails again.
        if emulated && !outcome.failed.is_empty() {
            let again = self.boot(kernel, &scripts.run_again(&outcome), deadline)?;
            outcome.again(&again.output);
            output.push_str("\n--- again\n");
            output.push_str(&again.output);
        }
        let log = self.folder.join(format!("tests-{}.log", kernel.label));
        fs::write(&log, output).with_context(|| format!("cannot write {}", log.display()))?;
        progress(kernel, &ended, &format!("{} of {} tests pass", outcome.passed, outcome.all()));
        change(&|row| {
            let log = log.strip_prefix(&self.root).unwrap_or(&log).display();
            row.failures.extend(
                outcome
                    .failed
                    .iter()
                    .map(|test| format!("Linux {kernel}: {test} fails; see {log}")),
            );
            row.tests = Some(outcome.clone());
        });
        Ok(())
    }

    /// Runs `command` in a guest with the host's root; an arm64 guest always runs the loader.
    fn boot(&self, kernel: &Kernel, command: &str, deadline: Duration) -> Result<Ended> {
        let tree = self.tree(kernel)?;
        if kernel.architecture == "amd64" {
            let kind = Kind::Native(self.accelerator(&tree));
            return Guest { tree: &tree, command, deadline, kind, pass_on: false }.run();
        }
        let guest = self.arm64()?;
        let kind = Kind::Arm64 { busybox: &guest.busybox, files: &guest.files };
        Guest { tree: &tree, command: &guest.script, deadline, kind, pass_on: false }.run()
    }

    fn tree(&self, kernel: &Kernel) -> Result<Tree> {
        let packages = self.packages.lock().expect("no worker panics");
        Tree::of(kernel, &packages, &self.folder.join("trees"))
    }

    fn accelerator(&self, tree: &Tree) -> Accelerator {
        *self.accelerator.get_or_init(|| machine::accelerator(tree))
    }

    fn arm64(&self) -> Result<&arm64::Guest> {
        let guest = self.arm64.get_or_init(|| {
            let packages = self.packages.lock().expect("no worker panics");
            let folder = self.folder.join("arm64");
            arm64::Guest::build(&packages, &self.built, &self.root, &folder)
                .map_err(|error| format!("{error:#}"))
        });
        guest.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }
}

fn take(jobs: &Mutex<VecDeque<(usize, Job)>>) -> Option<(usize, Job)> {
    if signals::interrupted() {
        return None;
    }
    jobs.lock().expect("no worker panics").pop_front()
}

fn loaded(loading: &Loading) -> String {
    let loaded = loading.programs.iter().filter(|program| program.loaded).count();
    format!("{loaded} of {} programs load in {:.1} s", loading.programs.len(), loading.elapsed)
}

fn progress(kernel: &Kernel, ended: &Ended, what: &str) {
    let (boot, whole) = (ended.boot.as_secs_f64(), ended.whole.as_secs_f64());
    println!("Linux {kernel}: {what}; booted in {boot:.1} s, ended after {whole:.1} s");
}
