//! The clients lost in each case, as bars.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::{
    ChartBuilder, IntoDrawingArea as _, RGBColor, Rectangle, SVGBackend, SeriesLabelPosition, Text,
    WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, IntoFont as _};
use trial::Trouble;

use crate::ink::{GRID, INK, legend};

/// What one trial came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Losses {
    pub(crate) trouble: Trouble,
    pub(crate) redirect: bool,
    /// Of how many clients how many were lost.
    pub(crate) clients: usize,
    pub(crate) lost: usize,
}

// Told apart by people who do not see all colours (Okabe and Ito).
const RED: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);

/// Draws them.
pub(crate) fn draw(rows: &[Losses], path: &Path) -> Result<()> {
    // The errors of plotters name its backend's lifetime and so can't be returned.
    draw_bars(rows, path).map_err(|error| anyhow!("draw the picture: {error}"))
}

fn draw_bars(rows: &[Losses], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let share = |row: &Losses| 100.0 * row.lost as f64 / row.clients.max(1) as f64;
    let top = 1.25 * rows.iter().map(share).fold(1.0, f64::max);
    let groups = Trouble::ALL.map(Trouble::name);
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "Clients lost before a worker had accepted them",
            ("sans-serif", 19).into_font().color(&INK),
        )
        .margin(14)
        .x_label_area_size(48)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..groups.len() as f64, 0.0..top)?;
    let label = |x: &f64| {
        // The middle of a group.
        let group = (x - 0.5).round();
        let middle = (x - 0.5 - group).abs() < 1e-6 && group >= 0.0;
        let name = middle.then(|| groups.get(group as usize)).flatten();
        name.map_or_else(String::new, |name| (*name).to_owned())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * groups.len() + 1)
        .x_label_formatter(&label)
        .x_desc("what happens to the workers meanwhile")
        .y_desc("% of all clients (above the bars: how many)")
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .draw()?;
    for (redirect, name, colour) in
        [(false, "SO_REUSEPORT, no service", RED), (true, "with overspill", BLUE)]
    {
        let own = rows.iter().filter(|row| row.redirect == redirect);
        let left = |row: &Losses| {
            let group = Trouble::ALL.iter().position(|&it| it == row.trouble).unwrap_or_default();
            group as f64 + if redirect { 0.52 } else { 0.08 }
        };
        let bars = own.clone().map(|row| {
            Rectangle::new([(left(row), 0.0), (left(row) + 0.4, share(row))], colour.filled())
        });
        chart
            .draw_series(bars)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
        let values = own.map(|row| {
            let at = (left(row) + 0.2, share(row) + 0.012 * top);
            let style = ("sans-serif", 13).into_font().color(&INK);
            Text::new(row.lost.to_string(), at, style.pos(Pos::new(HPos::Center, VPos::Bottom)))
        });
        chart.draw_series(values)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperMiddle)?;
    root.present()?;
    Ok(())
}
