//! When to do things. Pure: chance is an argument, from 0 to 1.

use std::time::Duration;

use crate::tokens::ManagerConfig;

/// Seconds of life below which a token that began with `life` seconds is not answered while upstream is well.
pub(in crate::tokens) fn floor(config: &ManagerConfig, life: i64) -> i64 {
    seconds(config.floor).min(life.max(0) / 4)
}

/// How long after it was got a token is refreshed: at `refresh_in` if the upstream said so, at half its life if that is
/// long, else early enough that it never falls below the floor; up to a tenth earlier by chance, so that what began
/// together does not stay together.
pub(in crate::tokens) fn refresh_after(
    config: &ManagerConfig,
    life: i64,
    refresh_in: Option<i64>,
    chance: f64,
) -> Duration {
    // As long again as the floor to get it: several attempts, with back-off.
    let latest = life - 2 * floor(config, life);
    let asked = refresh_in.filter(|after| *after > 0);
    let half = (life >= seconds(config.long_life)).then_some(life / 2);
    let base = asked.or(half).unwrap_or(latest).min(latest).max(0);
    let after = Duration::from_secs(base.unsigned_abs()).mul_f64(1.0 - chance.clamp(0.0, 1.0) / 10.0);
    // An upstream whose tokens hardly live is not asked all the time.
    after.max(config.backoff)
}

/// How long after the `failures`-th failure in a row (from 1) nothing is asked: doubling, up to a quarter less by chance,
/// never less than the upstream asked for.
pub(in crate::tokens) fn backoff(config: &ManagerConfig, failures: u32, asked: Duration, chance: f64) -> Duration {
    let doubled = config.backoff.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(config.backoff_max).mul_f64(1.0 - chance.clamp(0.0, 1.0) / 4.0).max(asked)
}

pub(in crate::tokens) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Chance as a sequence of numbers that a seed decides (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 to below 1.
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        f64::from(u32::try_from(z >> 32).unwrap_or_default()) / f64::from(u32::MAX).next_up()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refresh_times() {
        let config = ManagerConfig::default();
        // life, refresh_in, latest, earliest
        for (life, refresh_in, latest, earliest) in [
            (3600, None, 3000, 2700),
            (5400, None, 4800, 4320),
            (7199, None, 6599, 5939),
            (7200, None, 3600, 3240),
            (86_400, None, 43_200, 38_880),
            (86_400, Some(30_000), 30_000, 27_000),
            (3600, Some(1800), 1800, 1620),
            // Later than is good for the pods' SDKs: not heeded.
            (3600, Some(3500), 3000, 2700),
            (3600, Some(-5), 3000, 2700),
            // Less than 20 minutes: half of it.
            (600, None, 300, 270),
            (60, None, 30, 27),
            (1, None, 1, 1),
            (0, None, 1, 1),
        ] {
            let at = |chance| refresh_after(&config, life, refresh_in, chance).as_secs();
            assert_eq!((at(0.0), at(1.0)), (latest, earliest), "{life} {refresh_in:?}");
        }
        assert_eq!((floor(&config, 3600), floor(&config, 60), floor(&config, -1)), (300, 15, 0));
    }

    #[test]
    fn back_off() {
        let config = ManagerConfig::default();
        let at = |failures, asked, chance| backoff(&config, failures, Duration::from_secs(asked), chance).as_millis();
        let all: Vec<_> = (1..9).map(|failures| at(failures, 0, 0.0)).collect();
        assert_eq!(all, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!((at(1, 0, 1.0), at(u32::MAX, 0, 1.0), at(1, 60, 0.5), at(9, 7, 0.0)), (750, 22_500, 60_000, 30_000));
    }

    #[test]
    fn chance_is_even_and_repeatable() {
        let draw = |seed| {
            let mut chance = Chance::new(seed);
            (0..1000).map(|_| chance.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let all = draw(7);
        assert!(all.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = all.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }
}
