//! The report as text of at most 80 columns.

use std::fmt::Write as _;
use std::io::IsTerminal;

use super::report::{Line, Measure, Part, Scene};
use crate::output;

/// What the terminal can show.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    unicode: bool,
    colour: bool,
}

const LABEL: usize = 15;
const BAR: usize = 14;
const NUMBER: usize = 6;
/// A label, or nothing, and what is measured in one act.
const ACT: usize = BAR + NUMBER;

impl Look {
    /// That of standard output.
    pub(super) fn of_stdout() -> Self {
        Self {
            unicode: output::speaks_utf8(),
            colour: std::io::stdout().is_terminal() && output::allows_colour(),
        }
    }

    fn block(self, part: Part) -> char {
        match (part, self.unicode) {
            (Part::Called, true) => '█',
            (Part::Redirected, true) => '▓',
            (Part::Failed, true) => '░',
            (Part::Called, false) => '#',
            (Part::Redirected, false) => '>',
            (Part::Failed, false) => 'x',
        }
    }

    fn paint(self, part: Part, text: &str) -> String {
        let code = match part {
            Part::Called => 32,
            Part::Redirected => 36,
            Part::Failed => 31,
        };
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn bold(self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A scene: its title, the picture, and the table.
pub(super) fn draw(scene: &Scene, look: Look) -> String {
    let mut text = format!("{}\n\n", look.bold(&scene.title));
    let with = format!("with overspill, {}", scene.policy.name());
    writeln!(text, "  {:LABEL$} {:ACT$}  {with}", "", "without overspill").expect(TEXT);
    let headings = ["answered", "answered", "placed", "redirected"];
    let [first, second, placed, redirected] = headings;
    writeln!(text, "  {:LABEL$} {first:>ACT$}  {second:>ACT$} {placed:>7} {redirected:>10}", "")
        .expect(TEXT);
    let scale = scene.scale();
    for line in scene.lines() {
        text.push_str(&draw_line(&line, scale, look));
    }
    text.push('\n');
    for measure in scene.measures() {
        text.push_str(&draw_measure(&measure));
    }
    text.truncate(text.trim_end().len());
    text
}

const TEXT: &str = "a String takes everything";

fn draw_line(line: &Line, scale: usize, look: Look) -> String {
    let [without, with] = line.bars.map(|(part, value)| {
        let length = cells(value, scale, BAR);
        let blocks: String = std::iter::repeat_n(look.block(part), length).collect();
        format!("{}{:2$}{value:>NUMBER$}", look.paint(part, &blocks), "", BAR - length)
    });
    let counters = match line.counters {
        Some([placed, redirected]) => format!(" {placed:>7} {redirected:>10}"),
        None => String::new(),
    };
    format!("  {:LABEL$} {without}  {with}{counters}\n", line.label)
}

fn draw_measure(measure: &Measure) -> String {
    let [without, with] = &measure.values;
    let space = LABEL + 1 + ACT - measure.label.len();
    format!("  {}{without:>space$}  {with:>ACT$}\n", measure.label)
}

/// What the pieces of the bars mean.
pub(super) fn legend(look: Look) -> String {
    let parts = Part::ALL.map(|part| {
        format!("{} {}", look.paint(part, &look.block(part).to_string()), part.meaning())
    });
    format!("  {}", parts.join("   "))
}

/// How long a bar is: something, however short, for all that is not nothing.
fn cells(value: usize, scale: usize, width: usize) -> usize {
    if value == 0 { 0 } else { ((value * width + scale / 2) / scale).clamp(1, width) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::demo::report::tests::scene;

    #[test]
    fn the_picture_fits_in_80_columns() {
        for unicode in [true, false] {
            let text = draw(&scene(), Look { unicode, colour: false });
            assert_eq!(text.is_ascii(), !unicode);
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }

    #[test]
    fn colour_changes_nothing_but_colour() {
        let coloured = draw(&scene(), Look { unicode: true, colour: true });
        let mut stripped = coloured.replace("\x1b[0m", "");
        for code in [1, 31, 32, 36] {
            stripped = stripped.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(stripped, draw(&scene(), Look { unicode: true, colour: false }));
        assert_ne!(stripped, coloured);
    }

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let lengths = [0, 1, 250, 500, 1000].map(|value| cells(value, 1000, 14));
        assert_eq!(lengths, [0, 1, 4, 7, 14]);
    }
}
