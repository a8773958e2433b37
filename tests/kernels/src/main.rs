//! Boots the kernels of distributions in QEMU, loads every program there, and runs tests.

mod arm64;
mod built;
mod choice;
mod image;
mod initramfs;
mod machine;
mod matrix;
mod measurements;
mod packages;
mod plan;
mod programs;
mod report;
mod run;
mod series;
mod signals;
mod tree;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;

use choice::Kernel;
use machine::{Guest, Kind};
use matrix::Matrix;
use measurements::Measurements;
use packages::Packages;
use report::Row;
use tree::Tree;

/// Boot distribution kernels in QEMU, load every program and run tests
///
/// The kernels are those of Debian's mirror: the newest of each series. On each, every program
/// is loaded, and the verifier's steps are compared with tests/kernels/programs.csv. On 6.1,
/// 6.12, the newest long-term kernel and the newest kernel, tests of every feature run. The
/// table is written to target/kernels/report.md.
#[derive(Debug, Parser)]
struct Args {
    /// Only kernels whose version starts with this [default: all]
    kernels: Vec<String>,

    #[command(flatten)]
    extent: Extent,

    /// Write the measurements to tests/kernels/programs.csv
    #[arg(long)]
    update: bool,

    /// List the kernels chosen from the mirror
    #[arg(long)]
    list: bool,

    /// Run a command in each kernel instead of the tests
    #[arg(last = true)]
    command: Vec<String>,
}

/// How much is tested.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Extent {
    /// Load programs only
    #[arg(long)]
    programs: bool,

    /// Run one test of every feature, on the oldest and newest kernel
    #[arg(long)]
    short: bool,

    /// Run all tests in crates/*/tests/kernel (takes hours)
    #[arg(long)]
    whole: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kernels: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    signals::catch()?;
    let root = env::current_dir()?;
    let folder = root.join("target/kernels");
    let packages = Packages::open(&folder.join("apt"))?;
    let offered = packages.list(choice::PREFIX, choice::is_kernel)?;
    let kernels = plan::kernels(&offered, &args.kernels);
    ensure!(
        !kernels.is_empty(),
        "no kernel's version begins with {}; --list lists them",
        args.kernels.join(" or ")
    );
    if args.list {
        list(&kernels);
        return Ok(ExitCode::SUCCESS);
    }
    if !args.command.is_empty() {
        return run_command(&args.command, &kernels, &packages, &folder);
    }
    let form = match &args.extent {
        Extent { programs: true, .. } => plan::Form::Programs,
        Extent { short: true, .. } => plan::Form::Short,
        Extent { whole: true, .. } => plan::Form::Whole,
        _ => plan::Form::Full,
    };
    let jobs = plan::jobs(&kernels, form, !args.kernels.is_empty());
    let matrix = Matrix::new(&root, &folder, packages, !args.update)?;
    let rows = matrix.run(&kernels, jobs);
    conclude(&rows, args.update, &root, &folder)
}

fn list(kernels: &[Kernel]) {
    for Kernel { label, version, architecture, release, .. } in kernels {
        println!("{label:<14}{:<12}{architecture:<8}{release}", version.to_string());
    }
}

/// Prints the table and what has failed.
fn conclude(rows: &[Row], update: bool, root: &Path, folder: &Path) -> Result<ExitCode> {
    let file = root.join(measurements::FILE);
    if update {
        let mut measurements = Measurements::read(&file)?;
        for row in rows {
            if let Some((loading, _)) = &row.loading {
                measurements.set(&row.kernel, &loading.programs);
            }
        }
        measurements.write(&file)?;
    }
    let report = folder.join("report.md");
    report::write(rows, &report)?;
    println!("\n{}", report::table(rows));
    for row in rows.iter().filter(|_| !update) {
        let unknown = row.loading.iter().flat_map(|(_, compared)| &compared.unknown);
        for program in unknown {
            println!("Linux {}: not in {}: {program}", row.kernel, measurements::FILE);
        }
    }
    let failures: Vec<_> = rows.iter().flat_map(|row| &row.failures).collect();
    for failure in &failures {
        println!("{failure}");
    }
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let count = failures.len();
    bail!("failures on {} of {} kernels: {count} lines above", failing(rows), rows.len());
}

fn failing(rows: &[Row]) -> usize {
    rows.iter().filter(|row| !row.failures.is_empty()).count()
}

/// Runs a command in each kernel, and passes its output on. Ends with the highest exit status.
fn run_command(
    command: &[String],
    kernels: &[Kernel],
    packages: &Packages,
    folder: &Path,
) -> Result<ExitCode> {
    let command = script(command)?;
    let mut code = 0;
    for kernel in kernels.iter().filter(|kernel| kernel.architecture == "amd64") {
        let tree = Tree::of(kernel, packages, &folder.join("trees"))?;
        let kind = Kind::Native(machine::accelerator(&tree));
        let deadline = Duration::from_secs(4 * 3600);
        let guest = Guest { tree: &tree, command: &command, deadline, kind, pass_on: true };
        let ended = guest.run().with_context(|| format!("Linux {kernel}"))?;
        eprintln!(
            "kernels: Linux {kernel}: exit status {}; booted in {:.1} s, ended after {:.1} s",
            ended.code,
            ended.boot.as_secs_f64(),
            ended.whole.as_secs_f64()
        );
        code = code.max(ended.code);
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// A script that runs the command here, with the programs that are found here.
fn script(command: &[String]) -> Result<String> {
    let here: PathBuf = env::current_dir()?;
    let path = env::var("PATH").unwrap_or_default();
    let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
    Ok(format!(
        "cd {}\nexport PATH={}\n{}\n",
        quoted(&here.display().to_string()),
        quoted(&path),
        words.join(" ")
    ))
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
