//! What is wrong with a command line, said in the voice of every other failure: one line with
//! what failed, why, and what to do. Ends with status 2.

use std::error::Error as _;
use std::ffi::OsString;
use std::io::{self, Write as _};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

use crate::help;
use crate::nearest;

/// Ends the process: prints the help or the version that was asked for, or says what is wrong
/// with the arguments.
pub(crate) fn end(error: &clap::Error, definition: &Command, arguments: &[OsString]) -> ! {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        _ => refuse(&line(error, definition, arguments)),
    }
}

/// Ends the process with what is wrong with its arguments.
pub(crate) fn refuse(why: &str) -> ! {
    // Where it can't be said, the status still says it.
    let _ = writeln!(io::stderr(), "overspill: {why}");
    std::process::exit(2)
}

fn line(error: &clap::Error, definition: &Command, arguments: &[OsString]) -> String {
    let argument = text(error, ContextKind::InvalidArg);
    let option = option(&argument);
    let asked = help::asked(definition, arguments);
    let command = asked.as_ref().and_then(|name| definition.find_subcommand(name));
    let command = command.unwrap_or(definition);
    let who = asked.as_deref().unwrap_or("the command line");
    let name = asked.as_ref().map_or("overspill".to_owned(), |name| format!("overspill {name}"));
    let tells = format!("{name} --help tells what it takes");
    let (told, remedy) = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let wanted = text(error, ContextKind::InvalidSubcommand);
            let known = definition.get_subcommands().filter(|it| !it.is_hide_set());
            let near = nearest::hint(&wanted, known.map(|it| it.get_name().to_owned()));
            let lists = "overspill --help lists them".to_owned();
            (format!("there is no command {wanted}{near}"), lists)
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let known = command.get_arguments().filter(|it| !it.is_hide_set());
            let known = known.filter_map(|it| Some(format!("--{}", it.get_long()?)));
            let near = nearest::hint(&argument, known);
            (format!("{who} has no option {argument}{near}"), tells)
        }
        ErrorKind::UnknownArgument => {
            let remedy = if command.get_positionals().any(Arg::is_last_set) {
                let example = with_dashes(definition, arguments, &argument);
                format!("put -- before the command{example}")
            } else {
                tells
            };
            (format!("{who} has no use for {argument:?}"), remedy)
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let told = refused(error, option);
            // Most say by themselves what would do.
            if error.source().is_some_and(|why| why.to_string().contains("; ")) {
                return told;
            }
            (told, tells)
        }
        ErrorKind::MissingRequiredArgument => (format!("{who} lacks {argument}"), tells),
        ErrorKind::ArgumentConflict => match text(error, ContextKind::PriorArg) {
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
        _ => (first_paragraph(error), tells),
    };
    format!("{told}; {remedy}")
}

/// What is wrong with a value of this option, or of this key of a file.
pub(crate) fn refused(error: &clap::Error, option: &str) -> String {
    let value = text(error, ContextKind::InvalidValue);
    if let Some(why) = error.source() {
        return format!("cannot take {value:?} as {option}: {why}");
    }
    let known = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(known)) => known.as_slice(),
        _ => &[],
    };
    let list = match known {
        [] => String::new(),
        known => format!(" (known: {})", known.join(", ")),
    };
    if value.is_empty() {
        return format!("{option} lacks its value{list}");
    }
    let near = nearest::hint(&value, known.iter().cloned());
    format!("cannot take {value:?} as {option}{near}{list}")
}

/// The line as it should have been, ": overspill run -- COMMAND", with the dashes before this
/// argument; nothing where that would not do either.
fn with_dashes(definition: &Command, arguments: &[OsString], argument: &str) -> String {
    let parted = |at: usize| {
        let (own, command) = arguments.split_at(at);
        let parts = [&["overspill".into()], own, &["--".into()], command];
        parts.into_iter().flatten().cloned().collect::<Vec<OsString>>()
    };
    // The same word may be an option's value.
    let places = (0..arguments.len()).filter(|&at| arguments[at] == *argument);
    let mut lines = places.map(parted);
    let line = lines.find(|line| definition.clone().try_get_matches_from(line).is_ok());
    let words = line.into_iter().flatten().map(|word| quoted(&word.to_string_lossy()));
    match words.collect::<Vec<_>>().join(" ") {
        line if line.is_empty() => line,
        line => format!(": {line}"),
    }
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `--policy` of `--policy <POLICY>`.
fn option(argument: &str) -> &str {
    match argument.split_once(' ') {
        Some((option, _)) if option.starts_with('-') => option,
        _ => argument,
    }
}

fn text(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::Strings(all)) => all.join(", "),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// What clap says of what is rare, without its heading and what follows.
pub(crate) fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    let text = text.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>();
    text.join(" ")
}
