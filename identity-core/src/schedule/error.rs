//! What can be wrong with a time box.

use jiff::Timestamp;
use thiserror::Error;

use super::CronError;

/// A field of a time box that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub struct ScheduleError {
    /// JSON path, such as `spec.timeBox.windows[1].schedule`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field of a time box.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Without it the window means nothing.
    #[error("is missing; {0}")]
    Missing(&'static str),
    /// The schedule.
    #[error(transparent)]
    Cron(#[from] CronError),
    /// A zone that is not in the database.
    #[error("no zone `{0}` is known; write its IANA name, such as Europe/Berlin or UTC")]
    Zone(String),
    /// Not a duration.
    #[error("`{0}` is no duration; write one such as 90s, 30m or 1h30m")]
    DurationForm(String),
    /// Nothing is open for no time.
    #[error("`{0}` is not more than no time; write a duration such as 90s, 30m or 1h30m")]
    DurationNotPositive(String),
    /// Not an instant.
    #[error("`{0}` is no instant; write one as RFC 3339 does, such as 2026-12-31T23:59:59Z")]
    Instant(String),
    /// Not a date.
    #[error("`{0}` is no date; write one such as 2026-12-25")]
    Date(String),
    /// The box ends before it begins.
    #[error("is {after}, which is not after notBefore ({before}): the box would never be open")]
    Crossed {
        /// `notBefore`.
        before: Timestamp,
        /// `notAfter`.
        after: Timestamp,
    },
    /// Nobody here can tell what it forbids.
    #[error("is not known to this version, which cannot tell what it forbids; correct the name, remove it, or upgrade")]
    Foreign,
    /// `grant` that is not required, and nothing else that closes the box.
    #[error(
        "without windows the binding would always be open, and a grant open nothing: give windows, or set required: true"
    )]
    GrantOpensNothing,
    /// An identity has no grants.
    #[error("belongs to a binding; the timeBox of an AzureIdentity has none")]
    GrantOnIdentity,
}

impl ScheduleError {
    /// A problem of the field at a path.
    pub fn new(field: impl Into<String>, problem: impl Into<Problem>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The same, of the identity that a binding names.
    pub(super) fn of_identity(self) -> Self {
        Self { field: format!("{} of its AzureIdentity", self.field), ..self }
    }
}
