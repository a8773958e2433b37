//! Measures overspill beside what else there is; see README.md.

// Counts and nanoseconds are far below what an f64 holds exactly; quantiles round down.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod arena;
mod capacity;
mod client;
mod contestant;
mod decision;
mod hang;
mod ink;
mod machine;
mod peer;
mod picture;
mod plan;
mod rate;
mod ready;
mod sample;
mod statistics;
mod summary;
mod sys;
mod workers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use machine::Machine;
use plan::Plan;
use sample::Samples;

/// Measure overspill beside what else there is
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// What to measure (default: all)
    subjects: Vec<Subject>,
    /// Only see that all runs, in less than a minute: figures not to be believed
    #[arg(long)]
    quick: bool,
    /// Where the figures go (default: a folder of the date in benches/runs; of a quick or
    /// partial run target/bench)
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Draw the picture of the run in this folder anew, and measure nothing
    #[arg(long, value_name = "FOLDER")]
    redraw: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Capacity used when the first request is dropped
    Capacity,
    /// New clients while a worker hangs
    Hang,
    /// Nanoseconds a decision
    Decision,
    /// Connections a second
    Rate,
}

impl Subject {
    fn measure(self, plan: &Plan, samples: &mut Samples) -> Result<()> {
        match self {
            Self::Capacity => capacity::measure(plan, samples),
            Self::Hang => hang::measure(plan, samples),
            Self::Decision => decision::measure(plan, samples),
            Self::Rate => rate::measure(plan, samples),
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let plan = if args.quick { Plan::quick() } else { Plan::full() };
    if let Some(run) = args.redraw {
        let samples = Samples::read(&run.join("samples.csv"))?;
        return picture::draw(&plan, &samples, &run.join("picture.svg"));
    }
    let machine = Machine::now()?;
    // Only a whole run is worth a place among the others.
    let whole = !args.quick && args.subjects.is_empty();
    let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
    let usual = if whole {
        benches.join("runs").join(&machine.date)
    } else {
        benches.join("../target/bench")
    };
    let out = args.out.unwrap_or(usual);
    arena::raise_descriptor_limit()?;
    let mut samples = Samples::default();
    for &subject in Subject::value_variants() {
        if args.subjects.is_empty() || args.subjects.contains(&subject) {
            let start = Instant::now();
            subject.measure(&plan, &mut samples).with_context(|| format!("{subject:?}"))?;
            eprintln!("{subject:?}: {:.0} s", start.elapsed().as_secs_f64());
        }
    }
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    samples.write(&out.join("samples.csv"))?;
    picture::draw(&plan, &samples, &out.join("picture.svg"))?;
    let summary = summary::write(&plan, &machine, &samples);
    fs::write(out.join("README.md"), &summary)?;
    print!("{summary}");
    eprintln!("{}", out.display());
    Ok(())
}
