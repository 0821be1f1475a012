//! Why a pod has, or has not, an identity.

use super::{Index, join::eligible, plan::Hold};
use crate::{
    explain::{Explanation, Recorder, Tree, Verdict},
    object::ObjectKey,
};

impl Index {
    /// Which identities a pod is assigned through which bindings, and why not the others: every binding that could reach
    /// the pod is in the tree. Its root holds when at least one assignment is wanted.
    pub fn explain(&self, pod: &ObjectKey) -> Explanation {
        let mut tree = Tree::new(format!("pod {pod} is to have an identity"));
        let Some(state) = self.pods.get(pod) else {
            tree.line(Verdict::No, || "there is no such pod".into());
            return tree.finish(Verdict::No);
        };
        let pod = &state.pod;
        let fit = eligible(pod, &mut tree);
        let mut any = false;
        let mut bindings: Vec<_> = self.bindings.iter().collect();
        bindings.sort_by_key(|(key, _)| *key);
        for (key, binding) in bindings {
            if !self.options.cluster_wide && key.namespace != pod.reference.namespace {
                continue;
            }
            let identity = binding.identity.as_ref().map_or("(none named)", |identity| &*identity.name);
            tree.open(|| format!("binding {key} gives it identity {identity}"));
            let wanted = self.selects(key, binding, pod, &mut tree) && self.granted(pod, binding, &mut tree);
            any |= wanted && fit;
            if let Some(assignment) = state.selected.get(key) {
                self.explain_assignment(assignment, &mut tree);
            }
            tree.close((wanted && fit).into());
        }
        if self.bindings.is_empty() {
            tree.line(Verdict::No, || "there is no binding".into());
        }
        tree.finish(any.into())
    }

    fn explain_assignment(&self, key: &ObjectKey, tree: &mut Tree) {
        match self.observed.get(key) {
            None => tree.note(|| format!("assignment {key} is not there")),
            Some(held) if !held.ours => tree.line(Verdict::No, || {
                format!("assignment {key} belongs to somebody else (it lacks our label): left alone")
            }),
            Some(held) if held.deleting => tree.note(|| format!("assignment {key} is being deleted")),
            Some(_) => tree.note(|| format!("assignment {key} is there")),
        }
        match self.holds.get(key) {
            None => {}
            Some(Hold::InFlight) => tree.note(|| "a write of it is under way".into()),
            Some(Hold::Failed { retry_at }) => tree.note(|| format!("writing it failed; next attempt at {retry_at}")),
            Some(Hold::Conflicted { .. }) => tree.note(|| "a write was refused; waiting for the newer version".into()),
        }
    }
}
