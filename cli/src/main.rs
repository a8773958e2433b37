//! The command line. One file a command; no BPF and no `unsafe`: all that it does, it
//! does through the library that server authors get.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod config;
mod failure;
mod output;
mod supervisor;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{
    allow, check, demo, drain, ls, metrics, restart, resume, rm, run, set, share, show, top, trace,
};
use supervisor::{relay, worker};

/// Let the sockets of one service share their queues inside the kernel
///
/// When a client's connection request reaches a listening socket whose queue is full,
/// the kernel silently drops it, even though the socket beside it has room. overspill
/// makes the kernel put it there.
#[derive(Debug, Parser)]
#[command(name = "overspill", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Restart(restart::Args),
    Allow(allow::Args),
    Share(share::Args),
    Ls(ls::Args),
    Show(show::Args),
    Top(top::Args),
    Trace(trace::Args),
    Set(set::Args),
    Drain(drain::Args),
    Resume(resume::Args),
    Rm(rm::Args),
    Metrics(metrics::Args),
    Check(check::Args),
    Demo(demo::Args),
    #[command(hide = true)]
    Worker(worker::Args),
    #[command(hide = true)]
    Relay(relay::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Restart(args) => restart::run(&args),
        Command::Allow(args) => allow::run(args),
        Command::Share(args) => share::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Set(args) => set::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Resume(args) => resume::run(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Metrics(args) => metrics::run(args),
        Command::Check(args) => check::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Worker(args) => worker::run(&args),
        Command::Relay(args) => relay::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.lines() {
                // Where it can't be said, the status still says it.
                let _ = writeln!(io::stderr(), "overspill: {line}");
            }
            ExitCode::from(failure.status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_examples_can_be_typed_as_they_stand() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let help = help.replace("\\\n", " ");
            let lines = help.lines().map(str::trim).filter(|line| line.starts_with("overspill "));
            for line in lines {
                let end = [" | ", " && ", "   #"].iter().filter_map(|stop| line.find(stop)).min();
                let words = line[..end.unwrap_or(line.len())].split_whitespace();
                Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}\n{error}"));
            }
        }
    }
}
