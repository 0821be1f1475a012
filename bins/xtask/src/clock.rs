//! The one place that reads a clock.

use std::{
    thread,
    time::{Duration, Instant},
};

/// A running stopwatch.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts one.
    #[expect(clippy::disallowed_methods, reason = "developers' commands measure time; this is the room that does")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// Seconds since the start, as text with one decimal.
    pub fn seconds(self) -> String {
        format!("{:.1} s", self.elapsed().as_secs_f64())
    }
}

/// The machine's wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the room that reads a clock")]
pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// Asks `condition` every 20 ms until it yields a value or `limit` has passed; `None` then.
///
/// # Errors
/// The condition's own error ends the wait at once.
pub fn wait_for<T>(
    limit: Duration,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let watch = Stopwatch::start();
    loop {
        if let Some(value) = condition()? {
            return Ok(Some(value));
        }
        if watch.elapsed() > limit {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
