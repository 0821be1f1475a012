//! What bindings are told about their time boxes: whether they are open, when that changes next, and until when what was
//! handed out may still work. Opening and closing costs the binding's own status and an Event, whatever is assigned through
//! it: assignments carry the box, and nodes judge it by themselves.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use identity_crd::{AzureIdentityBindingStatus, Condition, ConditionStatus, IdentityType, find_condition};
use jiff::{SignedDuration, Timestamp, Unit};

use super::{BindingState, Index, OPEN, StatusTarget, TOKENS_OUTLIVE_BOX, status::condition};
use crate::{
    grant::Stamp,
    object::ObjectKey,
    schedule::{Agenda, Gate, Passage, Reason},
};

/// Longest life of a managed identity's token (Microsoft, "Managed identities … token caching": up to 24 hours).
const MANAGED: SignedDuration = SignedDuration::from_hours(24);
/// Longest life of an application's token, unless the tenant has a policy of its own (Microsoft, "Configurable token
/// lifetimes": 60 to 90 minutes).
const APPLICATION: SignedDuration = SignedDuration::from_mins(90);

/// Grants that a condition names.
const MOST_GRANTS: usize = 5;

/// The boxes of all bindings.
#[derive(Debug, Default)]
pub(super) struct Boxes {
    agenda: Agenda<ObjectKey>,
    gates: HashMap<ObjectKey, Arc<Gate>>,
    /// Bindings whose box, identity or grants may be others now.
    pub(super) dirty: BTreeSet<ObjectKey>,
}

/// What a binding's status says of its box.
#[derive(Debug, Default)]
pub(super) struct BoxStatus {
    pub(super) conditions: Vec<Condition>,
    pub(super) next_transition: Option<String>,
    pub(super) residual_until: Option<String>,
    /// It has opened, or closed, since that was last said.
    pub(super) moved: Option<bool>,
}

impl Boxes {
    pub(super) fn forget(&mut self, binding: &ObjectKey) {
        self.dirty.remove(binding);
        self.gates.remove(binding);
        self.agenda.remove(binding);
    }

    pub(super) fn gate(&self, binding: &ObjectKey) -> Option<&Gate> {
        self.gates.get(binding).map(|gate| &**gate)
    }
}

impl Index {
    /// When the next time box opens or closes, or a grant ends. By the wall clock, which may be set: wait in small steps.
    pub fn next_transition(&self) -> Option<Timestamp> {
        [self.boxes.agenda.next(), self.grants.next()].into_iter().flatten().min()
    }

    /// How many times a time box was looked at since the beginning.
    pub const fn boxes_looked_at(&self) -> u64 {
        self.boxes.agenda.looked()
    }

    /// Finds out which boxes have opened and closed up to `now`.
    pub(super) fn advance_boxes(&mut self, now: Timestamp) {
        let mut changes = Vec::new();
        for key in std::mem::take(&mut self.boxes.dirty) {
            let Some(state) = self.bindings.get(&key) else {
                self.boxes.forget(&key);
                continue;
            };
            let own = state.object.spec.time_box.as_ref();
            let identity = state.identity.as_ref().and_then(|name| self.identities.get(name));
            let identity = identity.and_then(|identity| identity.object.spec.time_box.as_ref());
            let kept = self.boxes.gates.get(&key).filter(|gate| gate.is_of(own, identity)).cloned();
            let Some(gate) = kept.or_else(|| Gate::new(own, identity).map(Arc::new)) else {
                self.boxes.forget(&key);
                continue;
            };
            self.boxes.gates.insert(key.clone(), gate.clone());
            // One for a single pod opens it for that alone.
            let uid = state.object.metadata.uid.as_deref();
            let stamps = self.grants.stamps(&key).iter();
            let whole = stamps.filter(|stamp| stamp.pod.is_none() && Some(stamp.binding_uid.as_str()) == uid);
            let granted = whole.map(|stamp| stamp.until).max();
            changes.extend(self.boxes.agenda.put(key, gate, granted, now));
        }
        changes.extend(self.boxes.agenda.advance(now));
        for change in changes {
            let moved = change.is_transition();
            let target = StatusTarget::Binding(change.key);
            if moved {
                self.statuses.urgent.insert(target.clone());
            }
            self.statuses.dirty.insert(target);
        }
    }

    /// What is to be said of a binding's box now.
    pub(super) fn box_status(&self, key: &ObjectKey, state: &BindingState, now: Timestamp) -> BoxStatus {
        let Some((gate, passage)) = self.boxes.gate(key).zip(self.boxes.agenda.passage(key)) else {
            return BoxStatus::default();
        };
        let generation = state.object.metadata.generation;
        let there = state.object.status.as_ref();
        let was = there.and_then(|status| find_condition(&status.conditions, OPEN)).map(|open| open.status);
        let was_open = was == Some(ConditionStatus::True);
        let managed = self.is_managed(state);
        let mut conditions = vec![open(gate, passage, self.grants.stamps(key), generation)];
        if managed {
            conditions.push(condition(
                TOKENS_OUTLIVE_BOX,
                true,
                "ManagedIdentity",
                "tokens of a managed identity work for up to 24 hours, whatever its time box says, and nobody can take them \
                 back: use an identity of type 1, 2 or 3 with a time box, whose tokens live about an hour",
                generation,
            ));
        }
        let lifetime = if managed { MANAGED } else { APPLICATION };
        let residual = match passage {
            Passage::Open { until: Some(until), closes: true } => Some(until),
            // It may have closed while nobody looked.
            Passage::Closed { .. } if was_open => Some(expected(there).filter(|at| *at <= now).unwrap_or(now)),
            _ => None,
        };
        let residual = residual.and_then(|closes| closes.checked_add(lifetime).ok()).map(seconds);
        let kept = || there.filter(|_| !passage.is_open()).and_then(|status| status.residual_until.clone());
        BoxStatus {
            conditions,
            next_transition: passage.next().map(seconds),
            residual_until: residual.or_else(kept),
            moved: (was_open != passage.is_open()).then_some(passage.is_open()),
        }
    }

    fn is_managed(&self, state: &BindingState) -> bool {
        let identity = state.identity.as_ref().and_then(|name| self.identities.get(name));
        identity.and_then(|identity| identity.object.spec.identity_type())
            == Some(IdentityType::UserAssignedManagedIdentity)
    }
}

/// When it was expected to open or close next.
fn expected(there: Option<&AzureIdentityBindingStatus>) -> Option<Timestamp> {
    there?.next_transition.as_ref()?.parse().ok()
}

fn seconds(at: Timestamp) -> String {
    at.round(Unit::Second).unwrap_or(at).to_string()
}

fn open(gate: &Gate, passage: Passage, stamps: &[Stamp], generation: Option<i64>) -> Condition {
    let (reason, mut message) = match passage {
        Passage::Open { until: Some(until), closes: true } => ("Open", format!("it closes at {}", seconds(until))),
        Passage::Open { until: None, .. } => ("Open", "nothing closes it any more".to_owned()),
        Passage::Open { .. } => ("Open", String::new()),
        Passage::Closed { reason, opens } => {
            let mut text = reason.words().to_owned();
            if let (Reason::Unreadable, Some(error)) = (reason, gate.error()) {
                text = format!("{text}: {error}");
            }
            match opens {
                Some(opens) => text = format!("{text}; it opens next at {}", seconds(opens)),
                None if matches!(reason, Reason::BetweenWindows) => text = format!("{text}, and none opens any more"),
                None => {}
            }
            (reason.as_str(), text)
        }
    };
    for Stamp { name, pod, until, .. } in stamps.iter().take(MOST_GRANTS) {
        let whom = pod.as_ref().map(|pod| format!(" for pod {pod}")).unwrap_or_default();
        let and = if message.is_empty() { "" } else { "; " };
        message = format!("{message}{and}grant {name} is active{whom} until {until}");
    }
    condition(OPEN, passage.is_open(), reason, &message, generation)
}
