//! A figure with its spread.

use std::fmt;

/// How many resamples the interval is taken from.
const RESAMPLES: usize = 2_000;

/// The median and its 95 % bootstrap interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// `None` without values. The interval is the same for the same values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut random = fastrand::Rng::with_seed(1);
        let median = quantile(values, 0.5)?;
        let medians: Vec<f64> = (0..RESAMPLES)
            .filter_map(|_| {
                let resample: Vec<f64> =
                    values.iter().map(|_| values[random.usize(..values.len())]).collect();
                quantile(&resample, 0.5)
            })
            .collect();
        Some(Self { median, low: quantile(&medians, 0.025)?, high: quantile(&medians, 0.975)? })
    }
}

impl fmt::Display for Spread {
    /// `median (low .. high)`, with the precision given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        let Self { median, low, high } = self;
        write!(f, "{median:.digits$} ({low:.digits$} .. {high:.digits$})")
    }
}

/// Between the two values that enclose the quantile, in proportion.
pub(crate) fn quantile(values: &[f64], at: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = at * sorted.len().checked_sub(1)? as f64;
    let (below, share) = (place.floor(), place.fract());
    let low = sorted[below as usize];
    let high = sorted[place.ceil() as usize];
    Some(low + (high - low) * share)
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 0.5), Some(2.5));
        assert_eq!(quantile(&values, 1.0), Some(4.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn the_interval_holds_the_median() {
        let values: Vec<f64> = (0..50).map(f64::from).collect();
        let spread = Spread::of(&values).unwrap();
        assert!(spread.low < spread.median && spread.median < spread.high, "{spread:?}");
        assert!(spread.low > 10.0 && spread.high < 40.0, "{spread:?}");
    }
}
