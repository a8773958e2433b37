//! How the commands' help is laid out: `-h` on a screen, `--help` with all options, each on as
//! few lines; and what a command has to say that only its man page says.

use std::borrow::Cow;
use std::ffi::OsString;

use clap::builder::{CommandExt, Resettable};
use clap::{Command, CommandFactory as _};
use overspill::Figure;

/// What a man page says beyond the help of its command, which is in the page anyway. Each
/// section begins with its heading, a line of capitals; text that is indented stays as it is
/// written.
#[derive(Debug, Clone)]
pub(crate) struct Manual(pub(crate) Cow<'static, str>);

impl CommandExt for Manual {}

impl Manual {
    pub(crate) fn text(text: &'static str) -> Self {
        Self(text.into())
    }

    /// With a section of its own for figures: their names, and what they say.
    pub(crate) fn with_figures<T>(mut self, heading: &str, figures: &[Figure<T>]) -> Self {
        let told = figures.iter().map(|it| format!("{}: {}\n", it.name, it.about.replace('`', "")));
        let told: Vec<String> = told.collect();
        self.0 = format!("{}\n{heading}\n{}", self.0, told.join("\n")).into();
        self
    }
}

/// The command line as it is defined, for 80 columns however wide the screen is: so help
/// looks the same wherever it is read.
pub(crate) fn definition() -> Command {
    crate::Cli::command().max_term_width(80)
}

/// The definition by which these arguments are read. clap gives each option of a `--help`
/// two lines and an empty one, which for `run` makes three screens; where that is asked for,
/// the definition is changed so that clap's short way of writing says all.
pub(crate) fn definition_for(arguments: &[OsString]) -> Command {
    let command = definition();
    let own = arguments.split(|it| it == "--").next().unwrap_or_default();
    if !own.iter().any(|it| it == "--help") && own.first().is_none_or(|it| it != "help") {
        return command;
    }
    match asked(&command, own) {
        Some(name) => command.mut_subcommand(name, at_length),
        None => at_length(command),
    }
}

/// Which command the arguments are for, or for whose help.
pub(crate) fn asked(command: &Command, arguments: &[OsString]) -> Option<String> {
    let mut named = arguments.iter().filter(|it| *it != "help");
    let asked = named.find_map(|it| command.find_subcommand(it))?;
    Some(asked.get_name().to_owned())
}

/// With all that it has to say in the places of what it says in short.
fn at_length(command: Command) -> Command {
    let about = command.get_long_about().or(command.get_about()).cloned();
    let after = command.get_after_long_help().or(command.get_after_help()).cloned();
    command
        .about(Resettable::from(about))
        .long_about(Resettable::Reset)
        .after_help(Resettable::from(after))
        .after_long_help(Resettable::Reset)
        .mut_args(|argument| {
            let help = argument.get_long_help().or(argument.get_help()).cloned();
            argument
                .help(Resettable::from(help))
                .long_help(Resettable::Reset)
                .hide_short_help(false)
        })
}
