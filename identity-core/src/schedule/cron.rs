//! The instants at which a window opens, on a wall clock without a zone.
//!
//! The expression is read by `croner`, which also says which days match (lists, ranges, names, `L`, `W`, `#`); the search
//! is done here, over the calendar alone. What a zone makes of the result is [`zone`](super::zone)'s business: the crate's
//! own search runs a schedule with a wildcard in it twice when a clock goes back, and skips one with fixed times that
//! falls into a gap in another way than is promised here.

use std::fmt;

use croner::{
    CronComponent, CronPattern, Weekday,
    parser::{CronParser, Seconds, Year},
};
use jiff::civil::{Date, DateTime, Time};
use thiserror::Error;

/// A schedule that can come at all comes within this many years: a 29 February on a given weekday skips 40 years around a
/// century that is no leap year.
const HORIZON_YEARS: i16 = 41;

/// Why an expression is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CronError {
    /// It cannot be read.
    #[error(
        "`{text}` is no cron expression ({why}); write five fields: minute hour day-of-month month day-of-week, and optionally one for seconds before them"
    )]
    Form {
        /// The expression.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// No date ever matches.
    #[error("`{text}` never comes: no month it names has such a day")]
    Never {
        /// The expression.
        text: String,
    },
}

/// A cron expression.
#[derive(Clone)]
pub(super) struct Cron {
    /// Its fields for days and weekdays, no others.
    days: CronPattern,
    months: u16,
    hours: u32,
    minutes: u64,
    seconds: u64,
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cron").field(&self.days.as_str()).finish()
    }
}

/// The values of a field as bits.
fn bits(field: &CronComponent) -> u64 {
    field.values().into_iter().fold(0, |bits, value| bits | 1 << value.min(63))
}

/// The lowest set bit that is not below `from`.
fn at_or_after(bits: u64, from: i8) -> Option<i8> {
    let from = u32::try_from(from).ok().filter(|from| *from < 64)?;
    let bits = bits & (u64::MAX << from);
    (bits != 0).then(|| i8::try_from(bits.trailing_zeros()).unwrap_or(i8::MAX))
}

/// The highest set bit that is not above `from`.
fn at_or_before(bits: u64, from: i8) -> Option<i8> {
    let from = u32::try_from(from).ok()?;
    let bits = bits & (u64::MAX >> (63 - from.min(63)));
    (bits != 0).then(|| i8::try_from(bits.ilog2()).unwrap_or(i8::MAX))
}

impl Cron {
    /// Reads an expression of five fields, or six with seconds first.
    pub(super) fn parse(text: &str) -> Result<Self, CronError> {
        let wrong = |why: String| CronError::Form { text: text.to_owned(), why };
        // `+` would have day-of-month and day-of-week both hold, where everywhere else either does; `@` begins nicknames,
        // which the CRD's own rule does not know.
        if let Some(odd) = text.chars().find(|c| matches!(c, '+' | '@')) {
            return Err(wrong(format!("`{odd}` is not supported")));
        }
        if text.split(|c: char| c == ',' || c.is_whitespace()).any(str::is_empty) && text.contains(',') {
            return Err(wrong("a list has an empty element".to_owned()));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let mut days = parser.parse(text).map_err(|error| wrong(error.to_string()))?.pattern;
        let months = bits(&std::mem::take(&mut days.months));
        let hours = bits(&std::mem::take(&mut days.hours));
        let minutes = bits(&std::mem::take(&mut days.minutes));
        let seconds = bits(&std::mem::take(&mut days.seconds));
        // These alone would be five kilobytes for each window.
        days.years = CronComponent::default();
        let (months, hours) = (u16::try_from(months).unwrap_or_default(), u32::try_from(hours).unwrap_or_default());
        let this = Self { days, months, hours, minutes, seconds };
        let start = Date::constant(2000, 1, 1).to_datetime(Time::midnight());
        if this.next(start).is_none() {
            return Err(CronError::Never { text: text.to_owned() });
        }
        Ok(this)
    }

    fn is_month(&self, month: i8) -> bool {
        self.months >> month & 1 == 1
    }

    fn is_day(&self, date: Date) -> bool {
        let unsigned = |n: i8| u32::try_from(n).unwrap_or_default();
        let weekday = Weekday::from_days_from_sunday(unsigned(date.weekday().to_sunday_zero_offset()));
        self.days.day_match(date.year().into(), unsigned(date.month()), unsigned(date.day()), weekday).unwrap_or(false)
    }

    /// The first time of day from `from` on.
    fn time_from(&self, from: Time) -> Option<Time> {
        let (hours, earliest) = (u64::from(self.hours), |bits| at_or_after(bits, 0));
        let time = |h, m, s| Time::new(h, m, s, 0).ok();
        if let Some(hour) = at_or_after(hours, from.hour()).filter(|h| *h == from.hour()) {
            if let Some(minute) = at_or_after(self.minutes, from.minute()).filter(|m| *m == from.minute())
                && let Some(second) = at_or_after(self.seconds, from.second())
            {
                return time(hour, minute, second);
            }
            if let Some(minute) = at_or_after(self.minutes, from.minute() + 1) {
                return time(hour, minute, earliest(self.seconds)?);
            }
        }
        time(at_or_after(hours, from.hour() + 1)?, earliest(self.minutes)?, earliest(self.seconds)?)
    }

    /// The last time of day up to `to`.
    fn time_to(&self, to: Time) -> Option<Time> {
        let (hours, latest) = (u64::from(self.hours), |bits| at_or_before(bits, 63));
        let time = |h, m, s| Time::new(h, m, s, 0).ok();
        if let Some(hour) = at_or_before(hours, to.hour()).filter(|h| *h == to.hour()) {
            if let Some(minute) = at_or_before(self.minutes, to.minute()).filter(|m| *m == to.minute())
                && let Some(second) = at_or_before(self.seconds, to.second())
            {
                return time(hour, minute, second);
            }
            if let Some(minute) = at_or_before(self.minutes, to.minute() - 1) {
                return time(hour, minute, latest(self.seconds)?);
            }
        }
        time(at_or_before(hours, to.hour() - 1)?, latest(self.minutes)?, latest(self.seconds)?)
    }

    /// The first match from `from` on. Looks at no more than the days of [`HORIZON_YEARS`].
    pub(super) fn next(&self, from: DateTime) -> Option<DateTime> {
        self.next_but(from, |_| false)
    }

    /// The same, but for dates that are `excluded`.
    pub(super) fn next_but(&self, from: DateTime, excluded: impl Fn(Date) -> bool) -> Option<DateTime> {
        let last = from.year().saturating_add(HORIZON_YEARS);
        let (mut date, mut time) = (from.date(), from.time());
        while date.year() <= last {
            if !self.is_month(date.month()) {
                date = date.last_of_month().tomorrow().ok()?;
                time = Time::midnight();
                continue;
            }
            if self.is_day(date)
                && !excluded(date)
                && let Some(found) = self.time_from(time)
            {
                return Some(date.to_datetime(found));
            }
            date = date.tomorrow().ok()?;
            time = Time::midnight();
        }
        None
    }

    /// The last match up to `to` that is not on a date before `floor` nor on one that is `excluded`.
    pub(super) fn latest_but(&self, to: DateTime, floor: Date, excluded: impl Fn(Date) -> bool) -> Option<DateTime> {
        let (mut date, mut time) = (to.date(), to.time());
        while date >= floor {
            if !self.is_month(date.month()) {
                date = date.first_of_month().yesterday().ok()?;
                time = Time::MAX;
                continue;
            }
            if self.is_day(date)
                && !excluded(date)
                && let Some(found) = self.time_to(time)
            {
                return Some(date.to_datetime(found));
            }
            date = date.yesterday().ok()?;
            time = Time::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime {
        text.parse().unwrap()
    }

    #[test]
    fn the_next_and_the_last_match() {
        // (expression, from, next, last)
        for (expression, from, next, last) in [
            ("0 0 * * MON-FRI", "2026-11-21T12:00:00", "2026-11-23T00:00:00", "2026-11-20T00:00:00"),
            ("0 0 * * mon-fri", "2026-11-20T00:00:00", "2026-11-20T00:00:00", "2026-11-20T00:00:00"),
            ("30 * * * * *", "2026-01-01T00:00:31", "2026-01-01T00:01:30", "2026-01-01T00:00:30"),
            ("59 59 23 31 12 *", "2026-06-01T00:00:00", "2026-12-31T23:59:59", "2025-12-31T23:59:59"),
            ("*/20 9-11,14 * * *", "2026-01-01T11:41:00", "2026-01-01T14:00:00", "2026-01-01T11:40:00"),
            ("*/20 9-11,14 * * *", "2026-01-01T14:41:00", "2026-01-02T09:00:00", "2026-01-01T14:40:00"),
            ("0 0 29 2 *", "2097-01-01T00:00:00", "2104-02-29T00:00:00", "2096-02-29T00:00:00"),
            // Either day will do.
            ("0 0 13 * FRI", "2026-11-07T00:00:00", "2026-11-13T00:00:00", "2026-11-06T00:00:00"),
            ("0 0 15 * FRI", "2026-11-14T00:00:00", "2026-11-15T00:00:00", "2026-11-13T00:00:00"),
            ("0 0 ? * SUN", "2026-11-16T00:00:00", "2026-11-22T00:00:00", "2026-11-15T00:00:00"),
            ("0 0 * * 7", "2026-11-16T00:00:00", "2026-11-22T00:00:00", "2026-11-15T00:00:00"),
            ("0 0 * * FRI-SUN", "2026-11-16T00:00:00", "2026-11-20T00:00:00", "2026-11-15T00:00:00"),
            ("0 3 * * TUE#2", "2026-11-24T00:00:00", "2026-12-08T03:00:00", "2026-11-10T03:00:00"),
            ("0 0 L * *", "2028-02-10T00:00:00", "2028-02-29T00:00:00", "2028-01-31T00:00:00"),
        ] {
            let cron = Cron::parse(expression).unwrap();
            assert_eq!(cron.next(at(from)), Some(at(next)), "{expression} after {from}");
            let floor = Date::constant(1990, 1, 1);
            assert_eq!(cron.latest_but(at(from), floor, |_| false), Some(at(last)), "{expression} before {from}");
        }
    }

    #[test]
    fn what_is_no_schedule_says_why() {
        for (expression, expected) in [
            ("", "`` is no cron expression (CronPattern cannot be an empty string.)"),
            ("* * * *", "`* * * *` is no cron expression"),
            ("0 0 * * * * 2027", "is no cron expression"),
            ("60 * * * *", "`60 * * * *` is no cron expression"),
            ("0 24 * * *", "is no cron expression"),
            ("0 0 * 13 *", "is no cron expression"),
            ("0 0 * * MON-", "is no cron expression"),
            ("0 0 * * FUNDAY", "is no cron expression"),
            ("0 0 1,,2 * *", "(a list has an empty element)"),
            ("0 0 , * *", "(a list has an empty element)"),
            ("0 0 13 * +FRI", "(`+` is not supported)"),
            ("@daily", "(`@` is not supported)"),
            ("*/0 * * * *", "is no cron expression"),
            ("0 0 30 2 *", "`0 0 30 2 *` never comes: no month it names has such a day"),
            ("0 0 31 4,6,9,11 *", "never comes"),
        ] {
            let error = Cron::parse(expression).unwrap_err().to_string();
            assert!(error.contains(expected), "{expression}: {error}");
        }
        // Not often, but it does.
        assert!(Cron::parse("0 0 29 2 *").is_ok());
        assert!(Cron::parse("0 0 * 2 MON#5").is_ok());
    }

    #[test]
    fn searches_end_at_the_ends_of_the_calendar() {
        let cron = Cron::parse("0 0 1 1 *").unwrap();
        assert_eq!(cron.next(at("9999-06-01T00:00:00")), None);
        assert_eq!(cron.latest_but(DateTime::MIN, Date::MIN, |_| false), Some(DateTime::MIN));
        let cron = Cron::parse("0 0 2 1 *").unwrap();
        assert_eq!(cron.latest_but(DateTime::MIN, Date::MIN, |_| false), None);
    }
}
