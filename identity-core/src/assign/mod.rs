//! Objects in, actions out: which identity is assigned to which pod through which binding, and the fewest writes that get
//! there.

mod action;

pub use action::{
    Action, Apply, Delete, Event, Notice, Options, Outcome, Precondition, Relist, StatusPlan, StatusTarget,
    StatusUpdate,
};

use jiff::Timestamp;

/// Type of the condition: the spec means something and can be used.
pub const VALID: &str = "Valid";
/// Type of a binding's condition: its identity exists.
pub const IDENTITY_FOUND: &str = "IdentityFound";
/// Reason of a binding's `Valid=False`: its identity exists, but cannot be used.
pub const IDENTITY_UNUSABLE: &str = "IdentityUnusable";

/// Everything the controller knows, joined.
#[derive(Debug)]
pub struct Index {
    options: Options,
}

impl Index {
    /// An empty index.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// Takes in what happened.
    pub fn apply(&mut self, event: Event) {
        let _ = (event, &self.options);
    }

    /// The writes of assignments that are wanted and not under way. Empty until every kind was listed once. Each action
    /// is handed out once; report what came of it to [`done`](Self::done).
    pub fn plan(&mut self, now: Timestamp) -> Vec<Action> {
        let _ = (now, &self.options);
        Vec::new()
    }

    /// The writes of status (and Events about them) that are wanted, not under way, and not too soon after the last.
    pub fn plan_status(&mut self, now: Timestamp) -> StatusPlan {
        let _ = (now, &self.options);
        StatusPlan::default()
    }

    /// When [`plan`](Self::plan) will have something more to do though nothing happens (a retry, an orphan).
    pub fn next_due(&self) -> Option<Timestamp> {
        None
    }

    /// What came of an action that was handed out.
    pub fn done(&mut self, action: &Action, outcome: Outcome) {
        let _ = (action, outcome, &self.options);
    }

    /// Forgets what is under way, after the executor was stopped (a lost lease) and its results will not be reported.
    pub fn forget_in_flight(&mut self) {}
}
