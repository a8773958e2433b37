//! Configuration files: the options of a command, each a key.
//!
//! Nothing here knows an option. A key is looked for among them, its value becomes what
//! would stand on the command line, and the option's own parser judges it. So a file says
//! what the command line can, in the same words, and no option is left out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValue;
use clap::error::ErrorKind as Wrongness;
use clap::{Arg, ArgAction, Command};
use overspill::nearest;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use crate::failure::Failure;
use crate::usage;

/// What a file says.
#[derive(Debug)]
pub(crate) struct Config {
    file: PathBuf,
    text: String,
    /// As it would stand on the command line.
    pub(crate) arguments: Vec<OsString>,
    /// Where each key stands.
    keys: BTreeMap<String, Range<usize>>,
}

/// What is wrong, and where.
#[derive(Debug)]
struct Wrong {
    at: Range<usize>,
    what: String,
}

impl Wrong {
    fn new(at: Range<usize>, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }
}

/// The key of an option; nothing for one that has no place in a file.
pub(crate) fn key(option: &Arg) -> Option<&str> {
    match option.get_action() {
        // What stands by itself on the command line, as a file does.
        _ if option.is_exclusive_set() => None,
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version => None,
        _ => Some(option.get_long().unwrap_or(option.get_id().as_str())),
    }
}

impl Config {
    /// Reads a file whose keys are the options of this command.
    pub(crate) fn read(file: &Path, mut command: Command) -> Result<Self, Failure> {
        // Before that it can't be asked for everything.
        command.build();
        let mut config = Self {
            file: file.to_owned(),
            text: read_text(file)?,
            arguments: Vec::new(),
            keys: BTreeMap::new(),
        };
        let text = config.text.clone();
        let (table, mut wrong) = config.table(&text)?;
        let mut last = Vec::new();
        for (name, value) in &table {
            match words(&command, name, value) {
                Ok((true, words)) => last = words,
                Ok((false, words)) => config.arguments.extend(words),
                Err(more) => wrong.extend(more),
            }
            config.keys.insert(name.get_ref().to_string(), name.span());
        }
        if !wrong.is_empty() {
            return Err(config.wrong(wrong));
        }
        for option in command.get_arguments().filter(|option| option.is_required_set()) {
            let name = key(option).expect("what is required is a key");
            if !config.keys.contains_key(name) {
                return Err(config.refuses(&[], &format!("{name} is missing; {}", form(option))));
            }
        }
        config.arguments.push("--".into());
        config.arguments.extend(last);
        Ok(config)
    }

    /// The keys and their values, each once, and which were given twice.
    fn table<'a>(&self, text: &'a str) -> Result<(DeTable<'a>, Vec<Wrong>), Failure> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let table = table.into_inner();
        let (twice, mut broken): (Vec<_>, Vec<_>) =
            errors.into_iter().partition(|error| error.message() == "duplicate key");
        if broken.is_empty() {
            let twice = twice.iter().map(|error| self.given_twice(place(error), &table)).collect();
            return Ok((table, twice));
        }
        // The first on a line is the cause of the others there; and what is left of the rest
        // may not be what was meant.
        broken.sort_by_key(|error| place(error).start);
        broken.dedup_by_key(|error| line_and_column(text, place(error).start).0);
        let wrong = broken
            .iter()
            .map(|error| Wrong::new(place(error), format!("not TOML: {}", error.message())));
        Err(self.wrong(wrong.collect()))
    }

    /// What is wrong with these keys together, or with the file as a whole.
    pub(crate) fn refuses(&self, keys: &[&str], what: &str) -> Failure {
        // The same message names options on the command line.
        let what: Vec<&str> =
            what.split(' ').map(|word| word.strip_prefix("--").unwrap_or(word)).collect();
        let what = what.join(" ");
        let mut places: Vec<_> = keys.iter().filter_map(|key| self.keys.get(*key)).collect();
        places.sort_unstable_by_key(|place| place.start);
        let Some((first, others)) = places.split_first() else {
            return Failure::wrong(vec![format!("{}: {what}", self.file.display())]);
        };
        let others: Vec<String> = others
            .iter()
            .map(|place| format!("line {}", line_and_column(&self.text, place.start).0))
            .collect();
        let what = match &others[..] {
            [] => what,
            others => format!("{what} (this, and {})", others.join(", ")),
        };
        self.wrong(vec![Wrong::new((*first).clone(), what)])
    }

    fn given_twice(&self, at: Range<usize>, table: &DeTable<'_>) -> Wrong {
        let name = self.text[at.clone()].trim_matches(['"', '\'']);
        let first = table.keys().find(|key| key.get_ref() == name);
        let first = first.map(|key| line_and_column(&self.text, key.span().start).0);
        let first = first.map(|line| format!(" (first on line {line})")).unwrap_or_default();
        Wrong::new(at, format!("{name} is given twice{first}; leave one out"))
    }

    /// All that is wrong, a line each, in the order of the file.
    fn wrong(&self, mut wrong: Vec<Wrong>) -> Failure {
        wrong.sort_by_key(|wrong| wrong.at.start);
        let lines = wrong.iter().map(|Wrong { at, what }| {
            let (line, column) = line_and_column(&self.text, at.start);
            format!("{}:{line}:{column}: {what}", self.file.display())
        });
        Failure::wrong(lines.collect())
    }
}

fn place(error: &toml::de::Error) -> Range<usize> {
    error.span().unwrap_or_default()
}

fn read_text(file: &Path) -> Result<String, Failure> {
    let shown = file.display();
    let bytes = fs::read(file).map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => "give the path of a file",
            ErrorKind::IsADirectory => "give a file in it",
            ErrorKind::PermissionDenied => "be a user who may read it",
            _ => "look at it with cat",
        };
        Failure::wrong(vec![format!("cannot read {shown}: {error}; {remedy}")])
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let (line, column) = line_and_column(&valid, valid.len());
        Failure::wrong(vec![format!("{shown}:{line}:{column}: not UTF-8; save it as UTF-8")])
    })
}

/// Both from 1 on; a column is a character.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// What stands on the command line for a key, and whether that comes last.
fn words(
    command: &Command,
    name: &Spanned<Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<(bool, Vec<OsString>), Vec<Wrong>> {
    let known = |option: &&Arg| key(option) == Some(name.get_ref());
    let Some(option) = command.get_arguments().find(known) else {
        return Err(vec![unknown(command, name, value.get_ref())]);
    };
    let is_list = matches!(option.get_action(), ArgAction::Append);
    let values = match value.get_ref() {
        DeValue::Array(values) if is_list => values.iter().collect(),
        _ => vec![value],
    };
    if option.is_positional() {
        // A single text would leave open where its words end.
        let wrong_form = || vec![Wrong::new(value.span(), form(option))];
        if !value.get_ref().is_array() || values.is_empty() {
            return Err(wrong_form());
        }
        let words = values.into_iter().map(|value| text(option, value).map(OsString::from));
        return Ok((true, words.collect::<Result<_, _>>().map_err(|wrong| vec![wrong])?));
    }
    let (mut words, mut wrong) = (Vec::new(), Vec::new());
    for value in values {
        match word(command, option, value) {
            Ok(word) => words.extend(word.map(OsString::from)),
            Err(it) => wrong.push(it),
        }
    }
    if wrong.is_empty() { Ok((false, words)) } else { Err(wrong) }
}

/// An option with its value, which its parser takes; nothing for a flag that is not set.
fn word(
    command: &Command,
    option: &Arg,
    value: &Spanned<DeValue<'_>>,
) -> Result<Option<String>, Wrong> {
    let name = key(option).expect("it was found by it");
    if is_flag(option) {
        return match text(option, value)?.as_str() {
            "on" => Ok(Some(format!("--{name}"))),
            "off" => Ok(None),
            _ => Err(Wrong::new(value.span(), form(option))),
        };
    }
    let text = match value.get_ref() {
        DeValue::Array(values) if has_commas(option) => {
            let texts: Result<Vec<_>, _> = values.iter().map(|it| text(option, it)).collect();
            texts?.join(",")
        }
        _ if has_commas(option) => return Err(Wrong::new(value.span(), form(option))),
        _ => text(option, value)?,
    };
    let word = format!("--{name}={text}");
    // Whatever else is needed is looked at when all is there.
    match command.clone().no_binary_name(true).try_get_matches_from([&word, "--", "COMMAND"]) {
        Err(error)
            if matches!(error.kind(), Wrongness::InvalidValue | Wrongness::ValueValidation) =>
        {
            Err(Wrong::new(value.span(), usage::refused(&error, name)))
        }
        _ => Ok(Some(word)),
    }
}

/// A single value as it is written on the command line.
fn text(option: &Arg, value: &Spanned<DeValue<'_>>) -> Result<String, Wrong> {
    let wrong = |what: String| Wrong::new(value.span(), what);
    match value.get_ref() {
        DeValue::String(text) if text.contains('\0') => {
            Err(wrong("it has a NUL, which no argument can have; leave it out".to_owned()))
        }
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => decimal(number).ok_or_else(|| wrong(form(option))),
        DeValue::Boolean(on) if is_flag(option) || is_on_off(option) => {
            Ok(if *on { "on" } else { "off" }.to_owned())
        }
        _ => Err(wrong(form(option))),
    }
}

fn decimal(number: &DeInteger<'_>) -> Option<String> {
    match number.radix() {
        10 => Some(number.as_str().to_owned()),
        radix => Some(u64::from_str_radix(number.as_str(), radix).ok()?.to_string()),
    }
}

fn is_flag(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::SetTrue)
}

fn is_on_off(option: &Arg) -> bool {
    option.get_possible_values().iter().map(PossibleValue::get_name).eq(["on", "off"])
}

/// The parts of such a value are a list in a file.
fn has_commas(option: &Arg) -> bool {
    value_name(option).contains(',')
}

fn value_name(option: &Arg) -> &str {
    option.get_value_names().and_then(|names| names.first()).map_or("VALUE", |name| name.as_str())
}

/// How a key is written.
fn form(option: &Arg) -> String {
    let name = key(option).expect("it was found by it");
    let quoted = value_name(option).split(',').map(|part| match part {
        "..." => part.to_owned(),
        part => format!("\"{part}\""),
    });
    let one = quoted.collect::<Vec<_>>().join(", ");
    let one = if has_commas(option) { format!("[{one}]") } else { one };
    if option.is_positional() {
        return format!("write {name} = [\"PROGRAM\", \"ARGUMENT\", ...]");
    }
    match option.get_action() {
        _ if is_flag(option) || is_on_off(option) => {
            format!("write {name} = true or {name} = false")
        }
        ArgAction::Append => format!("write {name} = [{one}, ...]"),
        _ if has_commas(option) => format!("write {name} = {one}"),
        _ => format!("{name} takes one value, a text in quotes or a whole number"),
    }
}

fn unknown(command: &Command, name: &Spanned<Cow<'_, str>>, value: &DeValue<'_>) -> Wrong {
    let keys: Vec<&str> = command.get_arguments().filter_map(key).collect();
    let given = name.get_ref();
    let remedy = match nearest(given, keys.iter().copied()) {
        _ if value.is_table() => "keys stand by themselves, without sections".to_owned(),
        Some(known) => format!("there is {known}"),
        None => format!("the keys are {}", keys.join(", ")),
    };
    Wrong::new(name.span(), format!("there is no key {given:?}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command() -> Command {
        Command::new("x")
            .arg(Arg::new("one").long("one"))
            .arg(Arg::new("flag").long("flag").action(ArgAction::SetTrue))
            .arg(Arg::new("several").long("several").action(ArgAction::Append))
            .arg(Arg::new("pair").long("pair").value_name("A,B"))
            .arg(Arg::new("command").last(true).num_args(1..))
    }

    /// Pieces of TOML, put together well or badly.
    fn text() -> impl Strategy<Value = String> {
        const PIECES: [&str; 30] = [
            "one",
            "flag",
            "several",
            "pair",
            "command",
            "x",
            "=",
            " = ",
            "'ä'",
            "\"\\u0000\"",
            "'''",
            "[",
            "]",
            "{",
            "}",
            ",",
            ".",
            "\n",
            "\r\n",
            "# 😀",
            "true",
            "0x1f",
            "1e9",
            "-7",
            "\u{feff}",
            "2026-01-01",
            "\"",
            "'",
            "\\",
            "ä",
        ];
        let known = prop::sample::select(&PIECES).prop_map(str::to_owned);
        let piece = prop_oneof![9 => known, 1 => ".{0,4}"];
        prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_it_is_read_or_answered_with_places(text in text()) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("x.toml");
            fs::write(&file, &text).unwrap();
            let Err(failure) = Config::read(&file, command()) else { return Ok(()) };
            prop_assert!(!failure.lines().is_empty());
            let lines = text.matches('\n').count() + 1;
            for told in failure.lines() {
                let place = told.strip_prefix(&format!("{}:", file.display()));
                let line = place.and_then(|it| it.split(':').next()?.parse::<usize>().ok());
                prop_assert!(line.is_some_and(|it| (1..=lines).contains(&it)), "{}", told);
                prop_assert!(!told.contains(char::is_control), "{:?}", told);
            }
        }
    }
}
