//! What each operation takes, by shape: the median, and a line to the 99th percentile.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::{
    ChartBuilder, Circle, IntoDrawingArea as _, IntoLogRange as _, PathElement, RGBColor,
    SVGBackend, SeriesLabelPosition, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, IntoFont as _};

use crate::Findings;
use crate::field::Shape;
use crate::ink::{GRID, INK, legend};
use crate::operation::Operation;
use crate::report::milliseconds;

const SIZE: (u32, u32) = (900, 620);
// Told apart by people who do not see all colours (Okabe and Ito).
const COLOURS: [RGBColor; 4] = [
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
];

/// Draws them.
pub(crate) fn draw(findings: &Findings, path: &Path) -> Result<()> {
    // The errors of plotters name its backend's lifetime and so can't be returned.
    draw_dots(findings, path).map_err(|error| anyhow!("draw the picture: {error}"))
}

/// The median and the 99th percentile, in ms.
fn times(findings: &Findings, shape: Shape, operation: Operation) -> Option<[f64; 2]> {
    let own = findings.samples.iter();
    let own = own.filter(|it| it.shape == shape && it.operation == operation);
    let mut times: Vec<f64> = own.map(|it| milliseconds(it.time)).collect();
    times.sort_unstable_by(f64::total_cmp);
    let last = times.len().checked_sub(1)? as f64;
    Some([0.5, 0.99].map(|at| times[(at * last) as usize]))
}

fn draw_dots(findings: &Findings, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let rows = Operation::ALL.len() as f64;
    let longest = findings.samples.iter().map(|it| milliseconds(it.time)).fold(1_000.0, f64::max);
    let end = 10_f64.powf(longest.log10().ceil());
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "What a call takes, at services × members each",
            ("sans-serif", 19).into_font().color(&INK),
        )
        .margin(14)
        .x_label_area_size(48)
        // The names stand there.
        .y_label_area_size(310)
        .build_cartesian_2d((0.01..end).log_scale(), 0.0..rows)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("ms (dot: median; line: to the 99th percentile)")
        .x_label_formatter(&|x| format!("{x}"))
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .draw()?;
    for (n, (&shape, colour)) in findings.shapes.iter().zip(COLOURS).enumerate() {
        // Those of an operation stand one below the other.
        let height = |row: usize| rows - row as f64 - 0.2 * (n as f64 + 1.0);
        let each = Operation::ALL.into_iter().enumerate();
        let each = each.filter_map(|(row, it)| Some((height(row), times(findings, shape, it)?)));
        let each: Vec<(f64, [f64; 2])> = each.collect();
        let dots =
            each.iter().map(|&(y, [median, _])| Circle::new((median, y), 4, colour.filled()));
        chart
            .draw_series(dots)?
            .label(shape.to_string())
            .legend(move |(x, y)| Circle::new((x + 7, y), 4, colour.filled()));
        let lines = each.iter().map(|&(y, [median, most])| {
            PathElement::new([(median, y), (most, y)], colour.stroke_width(2))
        });
        chart.draw_series(lines)?;
    }
    for (row, operation) in Operation::ALL.into_iter().enumerate() {
        let (left, line) = chart.backend_coord(&(0.01, rows - row as f64 - 0.5));
        let style = ("sans-serif", 14).into_font().color(&INK);
        let style = style.pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(operation.name(), (left - 10, line), style))?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
    root.present()?;
    Ok(())
}
