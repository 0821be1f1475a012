//! Time boxes of a few kinds, and whether they are open, hour by hour.

use identity_crd::{AssignedGrant, GrantPolicy, TimeBox, Window};
use jiff::{SignedDuration, Timestamp};

/// The instant of an hour (and a half) since the beginning.
pub(crate) fn at(half_hours: i64) -> Timestamp {
    let start: Timestamp = "2026-01-05T00:00:00Z".parse().unwrap();
    start + SignedDuration::from_mins(30 * half_hours)
}

/// A box of a kind; kind 0 is none.
pub(crate) fn time_box(kind: u8) -> Option<TimeBox> {
    let windows =
        |schedule: &str| Some(vec![Window { schedule: schedule.into(), duration: "2h".into(), ..Window::default() }]);
    let grant =
        |required| Some(GrantPolicy { required: Some(required), max_duration: "1h".into(), ..GrantPolicy::default() });
    let every_four_hours = "0 1-23/4 * * *";
    Some(match kind {
        1 => TimeBox { not_after: Some(at(12).to_string()), ..TimeBox::default() },
        2 => TimeBox { not_before: Some(at(6).to_string()), ..TimeBox::default() },
        3 => TimeBox { windows: windows(every_four_hours), ..TimeBox::default() },
        4 => TimeBox { grant: grant(true), ..TimeBox::default() },
        5 => TimeBox { windows: windows(every_four_hours), grant: grant(false), ..TimeBox::default() },
        6 => TimeBox { windows: windows("0 0 30 2 *"), ..TimeBox::default() },
        7 => TimeBox { windows: windows(every_four_hours), grant: grant(true), ..TimeBox::default() },
        _ => return None,
    })
}

/// A grant that ends at an hour; past 20 nobody can read when.
pub(crate) fn grant(hour: u8) -> AssignedGrant {
    AssignedGrant::new("g", if hour > 20 { "soon".into() } else { at(2 * i64::from(hour)).to_string() })
}

/// Whether a box is open at a half-hour.
pub(crate) fn is_open(time_box: Option<&TimeBox>, of_identity: bool, grant: Option<&AssignedGrant>, now: i64) -> bool {
    let Some(time_box) = time_box else { return true };
    let kind = (1..8).find(|kind| self::time_box(*kind).as_ref() == Some(time_box)).unwrap();
    let window = [1, 2].contains(&(now / 2 % 4));
    let granted = grant.is_some_and(|grant| grant.until.parse::<Timestamp>().is_ok_and(|until| at(now) < until));
    match kind {
        1 => now < 12,
        2 => now >= 6,
        3 => window,
        // Identities have no grants: such a box cannot be read.
        4 | 5 | 7 if of_identity => false,
        4 => granted,
        5 => window || granted,
        7 => window && granted,
        _ => false,
    }
}
