//! How Events are made.

use std::time::Duration;

/// How Events are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node: the Events' reporting instance.
    pub node: String,
    /// An Event for each record, instead of one for each series.
    pub each: bool,
    /// The most series that are held; from then on those that were seen last the longest ago are closed, if their Events say
    /// all. What a closed series sees again is a new one.
    pub most_series: usize,
    /// The most series of one pod that have an audience of their own: pods choose audiences. The others share one.
    pub most_of_pod: u32,
    /// Between two writes.
    pub interval: Duration,
    /// Between two writes of one series.
    pub refresh: Duration,
    /// Writes that are under way at the same time.
    pub at_once: usize,
    /// How long after it was sent a request can still have an effect. A write whose predecessor has had no answer is made once
    /// more after that: the older one may come later.
    pub settle: Duration,
    /// How long something that the API server refuses for good is left alone.
    pub refused: Duration,
}

impl Config {
    /// Series: one write a second, each series at most every ten seconds.
    pub fn series(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            each: false,
            most_series: 4096,
            most_of_pod: 32,
            interval: Duration::from_secs(1),
            refresh: Duration::from_secs(10),
            at_once: 1,
            settle: Duration::from_secs(10),
            refused: Duration::from_mins(1),
        }
    }

    /// An Event for each record, as fast as the API server takes them.
    pub fn each(node: impl Into<String>) -> Self {
        Self {
            each: true,
            most_series: 256,
            interval: Duration::ZERO,
            refresh: Duration::ZERO,
            at_once: 8,
            ..Self::series(node)
        }
    }
}
