//! A wall clock that is set back: what waits for a time would wait so much longer, and with it what takes access away.

use jiff::{SignedDuration, Timestamp};

use super::{Index, plan::Hold};

/// Clocks are put right in small steps all the time; those matter to nobody.
const STEP: SignedDuration = SignedDuration::from_secs(1);

impl Index {
    /// Looks whether the clock was set back since it was last read here. Then whatever waits for a time is tried now: times of
    /// attempts are no promises to anybody. Deadlines and time boxes are, and stay where they are.
    pub(super) fn watch_clock(&mut self, now: Timestamp) {
        let before = self.clock.replace(now);
        let back = |before: Timestamp| before.duration_since(now) > STEP;
        if !before.is_some_and(back) {
            return;
        }
        for hold in self.holds.values_mut() {
            match hold {
                Hold::InFlight => {}
                Hold::Failed { retry_at } => *retry_at = now,
                Hold::Conflicted { until } => *until = None,
            }
        }
        self.dirty.extend(std::mem::take(&mut self.later).into_iter().map(|(_, key)| key));
        for since in self.orphans.values_mut() {
            *since = (*since).min(now);
        }
        self.statuses.clock_went_back(now);
        self.grants.clock_went_back();
    }
}

#[cfg(test)]
mod tests {
    use identity_crd::{AzureIdentity, AzureIdentityBinding};
    use serde_json::{from_value, json};

    use crate::{
        assign::{Action, Event, Index, Options, Outcome, Relist},
        pod::Pod,
    };

    fn pod() -> Pod {
        let pod: k8s_openapi::api::core::v1::Pod = from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "team", "uid": "p", "labels": {"aadpodidbinding": "demo"}},
            "spec": {"nodeName": "node-1"}, "status": {"phase": "Running", "podIP": "10.0.0.1"},
        }))
        .unwrap();
        Pod::try_from(&pod).unwrap()
    }

    fn index() -> Index {
        let identity: AzureIdentity = from_value(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": {"name": "i", "namespace": "team", "uid": "i", "generation": 1},
            "spec": {"type": 0, "clientID": "33333333-3333-3333-3333-333333333333",
                "resourceID": "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg/providers/\
                    Microsoft.ManagedIdentity/userAssignedIdentities/i"},
        }))
        .unwrap();
        let binding: AzureIdentityBinding = from_value(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": {"name": "b", "namespace": "team", "uid": "b", "generation": 1},
            "spec": {"azureIdentity": "i", "selector": "demo"},
        }))
        .unwrap();
        let mut index = Index::new(Options::default());
        for list in [
            Relist::Pods(vec![pod()]),
            Relist::Identities(vec![identity]),
            Relist::Bindings(vec![binding]),
            Relist::Assigned(vec![]),
        ] {
            index.apply(Event::Relist(list));
        }
        index
    }

    #[test]
    fn what_waits_for_another_attempt_does_not_wait_for_a_clock_that_was_set_back() {
        let at = |second: i64| jiff::Timestamp::from_second(1_800_000_000 + second).unwrap();
        let mut index = index();
        let actions = index.plan(at(0));
        assert!(matches!(&*actions, [Action::Apply(_)]), "{actions:?}");
        let statuses = index.plan_status(at(0)).actions;
        assert_eq!(statuses.len(), 2, "{statuses:?}");
        for action in actions.iter().chain(&statuses) {
            index.done(action, Outcome::Failed { retry_at: at(2) });
        }
        assert!(index.plan(at(1)).is_empty() && index.plan_status(at(1)).actions.is_empty());
        // A small step is none.
        assert!(index.plan(at(0)).is_empty());
        assert_eq!(index.plan(at(-3600)), actions);
        assert_eq!(index.plan_status(at(-3600)).actions.len(), 2);
    }
}
