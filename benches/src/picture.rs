//! The figures as a picture: a panel for each subject that was measured.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use overspill::Policy;
use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    Cartesian2d, Circle, DrawingArea, IntoDrawingArea as _, IntoLogRange as _, LineSeries,
    PathElement, RGBColor, Rectangle, SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, IntoFont as _, ShapeStyle};

use crate::contestant::{Contestant, Layout};
use crate::decision::{self, COST, REQUEST};
use crate::ink::{GRID, INK, legend};
use crate::peer::Peer;
use crate::plan::Plan;
use crate::sample::Samples;
use crate::statistics::{Spread, mean, quantile};
use crate::{capacity, hang, rate};

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Of a panel.
const SIZE: (u32, u32) = (600, 450);
// Told apart by people who do not see all colours (Okabe and Ito).
const GREY: RGBColor = RGBColor(0x99, 0x99, 0x99);
const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const RED: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const SKY: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const PURPLE: RGBColor = RGBColor(0x66, 0x33, 0x99);
const OLIVE: RGBColor = RGBColor(0xb8, 0xa9, 0x00);
const BROWN: RGBColor = RGBColor(0x8b, 0x45, 0x13);

fn colour(contestant: Contestant) -> RGBColor {
    match contestant {
        Contestant::ReusePort => RED,
        Contestant::Control | Contestant::Apart => ORANGE,
        Contestant::Shared => GREY,
        Contestant::Overspill(Policy::ShortestQueue) => BLUE,
        Contestant::Overspill(Policy::RoundRobin) => GREEN,
        Contestant::Overspill(Policy::LeastLoaded) => PURPLE,
        Contestant::Overspill(Policy::TwoChoices) => OLIVE,
        Contestant::Overspill(_) => SKY,
    }
}

/// Draws what was measured.
pub(crate) fn draw(plan: &Plan, samples: &Samples, path: &Path) -> Result<()> {
    let drawers: [(&str, Drawer); 4] = [
        (capacity::SUBJECT, draw_capacity),
        (hang::SUBJECT, draw_hang),
        (decision::SUBJECT, draw_decision),
        (rate::SUBJECT, draw_rate),
    ];
    let measured = drawers.into_iter().filter(|(subject, _)| !samples.cases(subject).is_empty());
    let drawers: Vec<Drawer> = measured.map(|(_, drawer)| drawer).collect();
    let columns = drawers.len().clamp(1, 2);
    let lines = drawers.len().div_ceil(columns).max(1);
    let size = (SIZE.0 * columns as u32, SIZE.1 * lines as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    for (drawer, panel) in drawers.into_iter().zip(&root.split_evenly((lines, columns))) {
        drawer(panel, plan, samples)?;
    }
    root.present().map_err(failed)
}

type Drawer = fn(&Panel<'_>, &Plan, &Samples) -> Result<()>;

// The errors of plotters name its backend's lifetime and so can't be returned.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw the picture: {error}")
}

/// Bars in groups, each with its name beneath.
struct Bars<'a> {
    title: &'a str,
    y: &'a str,
    groups: Vec<String>,
    /// Colour, name, and for each group the height with its lower and upper end.
    kinds: Vec<(RGBColor, String, Vec<[f64; 3]>)>,
    top: f64,
    digits: usize,
}

impl Bars<'_> {
    fn draw(&self, panel: &Panel<'_>) -> Result<()> {
        let mut chart = frame(panel, self.title, 0.0..self.groups.len() as f64, 0.0..self.top)?;
        let label = |x: &f64| {
            // The middle of a group.
            let at = (x - 0.5).round();
            if (x - 0.5 - at).abs() < 1e-6 && at >= 0.0 {
                self.groups.get(at as usize).cloned().unwrap_or_default()
            } else {
                String::new()
            }
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(2 * self.groups.len() + 1)
            .x_label_formatter(&label)
            .y_desc(self.y)
            .y_label_formatter(&|y| if *y > 100.0 { String::new() } else { format!("{y:.0}") })
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .label_style(("sans-serif", 14).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
            .draw()
            .map_err(failed)?;
        for (kind, (colour, name, heights)) in self.kinds.iter().enumerate() {
            self.draw_kind(&mut chart, kind, *colour, name, heights)?;
        }
        legend(&mut chart, SeriesLabelPosition::UpperRight)
    }

    fn draw_kind(
        &self,
        chart: &mut Chart<'_, '_>,
        kind: usize,
        colour: RGBColor,
        name: &str,
        heights: &[[f64; 3]],
    ) -> Result<()> {
        let width = 0.9 / self.kinds.len() as f64;
        let left = |group: usize| group as f64 + 0.05 + kind as f64 * width;
        let bars = heights.iter().enumerate().map(|(group, [height, ..])| {
            let corners = [(left(group), 0.0), (left(group) + 0.92 * width, *height)];
            Rectangle::new(corners, colour.filled())
        });
        chart
            .draw_series(bars)
            .map_err(failed)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
        let middle = |group| left(group) + 0.46 * width;
        let spreads = heights.iter().enumerate().map(|(group, [_, low, high])| {
            PathElement::new([(middle(group), *low), (middle(group), *high)], INK.stroke_width(1))
        });
        chart.draw_series(spreads).map_err(failed)?;
        let values = heights.iter().enumerate().map(|(group, [height, _, high])| {
            let text = format!("{height:.*}", self.digits);
            let at = (middle(group), high + 0.01 * self.top);
            let style = ("sans-serif", 12).into_font().color(&INK);
            Text::new(text, at, style.pos(Pos::new(HPos::Center, VPos::Bottom)))
        });
        chart.draw_series(values).map_err(failed)?;
        Ok(())
    }
}

fn frame<'a, 'b>(
    panel: &'a Panel<'b>,
    title: &str,
    x: Range<f64>,
    y: Range<f64>,
) -> Result<Chart<'a, 'b>> {
    ChartBuilder::on(panel)
        .caption(title, ("sans-serif", 19).into_font().color(&INK))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(failed)
}

fn draw_capacity(panel: &Panel<'_>, _: &Plan, samples: &Samples) -> Result<()> {
    let used = |contestant, layout| -> Vec<[f64; 3]> {
        capacity::SIZES
            .into_iter()
            .map(|members| {
                let case = capacity::case(contestant, layout, members);
                let used: Vec<f64> =
                    samples.of(case, capacity::USED).into_iter().map(|used| 100.0 * used).collect();
                let end = |at| quantile(&used, at).unwrap_or(f64::NAN);
                [mean(&used), end(0.0), end(1.0)]
            })
            .collect()
    };
    let kind = |contestant: Contestant, layout, name: &str| {
        (colour(contestant), name.to_owned(), used(contestant, layout))
    };
    let ours = Contestant::Overspill(Policy::ShortestQueue);
    Bars {
        title: "Capacity used when the first request is dropped",
        y: "% of all queues (mean; line: least to most)",
        groups: capacity::SIZES.map(|n| format!("{n} members")).to_vec(),
        kinds: vec![
            kind(Contestant::ReusePort, Layout::One, "SO_REUSEPORT"),
            kind(Contestant::Apart, Layout::Own, "plain sockets, own addresses"),
            kind(ours, Layout::Mixed, "overspill, mixed addresses"),
        ],
        top: 150.0,
        digits: 0,
    }
    .draw(panel)
}

fn draw_hang(panel: &Panel<'_>, plan: &Plan, samples: &Samples) -> Result<()> {
    let measured = |contestant: &Contestant| {
        let case = |&backlog: &u32| hang::case(*contestant, backlog);
        plan.hang_backlogs.iter().map(case).any(|case| !samples.of(case, hang::SHARE).is_empty())
    };
    let kinds = hang::contestants()
        .into_iter()
        .filter(measured)
        .map(|contestant| {
            let shares = plan.hang_backlogs.iter().map(|&backlog| {
                let shares: Vec<f64> = samples
                    .of(hang::case(contestant, backlog), hang::SHARE)
                    .into_iter()
                    .map(|share| 100.0 * share)
                    .collect();
                let at = |at| quantile(&shares, at).unwrap_or(f64::NAN);
                [at(0.5), at(0.0), at(1.0)]
            });
            (colour(contestant), contestant.name().to_owned(), shares.collect())
        })
        .collect();
    Bars {
        title: "New clients stuck while 1 of 4 workers hangs",
        y: "% without an answer after 1 s (median)",
        groups: plan.hang_backlogs.iter().map(|n| format!("backlog {n}")).collect(),
        kinds,
        top: 45.0,
        digits: 1,
    }
    .draw(panel)
}

fn draw_decision(panel: &Panel<'_>, plan: &Plan, samples: &Samples) -> Result<()> {
    let sizes = plan.decision_sizes;
    let last = f64::from(*sizes.last().expect("a plan has sizes"));
    let line = |name, state| -> Vec<(f64, f64)> {
        let point = |&members: &u32| {
            let case = decision::case(name, members, Layout::One, state, REQUEST);
            Some((f64::from(members), quantile(&samples.of(case, COST), 0.5)?))
        };
        sizes.iter().filter_map(point).collect()
    };
    let lines = [
        (BLUE, "shortest-queue, all equally loaded", line(Policy::ShortestQueue.name(), "even")),
        (SKY, "shortest-queue, all empty", line(Policy::ShortestQueue.name(), "empty")),
        (ORANGE, "next-available, called member full", line(Policy::NextAvailable.name(), "full")),
        (GREEN, "next-available, all empty", line(Policy::NextAvailable.name(), "empty")),
        (PURPLE, "least-loaded, all equally loaded", line(Policy::LeastLoaded.name(), "even")),
        (OLIVE, "two-choices, all equally loaded", line(Policy::TwoChoices.name(), "even")),
        (BROWN, "dispatcher, all equally loaded", line(Policy::Dispatcher.name(), "even")),
        (RED, Peer::TwoLookups.name(), line(Peer::TwoLookups.name(), "empty")),
        (GREY, Peer::Nothing.name(), line(Peer::Nothing.name(), "empty")),
    ];
    let highest = lines.iter().flat_map(|(.., points)| points).map(|point| point.1);
    let top = 10_f64.powf(highest.fold(1.0, f64::max).log10().ceil());
    let mut chart = ChartBuilder::on(panel)
        .caption(
            "Cost of a decision, members at one address",
            ("sans-serif", 19).into_font().color(&INK),
        )
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((1.0..last).log_scale().base(4.0), (10.0..top).log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("members")
        .y_desc("ns a request, by run-time statistics (median)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .draw()
        .map_err(failed)?;
    for (colour, name, points) in lines.into_iter().filter(|(.., points)| !points.is_empty()) {
        let style: ShapeStyle = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))
            .map_err(failed)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style));
        let dots = points.into_iter().map(|point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots).map_err(failed)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

fn draw_rate(panel: &Panel<'_>, _: &Plan, samples: &Samples) -> Result<()> {
    let base = rate::case(Contestant::ReusePort);
    let rows: Vec<(Contestant, Spread)> = rate::contestants()
        .into_iter()
        .filter(|&contestant| contestant != Contestant::ReusePort)
        .filter_map(|contestant| {
            let ratios = samples.ratios(rate::case(contestant), base, rate::RATE);
            Some((contestant, Spread::of(&ratios)?))
        })
        .collect();
    let reach = rows.iter().flat_map(|(_, s)| [1.0 - s.low, s.high - 1.0]).fold(0.02, f64::max);
    let (low, high) = (1.0 - 1.2 * reach, 1.0 + 1.2 * reach);
    let mut chart = ChartBuilder::on(panel)
        .caption(
            "Connections a second (median, 95 % interval)",
            ("sans-serif", 19).into_font().color(&INK),
        )
        .margin(14)
        .x_label_area_size(44)
        // The names and figures stand there.
        .y_label_area_size(262)
        .build_cartesian_2d(low..high, 0.0..rows.len() as f64)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("times SO_REUSEPORT (lines: 0.99 and 1)")
        .x_label_formatter(&|x| format!("{x:.1}"))
        .x_labels(5)
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .draw()
        .map_err(failed)?;
    for (x, style) in [(1.0, INK.stroke_width(1)), (0.99, RED.stroke_width(1))] {
        let line = PathElement::new([(x, 0.0), (x, rows.len() as f64)], style);
        chart.draw_series([line]).map_err(failed)?;
    }
    for (n, (contestant, spread)) in rows.iter().enumerate() {
        let y = rows.len() as f64 - n as f64 - 0.5;
        let colour = colour(*contestant);
        let interval = [(spread.low, y), (spread.high, y)];
        chart.draw_series([PathElement::new(interval, colour.stroke_width(3))]).map_err(failed)?;
        chart.draw_series([Circle::new((spread.median, y), 5, colour.filled())]).map_err(failed)?;
        let (left, line) = chart.backend_coord(&(low, y));
        let (panel_left, panel_top) = panel.get_base_pixel();
        let at = (left - panel_left - 8, line - panel_top);
        let text = format!("{}: {:.3}", contestant.name(), spread);
        let style = ("sans-serif", 12).into_font().color(&INK);
        let style = style.pos(Pos::new(HPos::Right, VPos::Center));
        panel.draw(&Text::new(text, at, style)).map_err(failed)?;
    }
    Ok(())
}
