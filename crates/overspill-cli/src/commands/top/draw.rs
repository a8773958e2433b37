//! Drawing. A line is made of pieces of text; nothing is read here, and nothing decided.

use overspill::Policy;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Padding, Paragraph};

use super::act::meaning;
use super::book::{Member, Service};
use super::columns::{Column, MemberColumn, ServiceColumn, fit, rate};
use super::help;
use super::look::{Look, Tone};
use super::plan::{LEAST, Note, Plan};
use super::state::{Focus, Overlay, State, Table};
use crate::output::{count, rules, wrap};

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, look: Look) {
    let plan = state.plan();
    let area = frame.area();
    if plan.is_too_small() {
        let (width, height) = LEAST;
        let text =
            format!("too small: {width}x{height} at least, this is {}x{}", area.width, area.height);
        let lines = wrap(&text, area.width.into()).into_iter().map(Line::from);
        return frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
    }
    if let Some(Overlay::Help(first)) = state.overlay {
        return frame.render_widget(Paragraph::new(help_page(first, state)), area);
    }
    let painter = Painter { state, look, width: area.width.into() };
    let mut lines = vec![painter.title(&plan)];
    lines.extend(painter.tables(&plan));
    let notes: Vec<Line<'_>> = plan.notes.iter().map(|note| painter.note(note)).collect();
    // The notes and the keys stand at the bottom, wherever the tables end.
    let bottom = usize::from(area.height).saturating_sub(1 + notes.len());
    lines.resize(bottom, Line::default());
    lines.extend(notes);
    lines.push(painter.keys());
    frame.render_widget(Paragraph::new(lines), area);
    match &state.overlay {
        Some(Overlay::Policies(service, at)) => painter.policies(frame, service, *at),
        Some(Overlay::Question(act)) => {
            let (question, known) = act.question(state);
            painter.question(frame, &question, &known);
        }
        _ => {}
    }
}

fn help_page(first: usize, state: &State) -> Vec<Line<'static>> {
    let (last, page) = help::scroll(state.size);
    let lines = help::lines(state.size.0).into_iter().skip(first).take(page);
    let mut lines: Vec<Line<'static>> = lines
        .map(|line| {
            let style = if line.starts_with(' ') { Style::new() } else { BOLD };
            Line::styled(line, style)
        })
        .collect();
    lines.resize(page, Line::default());
    let more = if first < last { "down: more  " } else { "" };
    lines.push(Line::styled(format!("{more}any other key: back"), BOLD));
    lines
}

struct Painter<'a> {
    state: &'a State,
    look: Look,
    width: usize,
}

impl<'a> Painter<'a> {
    /// What this is, and how many services there are.
    fn title(&self, plan: &Plan) -> Line<'a> {
        let services = self.state.services.order.len();
        let right = match plan.services {
            Some(lines) if lines < services => {
                part("services", self.state.services.shown(lines), services)
            }
            _ => count(services, "service"),
        };
        self.both_ends("overspill top", &self.state.title, &right)
    }

    fn tables(&self, plan: &Plan) -> Vec<Line<'a>> {
        let mut lines = Vec::new();
        let Some(service) = self.state.service() else {
            return self.nothing();
        };
        if let Some(rows) = plan.services {
            let table = &self.state.services;
            let focused = self.state.focus == Focus::Services;
            let shown = fit(self.state.book.services(), self.width);
            lines.push(self.headings(table, &shown));
            lines.extend(rows_of(table, rows, focused, |at| {
                self.service(&self.state.book.services()[at], &shown)
            }));
        }
        if plan.gap {
            lines.push(Line::default());
        }
        if let Some(rows) = plan.members {
            let table = &self.state.members;
            let focused = self.state.focus == Focus::Members;
            let shown = fit(&service.members, self.width);
            lines.push(self.rules(service, rows));
            lines.push(self.headings(table, &shown));
            lines.extend(rows_of(table, rows, focused, |at| {
                self.member(&service.members[at], &shown)
            }));
        }
        lines
    }

    fn nothing(&self) -> Vec<Line<'a>> {
        let text = "no services yet in this network namespace; those that come will be shown \
                    here (overspill run and overspill share make them)";
        let mut lines = vec![Line::default()];
        lines.extend(wrap(text, self.width).into_iter().map(Line::from));
        lines
    }

    /// The chosen service, in the words with which `overspill set` changes it; before them what
    /// should never be, and has no column therefore.
    fn rules(&self, service: &Service, rows: usize) -> Line<'a> {
        let status = &service.status;
        let members = service.members.len();
        let right = if rows < members {
            part("members", self.state.members.shown(rows), members)
        } else {
            count(members, "member")
        };
        let unusual = service.rates.map_or_else(Vec::new, |rates| {
            let rates = [("fallback", rates.fallback), ("left", rates.left)];
            let some = rates.into_iter().filter(|(_, rate)| *rate > 0.0);
            some.map(|(what, of)| format!("{} {what}/s, ", rate(Some(of)))).collect()
        });
        let rules = format!("{}port {}, {}", unusual.concat(), status.port, rules(status));
        self.both_ends(&status.name, &rules, &right)
    }

    /// A bold beginning, what follows it, and something at the right end, if that leaves room
    /// for what is said before it.
    fn both_ends(&self, bold: &str, text: &str, right: &str) -> Line<'a> {
        let bold = self.fitted(bold, self.width.min(bold.len()), true);
        let mut left = self.width - bold.chars().count();
        let mut spans = vec![Span::styled(bold, BOLD)];
        let with_right = text.len().min(24) + right.len() + 4 <= left;
        if left > 4 {
            let room = if with_right { left - right.len() - 2 } else { left };
            spans.push(Span::raw(format!("  {}", self.fitted(text, room - 2, true))));
            left -= room;
        }
        if with_right {
            spans.push(Span::raw(format!("{right:>left$}")));
        }
        Line::from(spans)
    }

    fn headings<C: Column, K>(&self, table: &Table<C, K>, shown: &[(C, usize)]) -> Line<'a> {
        let cells = shown.iter().flat_map(|&(column, width)| {
            let sorted = table.column == column;
            let mark = if sorted { self.look.sorted(table.turned) } else { " " };
            let heading = self.fitted(column.heading(), width, column.leans_left());
            let style = Style::new().add_modifier(Modifier::UNDERLINED);
            let style = if sorted { style.add_modifier(Modifier::BOLD) } else { style };
            // A heading stands beside its mark, also where its cells lean to the right.
            let space = heading.len() - heading.trim_start().len();
            let (space, heading) = heading.split_at(space);
            [Span::raw(space.to_owned()), Span::raw(mark), Span::styled(heading.to_owned(), style)]
        });
        Line::from(cells.collect::<Vec<_>>())
    }

    fn service(&self, service: &Service, shown: &[(ServiceColumn, usize)]) -> Vec<Span<'a>> {
        let cell = |&(column, width): &(ServiceColumn, usize)| {
            let rates = service.rates.as_ref();
            let bad = match column {
                ServiceColumn::Dropped => rates.is_some_and(|rates| rates.dropped > 0.0),
                ServiceColumn::Reset => rates.is_some_and(|rates| rates.reset > 0.0),
                _ => false,
            };
            let style = if bad { self.look.style(Tone::Bad) } else { Style::new() };
            Span::styled(self.fitted(&column.text(service), width, column.leans_left()), style)
        };
        spaced(shown.iter().map(|shown| vec![cell(shown)]))
    }

    fn member(&self, member: &Member, shown: &[(MemberColumn, usize)]) -> Vec<Span<'a>> {
        let cell = |&(column, width): &(MemberColumn, usize)| match column {
            MemberColumn::Queue => self.bar(member, width),
            MemberColumn::Lately => vec![Span::raw(self.lately(member, width))],
            _ => {
                let text = column.text(member);
                let text = match column {
                    // Addresses differ at their ends.
                    MemberColumn::Address => self.fitted_end(&text, width),
                    _ => self.fitted(&text, width, column.leans_left()),
                };
                let style = match column {
                    MemberColumn::State => self.look.state(member.status.state),
                    _ => Style::new(),
                };
                vec![Span::styled(text, style)]
            }
        };
        spaced(shown.iter().map(cell))
    }

    /// A bar of what waits, what is half open and what is free.
    fn bar(&self, member: &Member, width: usize) -> Vec<Span<'a>> {
        let status = &member.status;
        let [waits, half_open] =
            bar(status.queued.into(), status.half_open.into(), status.capacity.into(), width);
        let full = status.capacity > 0 && member.held() >= status.capacity.into();
        let tones = [if full { Tone::Bad } else { Tone::Good }, Tone::Set];
        let signs = self.look.bar();
        vec![
            Span::styled(signs[0].repeat(waits), self.look.style(tones[0])),
            Span::styled(signs[1].repeat(half_open), self.look.style(tones[1])),
            Span::raw(signs[2].repeat(width - waits - half_open)),
        ]
    }

    /// How full its queue was, the newest at the right.
    fn lately(&self, member: &Member, width: usize) -> String {
        let signs: String = member.lately.last(width).map(|it| self.look.eighth(it)).collect();
        format!("{signs:>width$}")
    }

    fn note(&self, note: &Note) -> Line<'a> {
        let style = if note.trouble { self.look.style(Tone::Bad) } else { Style::new() };
        Line::styled(note.text.clone(), style)
    }

    /// As many of the keys as there is room for, the first to know first.
    fn keys(&self) -> Line<'a> {
        let other = match self.state.focus {
            Focus::Services => "members",
            Focus::Members => "services",
        };
        // Where each stands, and how early it is left out.
        let keys = [
            ("arrows", "choose", 7),
            ("Tab", other, 2),
            ("s", "sort", 6),
            ("o", "turn", 8),
            ("d", "drain", 3),
            ("r", "resume", 4),
            ("p", "policy", 5),
            ("?", "help", 0),
            ("q", "quit", 1),
        ];
        let mut by_rank = keys;
        by_rank.sort_by_key(|(.., rank)| *rank);
        let mut left = self.width + 2;
        let fits = by_rank.into_iter().take_while(|(key, what, _)| {
            let room = left.checked_sub(key.len() + what.len() + 3);
            left = room.unwrap_or_default();
            room.is_some()
        });
        let shown = fits.count();
        let keys = keys.into_iter().filter(|(.., rank)| *rank < shown);
        let spans = keys.enumerate().flat_map(|(number, (key, what, _))| {
            let space = if number == 0 { "" } else { "  " };
            [Span::raw(space), Span::styled(key, BOLD), Span::raw(format!(" {what}"))]
        });
        Line::from(spans.collect::<Vec<_>>())
    }

    /// The list to choose a policy from.
    fn policies(&self, frame: &mut Frame<'_>, service: &str, chosen: usize) {
        let now = self.state.find(service).map(|service| service.status.policy);
        let room = self.width - 4;
        let lines = Policy::ALL.iter().enumerate().map(|(at, &policy)| {
            let mark = if at == chosen { '>' } else { ' ' };
            let now = if now == Some(policy) { "(now) " } else { "" };
            let text = format!("{mark} {:15} {now}{}", policy.name(), meaning(policy));
            let style = if at == chosen { CHOSEN } else { Style::new() };
            Line::styled(self.fitted(&text, room.min(64), true), style)
        });
        let title = format!("policy of {service}");
        self.show_box(frame, &title, lines.collect(), "Enter choose  Esc back");
    }

    fn question(&self, frame: &mut Frame<'_>, question: &str, known: &str) {
        let room = (self.width - 4).min(64);
        let asked = wrap(question, room).into_iter().map(|line| Line::styled(line, BOLD));
        let known = wrap(known, room).into_iter().map(Line::from);
        self.show_box(frame, "change?", asked.chain(known).collect(), "y yes  n no");
    }

    /// A box in the middle of the screen, as large as what stands in it.
    fn show_box(&self, frame: &mut Frame<'_>, title: &str, lines: Vec<Line<'a>>, keys: &str) {
        let area = frame.area();
        let widest = lines.iter().map(Line::width).chain([title.len(), keys.len()]).max();
        let clamp = |size: usize, most: u16| u16::try_from(size).unwrap_or(most).min(most);
        let width = clamp(widest.unwrap_or_default() + 4, area.width);
        let height = clamp(lines.len() + 2, area.height);
        let (x, y) = ((area.width - width) / 2, (area.height - height) / 2);
        let area = Rect { x, y, width, height };
        let title = self.fitted(title, usize::from(width - 4).min(title.len()), true);
        let block = Block::bordered()
            .border_set(self.look.border())
            .padding(Padding::horizontal(1))
            .title_top(format!(" {title} "))
            .title_bottom(Line::styled(format!(" {keys} "), BOLD));
        frame.render_widget(Clear, area);
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }

    /// The end of a text that is too long.
    fn fitted_end(&self, text: &str, width: usize) -> String {
        match text.len().checked_sub(width) {
            Some(more @ 1..) if width > 0 => format!("{}{}", self.look.cut(), &text[more + 1..]),
            _ => self.fitted(text, width, true),
        }
    }

    /// A text of just that width; what is cut off leaves a sign.
    fn fitted(&self, text: &str, width: usize, left: bool) -> String {
        if text.chars().count() > width {
            let kept = text.chars().take(width.saturating_sub(1));
            return kept.chain((width > 0).then(|| self.look.cut())).collect();
        }
        if left { format!("{text:width$}") } else { format!("{text:>width$}") }
    }
}

/// As many rows as there are lines for, the chosen one marked.
fn rows_of<'a, C: Column, K: Clone + PartialEq>(
    table: &Table<C, K>,
    lines: usize,
    focused: bool,
    row: impl Fn(usize) -> Vec<Span<'a>>,
) -> Vec<Line<'a>> {
    let rows = table.shown(lines).map(|at| {
        let chosen = at == table.at;
        let mut spans = vec![Span::raw(if chosen { ">" } else { " " })];
        spans.extend(row(table.order[at]));
        let line = Line::from(spans);
        match (chosen, focused) {
            (true, true) => line.style(CHOSEN),
            (true, false) => line.style(BOLD),
            _ => line,
        }
    });
    rows.collect()
}

/// Cells with a space between them.
fn spaced<'a>(cells: impl Iterator<Item = Vec<Span<'a>>>) -> Vec<Span<'a>> {
    let mut spans = Vec::new();
    for cell in cells {
        if !spans.is_empty() {
            spans.push(Span::raw(" "));
        }
        spans.extend(cell);
    }
    spans
}

/// "services 3-7 of 120"
fn part(what: &str, shown: std::ops::Range<usize>, all: usize) -> String {
    format!("{what} {}-{} of {all}", shown.start + 1, shown.end)
}

/// How long the parts of a bar are that has so many cells: some cell for whatever is not
/// nothing, where there is one, and all of them for what is full alone.
fn bar(waits: u64, half_open: u64, capacity: u64, cells: usize) -> [usize; 2] {
    let held = waits + half_open;
    if held == 0 || cells == 0 {
        return [0, 0];
    }
    let most = if held < capacity { (cells - 1).max(1) } else { cells };
    let length = |part: u64| {
        let cells = u64::try_from(cells).expect("a screen is not that wide");
        let rounded = (part * cells + capacity / 2) / capacity.max(1);
        usize::try_from(rounded).unwrap_or(most).clamp(1, most)
    };
    let all = length(held);
    let half_open = if half_open == 0 { 0 } else { length(half_open).min(all) };
    let waits_least = usize::from(waits > 0 && all > 1);
    let half_open = half_open.min(all - waits_least);
    [all - half_open, half_open]
}

#[cfg(test)]
mod tests {
    use super::super::act::{Act, What};
    use super::super::book::tests::{identity, member, service};
    use super::super::state::tests::press;
    use super::*;
    use overspill::{Address, Families, MemberId, MemberState, MemberStatus, Requests, Status};
    use overspill_supervisor::identity::Identity;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Buffer;
    use ratatui::style::Color;
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    const PLAIN: Look = Look { colour: false, unicode: true };

    fn drawn(state: &mut State, look: Look, (width, height): (u16, u16)) -> Buffer {
        state.size = (width, height);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state, look)).unwrap();
        terminal.backend().buffer().clone()
    }

    fn text(buffer: &Buffer) -> String {
        let area = buffer.area();
        let line = |y| (0..area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..area.height).map(|y| line(y).trim_end().to_owned() + "\n").collect()
    }

    /// Holds a screen against `screens/NAME.txt`. With `OVERSPILL_RENEW` set, what is drawn is
    /// written there first: read it before you keep it.
    #[track_caller]
    fn is_as_in(name: &str, buffer: &Buffer) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/commands/top/screens");
        let path = folder.join(name).with_extension("txt");
        let text = text(buffer);
        if std::env::var_os("OVERSPILL_RENEW").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert!(text == expected, "{expected}\nis expected, but\n{text}");
    }

    fn web(reading: u32) -> Status {
        let states =
            [MemberState::Active, MemberState::Draining, MemberState::Hung, MemberState::Gone];
        let queues = [(reading % 9, 0), (2, 1), (17, 0), (0, 0)];
        let mut members: Vec<MemberStatus> = states
            .into_iter()
            .zip(queues)
            .zip(0..)
            .map(|((state, (queued, half_open)), id)| {
                let capacity = if state == MemberState::Gone { 0 } else { 17 };
                let made = member(id, queued, half_open, capacity);
                MemberStatus { state, placed: u64::from(reading * 20), ..made }
            })
            .collect();
        members[0].redirected_in = u64::from(reading * 7);
        members[2].redirected_out = u64::from(reading * 7);
        members[3].established = None;
        let reading = u64::from(reading);
        let requests = Requests {
            placed: reading * 1234,
            redirected: reading * 7,
            dropped: reading / 2,
            ..Requests::default()
        };
        Status { requests, ..service("web", members) }
    }

    fn long() -> Status {
        let mut status = service(&format!("{}x:65535", "frontend-".repeat(7)), Vec::new());
        status.members = (0..3).map(|id| member(id, 4097, 11, 4097)).collect();
        let ip = "2001:db8:1234:5678:9abc:def0:1234:5678".parse().unwrap();
        status.members[1].address = Address { ip, port: 65535, families: Families::IPV6 };
        status.members[2].member = MemberId(u32::MAX);
        status.policy = Policy::Dispatcher;
        status.dispatcher = Some("by_local_cpu".to_owned());
        status
    }

    /// After so many readings, `web` chosen.
    fn state(readings: u32) -> State {
        let mut state =
            State::new("netns 4026531840, every 1 s".to_owned(), Some("web".to_owned()));
        for reading in 0..readings {
            let api = service("api", vec![member(0, 0, 0, 512)]);
            let when = Duration::from_secs(reading.into());
            state.note(when, Ok(vec![api, long(), web(reading)]));
            state.identify(vec![Identity::default(), Identity::default(), identity("web", 4)]);
        }
        state
    }

    #[test]
    fn the_screen_is_as_expected() {
        let mut state = state(30);
        is_as_in("80x24", &drawn(&mut state, PLAIN, (80, 24)));
        is_as_in("ascii", &drawn(&mut state, Look { unicode: false, ..PLAIN }, (80, 24)));
        is_as_in("40x12", &drawn(&mut state, PLAIN, (40, 12)));
        is_as_in("32x8", &drawn(&mut state, PLAIN, (32, 8)));
        is_as_in("20x3", &drawn(&mut state, PLAIN, (20, 3)));
        is_as_in("120x40", &drawn(&mut state, PLAIN, (120, 40)));
        state.size = (80, 24);
        press(&mut state, "k");
        is_as_in("long", &drawn(&mut state, PLAIN, (80, 24)));
    }

    #[test]
    fn before_there_is_anything_to_compare_with() {
        is_as_in("first", &drawn(&mut state(1), PLAIN, (80, 24)));
        is_as_in("none", &drawn(&mut state(0), PLAIN, (80, 24)));
    }

    #[test]
    fn what_is_asked_and_what_is_told() {
        let mut state = state(2);
        press(&mut state, "tab d");
        is_as_in("drain", &drawn(&mut state, PLAIN, (80, 24)));
        is_as_in("drain-32x8", &drawn(&mut state, PLAIN, (32, 8)));
        state.size = (80, 24);
        press(&mut state, "n p j");
        is_as_in("policies", &drawn(&mut state, PLAIN, (80, 24)));
        is_as_in("policies-32x8", &drawn(&mut state, PLAIN, (32, 8)));
        state.size = (80, 24);
        press(&mut state, "enter");
        is_as_in("policy", &drawn(&mut state, PLAIN, (80, 24)));
        press(&mut state, "n ?");
        is_as_in("help", &drawn(&mut state, PLAIN, (80, 24)));
        state.size = (80, 24);
        press(&mut state, "pgdn");
        is_as_in("help-end", &drawn(&mut state, PLAIN, (80, 24)));
        press(&mut state, "q");
        let line = "cannot read the map figures: Cannot allocate memory (os error 12); look at \
                    the memory that is left, or at the limit of this control group";
        state.note(Duration::from_secs(9), Err(line.to_owned()));
        let act = Act { service: "web".to_owned(), what: What::Drain(MemberId(0)) };
        state.done(&act, Some("there is no service web; overspill ls lists them".to_owned()));
        is_as_in("trouble", &drawn(&mut state, PLAIN, (80, 24)));
    }

    #[test]
    fn what_should_never_be_is_told_beside_the_rules() {
        let mut state = state(2);
        let mut status = web(2);
        (status.requests.fallback, status.requests.left) = (3, 40);
        state.note(Duration::from_secs(2), Ok(vec![status]));
        let text = text(&drawn(&mut state, PLAIN, (80, 24)));
        assert!(text.contains("web  3.0 fallback/s, 40 left/s, port 80"), "{text}");
    }

    #[test]
    fn thousands_of_members_are_scrolled() {
        let mut state = State::new("netns 1".to_owned(), None);
        let members = (0..10_000).map(|id| member(id, id % 18, 0, 17)).collect();
        state.note(Duration::ZERO, Ok(vec![service("web", members)]));
        press(&mut state, "tab pgdn pgdn pgdn j");
        is_as_in("many", &drawn(&mut state, PLAIN, (80, 12)));
        press(&mut state, "end");
        is_as_in("many-end", &drawn(&mut state, PLAIN, (80, 12)));
    }

    fn colours(buffer: &Buffer) -> Vec<Color> {
        let mut colours: Vec<Color> = Vec::new();
        for cell in buffer.content() {
            assert_eq!(cell.bg, Color::Reset, "the terminal's own background");
            if !colours.contains(&cell.fg) {
                colours.push(cell.fg);
            }
        }
        colours
    }

    #[test]
    fn colour_adds_nothing_but_colour() {
        let mut state = state(30);
        for keys in ["x", "d", "n p", "esc ?"] {
            press(&mut state, keys);
            let plain = drawn(&mut state, PLAIN, (80, 24));
            let coloured = drawn(&mut state, Look { colour: true, ..PLAIN }, (80, 24));
            assert_eq!(text(&plain), text(&coloured));
            assert_eq!(colours(&plain), [Color::Reset]);
            let own = [Color::Reset, Color::Green, Color::Magenta, Color::Red];
            assert!(colours(&coloured).iter().all(|colour| own.contains(colour)));
            assert_eq!(colours(&coloured).len() == 4, keys == "x", "all are used");
        }
    }

    #[test]
    fn without_unicode_all_of_it_is_ascii() {
        let mut state = state(30);
        for keys in ["x", "d", "n p", "esc k", "?"] {
            press(&mut state, keys);
            let buffer = drawn(&mut state, Look { unicode: false, ..PLAIN }, (80, 24));
            assert!(text(&buffer).is_ascii(), "{}", text(&buffer));
        }
    }

    /// A buffer refuses what is written beside it; this would be seen here.
    #[test]
    fn every_size_is_drawn() {
        for readings in [0, 1, 3] {
            for keys in ["x", "tab", "tab d", "p", "?", "tab k"] {
                let mut state = state(readings);
                press(&mut state, keys);
                state.note(Duration::from_secs(99), Err("what went wrong ".repeat(9)));
                for width in (0..10).step_by(3).chain((10..140).step_by(11)) {
                    for height in (0..15).step_by(2).chain([24, 50]) {
                        drawn(&mut state, PLAIN, (width, height));
                    }
                }
            }
        }
    }

    #[test]
    fn a_bar_tells_nothing_from_something_and_something_from_full() {
        let cases = [
            ((0, 0, 17), [0, 0]),
            ((1, 0, 4097), [1, 0]),
            ((0, 1, 4097), [0, 1]),
            ((1, 1, 4097), [0, 1]),
            ((2, 1, 17), [1, 1]),
            ((16, 0, 17), [9, 0]),
            ((17, 0, 17), [10, 0]),
            ((16, 1, 17), [9, 1]),
            ((1, 16, 17), [1, 9]),
            ((40, 9, 17), [5, 5]),
            ((1, 0, 0), [10, 0]),
        ];
        for ((waits, half_open, capacity), cells) in cases {
            assert_eq!(
                bar(waits, half_open, capacity, 10),
                cells,
                "{waits}+{half_open}/{capacity}"
            );
        }
    }
}
