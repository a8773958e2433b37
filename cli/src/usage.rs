//! What is wrong with a command line, said in the voice of every other failure: one line with
//! what failed, why, and what to do. Ends with status 2.

use std::error::Error as _;
use std::io::{self, Write as _};

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Ends the process: prints the help or the version that was asked for, or says what is wrong
/// with what `command` (`overspill set`) was given.
pub(crate) fn end(error: &clap::Error, command: &str) -> ! {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        _ => refuse(&line(error, command)),
    }
}

/// Ends the process with what is wrong with its arguments.
pub(crate) fn refuse(why: &str) -> ! {
    // Where it can't be said, the status still says it.
    let _ = writeln!(io::stderr(), "overspill: {why}");
    std::process::exit(2)
}

fn line(error: &clap::Error, command: &str) -> String {
    let text = |kind| error.get(kind).map(words).unwrap_or_default();
    let (argument, value) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
    let option = option(&argument);
    let hint = |kind| match text(kind) {
        near if near.is_empty() => near,
        near => format!("; there is {near}"),
    };
    let who = format!("{} has", short(command));
    let tells = format!("{command} --help tells what it takes");
    let (told, remedy) = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let near = hint(ContextKind::SuggestedSubcommand);
            let name = text(ContextKind::InvalidSubcommand);
            (format!("there is no command {name}{near}"), format!("{command} --help lists them"))
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let near = hint(ContextKind::SuggestedArg);
            (format!("{who} no option {argument}{near}"), tells)
        }
        ErrorKind::UnknownArgument => (format!("{who} no use for {argument:?}"), tells),
        ErrorKind::InvalidValue if value.is_empty() => {
            (format!("{argument} lacks its value"), tells)
        }
        ErrorKind::InvalidValue => {
            let near = hint(ContextKind::SuggestedValue);
            let known = text(ContextKind::ValidValue);
            (format!("cannot take {value:?} as {option}{near} (known: {known})"), tells)
        }
        ErrorKind::ValueValidation => {
            let why = error.source().map(ToString::to_string).unwrap_or_default();
            let told = format!("cannot take {value:?} as {option}: {why}");
            // Most say by themselves what would do.
            return if why.contains("; ") { told } else { format!("{told}; {tells}") };
        }
        ErrorKind::MissingRequiredArgument => {
            (format!("{} lacks {argument}", short(command)), tells)
        }
        ErrorKind::ArgumentConflict => match text(ContextKind::PriorArg) {
            prior if prior == argument => {
                (format!("{option} is given twice"), "give it once".to_owned())
            }
            prior if prior.is_empty() => (
                format!("{option} cannot be used with anything else"),
                "leave the rest out".to_owned(),
            ),
            prior => (
                format!("{option} cannot be used with {prior}"),
                "leave out one of them".to_owned(),
            ),
        },
        _ => (first_paragraph(&error.to_string()), tells),
    };
    format!("{told}; {remedy}")
}

/// `set` of `overspill set`: before it stands who speaks.
fn short(command: &str) -> &str {
    command.split_once(' ').map_or("the command line", |(_, name)| name)
}

/// `--policy` of `--policy <POLICY>`.
fn option(argument: &str) -> &str {
    match argument.split_once(' ') {
        Some((option, _)) if option.starts_with('-') => option,
        _ => argument,
    }
}

fn words(value: &ContextValue) -> String {
    match value {
        ContextValue::Strings(all) => all.join(", "),
        other => other.to_string(),
    }
}

/// What clap says of what is rare, without its heading and what follows.
fn first_paragraph(text: &str) -> String {
    let text = text.split("\n\n").next().unwrap_or_default();
    let text = text.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>();
    text.join(" ")
}
