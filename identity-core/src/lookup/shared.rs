//! What assignments have in common, kept once.

use std::{collections::HashMap, sync::Arc};

use identity_crd::TimeBox;

use super::{Identity, entry::Terms};
use crate::{object::ObjectKey, schedule::Gate};

/// Fewer changes than these are not worth a sweep.
const FEW: usize = 64;

/// Identities, time boxes and terms in use, so that whoever has the same one shares it.
///
/// Who uses one is not told when another stops, and a snapshot uses it longer than the assignment does. So what nobody uses
/// any more is swept: after as many changes as the last sweep left entries. A change adds three entries at most, so a sweep
/// costs each of them a few steps, and there are never more than four times as many entries as were in use at the last (or
/// as these few).
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// By identity.
    identities: HashMap<ObjectKey, Arc<Identity>>,
    /// By binding: each is compiled once, and what is found of it is found once.
    gates: HashMap<ObjectKey, Arc<Gate>>,
    /// What assignments say, by binding.
    terms: HashMap<ObjectKey, Arc<Terms>>,
    /// Changes since the last sweep.
    changes: usize,
    /// What that sweep left.
    left: usize,
}

impl Shared {
    /// `identity`, or the equal one that others have already.
    pub(super) fn identity(&mut self, identity: Arc<Identity>) -> Arc<Identity> {
        share(&mut self.identities, identity.object.key(), identity)
    }

    /// The same of the terms of a binding.
    pub(super) fn terms(&mut self, binding: ObjectKey, terms: Terms) -> Arc<Terms> {
        share(&mut self.terms, binding, Arc::new(terms))
    }

    /// The time boxes of a binding and its identity, if there are any.
    pub(super) fn gate(
        &mut self,
        binding: ObjectKey,
        of_binding: Option<&TimeBox>,
        of_identity: Option<&TimeBox>,
    ) -> Option<Arc<Gate>> {
        if of_binding.is_none() && of_identity.is_none() {
            return None;
        }
        if let Some(gate) = self.gates.get(&binding)
            && gate.is_of(of_binding, of_identity)
        {
            return Some(Arc::clone(gate));
        }
        let gate = Arc::new(Gate::new(of_binding, of_identity)?);
        self.gates.insert(binding, Arc::clone(&gate));
        Some(gate)
    }

    /// An assignment has come, changed or gone: now and then, what nobody uses any more goes.
    pub(super) fn changed(&mut self) {
        self.changes += 1;
        if self.changes >= self.left.max(FEW) {
            self.sweep();
        }
    }

    /// What nobody uses any more goes.
    pub(super) fn sweep(&mut self) {
        // The first use the others.
        sweep(&mut self.terms);
        sweep(&mut self.identities);
        sweep(&mut self.gates);
        (self.changes, self.left) = (0, self.len());
    }

    /// See [`NodeIndex::searches`](super::NodeIndex::searches).
    pub(super) fn searches(&self) -> u64 {
        self.gates.values().map(|gate| gate.searches()).sum()
    }

    fn len(&self) -> usize {
        self.identities.len() + self.gates.len() + self.terms.len()
    }
}

/// `value`, or the equal one that others have already.
fn share<T: PartialEq>(shared: &mut HashMap<ObjectKey, Arc<T>>, key: ObjectKey, value: Arc<T>) -> Arc<T> {
    let held = shared.entry(key).or_insert_with(|| Arc::clone(&value));
    if **held != *value {
        *held = value;
    }
    Arc::clone(held)
}

fn sweep<T>(shared: &mut HashMap<ObjectKey, Arc<T>>) {
    shared.retain(|_, value| Arc::strong_count(value) > 1);
    // So that a peak does not last for ever, and whoever comes and goes has room.
    shared.shrink_to(2 * shared.len());
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
