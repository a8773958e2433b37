//! The page behind `?`: every key and every column.

use crate::output::wrap;

/// What a key does or a column says. A part begins where the second is empty.
const LINES: &[(&str, &str)] = &[
    ("KEYS", ""),
    ("arrows, j k", "choose a row; PgUp PgDn Home End too"),
    ("Tab", "to the members, to the services; left and right too"),
    ("s, S", "sort by the next column, by the one before"),
    ("o", "turn the order"),
    ("d, r", "drain, resume the chosen member, after a question"),
    ("p", "change the policy of the chosen service, after a question"),
    ("q, Esc, Ctrl-C", "quit; Ctrl-Z stops, fg goes on; Ctrl-L draws all of it again"),
    ("SERVICES", ""),
    ("MEMBERS", "the active of all members"),
    ("QUEUED", "what the queues hold of what they can, half-open requests included"),
    ("ESTAB", "complete connections that the servers have not closed"),
    ("PLACED/s", "requests a second put on a member that they called"),
    ("REDIR/s", "put on a sibling, because the called members had no room"),
    ("DROP/s", "dropped by the kernel, because every queue was full"),
    ("RESET/s", "refused at once, by on-full reset or while all drain"),
    ("MEMBERS", ""),
    ("MEMBER", "its number; sorted by it, members stand in the order of the list"),
    (
        "STATE",
        "active; draining: no new requests, by your wish; hung: accepts nothing; gone: closed",
    ),
    ("QUEUE", "what its queue holds: what waits, then what is half open, then what is free"),
    ("HELD", "the same in figures: waiting + half open / what fits"),
    ("LATELY", "how full its queue was at the last readings, the newest at the right"),
    ("PLACED/s", "requests a second that called it and were put on it"),
    ("IN/s", "that called siblings and were put on it"),
    ("OUT/s", "that called it and were put on siblings"),
    ("-", "not known: no reading to compare with, or not counted"),
];

const INDENT: usize = 16;

/// The page at that width; headings begin at the left. Where it is narrow, what a term means
/// stands below it.
pub(super) fn lines(width: u16) -> Vec<String> {
    let width = usize::from(width);
    let beside = width >= 60;
    let indent = if beside { INDENT + 2 } else { 4 };
    let mut lines = Vec::new();
    for (term, meaning) in LINES {
        if meaning.is_empty() {
            lines.push((*term).to_owned());
            continue;
        }
        let mut term = format!("  {term}");
        if !beside {
            lines.push(std::mem::take(&mut term));
        }
        for line in wrap(meaning, width.saturating_sub(indent)) {
            lines.push(format!("{:indent$}{line}", std::mem::take(&mut term)));
        }
    }
    lines
}

/// The last line from which on it can be shown, and how many lines are shown at once: all
/// but the one that says how to go on.
pub(super) fn scroll((width, height): (u16, u16)) -> (usize, usize) {
    let page = usize::from(height).saturating_sub(1).max(1);
    (lines(width).len().saturating_sub(page), page)
}

#[cfg(test)]
mod tests {
    use super::super::columns::{Column, MemberColumn, ServiceColumn};
    use super::*;

    #[test]
    fn every_column_is_explained() {
        let known = ["SERVICE", "POLICY", "ADDRESS"];
        let services = ServiceColumn::ALL.iter().map(|column| column.heading());
        for heading in services.chain(MemberColumn::ALL.iter().map(|column| column.heading())) {
            let explained =
                LINES.iter().any(|(term, meaning)| *term == heading && !meaning.is_empty());
            assert!(explained || known.contains(&heading), "{heading}");
        }
    }

    #[test]
    fn the_page_fits_its_width() {
        for width in [32, 40, 80, 120] {
            for line in lines(width) {
                assert!(line.chars().count() <= usize::from(width), "{width}: {line}");
            }
        }
        assert!(lines(80).len() <= 2 * scroll((80, 24)).1, "two looks");
    }
}
