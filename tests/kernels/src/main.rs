//! Boots the kernels of distributions in QEMU, loads every program there, and runs tests.

mod choice;
mod image;
mod initramfs;
mod machine;
mod packages;
mod run;
mod tree;

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use choice::Kernel;
use machine::{Guest, Kind};
use packages::Packages;
use tree::Tree;

/// Boot distribution kernels in QEMU, load the programs and run tests
#[derive(Debug, Parser)]
struct Args {
    /// Take only kernels whose version begins so [default: all]
    kernels: Vec<String>,

    /// List the kernels chosen from the mirror
    #[arg(long)]
    list: bool,

    /// Run a command in each kernel instead
    #[arg(last = true)]
    command: Vec<String>,
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
    let folder = env::current_dir()?.join("target/kernels");
    let packages = Packages::open(&folder.join("apt"))?;
    let kernels = choice::choose(&packages.list(choice::PREFIX, choice::is_kernel)?, "amd64");
    let kernels: Vec<_> =
        kernels.into_iter().filter(|kernel| wanted(kernel, &args.kernels)).collect();
    ensure!(
        !kernels.is_empty(),
        "no kernel's version begins with {}; --list lists them",
        args.kernels.join(" or ")
    );
    if args.list {
        for kernel in &kernels {
            println!("{:<14}{:<12}{}", kernel.label, kernel.version.to_string(), kernel.release);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut code = 0;
    for kernel in &kernels {
        let tree = Tree::of(kernel, &packages, &folder.join("trees"))?;
        let kind = Kind::Native(machine::accelerator(&tree));
        let command = script(&args.command)?;
        let deadline = Duration::from_hours(3);
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

fn wanted(kernel: &Kernel, filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| kernel.matches(filter))
}

/// A script that runs the command here, with the programs that are found here.
fn script(command: &[String]) -> Result<String> {
    let here = env::current_dir()?;
    let path = env::var("PATH").unwrap_or_default();
    let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
    Ok(format!(
        "cd {}\nexport PATH={} HOME=/root TERM=dumb\n{}\n",
        quoted(&here.display().to_string()),
        quoted(&path),
        words.join(" ")
    ))
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
