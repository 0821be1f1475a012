//! Of a time box: what the API server says too. Cron expressions and zones are for whoever has a calendar.

use jiff::Timestamp;

use super::{at_most_characters, at_most_items};
use crate::{Approvers, GrantPolicy, TimeBox, Violation, Window, form, rules};

/// Whether a duration is more than none and at most so many hours.
pub(super) fn is_duration(text: &str, hours: u64) -> bool {
    form::duration_seconds(text).is_some_and(|seconds| (1..=hours * 3600).contains(&seconds))
}

/// A list of names that must say something, for a rule that speaks of all of them.
pub(super) fn names(field: &str, names: Option<&Vec<String>>, max: usize, out: &mut Vec<Violation>) {
    let names = names.map_or(&[][..], Vec::as_slice);
    at_most_items(field, names.len(), rules::MAX_PEOPLE, out);
    for (i, name) in names.iter().enumerate() {
        at_most_characters(&format!("{field}[{i}]"), Some(name), max, out);
    }
}

pub(super) fn validate(time_box: &TimeBox, out: &mut Vec<Violation>) {
    const PART: &str = "spec.timeBox";
    for field in time_box.foreign_fields() {
        out.push(Violation::new(format!("{PART}.{field}"), rules::FOREIGN));
    }
    at_most_characters("timeBox.notBefore", time_box.not_before.as_ref(), rules::MAX_TIME, out);
    at_most_characters("timeBox.notAfter", time_box.not_after.as_ref(), rules::MAX_TIME, out);
    let bound = |text: &Option<String>| text.as_deref().is_none_or(form::is_instant);
    rules::NOT_BEFORE.unless_at(PART, bound(&time_box.not_before), out);
    rules::NOT_AFTER.unless_at(PART, bound(&time_box.not_after), out);
    let instant = |text: &Option<String>| {
        text.as_deref().filter(|text| form::is_instant(text)).and_then(|text| text.parse::<Timestamp>().ok())
    };
    let crossed = instant(&time_box.not_before).zip(instant(&time_box.not_after)).is_some_and(|(from, to)| to <= from);
    rules::BOUNDS.unless_at(PART, !crossed, out);

    let windows = time_box.windows.as_deref().unwrap_or_default();
    at_most_items("timeBox.windows", windows.len(), rules::MAX_WINDOWS, out);
    let opens_something = time_box.grant.as_ref().is_none_or(|grant| grant.required() || !windows.is_empty());
    rules::CLOSED_SOMETIMES.unless_at(PART, opens_something, out);
    for (i, window) in windows.iter().enumerate() {
        validate_window(window, &format!("timeBox.windows[{i}]"), out);
    }
    if let Some(grant) = &time_box.grant {
        validate_grant(grant, out);
    }
}

fn validate_window(window: &Window, field: &str, out: &mut Vec<Violation>) {
    let part = format!("spec.{field}");
    at_most_characters(&format!("{field}.schedule"), Some(&window.schedule), rules::MAX_SCHEDULE, out);
    at_most_characters(&format!("{field}.duration"), Some(&window.duration), rules::MAX_SHORT, out);
    at_most_characters(&format!("{field}.timeZone"), window.time_zone.as_ref(), rules::MAX_TIME, out);
    let dates = window.exclude_dates.as_deref().unwrap_or_default();
    at_most_items(&format!("{field}.excludeDates"), dates.len(), rules::MAX_EXCLUDED, out);
    for (i, date) in dates.iter().enumerate() {
        at_most_characters(&format!("{field}.excludeDates[{i}]"), Some(date), rules::MAX_SHORT, out);
    }
    rules::SCHEDULE.unless_at(&part, form::is_schedule(&window.schedule), out);
    rules::DURATION.unless_at(&part, is_duration(&window.duration, rules::MAX_WINDOW_HOURS), out);
    rules::TIME_ZONE.unless_at(&part, window.time_zone.as_deref().is_none_or(form::is_time_zone), out);
    rules::EXCLUDE_DATES.unless_at(&part, dates.iter().all(|date| form::is_date(date)), out);
}

fn validate_grant(grant: &GrantPolicy, out: &mut Vec<Violation>) {
    const PART: &str = "spec.timeBox.grant";
    at_most_characters("timeBox.grant.maxDuration", Some(&grant.max_duration), rules::MAX_SHORT, out);
    rules::MAX_DURATION.unless_at(PART, is_duration(&grant.max_duration, rules::MAX_GRANT_HOURS), out);
    let approvals = usize::try_from(grant.min_approvals.unwrap_or(1));
    rules::MIN_APPROVALS.unless_at(PART, approvals.is_ok_and(|n| n <= rules::MAX_APPROVALS), out);

    let Some(Approvers { users, groups, .. }) = &grant.approvers else { return };
    let [user_count, group_count] = [users, groups].map(|list| list.as_ref().map_or(0, Vec::len));
    let enough = user_count == 0 || group_count > 0 || approvals.is_ok_and(|n| user_count >= n) || approvals.is_err();
    rules::ENOUGH_APPROVERS.unless_at(PART, enough, out);
    names("timeBox.grant.approvers.users", users.as_ref(), rules::MAX_USER, out);
    names("timeBox.grant.approvers.groups", groups.as_ref(), rules::MAX_GROUP, out);
    let part = format!("{PART}.approvers");
    rules::APPROVING_USERS.unless_at(&part, users.iter().flatten().all(|u| !u.is_empty()), out);
    rules::APPROVING_GROUPS.unless_at(&part, groups.iter().flatten().all(|g| !g.is_empty()), out);
}
