//! The report as an SVG picture: a row for each scene, on the left without overspill, on the
//! right with it. Where clients go is a band, as wide as they are many; what it comes to is a
//! queue, full or empty.

use std::fmt::Write as _;

use super::report::{Act, MemberRow, Part, Scene};
use super::scene::BACKLOG;
use crate::output::wrap;

const WIDTH: usize = 920;
const MARGIN: usize = 24;
/// The two panels of a row: where they begin, and how wide they are.
const PANELS: [usize; 2] = [MARGIN, 480];
const PANEL: usize = 416;
/// A queue, and the width of the band of all clients: it just fits in.
const QUEUE: usize = 72;
const SLOT: usize = 6;
const PLACES: usize = BACKLOG as usize + 1;
/// From the top of a panel: its parts.
const CLIENTS: usize = 24;
const BANDS: usize = 46;
const QUEUES: usize = 122;
const NAMES: usize = QUEUES + PLACES * SLOT + 24;
const COUNTS: usize = NAMES + 21;
const OUTCOME: usize = COUNTS + 32;

/// A picture that grows downwards.
struct Picture {
    body: String,
    y: usize,
}

/// Draws the scenes, one below the other. `conclusion` is for those who can't see them.
pub(super) fn draw(scenes: &[Scene], introduction: &str, conclusion: &str) -> String {
    let mut picture = Picture { body: String::new(), y: MARGIN };
    for scene in scenes {
        picture.scene(scene);
    }
    picture.legend();
    for line in wrap(introduction, 140) {
        picture.y += 17;
        picture.text(MARGIN, picture.y, "note", &line);
    }
    let height = picture.y + MARGIN;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">
<style>
.paper {{ fill: #ffffff; stroke: #d1d9e0; }}
text {{ font: 14px system-ui, "DejaVu Sans", sans-serif; fill: #1f2328; }}
.title {{ font-weight: 600; font-size: 16px; }}
.note, .none {{ fill: #59636e; }}
.note {{ font-size: 12px; }}
.name, .count, .clients {{ text-anchor: middle; }}
.count {{ font-weight: 600; }}
.outcome {{ font-weight: 600; font-size: 16px; text-anchor: middle; }}
.called {{ fill: #2da44e; }}
.redirected {{ fill: #0969da; }}
.failed {{ fill: #cf222e; }}
.band {{ opacity: 0.45; }}
.place {{ fill: none; stroke: #afb8c1; }}
.taken {{ fill: #59636e; stroke: #59636e; }}
.way {{ fill: none; stroke: #59636e; stroke-dasharray: 3 4; }}
.cross {{ fill: none; stroke: #cf222e; stroke-width: 4; }}
@media (prefers-color-scheme: dark) {{
.paper {{ fill: #0d1117; stroke: #3d444d; }}
text {{ fill: #f0f6fc; }}
.note, .none {{ fill: #9198a1; }}
.called {{ fill: #3fb950; }}
.redirected {{ fill: #4493f8; }}
.failed {{ fill: #f85149; }}
.place {{ stroke: #656c76; }}
.taken {{ fill: #9198a1; stroke: #9198a1; }}
.way {{ stroke: #9198a1; }}
.cross {{ stroke: #f85149; }}
}}
</style>
<rect class="paper" x="0.5" y="0.5" width="{}" height="{}" rx="6"/>
{body}</svg>
"#,
        WIDTH - 1,
        height - 1,
        label = escape(conclusion),
        body = picture.body,
    )
}

/// What comes to a member in one of the acts.
struct Flow {
    part: Part,
    clients: usize,
}

impl Flow {
    /// Clients without an answer are at the member that hangs: no other keeps anybody waiting.
    fn to(member: &MemberRow, act: usize, failed: usize) -> Self {
        let part = match act {
            _ if member.hung && failed > 0 => Part::Failed,
            1 if !member.called => Part::Redirected,
            _ => Part::Called,
        };
        let clients = if part == Part::Failed { failed } else { member.answered[act] };
        Self { part, clients }
    }
}

impl Picture {
    fn scene(&mut self, scene: &Scene) {
        self.y += 14;
        self.text(MARGIN, self.y, "title", &scene.title);
        self.y += 18;
        for (act, panel) in PANELS.into_iter().enumerate() {
            self.panel(scene, act, panel);
        }
        self.y += OUTCOME + 34;
    }

    fn panel(&mut self, scene: &Scene, act: usize, left: usize) {
        let acted = scene.acts()[act];
        let middle = left + PANEL / 2;
        let name = ["Linux".to_owned(), format!("Linux with overspill, {}", scene.policy.name())];
        let clients = format!("{}: {} clients", name[act], acted.summary.clients);
        self.text(middle, self.y + CLIENTS, "clients", &clients);
        let all = acted.summary.clients.max(1);
        let wide = |clients: usize| {
            if clients == 0 { 0 } else { (clients * QUEUE / all).max(1) }
        };
        let column = PANEL / scene.members.len().max(1);
        let mut from = middle - QUEUE / 2;
        for (number, member) in scene.members.iter().enumerate() {
            let to = left + column * number + column / 2;
            let flow = Flow::to(member, act, acted.summary.failed);
            let width = wide(flow.clients);
            match width {
                0 if member.called => self.way(middle, to),
                0 => {}
                _ => self.band(from, to, width, flow.part),
            }
            from += width;
            self.member(member, to, &flow);
        }
        self.outcome(middle, acted);
    }

    /// From the clients, whose `from` is on its left, to the middle of a queue.
    fn band(&mut self, from: usize, to: usize, width: usize, part: Part) {
        let (top, bottom) = (self.y + BANDS - 14, self.y + QUEUES);
        let half = usize::midpoint(top, bottom);
        let (right, near) = (from + width, to - width / 2);
        let far = near + width;
        let class = class(part);
        self.push(format_args!(
            r#"<path class="band {class}" d="M{from} {top}C{from} {half} {near} {half} {near} {bottom}H{far}C{far} {half} {right} {half} {right} {top}Z"/>"#
        ));
    }

    /// Whom clients call that go elsewhere.
    fn way(&mut self, from: usize, to: usize) {
        let (top, bottom) = (self.y + BANDS - 14, self.y + QUEUES - 4);
        let half = usize::midpoint(top, bottom);
        self.push(format_args!(
            r#"<path class="way" d="M{from} {top}C{from} {half} {to} {half} {to} {bottom}"/>"#
        ));
    }

    fn member(&mut self, member: &MemberRow, middle: usize, flow: &Flow) {
        let left = middle - QUEUE / 2;
        let class_of_place = if member.hung { "place taken" } else { "place" };
        for place in 0..PLACES {
            let y = self.y + QUEUES + place * SLOT;
            self.push(format_args!(
                r#"<rect class="{class_of_place}" x="{left}" y="{y}" width="{QUEUE}" height="{}"/>"#,
                SLOT - 2
            ));
        }
        if flow.part == Part::Failed {
            self.cross(middle);
        }
        let name = if member.hung { format!("{} hangs", member.name) } else { member.name.clone() };
        self.text(middle, self.y + NAMES, "name", &name);
        let class = if flow.clients == 0 { "none" } else { class(flow.part) };
        let class = format!("count {class}");
        self.text(middle, self.y + COUNTS, &class, &flow.clients.to_string());
    }

    /// Here they end.
    fn cross(&mut self, middle: usize) {
        let (top, bottom) = (self.y + QUEUES - 20, self.y + QUEUES - 4);
        let (left, right) = (middle - 8, middle + 8);
        self.push(format_args!(
            r#"<path class="cross" d="M{left} {top}L{right} {bottom}M{right} {top}L{left} {bottom}"/>"#
        ));
    }

    fn outcome(&mut self, middle: usize, act: &Act) {
        let (part, text) = act.outcome();
        let class = format!("outcome {}", class(part));
        self.text(middle, self.y + OUTCOME, &class, &text);
    }

    fn legend(&mut self) {
        let mut x = MARGIN;
        for part in Part::ALL {
            let (y, class) = (self.y - 10, class(part));
            self.push(format_args!(
                r#"<rect class="band {class}" x="{x}" y="{y}" width="14" height="12"/>"#
            ));
            self.text(x + 20, self.y, "note", part.meaning());
            x += 200;
        }
        let y = self.y - 9;
        self.push(format_args!(
            r#"<rect class="place taken" x="{x}" y="{y}" width="14" height="4"/>"#
        ));
        self.text(x + 20, self.y, "note", "a connection that waits in its queue");
        self.y += 8;
    }

    fn text(&mut self, x: usize, y: usize, class: &str, text: &str) {
        let text = escape(text);
        self.push(format_args!(r#"<text x="{x}" y="{y}" class="{class}">{text}</text>"#));
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.body, "{element}").expect("a String takes everything");
    }
}

fn class(part: Part) -> &'static str {
    match part {
        Part::Called => "called",
        Part::Redirected => "redirected",
        Part::Failed => "failed",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::demo::report::tests::scene;

    /// The width that a band has where it comes to a queue.
    fn widths(svg: &str, part: &str) -> Vec<usize> {
        let bands = svg.lines().filter(|line| line.contains(&format!(r#""band {part}" d="#)));
        let width = |line: &str| {
            let (start, end) = line.split_once('H').unwrap();
            let start = start.split([' ', 'C']).nth_back(1).unwrap();
            let end = end.split('C').next().unwrap();
            end.parse::<usize>().unwrap() - start.parse::<usize>().unwrap()
        };
        bands.map(width).collect()
    }

    #[test]
    fn each_band_is_as_wide_as_its_clients_are_many() {
        // All call one that hangs; with overspill all are answered by its sibling.
        let svg = draw(&[scene()], "before", "after");
        assert_eq!(widths(&svg, "failed"), [QUEUE], "{svg}");
        assert_eq!(widths(&svg, "redirected"), [QUEUE], "{svg}");
        assert!(widths(&svg, "called").is_empty(), "{svg}");
        assert_eq!(svg.matches(r#"class="way""#).count(), 1, "{svg}");
        assert_eq!(svg.matches(r#"class="cross""#).count(), 1, "{svg}");
    }

    #[test]
    fn text_is_escaped() {
        let svg = draw(&[], "", r#"a < b & "c""#);
        assert!(svg.contains(r#"aria-label="a &lt; b &amp; &quot;c&quot;""#), "{svg}");
    }
}
