//! One window: openings, each for a while.

use identity_crd as crd;
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

use super::{Problem, ScheduleError, cron::Cron, zone};

/// A window, compiled.
#[derive(Clone, Debug)]
pub(super) struct Window {
    cron: Cron,
    zone: TimeZone,
    duration: SignedDuration,
    /// Sorted.
    excluded: Box<[Date]>,
}

/// A positive duration, such as `1h30m`.
pub(crate) fn duration(text: &str) -> Result<SignedDuration, Problem> {
    let read = identity_crd::parse_duration(text).and_then(|duration| SignedDuration::try_from(duration).ok());
    match read {
        Some(duration) if duration > SignedDuration::ZERO => Ok(duration),
        Some(_) => Err(Problem::DurationNotPositive(text.to_owned())),
        None if text.trim_start().starts_with('-') => Err(Problem::DurationNotPositive(text.to_owned())),
        None => Err(Problem::DurationForm(text.to_owned())),
    }
}

impl Window {
    pub(super) fn compile(spec: &crd::Window, field: &str) -> Result<Self, ScheduleError> {
        let wrong = |name: &str, problem: Problem| ScheduleError::new(format!("{field}.{name}"), problem);
        if spec.schedule.is_empty() {
            return Err(wrong("schedule", Problem::Missing("write a cron expression, such as `0 0 * * MON-FRI`")));
        }
        if spec.duration.is_empty() {
            return Err(wrong("duration", Problem::Missing("write how long the window stays open, such as 1h30m")));
        }
        let cron = Cron::parse(&spec.schedule).map_err(|error| wrong("schedule", error.into()))?;
        let duration = duration(&spec.duration).map_err(|problem| wrong("duration", problem))?;
        let zone = match spec.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(name) => zone::find(name).ok_or_else(|| wrong("timeZone", Problem::Zone(name.to_owned())))?,
        };
        let mut excluded = Vec::new();
        for (n, text) in spec.exclude_dates.iter().flatten().enumerate() {
            let date = text.parse::<Date>().ok().filter(|date| date.to_string() == *text);
            excluded.push(date.ok_or_else(|| wrong(&format!("excludeDates[{n}]"), Problem::Date(text.clone())))?);
        }
        excluded.sort_unstable();
        Ok(Self { cron, zone, duration, excluded: excluded.into() })
    }

    fn is_excluded(&self, date: Date) -> bool {
        self.excluded.binary_search(&date).is_ok()
    }

    /// When the last opening up to `at` ends, if that is after `at`.
    pub(super) fn end(&self, at: Timestamp) -> Option<Timestamp> {
        let shown = zone::shown(&self.zone, at);
        // Earlier ones have ended; a day and more to spare for what zones do.
        let days = self.duration.as_hours() / 24 + 3;
        let floor = shown.date().checked_sub(SignedDuration::from_hours(days.saturating_mul(24))).unwrap_or(Date::MIN);
        let opening = self.cron.latest_but(shown, floor, |date| self.is_excluded(date))?;
        let opening = zone::reached(&self.zone, opening)?;
        let end = opening.checked_add(self.duration).unwrap_or(Timestamp::MAX);
        (end > at).then_some(end)
    }

    /// The first opening after `at`.
    pub(super) fn next(&self, at: Timestamp) -> Option<Timestamp> {
        let from = zone::shown(&self.zone, at).checked_add(SignedDuration::from_secs(1)).ok()?;
        let opening = self.cron.next_but(from, |date| self.is_excluded(date))?;
        zone::reached(&self.zone, opening)
    }
}
