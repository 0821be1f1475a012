//! Figures from samples.

use serde::Serialize;

/// As in the report of `cargo xtask bench`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    id: String,
    what: String,
    value: f64,
    unit: &'static str,
    min: f64,
    max: f64,
    bar: Option<f64>,
    met: Option<bool>,
}

impl Row {
    /// The median of samples, and how far they were apart.
    pub(crate) fn new(id: impl Into<String>, what: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let edge = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Self {
            id: id.into(),
            what: what.into(),
            value: median(samples),
            unit,
            min: edge(sorted.first()),
            max: edge(sorted.last()),
            bar: None,
            met: None,
        }
    }

    /// The extremes, where the samples are not the rounds.
    pub(crate) const fn spread(&mut self, min: f64, max: f64) {
        (self.min, self.max) = (min, max);
    }

    pub(crate) fn at_most(mut self, bar: f64) -> Self {
        (self.bar, self.met) = (Some(bar), Some(self.value <= bar));
        self
    }

    pub(crate) fn at_least(mut self, bar: f64) -> Self {
        (self.bar, self.met) = (Some(bar), Some(self.value >= bar));
        self
    }
}

/// The middle one; of an even number the mean of both.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.as_slice() {
        [] => f64::NAN,
        sorted if sorted.len() % 2 == 1 => sorted[middle],
        sorted => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}
