//! Which lines of the screen are for what.

use super::state::{Focus, State};
use crate::output::wrap;

/// Fewer columns or lines than these are too few to show anything of use.
pub(super) const LEAST: (u16, u16) = (32, 8);

/// How many lines are given to each part, from the first to the last: the title, the services
/// below their headings, the chosen service's rules, its members below their headings, the
/// notes, and the keys. Where there is no place for both tables, the one that has the keys is
/// shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) size: (u16, u16),
    /// Rows of services; `None` where the table is not shown.
    pub(super) services: Option<usize>,
    pub(super) members: Option<usize>,
    /// An empty line between them.
    pub(super) gap: bool,
    pub(super) notes: Vec<Note>,
}

/// A line that says what went wrong, or what was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) text: String,
    pub(super) trouble: bool,
}

impl Plan {
    pub(super) fn new(state: &State) -> Self {
        let notes = notes(state);
        // All but title, notes and keys.
        let body = usize::from(state.size.1).saturating_sub(2 + notes.len());
        let [services, members] = [state.services.order.len(), state.members.order.len()];
        let mut plan = Self { size: state.size, services: None, members: None, gap: false, notes };
        // Two lines of headings, one of rules, and three rows of each.
        if body < 9 {
            match state.focus {
                Focus::Services => plan.services = Some(services.min(body.saturating_sub(1))),
                Focus::Members => plan.members = Some(members.min(body.saturating_sub(2))),
            }
            return plan;
        }
        plan.gap = body >= 14;
        let rows = body - 3 - usize::from(plan.gap);
        // The members have two thirds, and what the services don't need; and the other way.
        let services = services.min((rows / 3).max(rows.saturating_sub(members)));
        plan.services = Some(services);
        plan.members = Some(members.min(rows - services));
        plan
    }

    pub(super) fn is_too_small(&self) -> bool {
        self.size.0 < LEAST.0 || self.size.1 < LEAST.1
    }
}

fn notes(state: &State) -> Vec<Note> {
    let (width, height) = state.size;
    // More lines of one than these would leave too little of the rest.
    let most = usize::from(height / 6).clamp(1, 3);
    let lines = |note: &Note| {
        let lines = wrap(&note.text, width.into()).into_iter().take(most);
        let trouble = note.trouble;
        lines.map(move |text| Note { text, trouble }).collect::<Vec<_>>()
    };
    let trouble = state.trouble.as_ref();
    let trouble =
        trouble.map(|text| Note { text: format!("no new figures: {text}"), trouble: true });
    let doing = state.pending.as_ref().map(|act| Note { text: act.doing(), trouble: false });
    let message = state.message.clone().or(doing);
    trouble.iter().chain(&message).flat_map(lines).collect()
}
