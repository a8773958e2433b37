//! Measures what services cost to change, to read and to keep, from 1 of 4 members to 1,000
//! of 10 and 1 of 10,000; see README.md.

// Counts and nanoseconds are far below what an f64 holds exactly; quantiles round down.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod field;
#[path = "../ink.rs"]
mod ink;
#[path = "../machine.rs"]
mod machine;
mod memory;
mod operation;
mod picture;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use field::{Field, Shape};
use machine::Machine;
use memory::Charge;
use operation::{Clock, Sample};

/// Measure what services cost to change, to read and to keep
#[derive(Debug, Parser)]
#[command(name = "scale")]
struct Args {
    /// How often each operation is done
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Only see that all runs: smaller shapes, three rounds
    #[arg(long)]
    quick: bool,
    /// Where the figures go (default: a folder of the date in benches/runs; of a quick run
    /// target/bench)
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Draw the picture of the run in this folder anew, and measure nothing
    #[arg(long, value_name = "FOLDER")]
    redraw: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    shapes: Vec<Shape>,
    samples: Vec<Sample>,
    charges: Vec<Charge>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(run) = args.redraw {
        let path = run.join("samples.csv");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let findings = report::read(&text).with_context(|| path.display().to_string())?;
        return picture::draw(&findings, &run.join("picture.svg"));
    }
    let machine = Machine::now()?;
    let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
    let usual = if args.quick {
        benches.join("../target/bench/scale")
    } else {
        benches.join("runs").join(&machine.date).join("scale")
    };
    let out = args.out.unwrap_or(usual);
    let (shapes, rounds) = if args.quick { (Shape::QUICK, 3) } else { (Shape::FULL, args.rounds) };
    raise_descriptor_limit()?;
    let mut findings = Findings { shapes: shapes.to_vec(), ..Findings::default() };
    for &shape in shapes {
        eprintln!("{shape}");
        apart(|| measure(shape, rounds, &mut findings)).with_context(|| shape.to_string())?;
    }
    for capacity in memory::CAPACITIES {
        findings.charges.extend(apart(|| memory::of_empty_state(capacity))?);
    }
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    fs::write(out.join("samples.csv"), report::samples(&findings))?;
    fs::write(out.join("memory.csv"), report::memory(&findings))?;
    picture::draw(&findings, &out.join("picture.svg"))?;
    let page = report::page(&machine, args.quick, &findings);
    fs::write(out.join("README.md"), &page)?;
    print!("{page}");
    eprintln!("{}", out.display());
    Ok(())
}

fn measure(shape: Shape, rounds: u32, findings: &mut Findings) -> Result<()> {
    let mut clock = Clock { shape, samples: &mut findings.samples };
    let mut field = Field::new(shape, &mut clock)?;
    for _ in 0..rounds {
        operation::round(&mut field, &mut clock)?;
    }
    // They have been members, and hold what these hold.
    field.guests.clear();
    findings.charges.extend(memory::of_services(shape)?);
    field.remove()
}

/// Runs it in namespaces of its own.
fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            world::enter_namespaces();
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Lets this process have as many sockets as the largest shape takes.
fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let enough = hard.max(16_384);
    Ok(setrlimit(Resource::RLIMIT_NOFILE, enough, enough)?)
}
