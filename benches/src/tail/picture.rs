//! The 99th percentiles as a picture: a panel for each traffic, and one that tells who is who.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::combinators::LogCoord;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    Cartesian2d, Circle, DrawingArea, IntoDrawingArea as _, IntoLogRange as _, PathElement,
    RGBColor, SVGBackend, Text, WHITE,
};
use plotters::style::{Color as _, IntoFont as _};

use crate::entrant::Entrant;
use crate::ink::{GRID, INK};
use crate::measure::{P99, Plan, case};
use crate::sample::Samples;
use crate::statistics::Spread;
use crate::traffic::Traffic;

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, LogCoord<f64>>>;

/// Of a panel. They stand in two rows.
const PANEL: (u32, u32) = (440, 430);
// Told apart by people who do not see all colours (Okabe and Ito).
const OTHERS: [RGBColor; 4] = [
    RGBColor(0x99, 0x99, 0x99),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0xcc, 0x79, 0xa7),
];
const OURS: [RGBColor; 6] = [
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0x66, 0x33, 0x99),
    RGBColor(0xb8, 0xa9, 0x00),
    RGBColor(0x8b, 0x45, 0x13),
];
const WATCHED: [RGBColor; 2] = [RGBColor(0x00, 0x00, 0x00), RGBColor(0x66, 0x66, 0x66)];

/// How a contestant is drawn: ours as full dots, the others as rings.
#[derive(Clone, Copy)]
struct Look {
    colour: RGBColor,
    full: bool,
}

/// The contestants in their order, each with its look.
fn looks() -> Vec<(Entrant, Look)> {
    let (mut others, mut ours) = (OTHERS.iter().cycle(), OURS.iter().cycle());
    let mut watched = WATCHED.iter().cycle();
    let look = |entrant: Entrant| {
        let colour = match entrant {
            Entrant::Overspill(_) => ours.next(),
            Entrant::Run(_) => watched.next(),
            _ => others.next(),
        };
        let colour = *colour.expect("a circle has no end");
        (entrant, Look { colour, full: !entrant.is_other() })
    };
    Entrant::all().into_iter().map(look).collect()
}

/// Draws what was measured.
pub(crate) fn draw(plan: &Plan, samples: &Samples, path: &Path) -> Result<()> {
    // One more tells who is who.
    let columns = (plan.traffics.len() + 1).div_ceil(2);
    let size = (PANEL.0 * columns as u32, PANEL.1 * 2);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let panels = root.split_evenly((2, columns));
    for (&traffic, panel) in plan.traffics.iter().zip(&panels) {
        draw_traffic(panel, plan, samples, traffic)?;
    }
    draw_legend(&panels[plan.traffics.len()])?;
    root.present().map_err(failed)
}

// The errors of plotters name its backend's lifetime and so can't be returned.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw the picture: {error}")
}

fn draw_traffic(panel: &Panel<'_>, plan: &Plan, samples: &Samples, traffic: Traffic) -> Result<()> {
    let groups = plan.loads;
    let mut chart = ChartBuilder::on(panel)
        .caption(traffic.name(), ("sans-serif", 19).into_font().color(&INK))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..groups.len() as f64, (0.5..2_000.0).log_scale())
        .map_err(failed)?;
    let label = |x: &f64| {
        // The middle of a group.
        let group = (x - 0.5).round();
        let middle = (x - 0.5 - group).abs() < 1e-6 && group >= 0.0;
        let load = middle.then(|| groups.get(group as usize)).flatten();
        load.map_or_else(String::new, |load| load.name.to_owned())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * groups.len() + 1)
        .x_label_formatter(&label)
        .x_desc("load")
        .y_desc("p99 (ms; median, 95 % interval)")
        .y_label_formatter(&|y| format!("{y}"))
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .draw()
        .map_err(failed)?;
    let looks = looks();
    for (group, &load) in groups.iter().enumerate() {
        for (n, &(entrant, look)) in looks.iter().enumerate() {
            let x = group as f64 + 0.06 + 0.88 * (n as f64 + 0.5) / looks.len() as f64;
            let waits = samples.of(case(entrant, traffic, load), P99);
            if let Some(spread) = Spread::of(&waits) {
                draw_spread(&mut chart, x, spread, look)?;
            }
        }
    }
    Ok(())
}

fn draw_spread(chart: &mut Chart<'_, '_>, x: f64, spread: Spread, look: Look) -> Result<()> {
    let line = [(x, spread.low), (x, spread.high)];
    chart.draw_series([PathElement::new(line, look.colour.stroke_width(2))]).map_err(failed)?;
    let at = (x, spread.median);
    // A ring shows no line through it.
    chart.draw_series([Circle::new(at, 5, WHITE.filled())]).map_err(failed)?;
    let style = if look.full { look.colour.filled() } else { look.colour.stroke_width(2) };
    chart.draw_series([Circle::new(at, 5, style)]).map_err(failed)?;
    Ok(())
}

fn draw_legend(panel: &Panel<'_>) -> Result<()> {
    let font = |size| ("sans-serif", size).into_font().color(&INK);
    let title = "99th percentile of waits";
    panel.draw(&Text::new(title, (60, 40), font(19))).map_err(failed)?;
    let note = "full dots: overspill; rings: the others; in this order";
    panel.draw(&Text::new(note, (60, 68), font(14))).map_err(failed)?;
    for ((entrant, look), y) in looks().into_iter().zip((104..).step_by(25)) {
        let style = if look.full { look.colour.filled() } else { look.colour.stroke_width(2) };
        panel.draw(&Circle::new((68, y), 6, style)).map_err(failed)?;
        panel.draw(&Text::new(entrant.name(), (86, y - 8), font(16))).map_err(failed)?;
    }
    Ok(())
}
