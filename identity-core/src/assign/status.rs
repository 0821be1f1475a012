//! What identities and bindings are told about themselves: conditions and counts, written only when they change and not
//! too often.

use std::collections::{BTreeSet, HashMap};

use identity_crd::{Condition, ConditionStatus, Violation, find_condition, set_condition};
use jiff::{SignedDuration, Timestamp};

use super::{
    Action, BindingState, CREDENTIAL_READY, IDENTITY_FOUND, IDENTITY_UNUSABLE, IdentityState, Index, Notice, OPEN,
    OTHER_CLIENT_ID, Outcome, StatusPlan, StatusTarget, StatusUpdate, TOKENS_OUTLIVE_BOX, VALID, boxes::BoxStatus,
    join::other_client_id,
};
use crate::{
    lookup::IdentityError,
    object::ObjectKey,
    schedule::{Gate, ScheduleError, TimeBox},
};

/// Longest message of a condition, characters (`meta/v1` Condition allows 32768; people read less).
const MAX_MESSAGE: usize = 1024;
/// Least time between two writes of one status when a time box has opened or closed.
const URGENT: SignedDuration = SignedDuration::from_millis(500);
/// Conditions that an object may have or not.
const OPTIONAL: [&str; 3] = [CREDENTIAL_READY, OPEN, TOKENS_OUTLIVE_BOX];

/// When each status was written, and what is under way.
#[derive(Debug, Default)]
pub(super) struct StatusBook {
    pub(super) dirty: BTreeSet<StatusTarget>,
    /// Those of bindings that have opened or closed.
    pub(super) urgent: BTreeSet<StatusTarget>,
    entries: HashMap<StatusTarget, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    in_flight: bool,
    /// When a write was last asked for.
    written: Option<Timestamp>,
    /// The last write failed.
    retry_at: Option<Timestamp>,
    /// Since when the identity that a binding names is known to be missing.
    missing_since: Option<Timestamp>,
    /// What was last announced as wrong, so that it is not announced twice.
    announced: Vec<(String, String)>,
}

impl StatusBook {
    pub(super) fn forget(&mut self, target: &StatusTarget) {
        self.dirty.remove(target);
        self.urgent.remove(target);
        self.entries.remove(target);
    }

    pub(super) fn clock_went_back(&mut self, now: Timestamp) {
        for entry in self.entries.values_mut() {
            entry.retry_at = None;
            entry.missing_since = entry.missing_since.map(|since| since.min(now));
        }
    }

    pub(super) fn forget_in_flight(&mut self) {
        for (target, entry) in &mut self.entries {
            if std::mem::take(&mut entry.in_flight) {
                self.dirty.insert(target.clone());
            }
        }
    }
}

/// A status as it should be, beside the one that is there.
#[derive(Default)]
struct Judgement {
    uid: Option<String>,
    conditions: Vec<Condition>,
    matched_pods: Option<i32>,
    credential_expiry: Option<String>,
    next_transition: Option<String>,
    residual_until: Option<String>,
    changed: bool,
    /// The credential is good again.
    restored: bool,
    /// The time box has opened, or closed.
    moved: Option<bool>,
}

impl Index {
    /// The writes of status (and Events about them) that are wanted, not under way, and not too soon after the last.
    /// Empty until every kind was listed once.
    pub fn plan_status(&mut self, now: Timestamp) -> StatusPlan {
        if !self.is_synced() {
            return StatusPlan::default();
        }
        self.advance_boxes(now);
        let targets = std::mem::take(&mut self.statuses.dirty);
        self.plan_targets(targets, now)
    }

    /// Of these, the ones that cannot wait for a quiet moment: of bindings whose time box has opened or closed.
    pub fn plan_transitions(&mut self, now: Timestamp) -> StatusPlan {
        if !self.is_synced() {
            return StatusPlan::default();
        }
        self.advance_boxes(now);
        let StatusBook { dirty, urgent, .. } = &mut self.statuses;
        let targets = urgent.iter().filter(|target| dirty.remove(*target)).cloned().collect();
        self.plan_targets(targets, now)
    }

    fn plan_targets(&mut self, targets: BTreeSet<StatusTarget>, now: Timestamp) -> StatusPlan {
        let mut plan = StatusPlan::default();
        for target in targets {
            let urgent = self.statuses.urgent.contains(&target);
            let entry = self.statuses.entries.entry(target.clone()).or_default();
            if entry.in_flight {
                continue;
            }
            let missing = match &target {
                StatusTarget::Binding(key) => self.bindings.get(key).and_then(|state| state.identity.as_ref()),
                StatusTarget::Identity(_) => None,
            }
            .is_some_and(|name| !self.identities.contains_key(name));
            entry.missing_since = missing.then(|| entry.missing_since.unwrap_or(now));
            let told = entry.missing_since.and_then(|since| since.checked_add(self.options.missing_grace).ok());
            let interval = self.options.status_interval;
            let interval = if urgent { interval.min(URGENT) } else { interval };
            // Of a clock that was put back since, nothing is known.
            let written = entry.written.filter(|at| *at <= now);
            let spaced = written.and_then(|at| at.checked_add(interval).ok());
            let told = told.filter(|_| !urgent);
            if let Some(due) = spaced.max(told).max(entry.retry_at).filter(|due| now < *due) {
                plan.next_due = Some(plan.next_due.map_or(due, |next| next.min(due)));
                self.statuses.dirty.insert(target);
                continue;
            }
            self.statuses.urgent.remove(&target);
            let Some(judgement) = self.judge_status(&target, now) else {
                self.statuses.entries.remove(&target);
                continue;
            };
            let Some(entry) = self.statuses.entries.get_mut(&target) else { continue };
            let wrong: Vec<(String, String)> = judgement
                .conditions
                .iter()
                .filter(|c| is_wrong(c))
                .map(|c| (c.reason.clone(), c.message.clone()))
                .collect();
            if judgement.changed {
                for (reason, message) in wrong.iter().filter(|w| !entry.announced.contains(w)) {
                    plan.actions.push(Action::Event(Notice {
                        target: target.clone(),
                        uid: judgement.uid.clone(),
                        warning: true,
                        grant: None,
                        reason: reason.clone(),
                        message: message.clone(),
                    }));
                }
                if judgement.restored {
                    plan.actions.push(Action::Event(restored(&target, &judgement)));
                }
                if let Some(open) = judgement.moved {
                    plan.actions.push(Action::Event(moved(&target, &judgement, open)));
                }
                (entry.in_flight, entry.written, entry.retry_at) = (true, Some(now), None);
                plan.actions.push(Action::Status(Box::new(StatusUpdate {
                    target,
                    uid: judgement.uid,
                    conditions: judgement.conditions,
                    matched_pods: judgement.matched_pods,
                    credential_expiry: judgement.credential_expiry,
                    next_transition: judgement.next_transition,
                    residual_until: judgement.residual_until,
                })));
            }
            entry.announced = wrong;
        }
        plan
    }

    pub(super) fn status_done(&mut self, update: &StatusUpdate, outcome: &Outcome) {
        let target = &update.target;
        let there = match target {
            StatusTarget::Identity(key) => self.identities.get(key).map(|state| &state.object.metadata.uid),
            StatusTarget::Binding(key) => self.bindings.get(key).map(|state| &state.object.metadata.uid),
        };
        // Of an object that was re-created since, nothing is known by this, and another write may be under way.
        if there != Some(&update.uid) {
            return;
        }
        let Some(entry) = self.statuses.entries.get_mut(target) else { return };
        entry.in_flight = false;
        match outcome {
            Outcome::Done | Outcome::Applied(_) | Outcome::Granted(_) => self.remember(update),
            Outcome::Conflict => {}
            Outcome::Failed { retry_at } => entry.retry_at = Some(*retry_at),
        }
        self.statuses.dirty.insert(target.clone());
    }

    /// What was written is there, though the watch has yet to say so.
    fn remember(&mut self, update: &StatusUpdate) {
        let put = |conditions: &mut Vec<Condition>| {
            let written = |type_: &str| update.conditions.iter().any(|c| c.type_ == type_);
            conditions.retain(|c| !OPTIONAL.contains(&c.type_.as_str()) || written(&c.type_));
            for condition in &update.conditions {
                conditions.retain(|c| c.type_ != condition.type_);
                conditions.push(condition.clone());
            }
        };
        match &update.target {
            StatusTarget::Identity(key) => {
                if let Some(state) = self.identities.get_mut(key) {
                    let status = state.object.status.get_or_insert_default();
                    put(&mut status.conditions);
                    status.credential_expiry.clone_from(&update.credential_expiry);
                }
            }
            StatusTarget::Binding(key) => {
                if let Some(state) = self.bindings.get_mut(key) {
                    let status = state.object.status.get_or_insert_default();
                    put(&mut status.conditions);
                    status.matched_pods = update.matched_pods;
                    status.next_transition.clone_from(&update.next_transition);
                    status.residual_until.clone_from(&update.residual_until);
                }
            }
        }
    }

    fn judge_status(&self, target: &StatusTarget, now: Timestamp) -> Option<Judgement> {
        match target {
            StatusTarget::Identity(key) => {
                let state = self.identities.get(key)?;
                let there = state.object.status.as_ref();
                let mut judged = vec![identity_valid(state)];
                let (ready, expiry) = state.credential_status();
                judged.extend(ready);
                let is_ready =
                    |conditions: &[Condition]| find_condition(conditions, CREDENTIAL_READY).map(|c| c.status);
                let conditions = there.map_or(&[][..], |s| &s.conditions);
                let (before, after) = (is_ready(conditions), is_ready(&judged));
                let mut judgement = judge(state.object.metadata.uid.as_ref(), judged, conditions, now);
                judgement.changed |= there.and_then(|s| s.credential_expiry.as_ref()) != expiry.as_ref();
                judgement.restored = (before, after) == (Some(ConditionStatus::False), Some(ConditionStatus::True));
                judgement.credential_expiry = expiry;
                Some(judgement)
            }
            StatusTarget::Binding(key) => {
                let state = self.bindings.get(key)?;
                let there = state.object.status.as_ref();
                let conditions = there.map_or(&[][..], |s| &s.conditions);
                let uid = state.object.metadata.uid.as_ref();
                let BoxStatus { conditions: open, next_transition, residual_until, moved } =
                    self.box_status(key, state, now);
                let mut judged = self.binding_conditions(key, state);
                judged.extend(open);
                let mut judgement = judge(uid, judged, conditions, now);
                let pods = Some(i32::try_from(state.pods.len()).unwrap_or(i32::MAX));
                judgement.changed |= there.and_then(|s| s.matched_pods) != pods;
                judgement.matched_pods = pods;
                judgement.changed |= there.and_then(|s| s.next_transition.as_ref()) != next_transition.as_ref();
                judgement.changed |= there.and_then(|s| s.residual_until.as_ref()) != residual_until.as_ref();
                (judgement.next_transition, judgement.residual_until) = (next_transition, residual_until);
                judgement.moved = moved;
                Some(judgement)
            }
        }
    }

    fn binding_conditions(&self, key: &ObjectKey, state: &BindingState) -> Vec<Condition> {
        let generation = state.object.metadata.generation;
        let found = state.identity.as_ref().map(|name| (name, self.identities.get(name)));
        let found_condition = match found {
            None => condition(
                IDENTITY_FOUND,
                false,
                "NotNamed",
                "spec.azureIdentity: missing; give the name of an AzureIdentity of this namespace",
                generation,
            ),
            Some((name, None)) => condition(
                IDENTITY_FOUND,
                false,
                "NotFound",
                &format!(
                    "spec.azureIdentity: there is no AzureIdentity `{}` in namespace `{}`; create it, or correct the name",
                    name.name, name.namespace
                ),
                generation,
            ),
            Some((name, Some(identity))) => match other_client_id(state, identity) {
                Some(wrong) => condition(IDENTITY_FOUND, false, OTHER_CLIENT_ID, &wrong.words(name), generation),
                None => condition(IDENTITY_FOUND, true, "Found", "", generation),
            },
        };
        let violations = state.object.spec.validate();
        let unusable = found.and_then(|(name, state)| Some((name, state?.usable.as_ref().err()?)));
        let valid = match unusable {
            Some((name, error)) => condition(
                VALID,
                false,
                IDENTITY_UNUSABLE,
                &format!("AzureIdentity `{}` cannot be used: {error}", name.name),
                generation,
            ),
            None if !violations.is_empty() => condition(VALID, false, "Invalid", &sentence(&violations), generation),
            None => match self.boxes.gate(key).and_then(Gate::error) {
                Some(error) => condition(VALID, false, "UnreadableTimeBox", &unreadable(error), generation),
                None => condition(VALID, true, "AsExpected", "", generation),
            },
        };
        vec![valid, found_condition]
    }
}

/// Puts conditions in place of those that are there.
fn judge(uid: Option<&String>, judged: Vec<Condition>, there: &[Condition], now: Timestamp) -> Judgement {
    let mut conditions = there.to_vec();
    let mut changed = false;
    let types: Vec<String> = judged.iter().map(|c| c.type_.clone()).collect();
    for type_ in OPTIONAL {
        changed |= find_condition(there, type_).is_some() && !types.iter().any(|t| t == type_);
    }
    for condition in judged {
        changed |= set_condition(&mut conditions, condition, now);
    }
    let conditions = types.iter().filter_map(|t| find_condition(&conditions, t).cloned()).collect();
    let uid = uid.cloned();
    Judgement { uid, conditions, changed, ..Judgement::default() }
}

/// Whether a person should be told: a closed box is as it should be, and a warning holds.
fn is_wrong(condition: &Condition) -> bool {
    match condition.type_.as_str() {
        OPEN => false,
        TOKENS_OUTLIVE_BOX => condition.status == ConditionStatus::True,
        _ => condition.status == ConditionStatus::False,
    }
}

fn moved(target: &StatusTarget, judgement: &Judgement, open: bool) -> Notice {
    let why = find_condition(&judgement.conditions, OPEN).map(|c| c.message.clone()).unwrap_or_default();
    let said = if open { "its time box is open" } else { "its time box is closed" };
    let residual = judgement.residual_until.as_ref().filter(|_| !open);
    let residual = residual.map(|until| format!("; tokens handed out before may work until {until}"));
    Notice {
        target: target.clone(),
        uid: judgement.uid.clone(),
        warning: false,
        grant: None,
        reason: if open { "WindowOpened" } else { "WindowClosed" }.to_owned(),
        message: format!("{said}: {why}{}", residual.unwrap_or_default()),
    }
}

fn unreadable(error: &ScheduleError) -> String {
    format!("{error}; until it is corrected the box is closed")
}

fn restored(target: &StatusTarget, judgement: &Judgement) -> Notice {
    let condition = find_condition(&judgement.conditions, CREDENTIAL_READY);
    let text = |of: fn(&Condition) -> &String| condition.map(of).cloned().unwrap_or_default();
    Notice {
        target: target.clone(),
        uid: judgement.uid.clone(),
        warning: false,
        grant: None,
        reason: CREDENTIAL_READY.to_owned(),
        message: text(|c| &c.message),
    }
}

pub(super) fn condition(
    type_: &str,
    holds: impl Into<ConditionStatus>,
    reason: &str,
    message: &str,
    generation: Option<i64>,
) -> Condition {
    Condition::new(type_, holds, reason, message.chars().take(MAX_MESSAGE).collect::<String>(), generation)
}

fn sentence(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn identity_valid(state: &IdentityState) -> Condition {
    let generation = state.object.metadata.generation;
    let violations = state.object.spec.validate();
    match &state.usable {
        Err(error) => {
            let all = match error {
                IdentityError::Spec(_) if !violations.is_empty() => sentence(&violations),
                other => other.to_string(),
            };
            condition(VALID, false, "Unusable", &format!("not assigned to any pod: {all}"), generation)
        }
        Ok(()) if !violations.is_empty() => condition(VALID, false, "Invalid", &sentence(&violations), generation),
        Ok(()) => match state.object.spec.time_box.as_ref().map(|spec| TimeBox::compile(spec, "spec.timeBox")) {
            Some(Err(error)) => condition(VALID, false, "UnreadableTimeBox", &unreadable(&error), generation),
            _ => condition(VALID, true, "AsExpected", "", generation),
        },
    }
}
