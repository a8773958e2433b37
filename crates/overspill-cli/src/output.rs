//! How a command says what it has found: a table for people, JSON for programs.

use std::env;
use std::io::{self, Write as _};

use comfy_table::{CellAlignment, Table, presets};
use overspill::Status;
use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// A table's column: its heading and which way its cells lean.
pub(crate) type Column<'a> = (&'a str, CellAlignment);

/// A column of words.
pub(crate) const fn words(heading: &str) -> Column<'_> {
    (heading, CellAlignment::Left)
}

/// A column of numbers.
pub(crate) const fn numbers(heading: &str) -> Column<'_> {
    (heading, CellAlignment::Right)
}

/// Rows below their headings, lined up, two spaces apart; a line is never broken.
pub(crate) fn table(
    columns: &[Column<'_>],
    rows: impl IntoIterator<Item = impl IntoIterator<Item = String>>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|(heading, _)| *heading));
    for row in rows {
        table.add_row(row);
    }
    for ((_, alignment), column) in columns.iter().zip(table.column_iter_mut()) {
        column.set_padding((0, 2)).set_cell_alignment(*alignment);
    }
    table.trim_fmt()
}

/// Prints lines. A reader that has seen enough (`| head -1`) is no failure.
pub(crate) fn print(text: &str) -> Outcome {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write the output: {error}; look where it goes")))
        }
        _ => Ok(()),
    }
}

/// Says something beside the output. That nobody reads it is no reason to end.
pub(crate) fn remark(line: &str) {
    let _ = writeln!(io::stderr(), "overspill: {line}");
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Outcome {
    print(&serde_json::to_string_pretty(value).expect("no map with keys that are not text"))
}

/// "1 member", "2 members".
pub(crate) fn count(number: usize, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

/// A number, or '-' for one that is not known.
pub(crate) fn known(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// A service's rules, the policy first, in the words with which `overspill set` changes them.
pub(crate) fn rules(status: &Status) -> String {
    format!(
        "{}{}, on-full {}, redirect {}, spread {}",
        status.policy,
        status.dispatcher.as_ref().map_or_else(String::new, |name| format!(" {name}")),
        status.on_full,
        on_off(status.redirect),
        on_off(status.spread),
    )
}

/// "on" or "off".
pub(crate) fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Whether the locale says that text is in UTF-8.
pub(crate) fn speaks_utf8() -> bool {
    is_utf8(|name| env::var(name).ok())
}

/// Whether colour is welcome, as far as `NO_COLOR` tells (no-color.org).
pub(crate) fn allows_colour() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether text is in UTF-8: the first of these variables that is set says it (locale(7)).
fn is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(variable)
        .find(|value| !value.is_empty())
        .is_some_and(|value| {
            let value = value.to_ascii_lowercase();
            value.contains("utf-8") || value.contains("utf8")
        })
}

/// Breaks a text into lines of at most `width` columns.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_lined_up_and_lines_do_not_end_in_spaces() {
        let rows =
            [["web".to_owned(), "8080".to_owned()], ["frontend".to_owned(), "80".to_owned()]];
        let text = table(&[words("NAME"), numbers("PORT")], rows);
        assert_eq!(text, "NAME      PORT\nweb       8080\nfrontend    80");
    }

    #[test]
    fn a_table_without_rows_is_its_headings() {
        let none: [[String; 2]; 0] = [];
        assert_eq!(table(&[words("NAME"), numbers("PORT")], none), "NAME  PORT");
    }

    #[test]
    fn the_locale_says_whether_it_is_utf8() {
        let with = |pairs: &'static [(&str, &str)]| {
            is_utf8(|name| {
                let pair = pairs.iter().find(|(key, _)| *key == name);
                pair.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(with(&[("LANG", "de_DE.UTF-8")]));
        assert!(with(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]));
        assert!(!with(&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]));
        assert!(!with(&[]));
    }

    #[test]
    fn a_text_is_broken_between_words() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
    }
}
