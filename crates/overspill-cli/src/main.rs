//! The command line. One file a command; no BPF and no `unsafe`: all that it does, it
//! does through the library that server authors get.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod complete;
mod config;
mod failure;
mod help;
mod identified;
mod nearest;
mod output;
mod usage;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{FromArgMatches as _, Parser, Subcommand};

use commands::{
    allow, check, demo, drain, generate, hand_over, ls, metrics, restart, resume, rm, run, set,
    share, show, top, trace, upgrade,
};
use overspill_supervisor::{handover, relay, worker};

/// The version, with what tells whether it works with services that another build has made.
fn build() -> &'static str {
    static BUILD: LazyLock<String> = LazyLock::new(|| {
        let overspill::Build { version, digest, layout } = overspill::Build::current();
        format!("{version} (build {digest}, layout {layout})")
    });
    &BUILD
}

/// Let the sockets of one service share their queues inside the kernel
///
/// When a client's connection request reaches a listening socket whose queue is full,
/// the kernel silently drops it, even though the socket beside it has room. overspill
/// makes the kernel put it there.
#[derive(Debug, Parser)]
#[command(name = "overspill", version, long_version = build())]
#[command(subcommand_required = true, arg_required_else_help = true)]
// Without the two options, which would push it off the screen.
#[command(
    help_template = "{about-with-newline}\n{usage-heading} {usage}\nCommands:\n{subcommands}{after-help}"
)]
#[command(subcommand_value_name = "COMMAND", add = help::Manual::text(include_str!("main.manual")))]
#[command(
    after_help = "What a command takes: overspill COMMAND -h, --help, or man overspill-COMMAND"
)]
#[command(after_long_help = "\
EXAMPLES
  Four workers of a server that knows nothing of this:
    overspill run --name web -n 4 -- python3 -m http.server 8080

  Servers that are running:
    overspill share web --pid 1201,1202 --port 80

  What is going on:
    overspill ls
    overspill show web")]
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
    Upgrade(upgrade::Args),
    Demo(demo::Args),
    #[command(hide = true)]
    Generate(generate::Args),
    #[command(hide = true)]
    Worker(worker::Args),
    #[command(hide = true)]
    Relay(relay::Args),
    #[command(hide = true, name = handover::COMMAND)]
    HandOver(hand_over::Args),
}

fn main() -> ExitCode {
    complete::answer();
    let done = match parse(std::env::args_os().skip(1).collect()).command {
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
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Generate(args) => generate::run(&args),
        Command::Worker(args) => worker::run(&args).map_err(failure::Failure::from),
        Command::Relay(args) => relay::run(&args).map_err(failure::Failure::from),
        Command::HandOver(args) => hand_over(args),
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

/// Says whether a supervisor with these arguments could be handed over to this build.
fn hand_over(hand_over::Args { arguments }: hand_over::Args) -> failure::Outcome {
    match parse(arguments).command {
        Command::Run(args) => run::check(args)?,
        _ => return Err(failure::Failure::new("hand-over takes the arguments of overspill run")),
    }
    output::print(handover::CONTRACT)
}

fn parse(mut arguments: Vec<OsString>) -> Cli {
    if arguments.first().is_some_and(|it| it == "help") {
        // It takes no options, and help of help is help.
        arguments.retain(|it| !it.to_string_lossy().starts_with('-'));
    }
    let mut definition = help::definition_for(&arguments);
    let line = std::iter::once("overspill".into()).chain(arguments.iter().cloned());
    let matches = definition.try_get_matches_from_mut(line.collect::<Vec<OsString>>());
    matches
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .unwrap_or_else(|error| usage::end(&error, &definition, &arguments))
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
        let cli = Cli::command();
        for command in cli.get_subcommands().chain([&cli]) {
            let (short, long) = (command.get_after_help(), command.get_after_long_help());
            let help = short.into_iter().chain(long).map(ToString::to_string);
            let help = help.collect::<Vec<_>>().join("\n");
            let wide = help.lines().find(|line| line.chars().count() > 80);
            assert_eq!(wide, None, "it would be broken where it can't be");
            let help = help.replace("\\\n", " ");
            let lines = help.lines().map(str::trim).filter(|line| line.starts_with("overspill "));
            for line in lines {
                let end =
                    [" | ", " >", " && ", "   #"].iter().filter_map(|stop| line.find(stop)).min();
                let words = line[..end.unwrap_or(line.len())].split_whitespace();
                Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}\n{error}"));
            }
        }
    }
}
