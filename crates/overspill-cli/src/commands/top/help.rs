//! The page behind `?`: every key and every column.

use overspill::{Figure, MemberStatus, Requests};

use crate::output::wrap;

const KEYS: [(&str, &str); 8] = [
    ("arrows, j k", "choose a row; PgUp PgDn Home End too"),
    ("Tab", "to the members, to the services; left and right too"),
    ("s, S", "sort by the next column, by the one before"),
    ("o", "turn the order"),
    ("d, r", "drain, resume the chosen member, after a question"),
    ("p", "change the policy of the chosen service, after a question"),
    ("q, Esc, Ctrl-C", "quit; Ctrl-Z stops, fg goes on; Ctrl-L draws all of it again"),
    ("?", "this page"),
];

/// What keys do and columns say: of a figure, the text with which the library describes it. A
/// heading is a term that needs no words.
fn entries() -> Vec<(&'static str, &'static str)> {
    let request = |name| about(Requests::FIGURES, name);
    let member = |name| about(MemberStatus::FIGURES, name);
    let mut entries = vec![("KEYS", "")];
    entries.extend(KEYS);
    entries.extend([
        ("SERVICES (requests a second)", ""),
        ("MEMBERS", "The active of all members."),
        ("QUEUED", "What the queues hold of what they can, half-open requests included."),
        ("ESTAB", "The members' connections."),
        ("PLACED/s", request("placed")),
        ("REDIR/s", request("redirected")),
        ("DROP/s", request("dropped")),
        ("RESET/s", request("reset")),
        ("SUPERVISOR", "The command that supervises the service, and its process."),
        ("BESIDE THE RULES, if any", ""),
        ("fallback/s", request("fallback")),
        ("left/s", request("left")),
        ("MEMBERS (requests a second)", ""),
        ("MEMBER", "Its number. Sorted by it, members stand in the order of the list."),
        ("WORKER", "The number of its worker, under run."),
        ("PID", "The process that accepts there."),
        (
            "STATE",
            "active; draining: no new requests, as you wish or as run pauses before it starts the \
             worker again; hung: accepts nothing; gone: closed.",
        ),
        ("QUEUE", "What waits, what is half open, what is free."),
        ("HELD", "The same in figures: waiting + half open / what fits."),
        ("LATELY", "How full its queue was at the last readings, the newest at the right."),
        ("ESTAB", member("established")),
        ("PLACED/s", member("placed")),
        ("IN/s", member("redirected_in")),
        ("OUT/s", member("redirected_out")),
        ("-", "Not known: no reading to compare with, or not counted."),
    ]);
    entries
}

fn about<T>(figures: &[Figure<T>], name: &str) -> &'static str {
    figures.iter().find(|figure| figure.name == name).map_or("", |figure| figure.about)
}

const INDENT: usize = 16;

/// The page at that width; headings begin at the left. Where it is narrow, what a term means
/// stands below it.
pub(super) fn lines(width: u16) -> Vec<String> {
    let width = usize::from(width);
    let beside = width >= 60;
    let indent = if beside { INDENT + 2 } else { 4 };
    let mut lines = Vec::new();
    for (term, meaning) in entries() {
        if meaning.is_empty() {
            lines.push(term.to_owned());
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
        let entries = entries();
        for heading in services.chain(MemberColumn::ALL.iter().map(|column| column.heading())) {
            let explained =
                entries.iter().any(|(term, meaning)| *term == heading && !meaning.is_empty());
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
