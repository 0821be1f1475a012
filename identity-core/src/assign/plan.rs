//! Wanted against observed, and what is under way.

use identity_crd::AzureAssignedIdentity;
use jiff::{SignedDuration, Timestamp};

use super::{Action, Apply, Delete, Index, Outcome, Pair, Precondition, join::key_of, object::desired};
use crate::object::ObjectKey;

/// How long a refused write waits for the version that refused it, before it is worked out anew all the same.
const CONFLICT_PATIENCE: SignedDuration = SignedDuration::from_secs(30);

/// Why an assignment that differs is left alone for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// An action was handed out.
    InFlight,
    /// The last attempt failed.
    Failed { retry_at: Timestamp },
    /// Refused for this version, and no newer one was observed yet.
    Conflicted { until: Option<Timestamp> },
}

/// What an assignment needs.
enum Need {
    Nothing,
    Later(Timestamp),
    Action(Action),
}

impl Index {
    /// The writes of assignments and of grants' status (with Events about these) that are wanted and not under way, in a stable order. Empty until every kind was listed
    /// once. Each action is handed out once; report what came of it to [`done`](Self::done).
    pub fn plan(&mut self, now: Timestamp) -> Vec<Action> {
        if !self.is_synced() {
            return Vec::new();
        }
        self.watch_clock(now);
        while let Some((due, _)) = self.later.first()
            && *due <= now
        {
            let Some((_, key)) = self.later.pop_first() else { break };
            self.dirty.insert(key);
        }
        // Grants first: assignments carry what they give.
        let mut actions = self.plan_grants(now);
        for key in std::mem::take(&mut self.dirty) {
            match self.need(&key, now) {
                Need::Nothing => {}
                Need::Later(due) => {
                    self.later.insert((due, key));
                }
                Need::Action(action) => {
                    self.holds.insert(key, Hold::InFlight);
                    actions.push(action);
                }
            }
        }
        actions
    }

    /// When, besides what is due by [`next_transition`](Self::next_transition), [`plan`](Self::plan) will have something to look at though nothing happens (a retry, an orphan).
    pub fn next_due(&self) -> Option<Timestamp> {
        self.later.first().map(|(due, _)| *due)
    }

    /// What came of an action that was handed out.
    pub fn done(&mut self, action: &Action, outcome: Outcome) {
        let key = match action {
            Action::Apply(apply) => key_of(&apply.object.metadata),
            Action::Delete(delete) => delete.key.clone(),
            Action::Status(update) => return self.status_done(update, &outcome),
            Action::Grant(update) => return self.grant_done(update, outcome),
            Action::Event(_) => return,
        };
        self.holds.remove(&key);
        match (action, outcome) {
            (Action::Delete(delete), Outcome::Done | Outcome::Applied(_)) => self.bury(&key, &delete.precondition.uid),
            (_, Outcome::Applied(object)) => self.observe_tried(&object, true),
            // Written, but the answer is not known: the watch will tell.
            (_, Outcome::Done | Outcome::Granted(_)) => {
                self.holds.insert(key.clone(), Hold::Conflicted { until: None });
            }
            (_, Outcome::Conflict) => {
                if self.observed.get(&key).map(|held| &held.version) == precondition(action) {
                    self.holds.insert(key.clone(), Hold::Conflicted { until: None });
                }
            }
            (_, Outcome::Failed { retry_at }) => {
                self.holds.insert(key.clone(), Hold::Failed { retry_at });
            }
        }
        self.dirty.insert(key);
    }

    /// Forgets what is under way, after the executor was stopped (a lost lease) and its results will not be reported.
    pub fn forget_in_flight(&mut self) {
        let keys: Vec<ObjectKey> =
            self.holds.iter().filter(|(_, hold)| **hold == Hold::InFlight).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.holds.remove(&key);
            self.dirty.insert(key);
        }
        self.statuses.forget_in_flight();
        self.grants.forget_in_flight();
    }

    fn need(&mut self, key: &ObjectKey, now: Timestamp) -> Need {
        match self.holds.get_mut(key) {
            Some(Hold::InFlight) => return Need::Nothing,
            Some(Hold::Failed { retry_at: until }) if now < *until => return Need::Later(*until),
            Some(Hold::Conflicted { until }) => {
                let until = *until.get_or_insert_with(|| now.saturating_add(CONFLICT_PATIENCE).unwrap_or(now));
                if now < until {
                    return Need::Later(until);
                }
            }
            None | Some(Hold::Failed { .. }) => {}
        }
        self.holds.remove(key);
        let object = self.wanted.get(key).and_then(|pair| self.desired(key, pair));
        if object.is_some() {
            self.orphans.remove(key);
        }
        let delay = self.orphaned_until(key, object.is_some(), now);
        match (object, self.observed.get(key)) {
            (None, None) => Need::Nothing,
            (Some(object), None) => Need::Action(Action::Apply(Box::new(Apply { object, precondition: None }))),
            // Somebody else's, or on its way out already.
            (_, Some(held)) if !held.ours || held.deleting => Need::Nothing,
            (Some(object), Some(held)) if held.content == object => Need::Nothing,
            (Some(object), Some(held)) => {
                Need::Action(Action::Apply(Box::new(Apply { object, precondition: Some(held.version.clone()) })))
            }
            (None, Some(held)) => match delay {
                Some(due) if now < due => Need::Later(due),
                _ => Need::Action(Action::Delete(Delete { key: key.clone(), precondition: held.version.clone() })),
            },
        }
    }

    /// Until when an unwanted assignment is left to the garbage collector, because the pod that owns it is gone.
    fn orphaned_until(&mut self, key: &ObjectKey, wanted: bool, now: Timestamp) -> Option<Timestamp> {
        let held = self.observed.get(key).filter(|_| !wanted)?;
        let owner = held.owner()?;
        if self.pods.get(&held.pod).is_some_and(|state| *state.pod.reference.uid == *owner) {
            self.orphans.remove(key);
            return None;
        }
        let since = *self.orphans.entry(key.clone()).or_insert(now);
        since.saturating_add(self.options.orphan_grace).ok()
    }

    fn desired(&self, key: &ObjectKey, pair: &Pair) -> Option<AzureAssignedIdentity> {
        let pod = &self.pods.get(&pair.pod)?.pod;
        let binding = self.bindings.get(&pair.binding)?;
        let identity = self.identities.get(binding.identity.as_ref()?)?;
        Some(desired(key, pod, pod.node.as_deref()?, &identity.embedded, &binding.embedded, self.stamp(key, pair)))
    }

    /// Every assignment that should be there now.
    pub fn desired_assignments(&self) -> Vec<AzureAssignedIdentity> {
        let mut all: Vec<_> = self.wanted.iter().collect();
        all.sort_by_key(|(key, _)| *key);
        all.into_iter().filter_map(|(key, pair)| self.desired(key, pair)).collect()
    }
}

fn precondition(action: &Action) -> Option<&Precondition> {
    match action {
        Action::Apply(apply) => apply.precondition.as_ref(),
        Action::Delete(delete) => Some(&delete.precondition),
        Action::Status(_) | Action::Grant(_) | Action::Event(_) => None,
    }
}
