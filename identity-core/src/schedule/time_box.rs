//! One `timeBox`, compiled.

use identity_crd as crd;
use jiff::{SignedDuration, Timestamp};

use super::{Problem, Reason, ScheduleError, window::Window};

/// How far windows that follow one another without a gap are followed: no token lives longer.
const FAR: SignedDuration = SignedDuration::from_hours(8 * 24);
/// The same in steps, for windows of seconds; and how many openings two boxes try before they are said to have none in
/// common.
const STEPS: usize = 2_000;

/// What a box says of an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether it is open.
    pub open: bool,
    /// Its next transition: when it closes if it is open, when it opens if it is closed. `None`: never, or not before
    /// [`holds_until`](Self::holds_until) and not known.
    pub next: Option<Timestamp>,
    /// Nothing changes before this instant. Equal to `next` when that is known.
    pub holds_until: Timestamp,
    /// Why it is closed.
    pub reason: Option<Reason>,
}

impl State {
    pub(super) fn open(next: Option<Timestamp>) -> Self {
        Self { open: true, next, holds_until: next.unwrap_or(Timestamp::MAX), reason: None }
    }

    pub(super) fn closed(next: Option<Timestamp>, reason: Reason) -> Self {
        Self { open: false, next, holds_until: next.unwrap_or(Timestamp::MAX), reason: Some(reason) }
    }
}

/// A `timeBox` without its grant, compiled.
#[derive(Clone, Debug, Default)]
pub struct TimeBox {
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
    windows: Box<[Window]>,
}

fn instant(text: Option<&String>, field: String) -> Result<Option<Timestamp>, ScheduleError> {
    // An empty text is one that cannot be read: what a template left empty opens nothing.
    text.map(|text| text.parse().map_err(|_| ScheduleError::new(field, Problem::Instant(text.clone())))).transpose()
}

impl TimeBox {
    /// Compiles bounds and windows; `field` is the JSON path of the box, for the errors. A box in which anything is not
    /// known (its `grant` included) is none that can be compiled.
    pub fn compile(spec: &crd::TimeBox, field: &str) -> Result<Self, ScheduleError> {
        if let Some(foreign) = spec.foreign_fields().first() {
            return Err(ScheduleError::new(format!("{field}.{foreign}"), Problem::Foreign));
        }
        let not_before = instant(spec.not_before.as_ref(), format!("{field}.notBefore"))?;
        let not_after = instant(spec.not_after.as_ref(), format!("{field}.notAfter"))?;
        if let (Some(before), Some(after)) = (not_before, not_after)
            && after <= before
        {
            return Err(ScheduleError::new(format!("{field}.notAfter"), Problem::Crossed { before, after }));
        }
        let windows = spec.windows.iter().flatten().enumerate();
        let windows: Result<_, _> =
            windows.map(|(n, w)| Window::compile(w, &format!("{field}.windows[{n}]"))).collect();
        Ok(Self { not_before, not_after, windows: windows? })
    }

    /// Its bounds alone.
    pub(super) fn bounds(&self) -> Self {
        Self { windows: Box::default(), ..self.clone() }
    }

    pub(super) const fn has_windows(&self) -> bool {
        !self.windows.is_empty()
    }

    /// When the openings that are under way at `at` end, if any are. Others may follow without a gap.
    fn end(&self, at: Timestamp) -> Option<Timestamp> {
        self.windows.iter().filter_map(|window| window.end(at)).max()
    }

    fn is_over(&self, at: Timestamp) -> bool {
        self.not_after.is_some_and(|end| at >= end)
    }

    /// The first instant from `at` on at which it is open.
    pub(super) fn opening(&self, at: Timestamp) -> Option<Timestamp> {
        let at = self.not_before.map_or(at, |start| at.max(start));
        let opening = if self.windows.is_empty() || self.end(at).is_some() {
            at
        } else {
            self.windows.iter().filter_map(|window| window.next(at)).min()?
        };
        (!self.is_over(opening)).then_some(opening)
    }

    /// What it says of `now`. The work is bounded, whatever the schedules are.
    pub fn at(&self, now: Timestamp) -> State {
        if self.is_over(now) {
            return State::closed(None, Reason::Over);
        }
        if self.not_before.is_some_and(|start| now < start) {
            return State::closed(self.opening(now), Reason::NotYet);
        }
        if self.windows.is_empty() {
            return State::open(self.not_after);
        }
        if self.end(now).is_none() {
            return State::closed(self.opening(now), Reason::BetweenWindows);
        }
        let far = now.checked_add(FAR).unwrap_or(Timestamp::MAX);
        let mut until = now;
        for _ in 0..STEPS {
            let Some(end) = self.end(until) else { return State::open(Some(until)) };
            until = end;
            if self.is_over(until) {
                return State::open(self.not_after);
            }
            if until >= far {
                break;
            }
        }
        State { holds_until: until, ..State::open(None) }
    }
}

/// What several boxes say of `now` together: open while all are.
pub(super) fn all_of(boxes: &[TimeBox], now: Timestamp) -> State {
    if let Some(closed) = boxes.iter().find(|one| one.opening(now) != Some(now)) {
        let reason = closed.at(now).reason.unwrap_or(Reason::BetweenWindows);
        let mut at = now;
        for _ in 0..STEPS {
            let mut latest = at;
            for one in boxes {
                let Some(opening) = one.opening(at) else { return State::closed(None, reason) };
                latest = latest.max(opening);
            }
            if latest == at {
                return State::closed(Some(at), reason);
            }
            at = latest;
        }
        // As good as never.
        return State { holds_until: at, ..State::closed(None, reason) };
    }
    boxes.iter().map(|one| one.at(now)).min_by_key(|state| state.holds_until).unwrap_or(State::open(None))
}
