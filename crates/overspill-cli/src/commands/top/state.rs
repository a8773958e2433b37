//! What the screen shows and what a key does to it: no terminal, no kernel.

use std::time::Duration;

use overspill::{MemberId, MemberState, Policy, Status};
use overspill_supervisor::identity::Identity;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::act::{Act, What};
use super::book::{Book, Member, Service};
use super::columns::{Column, MemberColumn, ServiceColumn, fit};
use super::help;
use super::plan::{Note, Plan};

/// All that is on the screen.
#[derive(Debug)]
pub(super) struct State {
    pub(super) title: String,
    pub(super) book: Book,
    pub(super) services: Table<ServiceColumn, String>,
    pub(super) members: Table<MemberColumn, MemberId>,
    pub(super) focus: Focus,
    pub(super) overlay: Option<Overlay>,
    /// Why what is shown is not of now.
    pub(super) trouble: Option<String>,
    /// What became of the last change, until the next key.
    pub(super) message: Option<Note>,
    /// The change that is being made.
    pub(super) pending: Option<Act>,
    /// Columns and lines.
    pub(super) size: (u16, u16),
}

/// In which of the tables the keys choose and sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Focus {
    Services,
    Members,
}

/// A table's sorting, and the row that is chosen.
#[derive(Debug)]
pub(super) struct Table<C, K> {
    pub(super) column: C,
    pub(super) turned: bool,
    /// The rows as they are shown, by their positions in the book.
    pub(super) order: Vec<usize>,
    /// Where in `order` the chosen row is.
    pub(super) at: usize,
    /// Which row was chosen. One that is gone may come back.
    chosen: Option<K>,
}

/// What lies over the tables.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Overlay {
    /// From this line on.
    Help(usize),
    /// The policies, one of them chosen, for the service of that name.
    Policies(String, usize),
    Question(Act),
}

/// What a key asks for that is done elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    Suspend,
    /// Something else has written on the terminal.
    Redraw,
    Do(Act),
}

impl<C: Column, K: Clone + PartialEq> Table<C, K> {
    fn new(chosen: Option<K>) -> Self {
        Self { column: C::ALL[0], turned: false, order: Vec::new(), at: 0, chosen }
    }

    /// Sorts anew, and finds the chosen row again: by what it is, or, where that is gone, by
    /// its place.
    fn arrange(&mut self, rows: &[C::Row], key: impl Fn(&C::Row) -> K) {
        self.order = (0..rows.len()).collect();
        let column = self.column;
        self.order.sort_by(|&one, &other| column.compare(&rows[one], &rows[other]));
        if self.turned {
            self.order.reverse();
        }
        let found = self.chosen.as_ref().and_then(|chosen| {
            self.order.iter().position(|&position| key(&rows[position]) == *chosen)
        });
        self.at = found.unwrap_or(self.at).min(rows.len().saturating_sub(1));
        if self.chosen.is_none() {
            self.chosen = self.chosen().map(|position| key(&rows[position]));
        }
    }

    /// The position of the chosen row in the book.
    pub(super) fn chosen(&self) -> Option<usize> {
        self.order.get(self.at).copied()
    }

    fn choose(&mut self, at: usize, rows: &[C::Row], key: impl Fn(&C::Row) -> K) {
        self.at = at.min(self.order.len().saturating_sub(1));
        self.chosen = self.chosen().map(|position| key(&rows[position]));
    }

    /// Sorts by the next of the columns that are shown.
    fn sort_by_next(&mut self, shown: &[(C, usize)], back: bool) {
        let count = shown.len().max(1);
        let here = shown.iter().position(|(column, _)| *column == self.column);
        let next = match (here, back) {
            (None, _) => 0,
            (Some(here), false) => (here + 1) % count,
            (Some(here), true) => (here + count - 1) % count,
        };
        if let Some((column, _)) = shown.get(next) {
            self.column = *column;
            self.turned = false;
        }
    }

    /// Which part of the rows is shown on so many lines: the chosen one in the middle, where
    /// there are rows on both sides.
    pub(super) fn shown(&self, lines: usize) -> std::ops::Range<usize> {
        let rows = self.order.len();
        let first = self.at.saturating_sub(lines / 2).min(rows.saturating_sub(lines));
        first..(first + lines).min(rows)
    }
}

impl State {
    pub(super) fn new(title: String, service: Option<String>) -> Self {
        Self {
            title,
            book: Book::default(),
            services: Table::new(service),
            members: Table::new(None),
            focus: Focus::Services,
            overlay: None,
            trouble: None,
            message: None,
            pending: None,
            size: (80, 24),
        }
    }

    /// Takes in a reading, taken that long after the first.
    pub(super) fn note(&mut self, when: Duration, read: Result<Vec<Status>, String>) {
        match read {
            Ok(statuses) => {
                self.trouble = None;
                self.book.note(when, statuses);
                self.arrange();
            }
            Err(line) => self.trouble = Some(line),
        }
    }

    /// Takes in who serves and supervises the services of that reading.
    pub(super) fn identify(&mut self, identities: Vec<Identity>) {
        self.book.identify(identities);
        self.arrange();
    }

    /// Takes in what became of a change.
    pub(super) fn done(&mut self, act: &Act, failure: Option<String>) {
        self.pending = None;
        let trouble = failure.is_some();
        let text = failure.unwrap_or_else(|| act.done());
        self.message = Some(Note { text, trouble });
    }

    fn say(&mut self, text: impl Into<String>) {
        self.message = Some(Note { text: text.into(), trouble: false });
    }

    pub(super) fn service(&self) -> Option<&Service> {
        self.services.chosen().map(|position| &self.book.services()[position])
    }

    pub(super) fn member(&self) -> Option<&Member> {
        self.members.chosen().and_then(|position| self.service()?.members.get(position))
    }

    /// Where what is shown.
    pub(super) fn plan(&self) -> Plan {
        Plan::new(self)
    }

    fn arrange(&mut self) {
        self.services.arrange(self.book.services(), |service| service.name().to_owned());
        let members = self.services.chosen().map(|at| &self.book.services()[at].members[..]);
        self.members.arrange(members.unwrap_or_default(), Member::id);
    }

    /// What a key does.
    pub(super) fn press(&mut self, key: KeyEvent) -> Option<Wish> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Wish::Quit),
                KeyCode::Char('z') => Some(Wish::Suspend),
                KeyCode::Char('l') => Some(Wish::Redraw),
                _ => None,
            };
        }
        // A letter with Alt, or right after Esc, is none of the keys.
        if !(key.modifiers - KeyModifiers::SHIFT).is_empty() {
            return None;
        }
        self.message = None;
        let plan = self.plan();
        match self.overlay.take() {
            // A change that can't be seen is not to be made.
            _ if plan.is_too_small() => {
                matches!(key.code, KeyCode::Char('q') | KeyCode::Esc).then_some(Wish::Quit)
            }
            None => self.press_on_tables(key.code),
            Some(Overlay::Help(line)) => {
                self.overlay = self.press_on_help(key.code, line).map(Overlay::Help);
                None
            }
            Some(Overlay::Policies(service, at)) => {
                self.press_on_policies(key.code, service, at);
                None
            }
            Some(Overlay::Question(act)) => self.answer(key.code, act),
        }
    }

    fn press_on_tables(&mut self, key: KeyCode) -> Option<Wish> {
        let plan = self.plan();
        let page = match self.focus {
            Focus::Services => plan.services,
            Focus::Members => plan.members,
        };
        let page = page.unwrap_or_default().max(1);
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return Some(Wish::Quit),
            KeyCode::Char('?') | KeyCode::F(1) => self.overlay = Some(Overlay::Help(0)),
            KeyCode::Down | KeyCode::Char('j') => self.go(|at| at + 1),
            KeyCode::Up | KeyCode::Char('k') => self.go(|at| at.saturating_sub(1)),
            KeyCode::PageDown => self.go(|at| at + page),
            KeyCode::PageUp => self.go(|at| at.saturating_sub(page)),
            KeyCode::Home | KeyCode::Char('g') => self.go(|_| 0),
            KeyCode::End | KeyCode::Char('G') => self.go(|_| usize::MAX),
            KeyCode::Tab | KeyCode::BackTab => {
                self.focus = match self.focus {
                    Focus::Services => Focus::Members,
                    Focus::Members => Focus::Services,
                };
            }
            KeyCode::Right | KeyCode::Enter | KeyCode::Char('l') => self.focus = Focus::Members,
            KeyCode::Left | KeyCode::Char('h') => self.focus = Focus::Services,
            KeyCode::Char('s') => self.sort_by_next(false),
            KeyCode::Char('S') => self.sort_by_next(true),
            KeyCode::Char('o') => {
                match self.focus {
                    Focus::Services => self.services.turned = !self.services.turned,
                    Focus::Members => self.members.turned = !self.members.turned,
                }
                self.arrange();
            }
            KeyCode::Char('d') => self.ask_for_member(What::Drain),
            KeyCode::Char('r') => self.ask_for_member(What::Resume),
            KeyCode::Char('p') => self.list_policies(),
            _ => {}
        }
        None
    }

    /// Chooses another row of the table that has the keys.
    fn go(&mut self, to: impl FnOnce(usize) -> usize) {
        match self.focus {
            Focus::Services => {
                let before = self.services.chosen();
                let to = to(self.services.at);
                self.services.choose(to, self.book.services(), |it| it.name().to_owned());
                if self.services.chosen() != before {
                    self.members.at = 0;
                    self.members.chosen = None;
                }
            }
            Focus::Members => {
                let members = self.services.chosen().map(|at| &self.book.services()[at].members);
                let to = to(self.members.at);
                self.members.choose(to, members.map_or(&[], Vec::as_slice), Member::id);
            }
        }
        self.arrange();
    }

    fn sort_by_next(&mut self, back: bool) {
        let width = self.size.0.into();
        match self.focus {
            Focus::Services => {
                self.services.sort_by_next(&fit(self.book.services(), width), back);
            }
            Focus::Members => {
                let members = self.service().map(|service| &service.members[..]);
                let shown = fit(members.unwrap_or_default(), width);
                self.members.sort_by_next(&shown, back);
            }
        }
        self.arrange();
    }

    fn ask_for_member(&mut self, what: fn(MemberId) -> What) {
        let Some((service, member)) = self.service().zip(self.member()) else { return };
        let id = member.id();
        let drains = member.status.state == MemberState::Draining;
        let what = what(id);
        match what {
            What::Drain(_) if drains => {
                self.say(format!("member {id} of {} drains already", service.name()));
            }
            // Whether one that is gone drains is not shown.
            What::Resume(_) if !drains && member.status.state != MemberState::Gone => {
                self.say(format!("member {id} of {} does not drain", service.name()));
            }
            _ => self.ask(Act { service: service.name().to_owned(), what }),
        }
    }

    fn list_policies(&mut self) {
        let Some(service) = self.service() else { return };
        let current = service.status.policy;
        let at = Policy::ALL.iter().position(|&policy| policy == current);
        let name = service.name().to_owned();
        self.overlay = Some(Overlay::Policies(name, at.unwrap_or_default()));
    }

    /// The one chosen is asked about.
    fn press_on_policies(&mut self, key: KeyCode, service: String, at: usize) {
        let last = Policy::ALL.len() - 1;
        let at = match key {
            KeyCode::Down | KeyCode::Char('j') => (at + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => last,
            KeyCode::Char('q') | KeyCode::Esc => return,
            KeyCode::Enter => {
                let policy = Policy::ALL[at];
                if self.find(&service).is_some_and(|it| it.status.policy == policy) {
                    self.say(format!("{service} has the policy {policy} already"));
                } else {
                    self.ask(Act { service, what: What::Policy(policy) });
                }
                return;
            }
            _ => at,
        };
        self.overlay = Some(Overlay::Policies(service, at));
    }

    /// The service of that name.
    pub(super) fn find(&self, name: &str) -> Option<&Service> {
        self.book.services().iter().find(|service| service.name() == name)
    }

    /// One change at a time.
    fn ask(&mut self, act: Act) {
        match &self.pending {
            Some(pending) => self.say(format!("wait: {}", pending.doing())),
            None => self.overlay = Some(Overlay::Question(act)),
        }
    }

    fn answer(&mut self, key: KeyCode, act: Act) -> Option<Wish> {
        match key {
            KeyCode::Char('y' | 'Y') => {
                self.pending = Some(act.clone());
                return Some(Wish::Do(act));
            }
            KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc | KeyCode::Enter => {
                self.say("nothing was changed");
            }
            _ => self.overlay = Some(Overlay::Question(act)),
        }
        None
    }

    /// From which line on the help is shown then; `None` when it is read.
    fn press_on_help(&self, key: KeyCode, line: usize) -> Option<usize> {
        let (last, page) = help::scroll(self.size);
        let to = match key {
            KeyCode::Down | KeyCode::Char('j') => line + 1,
            KeyCode::Up | KeyCode::Char('k') => line.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => line + page,
            KeyCode::PageUp => line.saturating_sub(page),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => last,
            _ => return None,
        };
        Some(to.min(last))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::book::tests::{member, service};
    use super::*;
    use overspill::MemberStatus;
    use proptest::prelude::*;

    pub(crate) fn press(state: &mut State, keys: &str) -> Option<Wish> {
        let mut wish = None;
        for key in keys.split(' ') {
            assert_eq!(wish, None, "before {key}");
            wish = state.press(self::key(key));
        }
        wish
    }

    fn key(name: &str) -> KeyEvent {
        let code = match name {
            "up" => KeyCode::Up,
            "down" => KeyCode::Down,
            "end" => KeyCode::End,
            "tab" => KeyCode::Tab,
            "enter" => KeyCode::Enter,
            "esc" => KeyCode::Esc,
            "pgdn" => KeyCode::PageDown,
            letter => KeyCode::Char(letter.chars().last().unwrap()),
        };
        let control = name.starts_with('^');
        KeyEvent::new(code, if control { KeyModifiers::CONTROL } else { KeyModifiers::NONE })
    }

    fn members(count: u32) -> Vec<MemberStatus> {
        (0..count).map(|id| member(id, id, 0, 17)).collect()
    }

    /// The services api, db and web, with 1, 2 and 3 members.
    fn state() -> State {
        let mut state = State::new("netns 1".to_owned(), None);
        let named = |(count, name): (u32, &str)| service(name, members(count));
        let statuses = [(1, "api"), (2, "db"), (3, "web")].map(named);
        state.note(Duration::ZERO, Ok(statuses.into()));
        state
    }

    fn chosen(state: &State) -> (&str, Option<u32>) {
        (state.service().map_or("", Service::name), state.member().map(|member| member.id().0))
    }

    fn names(state: &State) -> Vec<&str> {
        let services = state.book.services();
        state.services.order.iter().map(|&at| services[at].name()).collect()
    }

    fn message(state: &State) -> &str {
        state.message.as_ref().map_or("", |note| &note.text)
    }

    #[test]
    fn a_service_and_a_member_are_chosen() {
        let mut state = state();
        assert_eq!(chosen(&state), ("api", Some(0)));
        press(&mut state, "j down j j");
        assert_eq!(chosen(&state), ("web", Some(0)), "it ends at the last");
        press(&mut state, "tab down j k down");
        assert_eq!(chosen(&state), ("web", Some(2)));
        press(&mut state, "tab up");
        assert_eq!(chosen(&state), ("db", Some(0)), "another service, its first member");
        press(&mut state, "end l end g G");
        assert_eq!(chosen(&state), ("web", Some(2)));
    }

    #[test]
    fn what_is_chosen_stays_chosen_by_name_and_number() {
        let mut state = state();
        press(&mut state, "end tab end up");
        assert_eq!(chosen(&state), ("web", Some(1)));
        let read = |names: &[&str], ids: &[u32]| {
            let members = ids.iter().map(|&id| member(id, 0, 0, 17)).collect::<Vec<_>>();
            Ok(names.iter().map(|name| service(name, members.clone())).collect())
        };
        let second = Duration::from_secs(1);
        state.note(second, read(&["aaa", "api", "web", "zzz"], &[2, 4, 1, 7]));
        assert_eq!(chosen(&state), ("web", Some(1)));
        // What is gone is chosen again when it comes back; its neighbour has its place until then.
        state.note(2 * second, read(&["aaa", "api"], &[2, 7]));
        assert_eq!(chosen(&state), ("api", Some(7)));
        state.note(3 * second, read(&[], &[]));
        assert_eq!(chosen(&state), ("", None));
        state.note(4 * second, read(&["api", "web"], &[0, 1]));
        assert_eq!(chosen(&state), ("web", Some(1)));
    }

    #[test]
    fn the_service_asked_for_is_chosen() {
        let mut state = State::new(String::new(), Some("web".to_owned()));
        state.note(Duration::ZERO, Ok(["api", "web"].map(|name| service(name, members(1))).into()));
        assert_eq!(chosen(&state), ("web", Some(0)));
    }

    #[test]
    fn services_and_members_are_sorted_by_the_columns_that_are_shown() {
        let mut state = state();
        press(&mut state, "o");
        assert_eq!(names(&state), ["web", "db", "api"]);
        assert_eq!(chosen(&state), ("api", Some(0)), "the chosen one moves with its row");
        press(&mut state, "s s");
        assert_eq!(state.services.column, ServiceColumn::Members);
        assert_eq!(names(&state), ["web", "db", "api"]);
        press(&mut state, "o S S");
        assert_eq!(names(&state), ["api", "db", "web"]);
        press(&mut state, "S");
        assert_eq!(state.services.column, ServiceColumn::Reset, "round to the last");
        press(&mut state, "end tab s s s s");
        assert_eq!(state.members.column, MemberColumn::Queue);
        assert_eq!(state.members.order, [2, 1, 0], "the fullest first");
        // Where there is no room for a column, it is passed by.
        state.size = (40, 12);
        press(&mut state, "S S S");
        assert_eq!(state.members.column, MemberColumn::Member);
    }

    #[test]
    fn nothing_is_changed_without_a_yes() {
        let mut state = state();
        press(&mut state, "end tab j");
        for no in ["n", "N", "esc", "enter", "q"] {
            assert_eq!(press(&mut state, &format!("d x d j pgdn {no}")), None);
            assert_eq!((message(&state), &state.overlay), ("nothing was changed", &None));
        }
        let act = Act { service: "web".to_owned(), what: What::Drain(MemberId(1)) };
        assert_eq!(press(&mut state, "d y"), Some(Wish::Do(act.clone())));
        assert_eq!((&state.pending, message(&state)), (&Some(act.clone()), ""));
        // Another one has to wait.
        assert_eq!(press(&mut state, "d y"), None);
        assert!(message(&state).is_empty() && state.overlay.is_none());
        state.done(&act, Some("it is locked".to_owned()));
        assert_eq!((message(&state), &state.pending), ("it is locked", &None));
    }

    #[test]
    fn only_a_member_that_drains_is_resumed() {
        let mut state = state();
        press(&mut state, "r");
        assert_eq!((message(&state), &state.overlay), ("member 0 of api does not drain", &None));
        let mut drains = service("api", members(1));
        drains.members[0].state = MemberState::Draining;
        state.note(Duration::from_secs(1), Ok(vec![drains]));
        press(&mut state, "d");
        assert_eq!((message(&state), &state.overlay), ("member 0 of api drains already", &None));
        let act = Act { service: "api".to_owned(), what: What::Resume(MemberId(0)) };
        assert_eq!(press(&mut state, "r y"), Some(Wish::Do(act)));
    }

    #[test]
    fn the_last_active_member_is_drained_with_a_warning() {
        let mut state = state();
        let known = |state: &State| match &state.overlay {
            Some(Overlay::Question(act)) => act.question(state).1,
            other => panic!("{other:?}"),
        };
        press(&mut state, "d");
        assert!(known(&state).contains("refused"), "{}", known(&state));
        press(&mut state, "n end d");
        assert!(!known(&state).contains("refused"), "{}", known(&state));
    }

    #[test]
    fn a_policy_is_chosen_and_asked_for() {
        let mut state = state();
        press(&mut state, "p enter");
        assert_eq!(message(&state), "api has the policy least-loaded already");
        press(&mut state, "p j esc");
        assert_eq!(state.overlay, None);
        press(&mut state, "p g enter");
        let what = What::Policy(Policy::NextAvailable);
        let act = Act { service: "api".to_owned(), what };
        let (question, _) = act.question(&state);
        assert_eq!(question, "Change the policy of api from least-loaded to next-available?");
        assert_eq!(state.overlay, Some(Overlay::Question(act.clone())));
        assert_eq!(press(&mut state, "y"), Some(Wish::Do(act)));
    }

    #[test]
    fn it_is_left_by_each_of_these_keys() {
        for key in ["q", "esc", "^c"] {
            assert_eq!(press(&mut state(), key), Some(Wish::Quit));
        }
        for overlay in ["?", "p", "d"] {
            let mut state = state();
            assert_eq!(press(&mut state, &format!("{overlay} q")), None, "back to the tables");
            assert_eq!(press(&mut state, &format!("{overlay} ^c")), Some(Wish::Quit));
        }
        assert_eq!(press(&mut state(), "^z"), Some(Wish::Suspend));
    }

    #[test]
    fn what_can_t_be_seen_is_not_changed() {
        let mut state = state();
        press(&mut state, "d");
        state.size = (31, 24);
        assert_eq!(press(&mut state, "y"), None);
        assert_eq!(press(&mut state, "d y"), None);
        assert_eq!(press(&mut state, "q"), Some(Wish::Quit));
    }

    #[test]
    fn what_was_read_last_stays_while_nothing_can_be_read() {
        let mut state = state();
        state.note(Duration::from_secs(1), Err("no".to_owned()));
        assert_eq!((state.trouble.as_deref(), names(&state).len()), (Some("no"), 3));
        // The figures since are spread over the time since they were read.
        let mut grown = service("web", members(3));
        grown.requests.placed = 40;
        state.note(Duration::from_secs(2), Ok(vec![grown]));
        assert_eq!(state.trouble, None);
        let rates = state.service().unwrap().rates.unwrap();
        assert!((rates.placed - 20.0).abs() < 0.001, "{rates:?}");
    }

    const KEYS: [&str; 21] = [
        "up", "down", "end", "tab", "enter", "esc", "pgdn", "j", "k", "g", "G", "s", "S", "o", "d",
        "r", "p", "n", "?", "x", "y",
    ];

    proptest! {
        /// Whatever is pressed and read: what is shown exists, and every change has been
        /// asked for on a screen that could show it.
        #[test]
        fn every_change_was_asked_for(
            steps in proptest::collection::vec((0..KEYS.len() + 3, 0_u32..4), 1..60),
        ) {
            let mut state = state();
            for (number, (step, count)) in steps.into_iter().enumerate() {
                let when = Duration::from_secs(number as u64);
                match KEYS.get(step) {
                    Some(key) => {
                        let seen = !state.plan().is_too_small();
                        let question = matches!(state.overlay, Some(Overlay::Question(_)));
                        if let Some(Wish::Do(act)) = state.press(self::key(key)) {
                            prop_assert!(*key == "y" && question && seen);
                            state.done(&act, None);
                        }
                    }
                    None if step == KEYS.len() => {
                        state.size = [(80, 24), (40, 12), (32, 8), (9, 3)][count as usize];
                    }
                    None if step == KEYS.len() + 1 => state.note(when, Err("no".to_owned())),
                    None => {
                        let named = |(at, name): (u32, &str)| {
                            (at < count).then(|| service(name, members(count + 3 * at)))
                        };
                        let all = [(0, "web"), (1, "api"), (2, "db")];
                        state.note(when, Ok(all.into_iter().filter_map(named).collect()));
                    }
                }
                prop_assert_eq!(state.service().is_some(), !state.book.services().is_empty());
                prop_assert_eq!(state.member().is_some(), state.service().is_some());
            }
        }
    }
}
