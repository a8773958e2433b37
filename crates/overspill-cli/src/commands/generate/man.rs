//! The man pages: what `--help` says, with what the command's manual says beyond it.

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::manual::{self, Block, Section};
use crate::help::{self, Manual};

const EXIT_STATUS: &str = "\
EXIT STATUS
0 when it is done, 1 when it failed, with one line on standard error that says what failed, why,
and what to do about it, and 2 when the arguments were wrong.
";

/// Each page, with its file's name.
pub(super) fn pages(date: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    let mut root = help::definition().disable_help_subcommand(true);
    root = root.subcommand_help_heading("COMMANDS");
    root.build();
    let shown = |command: &&Command| !command.is_hide_set();
    let commands: Vec<Command> = root.get_subcommands().filter(shown).cloned().collect();
    let others: Vec<String> = commands.iter().map(reference).collect();
    let others = format!("SEE ALSO\n{}\n", others.join(", "));
    let date = date.to_owned();
    let all = std::iter::once((root, others))
        .chain(commands.into_iter().map(|it| (it, "SEE ALSO\noverspill(1)\n".to_owned())));
    all.map(move |(command, see_also)| {
        (format!("{}.1", name(&command)), page(&command, &see_also, &date))
    })
}

/// `overspill-run`
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn reference(command: &Command) -> String {
    format!("{}(1)", name(command))
}

fn page(command: &Command, see_also: &str, date: &str) -> Vec<u8> {
    let mut page = Vec::new();
    write_definition(command, date, &mut page).expect("memory takes what is written");
    let manual = command.get::<Manual>().map_or("", |it| &it.0);
    let mut own = manual::sections(manual);
    let examples = command.get_after_long_help().or(command.get_after_help());
    let examples = examples.map(ToString::to_string).unwrap_or_default();
    own.extend(manual::sections(&examples).into_iter().filter(|it| it.heading == "EXAMPLES"));
    for usual in [EXIT_STATUS, see_also] {
        let usual = manual::sections(usual).into_iter().filter(|it| !has(&own, it.heading));
        let usual: Vec<_> = usual.collect();
        own.extend(usual);
    }
    let rank = |heading: &str| match heading {
        "DESCRIPTION" => 0,
        "EXAMPLES" => 2,
        "EXIT STATUS" => 3,
        "SEE ALSO" => 4,
        _ => 1,
    };
    own.sort_by_key(|section| rank(section.heading));
    let mut roff = Roff::default();
    for section in own.iter().filter(|it| it.heading != "DESCRIPTION") {
        roff.control("SH", [section.heading]);
        write_blocks(&section.blocks, &mut roff);
    }
    roff.to_writer(&mut page).expect("memory takes what is written");
    page
}

fn has(sections: &[Section<'_>], heading: &str) -> bool {
    sections.iter().any(|it| it.heading == heading)
}

/// What clap knows, and the description.
fn write_definition(command: &Command, date: &str, page: &mut Vec<u8>) -> std::io::Result<()> {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().to_owned();
    let shown = command.clone().override_usage(usage).mut_args(told_whole);
    let man = Man::new(shown)
        .title(name(command).to_uppercase())
        .date(date)
        .source(concat!("overspill ", env!("CARGO_PKG_VERSION")))
        .manual("overspill");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    write_description(command).to_writer(page)?;
    man.render_options_section(page)?;
    if command.get_subcommands().any(|it| !it.is_hide_set()) {
        man.render_subcommands_section(page)?;
    }
    Ok(())
}

/// An option with what a short help leaves out, and with its values on the line that tells what
/// it does: so `--help` has them.
fn told_whole(option: Arg) -> Arg {
    let help = option.get_long_help().or(option.get_help()).map(ToString::to_string);
    let values = option.get_possible_values();
    let values: Vec<_> = values.iter().map(clap::builder::PossibleValue::get_name).collect();
    let values = match values.as_slice() {
        [] => String::new(),
        _ if option.is_hide_possible_values_set() => String::new(),
        values => format!(" [possible values: {}]", values.join(", ")),
    };
    let help = format!("{}{values}", help.unwrap_or_default());
    option.hide_short_help(false).hide_possible_values(true).long_help(help)
}

/// The manual's, or else what `--help` begins with, below its first line.
fn write_description(command: &Command) -> Roff {
    let manual = command.get::<Manual>().map_or("", |it| &it.0);
    let own = manual::sections(manual).into_iter().find(|it| it.heading == "DESCRIPTION");
    let blocks = own.map_or_else(|| in_short(command), |it| it.blocks);
    let mut roff = Roff::default();
    roff.control("SH", ["DESCRIPTION"]);
    write_blocks(&blocks, &mut roff);
    roff
}

fn in_short(command: &Command) -> Vec<Block> {
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let lines: Vec<&str> = about.lines().collect();
    // The first is in NAME.
    let below = if lines.len() > 1 { &lines[1..] } else { &lines };
    manual::blocks(below)
}

fn write_blocks(blocks: &[Block], roff: &mut Roff) {
    for (number, block) in blocks.iter().enumerate() {
        match block {
            Block::Paragraph(text) => {
                // A heading begins a paragraph by itself.
                if number > 0 {
                    roff.control("PP", []);
                }
                roff.text(with_references(text));
            }
            Block::Literal(lines) => {
                roff.control("RS", ["4"]).control("EX", []);
                let indent = lines.iter().map(|it| it.len() - it.trim_start().len()).min();
                for line in lines {
                    roff.text([roman(&line[indent.unwrap_or(0)..])]);
                }
                roff.control("EE", []).control("RE", []);
            }
        }
    }
}

/// With the names of other pages, such as ss(8), in bold.
fn with_references(text: &str) -> Vec<Inline> {
    let words = text.split_inclusive(' ');
    let inlines = words.flat_map(|word| match word.split_once('(') {
        Some((name, rest)) if is_reference(name, rest) => {
            vec![bold(name), roman(format!("({rest}"))]
        }
        _ => vec![roman(word)],
    });
    inlines.collect()
}

fn is_reference(name: &str, rest: &str) -> bool {
    let mut rest = rest.chars();
    !name.is_empty()
        && rest.next().is_some_and(|it| it.is_ascii_digit())
        && rest.next().is_some_and(|it| it == ')')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_pages_are_bold() {
        let expected = vec![roman("see "), bold("ss"), roman("(8), "), roman("f(x)")];
        assert_eq!(with_references("see ss(8), f(x)"), expected);
    }

    /// What is said of other pages is right: each that is ours exists.
    #[test]
    fn what_is_referred_to_exists() {
        let pages: Vec<(String, Vec<u8>)> = pages("2026-01-02").collect();
        for (name, page) in &pages {
            let text = String::from_utf8_lossy(page).replace("\\-", "-").replace("\\fR", "");
            let own = text.split(|c: char| c.is_whitespace() || c == 'B');
            for word in own.filter(|word| word.starts_with("overspill")) {
                let Some((referred, _)) = word.split_once("(1)") else { continue };
                let file = format!("{referred}.1");
                assert!(pages.iter().any(|(it, _)| *it == file), "{name} refers to {referred}(1)");
            }
        }
    }

    /// Who looks for what a command costs finds it in one place.
    #[test]
    fn what_costs_something_while_it_runs_says_so() {
        let costly = ["run", "allow", "share", "top", "trace", "metrics"];
        for (name, page) in pages("2026-01-02") {
            let command = name.trim_start_matches("overspill-").trim_end_matches(".1");
            let says = String::from_utf8_lossy(&page).contains("\n.SH OVERHEAD\n");
            assert!(says || !costly.contains(&command), "{name} has no OVERHEAD");
        }
    }
}
