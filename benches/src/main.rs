//! Measures overspill beside what else there is; see README.md.

// Counts and nanoseconds are far below what an f64 holds exactly; quantiles round down.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod arena;
mod capacity;
mod client;
mod contestant;
mod decision;
mod hang;
mod peer;
mod plan;
mod rate;
mod ready;
mod sample;
mod statistics;
mod sys;
mod workers;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use plan::Plan;
use sample::Samples;

#[derive(Debug, Parser)]
struct Args {
    /// Only see that all runs: well under a minute
    #[arg(long)]
    quick: bool,
    /// Where the figures go (default: benches/runs/ and today's date)
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let plan = if args.quick { Plan::quick() } else { Plan::full() };
    arena::raise_descriptor_limit()?;
    let mut samples = Samples::default();
    hang::measure(&plan, &mut samples)?;
    rate::measure(&plan, &mut samples)?;
    samples.write(std::path::Path::new("/tmp/bench.csv"))?;
    for case in samples.cases("rate") {
        println!(
            "{} {:.3}",
            case.contestant,
            statistics::Spread::of(&samples.ratios(
                case,
                rate::case(contestant::Contestant::ReusePort),
                rate::RATE
            ))
            .unwrap()
        );
    }
    Ok(())
}
