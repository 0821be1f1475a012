//! What stands between an assignment and its use: the binding's box, the identity's, and grants.

use std::fmt;

use identity_crd as crd;
use jiff::Timestamp;

use super::{Problem, ScheduleError, State, TimeBox, memo::Memo, time_box::all_of};

/// Why a gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Before `notBefore`.
    NotYet,
    /// After `notAfter`.
    Over,
    /// No window is open.
    BetweenWindows,
    /// There must be an active grant, and there is none.
    NoGrant,
    /// It was closed already when the clock was put back.
    ClockWentBack,
    /// The box cannot be read, so nobody can say that it is open.
    Unreadable,
}

impl Reason {
    /// The reason in words, to follow "is closed: ".
    pub const fn words(self) -> &'static str {
        match self {
            Self::NotYet => "notBefore is still to come",
            Self::Over => "notAfter has passed",
            Self::BetweenWindows => "none of its windows is open",
            Self::NoGrant => "it needs an active grant",
            Self::ClockWentBack => "it has closed already, and the node's clock was put back since",
            Self::Unreadable => "it cannot be read",
        }
    }

    /// The same as one word, for conditions and Events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotYet => "NotYet",
            Self::Over => "Over",
            Self::BetweenWindows => "BetweenWindows",
            Self::NoGrant => "NoGrant",
            Self::ClockWentBack => "ClockWentBack",
            Self::Unreadable => "Unreadable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// Whether one may pass a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Yes.
    Open {
        /// Until then at least; `None`: for ever.
        until: Option<Timestamp>,
        /// Whether it closes then. Otherwise nobody has looked further.
        closes: bool,
    },
    /// No.
    Closed {
        /// When it opens next by itself, if it does.
        opens: Option<Timestamp>,
        /// Why.
        reason: Reason,
    },
}

impl Passage {
    /// Whether it is open.
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// When it closes or opens next, as far as is known.
    pub const fn next(&self) -> Option<Timestamp> {
        match self {
            Self::Open { until: next, closes: true } | Self::Closed { opens: next, .. } => *next,
            Self::Open { closes: false, .. } => None,
        }
    }
}

/// What grants do for a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grants {
    /// Nothing.
    None,
    /// They open it when its windows do not.
    Open,
    /// Without one it stays closed.
    Required,
}

#[derive(Debug)]
enum Rule {
    Boxes {
        /// The identity's, the binding's.
        boxes: Box<[TimeBox]>,
        /// The same without the binding's windows, for when a grant opens it.
        bounds: Box<[TimeBox]>,
        grants: Grants,
    },
    Unreadable(ScheduleError),
}

/// The boxes of a binding and its identity, compiled, and what was found last about them. Shared by all assignments of the
/// binding, so that a transition is worked out once and not for each pod.
pub struct Gate {
    rule: Rule,
    binding: Option<crd::TimeBox>,
    identity: Option<crd::TimeBox>,
    all: Memo,
    granted: Memo,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("binding", &self.binding).field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl PartialEq for Gate {
    fn eq(&self, other: &Self) -> bool {
        self.is_of(other.binding.as_ref(), other.identity.as_ref())
    }
}

impl Eq for Gate {}

fn compile(binding: Option<&crd::TimeBox>, identity: Option<&crd::TimeBox>) -> Result<Rule, ScheduleError> {
    let (mut boxes, mut bounds, mut grants) = (Vec::new(), Vec::new(), Grants::None);
    if let Some(spec) = identity {
        if spec.grant.is_some() {
            return Err(ScheduleError::new("spec.timeBox.grant", Problem::GrantOnIdentity).of_identity());
        }
        let compiled = TimeBox::compile(spec, "spec.timeBox").map_err(ScheduleError::of_identity)?;
        bounds.push(compiled.clone());
        boxes.push(compiled);
    }
    if let Some(spec) = binding {
        let compiled = TimeBox::compile(spec, "spec.timeBox")?;
        grants = match &spec.grant {
            None => Grants::None,
            Some(grant) if grant.required() => Grants::Required,
            Some(_) if compiled.has_windows() => Grants::Open,
            Some(_) => return Err(ScheduleError::new("spec.timeBox.grant", Problem::GrantOpensNothing)),
        };
        bounds.push(compiled.bounds());
        boxes.push(compiled);
    }
    Ok(Rule::Boxes { boxes: boxes.into(), bounds: bounds.into(), grants })
}

impl Gate {
    /// The gate of a binding and its identity, `None` when neither has a box. A box that cannot be read makes a gate that is
    /// always closed; [`error`](Self::error) says why.
    pub fn new(binding: Option<&crd::TimeBox>, identity: Option<&crd::TimeBox>) -> Option<Self> {
        if binding.is_none() && identity.is_none() {
            return None;
        }
        Some(Self {
            rule: compile(binding, identity).unwrap_or_else(Rule::Unreadable),
            binding: binding.cloned(),
            identity: identity.cloned(),
            all: Memo::default(),
            granted: Memo::default(),
        })
    }

    /// Whether it was made of these boxes.
    pub fn is_of(&self, binding: Option<&crd::TimeBox>, identity: Option<&crd::TimeBox>) -> bool {
        self.binding.as_ref() == binding && self.identity.as_ref() == identity
    }

    /// Why it is always closed, if a box cannot be read.
    pub const fn error(&self) -> Option<&ScheduleError> {
        match &self.rule {
            Rule::Boxes { .. } => None,
            Rule::Unreadable(error) => Some(error),
        }
    }

    /// Whether a grant opens it, or must.
    pub fn takes_grants(&self) -> bool {
        matches!(&self.rule, Rule::Boxes { grants, .. } if *grants != Grants::None)
    }

    /// Whether nothing but a grant opens it.
    pub fn needs_grant(&self) -> bool {
        matches!(self.rule, Rule::Boxes { grants: Grants::Required, .. })
    }

    /// Whether one may pass at `now` with a grant that is active until `granted`, in a process whose clock has got to
    /// `latest` (see [`HighWater`](super::HighWater)).
    #[inline]
    pub fn at(&self, now: Timestamp, latest: Timestamp, granted: Option<Timestamp>) -> Passage {
        let Rule::Boxes { boxes, bounds, grants } = &self.rule else {
            return Passage::Closed { opens: None, reason: Reason::Unreadable };
        };
        let granted = granted.filter(|until| now < *until && latest < *until);
        let state = self.all.at(now, || state(boxes, now));
        match (grants, granted) {
            (Grants::None | Grants::Open, None) | (Grants::None, Some(_)) => passage(boxes, state, latest),
            (Grants::Required, None) => {
                // A grant helps only once the box opens, if it ever does.
                let reason = state.reason.filter(|reason| *reason != Reason::BetweenWindows);
                Passage::Closed { opens: None, reason: reason.unwrap_or(Reason::NoGrant) }
            }
            (Grants::Required, Some(end)) => match passage(boxes, state, latest) {
                Passage::Open { until: Some(until), closes } if until < end => {
                    Passage::Open { until: Some(until), closes }
                }
                Passage::Open { .. } => Passage::Open { until: Some(end), closes: true },
                Passage::Closed { opens, reason } => {
                    Passage::Closed { opens: opens.filter(|opens| *opens < end), reason }
                }
            },
            (Grants::Open, Some(end)) => {
                let by_grant = self.granted.at(now, || self::state(bounds, now));
                match (passage(boxes, state, latest), passage(bounds, by_grant, latest)) {
                    // Whichever is longer; a window that opens before the grant ends is found when that has ended.
                    (Passage::Open { until, closes }, Passage::Open { until: bounds, .. }) => {
                        let end = bounds.map_or(end, |bounds| bounds.min(end));
                        let longer = until.is_some_and(|until| until < end);
                        let over = longer && bounds == Some(end);
                        Passage::Open { until: until.map(|until| until.max(end)), closes: over || (closes && !longer) }
                    }
                    (Passage::Closed { opens, .. }, Passage::Open { until, .. }) => {
                        let end = until.map_or(end, |until| until.min(end));
                        Passage::Open { until: Some(end), closes: opens.is_none_or(|opens| end < opens) }
                    }
                    (open @ Passage::Open { .. }, Passage::Closed { .. }) => open,
                    // Within the bounds the grant will do.
                    (_, Passage::Closed { opens, reason }) if opens.is_some_and(|opens| opens < end) => {
                        Passage::Closed { opens, reason }
                    }
                    (closed, Passage::Closed { .. }) => closed,
                }
            }
        }
    }

    /// The same in a process whose clock has never gone back.
    pub fn now(&self, now: Timestamp, granted: Option<Timestamp>) -> Passage {
        self.at(now, now, granted)
    }

    /// How often a state had to be searched for: once for each transition that somebody asked after, however many asked.
    pub fn searches(&self) -> u64 {
        self.all.found() + self.granted.found()
    }
}

fn state(boxes: &[TimeBox], now: Timestamp) -> State {
    match boxes {
        [one] => one.at(now),
        boxes => all_of(boxes, now),
    }
}

/// What boxes say, but that nothing is reopened which was closed at `latest`.
fn passage(boxes: &[TimeBox], state: State, latest: Timestamp) -> Passage {
    if !state.open {
        return Passage::Closed { opens: state.next, reason: state.reason.unwrap_or(Reason::BetweenWindows) };
    }
    if latest < state.holds_until {
        let until = (state.holds_until < Timestamp::MAX).then_some(state.holds_until);
        return Passage::Open { until, closes: state.next.is_some() };
    }
    let then = self::state(boxes, latest);
    let opens = if then.open { Some(latest) } else { then.next };
    Passage::Closed { opens, reason: Reason::ClockWentBack }
}
