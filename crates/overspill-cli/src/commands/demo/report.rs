//! What the demo has to say, before it is drawn: the same for the terminal and for SVG.

use std::time::Duration;

use overspill::{Policy, Status};

use super::load::{self, Visit};
use super::statistics::{self, Summary};

/// One scene, played twice.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) title: String,
    pub(super) policy: Policy,
    pub(super) without: Act,
    pub(super) with: Act,
    pub(super) members: Vec<MemberRow>,
}

/// What one load came to.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) summary: Summary,
    /// Of the answers that say which address the server's socket has: those where it is
    /// the one that the client called, and all.
    pub(super) saw_called: [usize; 2],
    /// Requests that the kernel dropped at full queues.
    pub(super) dropped: u64,
}

/// A member in both acts.
#[derive(Debug)]
pub(super) struct MemberRow {
    pub(super) name: String,
    pub(super) hung: bool,
    /// Whether clients call its address.
    pub(super) called: bool,
    /// Clients that it answered without overspill, and with it.
    pub(super) answered: [usize; 2],
    /// As overspill counts: requests put on it that called it, and that called others.
    pub(super) placed: u64,
    pub(super) redirected_in: u64,
}

impl Act {
    pub(super) fn new(visits: &[Visit], called: &str, dropped: u64) -> Self {
        let answers = visits.iter().filter_map(|visit| visit.answer.as_ref());
        let seen: Vec<&str> = answers.filter_map(|answer| answer.address.as_deref()).collect();
        let right = seen.iter().filter(|&&address| address == called).count();
        Self { summary: statistics::summarise(visits), saw_called: [right, seen.len()], dropped }
    }

    /// What it came to, in a line.
    pub(super) fn outcome(&self) -> (Part, String) {
        let Summary { clients, failed, p99, .. } = self.summary;
        match failed {
            0 => (Part::Called, format!("all are answered, 99 % within {}", time(p99))),
            _ => (Part::Failed, format!("{failed} of {clients} get no answer")),
        }
    }
}

impl MemberRow {
    /// The row of the member at `position` of the service.
    pub(super) fn new(
        name: &str,
        [hung, called]: [bool; 2],
        visits: [&[Visit]; 2],
        status: &Status,
        position: usize,
    ) -> Self {
        let by = |visit: &&Visit| visit.answer.as_ref().is_some_and(|answer| answer.server == name);
        let member = &status.members[position];
        Self {
            name: name.to_owned(),
            hung,
            called,
            answered: visits.map(|visits| visits.iter().filter(by).count()),
            placed: member.placed,
            redirected_in: member.redirected_in,
        }
    }
}

/// What a piece of a bar stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Answered by the server that they called.
    Called,
    /// Answered by a sibling, where overspill put them.
    Redirected,
    /// Not answered.
    Failed,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Called, Self::Redirected, Self::Failed];

    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Called => "answered",
            Self::Redirected => "answered after redirection",
            Self::Failed => "no answer",
        }
    }
}

/// A line of the picture: a label, a bar for each act, and overspill's own counters.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) label: String,
    pub(super) bars: [(Part, usize); 2],
    /// Placed, redirected in.
    pub(super) counters: Option<[u64; 2]>,
}

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Measure {
    pub(super) label: String,
    pub(super) values: [String; 2],
}

impl Scene {
    pub(super) fn acts(&self) -> [&Act; 2] {
        [&self.without, &self.with]
    }

    /// The picture: a line for each member, and one for the clients that nobody answered.
    pub(super) fn lines(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = self.members.iter().map(MemberRow::line).collect();
        lines.push(Line {
            label: Part::Failed.meaning().to_owned(),
            bars: self.acts().map(|act| (Part::Failed, act.summary.failed)),
            counters: None,
        });
        lines
    }

    /// The longest bar.
    pub(super) fn scale(&self) -> usize {
        let bars = self.lines().into_iter().flat_map(|line| line.bars);
        bars.map(|(_, value)| value).max().unwrap_or_default().max(1)
    }

    /// The table.
    pub(super) fn measures(&self) -> Vec<Measure> {
        let row = |label: &str, value: fn(&Act) -> String| Measure {
            label: label.to_owned(),
            values: self.acts().map(value),
        };
        let mut rows = vec![
            row("clients", |act| act.summary.clients.to_string()),
            row(&format!("no answer in {} s", load::PATIENCE.as_secs()), |act| {
                let Summary { failed, clients, .. } = act.summary;
                format!("{failed} ({})", share(failed, clients))
            }),
            row(&format!("answer after {} s", statistics::LONG.as_secs()), |act| {
                act.summary.late.to_string()
            }),
            row("median wait", |act| time(act.summary.median)),
            row("99 % waited up to", |act| time(act.summary.p99)),
            row("longest wait", |act| time(act.summary.longest)),
            row("dropped by kernel", |act| act.dropped.to_string()),
        ];
        if self.acts().iter().any(|act| act.saw_called[1] > 0) {
            rows.push(row("saw called address", |act| match act.saw_called {
                [_, 0] => "-".to_owned(),
                [right, all] => format!("{right} of {all}"),
            }));
        }
        rows
    }
}

impl MemberRow {
    fn line(&self) -> Line {
        // A member's counter of requests for siblings says which of its answers those are:
        // in a scene a member is either called by all clients or by none.
        let with = if self.redirected_in > self.placed { Part::Redirected } else { Part::Called };
        Line {
            label: if self.hung { format!("{} (hung)", self.name) } else { self.name.clone() },
            bars: [(Part::Called, self.answered[0]), (with, self.answered[1])],
            counters: Some([self.placed, self.redirected_in]),
        }
    }
}

/// The difference, in the numbers measured.
pub(super) fn conclusion(scenes: &[Scene]) -> String {
    let list = |value: &dyn Fn(&Scene) -> String| {
        scenes.iter().map(value).collect::<Vec<_>>().join(" and ")
    };
    let failed = |act: &Act| format!("{} of {}", act.summary.failed, act.summary.clients);
    format!(
        "Without overspill {} clients got no answer; with it {}, and 99 % of them waited \
         {} at most.",
        list(&|scene| failed(&scene.without)),
        list(&|scene| failed(&scene.with)),
        list(&|scene| time(scene.with.summary.p99)),
    )
}

/// A part of a whole in per cent, to one place after the point.
fn share(part: usize, whole: usize) -> String {
    let tenths = (part * 1000 + whole / 2).checked_div(whole).unwrap_or_default();
    format!("{}.{} %", tenths / 10, tenths % 10)
}

/// A time as people read it.
fn time(time: Duration) -> String {
    if time >= Duration::from_secs(1) {
        format!("{:.2} s", time.as_secs_f64())
    } else {
        format!("{:.1} ms", time.as_secs_f64() * 1000.0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn act(failed: usize, p99: u64) -> Act {
        let summary = Summary {
            clients: 1000,
            failed,
            late: 0,
            median: Duration::from_micros(400),
            p99: Duration::from_millis(p99),
            longest: Duration::from_millis(p99),
        };
        Act { summary, saw_called: [1000 - failed; 2], dropped: 3 * failed as u64 }
    }

    /// A scene as it may be measured.
    pub(in crate::commands::demo) fn scene() -> Scene {
        let member = |name: &str, hung, answered, redirected_in| MemberRow {
            name: name.to_owned(),
            hung,
            called: hung,
            answered,
            placed: 0,
            redirected_in,
        };
        Scene {
            title: "Two servers on two addresses".to_owned(),
            policy: Policy::NextAvailable,
            without: act(1000, 2000),
            with: act(0, 7),
            members: vec![
                member("nginx", true, [0, 0], 0),
                member("haproxy", false, [0, 1000], 1000),
            ],
        }
    }

    #[test]
    fn the_picture_has_a_line_for_each_member_and_one_for_the_unanswered() {
        let lines = scene().lines();
        let labels: Vec<&str> = lines.iter().map(|line| line.label.as_str()).collect();
        assert_eq!(labels, ["nginx (hung)", "haproxy", "no answer"]);
        assert_eq!(lines[1].bars, [(Part::Called, 0), (Part::Redirected, 1000)]);
        assert_eq!(lines[2].bars, [(Part::Failed, 1000), (Part::Failed, 0)]);
        assert_eq!(scene().scale(), 1000);
    }

    #[test]
    fn the_table_says_what_was_measured() {
        let measures = scene().measures();
        let find = |label: &str| {
            let measure = measures.iter().find(|measure| measure.label == label);
            measure.unwrap().values.each_ref().map(String::as_str)
        };
        assert_eq!(find("no answer in 2 s"), ["1000 (100.0 %)", "0 (0.0 %)"]);
        assert_eq!(find("99 % waited up to"), ["2.00 s", "7.0 ms"]);
        assert_eq!(find("saw called address"), ["-", "1000 of 1000"]);
    }

    #[test]
    fn the_conclusion_is_made_of_the_measured_numbers() {
        assert_eq!(
            conclusion(&[scene()]),
            "Without overspill 1000 of 1000 clients got no answer; with it 0 of 1000, and 99 % of \
             them waited 7.0 ms at most."
        );
    }

    #[test]
    fn a_share_is_rounded() {
        assert_eq!(share(1, 3), "33.3 %");
        assert_eq!(share(2, 3), "66.7 %");
        assert_eq!(share(0, 0), "0.0 %");
    }
}
