//! The semantics again, as somebody with a wall clock would find them out: minute by minute, looking at the clock, crossing
//! off what it shows for the first time. Knows nothing of cron crates and of how clocks are put forward and back.

use jiff::{Timestamp, civil::Date, tz::TimeZone};

/// The first and last second that zones are looked at.
pub(crate) const FROM: i64 = 1_104_537_600; // 2005-01-01
pub(crate) const TO: i64 = 2_051_222_400; // 2035-01-01
const DAY: i64 = 86_400;

/// A zone as a list of offsets.
pub(crate) struct Clock {
    pub(crate) name: &'static str,
    /// From when on it is how far ahead of UTC, in seconds.
    pub(crate) offsets: Vec<(i64, i64)>,
}

impl Clock {
    pub(crate) fn new(name: &'static str, zone: &TimeZone) -> Self {
        let start = Timestamp::from_second(FROM - 100 * DAY).unwrap();
        let mut offsets = vec![(start.as_second(), i64::from(zone.to_offset(start).seconds()))];
        for change in zone.following(start).take_while(|c| c.timestamp().as_second() < TO + 200 * DAY) {
            offsets.push((change.timestamp().as_second(), i64::from(change.offset().seconds())));
        }
        Self { name, offsets }
    }
}

/// One field of a cron expression.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) text: String,
    pub(crate) star: bool,
    pub(crate) values: Vec<i64>,
}

pub(crate) struct Window<'a> {
    pub(crate) clock: &'a Clock,
    /// Seconds to weekdays.
    pub(crate) fields: [Field; 6],
    pub(crate) duration: i64,
    pub(crate) excluded: Vec<Date>,
}

/// Days since 1970 → year, month, day (Howard Hinnant's algorithm).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// What a walk over a window needs at every step, worked out once: there are many of them, and this is not optimised.
struct Marks {
    seconds: [bool; 60],
    /// Of a day.
    minutes: Vec<bool>,
}

impl Window<'_> {
    fn marks(&self) -> Marks {
        let [second, minute, hour, ..] = &self.fields;
        let mut marks = Marks { seconds: [false; 60], minutes: vec![false; 24 * 60] };
        for value in &second.values {
            marks.seconds[usize::try_from(*value).unwrap()] = true;
        }
        for hour in &hour.values {
            for minute in &minute.values {
                marks.minutes[usize::try_from(hour * 60 + minute).unwrap()] = true;
            }
        }
        marks
    }

    fn is_day(&self, days: i64) -> bool {
        let (year, month, day) = civil(days);
        let weekday = (days + 4).rem_euclid(7);
        let [_, _, _, dom, months, dow] = &self.fields;
        let by_day = dom.values.contains(&day);
        let by_weekday = dow.values.contains(&weekday) || (weekday == 0 && dow.values.contains(&7));
        let either = match (dom.star, dow.star) {
            (true, true) => true,
            (true, false) => by_weekday,
            (false, true) => by_day,
            (false, false) => by_day || by_weekday,
        };
        let excluded = self
            .excluded
            .iter()
            .any(|d| (i64::from(d.year()), i64::from(d.month()), i64::from(d.day())) == (year, month, day));
        either && months.values.contains(&month) && !excluded
    }

    /// Whether it is open at `from`, `from + step`, … before `to`.
    pub(crate) fn walk(&self, from: i64, to: i64, step: i64) -> Vec<bool> {
        let marks = self.marks();
        // Long enough ahead that whatever is open at the beginning has been seen to open.
        let mut now = from - (self.duration + 26 * 3600) / step * step - step;
        let offsets = &self.clock.offsets;
        let mut place = offsets.partition_point(|(at, _)| *at <= now) - 1;
        let change_after = |place: usize| offsets.get(place + 1).map_or(i64::MAX, |(at, _)| *at);
        let mut change = change_after(place);
        // What the clock has shown last: the day, and how many steps of it.
        let mut shown = now + offsets[place].1 - step;
        let (in_a_minute, in_a_day) = (usize::try_from(60 / step).unwrap(), usize::try_from(DAY / step).unwrap());
        let mut day = shown.div_euclid(DAY);
        let mut steps = usize::try_from(shown.rem_euclid(DAY) / step).unwrap();
        let mut is_day = self.is_day(day);
        let mut until = i64::MIN;
        let mut open = Vec::with_capacity(usize::try_from((to - from) / step + 1).unwrap());
        while now < to {
            while change <= now {
                place += 1;
                change = change_after(place);
            }
            let local = now + offsets[place].1;
            // What the clock has not shown before: one step, or all that it has just skipped.
            while shown < local {
                shown += step;
                steps += 1;
                if steps == in_a_day {
                    (steps, day) = (0, day + 1);
                    is_day = self.is_day(day);
                }
                if is_day && marks.minutes[steps / in_a_minute] && marks.seconds[steps % in_a_minute] {
                    until = until.max(now + self.duration);
                }
            }
            if now >= from {
                open.push(now < until);
            }
            now += step;
        }
        open
    }
}
