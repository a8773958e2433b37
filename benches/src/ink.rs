//! What all pictures of the benchmarks have in common.

use anyhow::{Result, anyhow};
use plotters::chart::{ChartContext, SeriesLabelPosition};
use plotters::coord::CoordTranslate;
use plotters::prelude::SVGBackend;
use plotters::style::{Color as _, IntoFont as _, RGBColor, WHITE};

/// Of texts.
pub(crate) const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
/// Of what helps the eye.
pub(crate) const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

/// Draws the legend of a chart.
pub(crate) fn legend<'a, 'b: 'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, C>,
    position: SeriesLabelPosition,
) -> Result<()> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .label_font(("sans-serif", 13).into_font().color(&INK))
        .draw()
        .map_err(|error| anyhow!("draw the legend: {error}"))
}
