//! The report as an SVG picture for a page with a light background.

use std::fmt::Write as _;

use super::report::{Line, Part, Scene};
use super::terminal::wrap;

const WIDTH: usize = 920;
const MARGIN: usize = 24;
/// Where each act's column begins, and how wide its bars get.
const COLUMNS: [usize; 2] = [190, 540];
const BAR: usize = 240;
const ROW: usize = 26;

/// A picture that grows downwards.
struct Picture {
    body: String,
    y: usize,
}

/// Draws the scenes, one below the other, and the conclusion.
pub(super) fn draw(scenes: &[Scene], introduction: &str, conclusion: &str) -> String {
    let mut picture = Picture { body: String::new(), y: MARGIN };
    picture.paragraph(introduction, "note");
    for scene in scenes {
        picture.scene(scene);
    }
    picture.legend();
    picture.paragraph(conclusion, "end");
    let height = picture.y + MARGIN / 2;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">
<style>
text {{ font: 14px system-ui, "DejaVu Sans", sans-serif; fill: #1f2328; }}
.title {{ font-weight: 600; font-size: 16px; }}
.end {{ font-weight: 600; }}
.note {{ fill: #59636e; font-size: 13px; }}
</style>
<rect width="100%" height="100%" fill="#ffffff"/>
{body}</svg>
"##,
        label = escape(conclusion),
        body = picture.body,
    )
}

impl Picture {
    fn scene(&mut self, scene: &Scene) {
        self.y += ROW / 2;
        self.row();
        self.text(MARGIN, "title", &scene.title);
        self.row();
        self.text(COLUMNS[0], "note", "without overspill");
        self.text(COLUMNS[1], "note", &format!("with overspill, {}", scene.policy.name()));
        let scale = scene.scale();
        for line in scene.lines() {
            self.line(&line, scale);
        }
        self.y += ROW / 2;
        for measure in scene.measures() {
            self.y += ROW * 3 / 4;
            self.text(MARGIN, "note", &measure.label);
            for (column, value) in COLUMNS.into_iter().zip(&measure.values) {
                self.text(column, "note", value);
            }
        }
    }

    fn line(&mut self, line: &Line, scale: usize) {
        self.row();
        self.text(MARGIN, "label", &line.label);
        for (column, (part, value)) in COLUMNS.into_iter().zip(line.bars) {
            let width = if value == 0 { 0 } else { (value * BAR / scale).max(1) };
            self.bar(column, width, part);
            self.text(column + width + 6, "label", &value.to_string());
        }
    }

    fn legend(&mut self) {
        self.row();
        self.row();
        let mut x = MARGIN;
        for part in Part::ALL {
            self.bar(x, 16, part);
            self.text(x + 22, "note", part.meaning());
            x += 230;
        }
        self.y += ROW / 2;
    }

    fn paragraph(&mut self, text: &str, class: &str) {
        for line in wrap(text, 112) {
            self.y += ROW * 3 / 4;
            self.text(MARGIN, class, &line);
        }
    }

    fn row(&mut self) {
        self.y += ROW;
    }

    fn bar(&mut self, x: usize, width: usize, part: Part) {
        let colour = match part {
            Part::Called => "#2da44e",
            Part::Redirected => "#0969da",
            Part::Failed => "#cf222e",
        };
        let y = self.y - 13;
        self.push(format_args!(
            r#"<rect x="{x}" y="{y}" width="{width}" height="16" rx="2" fill="{colour}"/>"#
        ));
    }

    fn text(&mut self, x: usize, class: &str, text: &str) {
        let (y, text) = (self.y, escape(text));
        self.push(format_args!(r#"<text x="{x}" y="{y}" class="{class}">{text}</text>"#));
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.body, "{element}").expect("a String takes everything");
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::demo::report::tests::scene;

    #[test]
    fn each_bar_has_the_length_of_its_value() {
        let svg = draw(&[scene()], "before", "after");
        let bar = |width: usize, colour: &str| {
            format!(r#"width="{width}" height="16" rx="2" fill="{colour}""#)
        };
        assert!(svg.contains(&bar(BAR, "#cf222e")), "{svg}");
        assert!(svg.contains(&bar(BAR, "#0969da")), "{svg}");
        assert!(svg.contains(">1000</text>"), "{svg}");
    }

    #[test]
    fn text_is_escaped() {
        let svg = draw(&[], "", r#"a < b & "c""#);
        assert!(svg.contains(">a &lt; b &amp; &quot;c&quot;</text>"), "{svg}");
    }
}
