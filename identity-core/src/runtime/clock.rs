//! Time, passed in.

use std::{fmt::Debug, time::Duration};

use jiff::Timestamp;

/// Where the runtime reads the time. Binaries give the machine's clocks, tests their own.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Wall-clock time: for what is written into objects.
    fn now(&self) -> Timestamp;

    /// Time since some fixed instant, never going back. It must go on while the machine sleeps (`CLOCK_BOOTTIME`): a
    /// leader that slept through its lease has to know.
    fn uptime(&self) -> Duration;
}

#[cfg(test)]
pub(crate) mod testing {
    use super::{Clock, Duration, Timestamp};

    /// tokio's clock, which tests pause and advance.
    #[derive(Debug)]
    pub(crate) struct TokioClock(tokio::time::Instant);

    impl TokioClock {
        pub(crate) fn new() -> Self {
            Self(tokio::time::Instant::now())
        }
    }

    impl Clock for TokioClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_second(1_800_000_000).unwrap() + self.uptime()
        }

        fn uptime(&self) -> Duration {
            self.0.elapsed()
        }
    }
}
