//! How long clients wait when workers share the work in one way or another; see README.md.

// Counts and nanoseconds are far below what an f64 holds exactly; quantiles round down.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

// Of these, `bench` uses more.
#[allow(dead_code)]
#[path = "../arena.rs"]
mod arena;
#[allow(dead_code)]
#[path = "../client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../contestant.rs"]
mod contestant;
mod crowd;
mod entrant;
mod idle;
#[allow(dead_code)]
#[path = "../ink.rs"]
mod ink;
#[path = "../machine.rs"]
mod machine;
mod measure;
mod picture;
mod proxy;
mod published;
mod report;
#[allow(dead_code)]
#[path = "../sample.rs"]
mod sample;
#[path = "../statistics.rs"]
mod statistics;
mod sys;
mod traffic;
mod watched;
mod worker;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use machine::Machine;
use measure::Plan;
use sample::Samples;
use traffic::Traffic;

/// Measure how long clients wait, above all the unlucky ones
#[derive(Debug, Parser)]
#[command(name = "tail")]
struct Args {
    /// Which traffic (default: all)
    traffic: Vec<Traffic>,
    /// How often each contestant meets each traffic
    #[arg(long, default_value_t = 6)]
    rounds: u32,
    /// For how long clients are measured each time
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Only see that all runs, in half a minute: figures not to be believed
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

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.rounds > 0, "--rounds 0 measures nothing");
    ensure!(args.seconds > 0.0 && args.seconds <= 600.0, "--seconds must be between 0 and 600");
    let machine = Machine::now()?;
    let whole = !args.quick && args.traffic.is_empty();
    let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
    let usual = if whole {
        benches.join("runs").join(&machine.date).join("tail")
    } else {
        benches.join("../target/bench/tail")
    };
    let out = args.out.unwrap_or(usual);
    let asked = |traffic: &Traffic| args.traffic.is_empty() || args.traffic.contains(traffic);
    let traffics = Traffic::ALL.into_iter().filter(asked).collect();
    let plan = if args.quick {
        Plan::quick(traffics)
    } else {
        Plan::full(traffics, args.rounds, Duration::from_secs_f64(args.seconds))
    };
    if let Some(run) = args.redraw {
        let samples = Samples::read(&run.join("samples.csv"))?;
        let plan = plan.of(&samples);
        return picture::draw(&plan, &samples, &run.join("picture.svg"));
    }
    arena::raise_descriptor_limit()?;
    let mut samples = Samples::default();
    let capacities = plan.measure(&mut samples)?;
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    samples.write(&out.join("samples.csv"))?;
    picture::draw(&plan, &samples, &out.join("picture.svg"))?;
    let page = report::page(&plan, &machine, &capacities, &samples);
    fs::write(out.join("README.md"), &page)?;
    print!("{page}");
    eprintln!("{}", out.display());
    Ok(())
}
