//! How long to wait before trying again.

use std::time::Duration;

/// Exponential back-off with jitter that honours what the server asked for. Pure: the jitter is an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay after the first failure.
    pub first: Duration,
    /// Longest delay, unless the server asks for a longer one.
    pub longest: Duration,
}

/// A server that asks for more is taken for broken.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(5);

impl Backoff {
    /// Delay after failure number `failures` (from 0). `jitter` is uniform in 0..1; the upper half of the exponential
    /// delay is random, so that many clients of one server do not come back together. `retry_after` is a lower bound.
    pub fn delay(&self, failures: u32, jitter: f64, retry_after: Option<Duration>) -> Duration {
        let jitter = jitter.clamp(0.0, 1.0);
        let factor = 2_u32.saturating_pow(failures.min(16));
        let exponential = self.first.saturating_mul(factor).min(self.longest).mul_f64(0.5 + 0.5 * jitter);
        match retry_after {
            Some(asked) => {
                let asked = asked.min(LONGEST_RETRY_AFTER);
                exponential.max(asked + asked.mul_f64(0.1 * jitter))
            }
            None => exponential,
        }
    }

    /// [`delay`](Self::delay) with jitter from the thread's random numbers.
    pub fn random_delay(&self, failures: u32, retry_after: Option<Duration>) -> Duration {
        self.delay(failures, rand::random(), retry_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(10) };

    #[test]
    fn grows_to_its_limit_and_honours_the_server() {
        let ms = |failures, jitter, after: Option<u64>| {
            BACKOFF.delay(failures, jitter, after.map(Duration::from_secs)).as_millis()
        };
        assert_eq!(ms(0, 1.0, None), 100);
        assert_eq!(ms(0, 0.0, None), 50);
        assert_eq!(ms(3, 1.0, None), 800);
        assert_eq!(ms(7, 1.0, None), 10_000);
        assert_eq!(ms(u32::MAX, 1.0, None), 10_000);
        assert_eq!(ms(0, 0.0, Some(2)), 2000);
        assert_eq!(ms(0, 1.0, Some(2)), 2200);
        assert_eq!(ms(7, 1.0, Some(2)), 10_000);
        assert_eq!(ms(0, 0.0, Some(86_400)), 300_000);
    }

    proptest::proptest! {
        #[test]
        fn is_bounded(failures: u32, jitter in 0.0..1.0_f64, after in proptest::option::of(0_u64..100_000)) {
            let after = after.map(Duration::from_secs);
            let delay = BACKOFF.delay(failures, jitter, after);
            proptest::prop_assert!(delay >= BACKOFF.first / 2);
            proptest::prop_assert!(delay >= after.unwrap_or_default().min(LONGEST_RETRY_AFTER));
            proptest::prop_assert!(delay <= LONGEST_RETRY_AFTER.mul_f64(1.1));
        }
    }
}
