//! What the terminal can show. What is said by a colour is said by a word or a sign as well;
//! the colours are those of the terminal's own palette, on its own background.

use std::env;

use overspill::MemberState;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::border;

use crate::output;

#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) colour: bool,
    pub(super) unicode: bool,
}

/// What a piece of text stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    /// It is as somebody wishes, but not as ever.
    Set,
    Bad,
}

impl Look {
    pub(super) fn of_terminal(no_color: bool) -> Self {
        let terminal = env::var("TERM").unwrap_or_default();
        Self {
            colour: !no_color && output::allows_colour() && has_colour(&terminal),
            unicode: output::speaks_utf8(),
        }
    }

    pub(super) fn style(self, tone: Tone) -> Style {
        let (colour, modifier) = match tone {
            Tone::Good => (Color::Green, Modifier::empty()),
            Tone::Set => (Color::Magenta, Modifier::empty()),
            Tone::Bad => (Color::Red, Modifier::BOLD),
        };
        let style = Style::new().add_modifier(modifier);
        if self.colour { style.fg(colour) } else { style }
    }

    pub(super) fn state(self, state: MemberState) -> Style {
        self.style(match state {
            MemberState::Active => Tone::Good,
            MemberState::Draining => Tone::Set,
            _ => Tone::Bad,
        })
    }

    /// What waits, what is half open, and what is free.
    pub(super) fn bar(self) -> [&'static str; 3] {
        if self.unicode { ["█", "▒", "·"] } else { ["#", "+", "."] }
    }

    /// From nothing to full, in eighths.
    pub(super) fn eighth(self, eighths: u8) -> char {
        let signs = if self.unicode { " ▁▂▃▄▅▆▇█" } else { " .,:;=+*#" };
        signs.chars().nth(eighths.into()).expect("there are nine")
    }

    /// Before the heading of the column that the rows are sorted by.
    pub(super) fn sorted(self, turned: bool) -> &'static str {
        match (self.unicode, turned) {
            (true, false) => "▾",
            (true, true) => "▴",
            (false, false) => "v",
            (false, true) => "^",
        }
    }

    /// Where a text is cut off.
    pub(super) fn cut(self) -> char {
        if self.unicode { '…' } else { '~' }
    }

    pub(super) fn border(self) -> border::Set<'static> {
        if self.unicode {
            return border::PLAIN;
        }
        border::Set {
            top_left: "+",
            top_right: "+",
            bottom_left: "+",
            bottom_right: "+",
            vertical_left: "|",
            vertical_right: "|",
            horizontal_top: "-",
            horizontal_bottom: "-",
        }
    }
}

/// Whether a terminal of that name has colours: all have that are in use, but for those that
/// say otherwise.
fn has_colour(terminal: &str) -> bool {
    let none = ["", "dumb", "unknown"].contains(&terminal);
    let old = ["vt52", "vt100", "vt102", "vt220", "vt320", "vt420"];
    let family = terminal.split('-').next().unwrap_or_default();
    !none && !old.contains(&family) && !terminal.ends_with("-m") && !terminal.ends_with("-mono")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_without_colours_says_so_by_its_name() {
        for name in ["", "dumb", "vt100", "vt220-w", "xterm-mono", "linux-m"] {
            assert!(!has_colour(name), "{name}");
        }
        for name in ["xterm", "xterm-256color", "screen", "tmux-256color", "linux", "foot"] {
            assert!(has_colour(name), "{name}");
        }
    }

    #[test]
    fn every_eighth_has_a_sign() {
        for unicode in [true, false] {
            let look = Look { colour: false, unicode };
            let signs: String = (0..=8).map(|eighths| look.eighth(eighths)).collect();
            assert_eq!(signs.chars().count(), 9);
            assert_eq!(signs.is_ascii(), !unicode);
        }
    }
}
