//! Counts, client by client, who is lost before a worker has accepted it, while workers are
//! killed, stopped, replaced: with overspill, and without; see README.md.

// Counts and nanoseconds are far below what an f64 holds exactly; quantiles round down.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

#[path = "../ink.rs"]
mod ink;
#[path = "../machine.rs"]
mod machine;
mod picture;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use trial::{Outcome, Trial, Trouble};

use machine::Machine;
use report::Row;

/// Count who is lost while workers are killed, stopped and replaced
#[derive(Debug, Parser)]
#[command(name = "survive")]
struct Args {
    /// Only these cases, by the first column of the table [default: all]
    cases: Vec<String>,
    /// How long clients come in each case
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only see that all runs: three seconds for each case
    #[arg(long)]
    quick: bool,
    /// Show what the supervisors said where clients were lost
    #[arg(long)]
    logs: bool,
    /// Where the figures go (default: a folder of the date in benches/runs; of a quick run
    /// target/bench)
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Draw the picture of the run in this folder anew, and try nothing
    #[arg(long, value_name = "FOLDER")]
    redraw: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(run) = args.redraw {
        let path = run.join("clients.csv");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        return picture::draw(&report::read_losses(&text), &run.join("picture.svg"));
    }
    let machine = Machine::now()?;
    let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
    let usual = if args.quick {
        benches.join("../target/bench/survive")
    } else {
        benches.join("runs").join(&machine.date).join("survive")
    };
    let out = args.out.unwrap_or(usual);
    let seconds = if args.quick { 3 } else { args.seconds };
    let program = std::env::current_exe()?.with_file_name("overspill");
    ensure!(
        program.exists(),
        "{} is missing; build it: cargo build --release --package overspill-cli",
        program.display()
    );
    let is_asked_for =
        |it: &Trouble| args.cases.is_empty() || args.cases.iter().any(|own| own == it.name());
    let troubles: Vec<_> = Trouble::ALL.into_iter().filter(is_asked_for).collect();
    ensure!(!troubles.is_empty(), "there is no such case: {}", args.cases.join(", "));
    let mut rows = Vec::new();
    for trouble in troubles {
        for redirect in [true, false] {
            let trial = Trial {
                program: program.clone(),
                redirect,
                trouble,
                workers: 4,
                work: Duration::from_millis(4),
                interval: Duration::from_millis(10),
                time: Duration::from_secs(seconds),
            };
            let outcome = run_apart(&trial).with_context(|| format!("{trouble:?}, {redirect}"))?;
            if redirect && outcome.lost() > 0 && args.logs {
                eprintln!("{}", outcome.log);
            }
            let row = Row::new(trouble, redirect, outcome);
            eprintln!("{row}");
            rows.push(row);
        }
    }
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    fs::write(out.join("clients.csv"), report::clients(&rows))?;
    fs::write(out.join("counts.csv"), report::counts(&rows))?;
    let losses: Vec<_> = rows.iter().map(Row::losses).collect();
    picture::draw(&losses, &out.join("picture.svg"))?;
    let page = report::page(&machine, seconds, &rows);
    fs::write(out.join("README.md"), &page)?;
    print!("{page}");
    eprintln!("{}", out.display());
    Ok(())
}

/// Runs it in namespaces of its own.
fn run_apart(trial: &Trial) -> Result<Outcome> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            world::enter_namespaces();
            trial.run()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
