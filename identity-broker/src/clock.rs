//! The wall clock, as something handed in.

use jiff::Timestamp;

/// Tells the time. A library reads no clock of its own; binaries pass `jiff::Timestamp::now`, tests what they like.
pub trait Clock: Send + Sync + 'static {
    /// The present instant.
    fn now(&self) -> Timestamp;
}

impl<F: Fn() -> Timestamp + Send + Sync + 'static> Clock for F {
    fn now(&self) -> Timestamp {
        self()
    }
}
