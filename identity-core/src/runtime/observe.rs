//! What the runtime tells whoever counts. Every method does nothing unless it is implemented.

use std::{fmt::Debug, time::Duration};

use jiff::Timestamp;

use crate::object::ObjectKey;

/// How a write ended, for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteOutcome {
    /// Done.
    Done,
    /// A precondition did not hold.
    Conflict,
    /// Refused or failed; it will be tried again.
    Failed,
    /// Not sent: this process may no longer write.
    Fenced,
    /// Not sent: there were too many (Events only).
    Dropped,
}

/// What a write did to an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// It is new.
    Created,
    /// It is another.
    Updated,
    /// It is gone.
    Deleted,
}

/// Receives what happens. Called from the runtime's tasks: must not block.
pub trait Observer: Debug + Send + Sync + 'static {
    /// A write to `kind` (such as `AzureAssignedIdentity`, `AzureIdentity/status`, `Event`) ended.
    fn wrote(&self, kind: &'static str, outcome: WriteOutcome) {
        let _ = (kind, outcome);
    }

    /// An assignment was written (or deleted): how long after it had been decided.
    fn assigned(&self, change: Change, took: Duration) {
        let _ = (change, took);
    }

    /// A plan was made: how long it took, how many actions it has.
    fn planned(&self, took: Duration, actions: usize) {
        let _ = (took, actions);
    }

    /// How many actions wait, and how many are under way.
    fn queue(&self, waiting: usize, under_way: usize) {
        let _ = (waiting, under_way);
    }

    /// Whether this process leads.
    fn leading(&self, leading: bool) {
        let _ = leading;
    }

    /// A watch of `kind` was listed anew.
    fn relisted(&self, kind: &'static str) {
        let _ = kind;
    }

    /// A watch of `kind` failed and will be tried again.
    fn watch_failed(&self, kind: &'static str) {
        let _ = kind;
    }

    /// What was found of the credential of an identity: whether it is good (`None`: it cannot be told), and when it ends.
    fn credential(&self, identity: &ObjectKey, ready: Option<bool>, expires: Option<Timestamp>) {
        let _ = (identity, ready, expires);
    }

    /// Nothing is known any more of the credential of an identity: it is gone, or another process tries it.
    fn credential_gone(&self, identity: &ObjectKey) {
        let _ = identity;
    }

    /// How many problems the manifests have now.
    fn problems(&self, count: usize) {
        let _ = count;
    }
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Observer for Nobody {}
