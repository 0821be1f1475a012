//! Durations on the command line.

use std::{ops::RangeInclusive, time::Duration};

use jiff::SignedDuration;

/// A duration as flags have it (`5s`, `1h30m`), within `range`; or what is wrong with it.
pub fn duration_within(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let time: SignedDuration = text.parse().map_err(|error| format!("{error}; write 10m, 30s or 500ms"))?;
    let wrong = || format!("from {} to {}", shown(*range.start()), shown(*range.end()));
    Duration::try_from(time).ok().filter(|time| range.contains(time)).ok_or_else(wrong)
}

fn shown(time: Duration) -> String {
    SignedDuration::try_from(time).map_or_else(|_| format!("{time:?}"), |time| format!("{time:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_told_the_range() {
        let of = |text: &str| duration_within(text, Duration::from_secs(1)..=Duration::from_hours(24));
        assert_eq!(of("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(of("1h 30m"), Ok(Duration::from_mins(90)));
        assert_eq!(of("24h"), Ok(Duration::from_hours(24)));
        for text in ["0s", "999ms", "-5s", "24h1s"] {
            assert_eq!(of(text), Err("from 1s to 24h".to_owned()), "{text}");
        }
        for text in ["", "soon", "5"] {
            assert!(of(text).unwrap_err().ends_with("; write 10m, 30s or 500ms"), "{text}");
        }
    }
}
