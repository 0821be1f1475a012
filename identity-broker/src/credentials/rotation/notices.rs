//! When people are told that a credential ends.

use jiff::{SignedDuration, Timestamp};

/// How long before its end people are told, in turn; the last time is when it has ended.
const AHEAD: [SignedDuration; 4] = [
    SignedDuration::from_hours(30 * 24),
    SignedDuration::from_hours(7 * 24),
    SignedDuration::from_hours(24),
    SignedDuration::ZERO,
];

/// The end of one credential, and what was said of it.
#[derive(Debug)]
pub(super) struct Expiry {
    expires: Option<Timestamp>,
    /// How many of [`AHEAD`] are past and said.
    said: usize,
}

impl Expiry {
    pub(super) const fn new(expires: Option<Timestamp>) -> Self {
        Self { expires, said: 0 }
    }

    /// Its end is known to be another (a Key Vault can change it).
    pub(super) fn set(&mut self, expires: Option<Timestamp>) {
        if self.expires != expires {
            *self = Self::new(expires);
        }
    }

    /// What is to be said now: its end, and whether that is past. Once for each step; steps that are past together are one.
    pub(super) fn due(&mut self, now: Timestamp) -> Option<(Timestamp, bool)> {
        let expires = self.expires?;
        let past = AHEAD.iter().filter(|ahead| expires.duration_since(now) <= **ahead).count();
        if past <= self.said {
            return None;
        }
        self.said = past;
        Some((expires, past == AHEAD.len()))
    }

    /// When there is something to say next.
    pub(super) fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let at = self.expires?.checked_sub(*AHEAD.get(self.said)?).ok()?;
        Some(at.max(now))
    }
}
