//! The machine's clocks.

use std::time::Duration;

use identity_core::runtime::Clock;
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// The wall clock.
#[expect(clippy::disallowed_methods, reason = "the binaries' wall clock, handed to the libraries")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        now()
    }

    /// `CLOCK_BOOTTIME` (clock_gettime(2)): goes on while the machine sleeps.
    fn uptime(&self) -> Duration {
        // It cannot fail for a clock that every Linux since 2.6.39 has; zero closes the fence.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_does_not_go_back() {
        let before = SystemClock.uptime();
        assert!(before > Duration::ZERO);
        assert!(SystemClock.uptime() >= before);
    }
}
