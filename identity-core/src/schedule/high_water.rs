//! How far a process's clock has ever got.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// The latest `now` that a process has decided by. Lives as long as the process does: what it has closed stays closed when
/// the wall clock is put back, whether anybody asked in between or not (which is why whoever holds it passes the time now
/// and then, too).
///
/// In microseconds: what is later by less is taken for the same.
#[derive(Debug)]
pub struct HighWater(AtomicI64);

impl Default for HighWater {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN))
    }
}

impl HighWater {
    /// Takes note of `now`. Answers the latest so far, which is `now` unless the clock has gone back.
    pub fn pass(&self, now: Timestamp) -> Timestamp {
        let micros = now.as_microsecond();
        let mut latest = self.0.load(Ordering::Relaxed);
        if latest < micros {
            // One variable, and nothing else is published by it.
            latest = self.0.fetch_max(micros, Ordering::Relaxed);
        }
        if latest <= micros { now } else { from(latest) }
    }

    /// The latest so far.
    pub fn latest(&self) -> Timestamp {
        from(self.0.load(Ordering::Relaxed))
    }
}

fn from(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { Timestamp::MIN } else { Timestamp::MAX })
}
