//! Histograms on the way of every token: the crate's own take a lock for each observation.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric, exemplar::HistogramWithExemplars},
};

/// Upper ends, in seconds.
const ANSWERED: [f64; 12] = [0.000_1, 0.000_25, 0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Durations by size: two additions for each.
#[derive(Clone, Debug)]
pub(super) struct Buckets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ends: &'static [f64],
    /// One more than there are ends, for what is longer than all of them.
    counts: Box<[AtomicU64]>,
    nanoseconds: AtomicU64,
}

impl Buckets {
    pub(super) fn new(ends: &'static [f64]) -> Self {
        let counts = (0..=ends.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { ends, counts, nanoseconds: AtomicU64::new(0) }))
    }

    pub(super) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.0.ends.iter().position(|end| seconds <= *end).unwrap_or(self.0.ends.len());
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl EncodeMetric for Buckets {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let ends = self.0.ends.iter().copied().chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = ends.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Buckets {
    const TYPE: MetricType = MetricType::Histogram;
}

/// By what a request for a token was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnsweredBy<'a> {
    /// A token that was at hand.
    Cache,
    /// A token that was got for it.
    Upstream {
        /// Entra's or the request's own, for the exemplar.
        correlation: Option<&'a str>,
        /// When.
        at: SystemTime,
    },
    /// An error, with its HTTP status.
    Error(u16),
}

impl AnsweredBy<'_> {
    pub(super) const fn status(self) -> u16 {
        match self {
            Self::Cache | Self::Upstream { .. } => 200,
            Self::Error(status) => status,
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AnswerLabel {
    answer: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Correlation {
    correlation_id: String,
}

/// How long requests for tokens took. What came from upstream has the correlation id as an exemplar; it took milliseconds, so
/// that a lock is no matter.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    cache: Buckets,
    error: Buckets,
    upstream: HistogramWithExemplars<Correlation>,
}

impl Default for Answers {
    fn default() -> Self {
        let buckets = || Buckets::new(&ANSWERED);
        let upstream = HistogramWithExemplars::new(ANSWERED.into_iter());
        Self { cache: buckets(), error: buckets(), upstream }
    }
}

impl Answers {
    pub(super) fn observe(&self, by: AnsweredBy<'_>, took: Duration) {
        match by {
            AnsweredBy::Cache => self.cache.observe(took),
            AnsweredBy::Error(_) => self.error.observe(took),
            AnsweredBy::Upstream { correlation, at } => {
                // A label set of an exemplar may have 128 characters (OpenMetrics 1.0).
                let correlation = correlation.filter(|id| id.len() <= 64);
                let label = correlation.map(|id| Correlation { correlation_id: id.to_owned() });
                self.upstream.observe(took.as_secs_f64(), label, Some(at));
            }
        }
    }
}

impl EncodeMetric for Answers {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let each: [(_, &dyn EncodeMetric); 3] =
            [("cache", &self.cache), ("upstream", &self.upstream), ("error", &self.error)];
        for (answer, histogram) in each {
            histogram.encode(encoder.encode_family(&AnswerLabel { answer })?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn observations_are_in_their_buckets_and_upstream_has_exemplars() {
        let answers = Answers::default();
        let mut registry = Registry::default();
        registry.register("took", "Time", answers.clone());
        answers.observe(AnsweredBy::Cache, Duration::from_micros(100));
        answers.observe(AnsweredBy::Cache, Duration::from_micros(101));
        answers.observe(AnsweredBy::Error(503), Duration::from_secs(11));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
        answers.observe(AnsweredBy::Upstream { correlation: Some("c-1"), at }, Duration::from_millis(30));
        let long = "x".repeat(65);
        answers.observe(AnsweredBy::Upstream { correlation: Some(&long), at }, Duration::from_millis(3));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for expected in [
            "took_sum{answer=\"cache\"} 0.000201\n",
            "took_count{answer=\"cache\"} 2\n",
            "took_bucket{le=\"0.0001\",answer=\"cache\"} 1\n",
            "took_bucket{le=\"0.00025\",answer=\"cache\"} 2\n",
            "took_bucket{le=\"+Inf\",answer=\"cache\"} 2\n",
            "took_bucket{le=\"10.0\",answer=\"error\"} 0\n",
            "took_bucket{le=\"+Inf\",answer=\"error\"} 1\n",
            "took_bucket{le=\"0.05\",answer=\"upstream\"} 2 # {correlation_id=\"c-1\"} 0.03 7.0\n",
            "took_count{answer=\"upstream\"} 2\n",
        ] {
            assert!(text.contains(expected), "{expected}{text}");
        }
        assert!(!text.contains("xxx"), "{text}");
    }
}
