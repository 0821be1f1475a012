//! What must hold: at every moment, and when everything was delivered and done.

use std::collections::{BTreeMap, VecDeque};

use identity_core::{
    assign::{Event, Index, Relist},
    object::ObjectKey,
    pod::PodPhase,
};
use identity_crd::{AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding};
use jiff::SignedDuration;

use crate::{
    World, assigned_key,
    common::{key, naive_selects},
    content, ours,
};

impl World {
    /// What should be, by nested loops over what the index was told.
    fn naive(&self) -> BTreeMap<(String, String), (ObjectKey, ObjectKey, AzureIdentity, AzureIdentityBinding)> {
        let mut out = BTreeMap::new();
        for (pod_key, pod) in &self.told_pods {
            for (binding_key, binding) in &self.told_bindings {
                let wide = self.options.cluster_wide;
                let Some(name) = &binding.spec.azure_identity else { continue };
                let identity_key = key(&binding_key.namespace, name);
                let Some(identity) = self.told_identities.get(&identity_key) else { continue };
                let annotations = identity.metadata.annotations.clone().unwrap_or_default();
                let namespaced = annotations.get("aadpodidentity.k8s.io/Behavior").is_some_and(|v| v == "namespaced");
                let spec = &identity.spec;
                let usable = match spec.type_.unwrap_or(0) {
                    0 => spec.resource_id.as_deref() != Some("nonsense"),
                    1 => {
                        let secret = spec.client_password.as_ref().unwrap().namespace.clone();
                        spec.tenant_id.is_some() && (wide || secret.is_none_or(|s| *s == *identity_key.namespace))
                    }
                    _ => false,
                };
                let same_namespace = pod_key.namespace == binding_key.namespace;
                let (pin, has) = (binding.spec.client_id.clone(), spec.client_id.clone().unwrap_or_default());
                if usable
                    && pin.is_none_or(|pin| pin.to_lowercase() == has.to_lowercase())
                    && (same_namespace || (wide && !namespaced))
                    && naive_selects(&binding.spec, pod)
                    && pod.node.is_some()
                    && !pod.host_network
                    && !matches!(pod.phase, PodPhase::Succeeded | PodPhase::Failed)
                {
                    let pair = (pod.reference.uid.to_string(), binding.metadata.uid.clone().unwrap());
                    out.insert(pair, (pod_key.clone(), binding_key.clone(), identity.clone(), binding.clone()));
                }
            }
        }
        out
    }

    pub(crate) fn check_desired(&self) {
        let expected = self.naive();
        let desired = self.index.desired_assignments();
        assert_eq!(desired.len(), expected.len(), "{desired:#?}\n{expected:#?}");
        for object in &desired {
            let (identity, binding) =
                (object.spec.azure_identity_ref.as_ref().unwrap(), object.spec.azure_binding_ref.as_ref().unwrap());
            let pair = (object.spec.pod_uid.clone().unwrap(), binding.metadata.uid.clone().unwrap());
            let (pod, binding_key, naive_identity, naive_binding) = &expected[&pair];
            assert_eq!(key(object.spec.pod_namespace.as_ref().unwrap(), object.spec.pod.as_ref().unwrap()), *pod);
            assert_eq!(object.metadata.namespace.as_deref(), Some(&*pod.namespace));
            assert_eq!(object.metadata.owner_references.as_ref().unwrap()[0].uid, pair.0);
            assert_eq!(identity.metadata.uid, naive_identity.metadata.uid);
            assert_eq!(identity.metadata.generation, naive_identity.metadata.generation);
            assert_eq!(identity.spec, naive_identity.spec);
            assert_eq!(identity.metadata.labels, None);
            assert_eq!(binding.metadata.name.as_deref(), Some(&*binding_key.name));
            assert_eq!(binding.metadata.generation, naive_binding.metadata.generation);
            assert_eq!(binding.spec, naive_binding.spec);
            assert_eq!(binding.status, None);
            assert!(object.is_assigned());
        }
    }

    /// The network behaves from now on: everything is delivered and done until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 50, "does not settle: {:#?}", self.flying);
            for kind in 0..5 {
                while let Some(event) = self.queues[kind].pop_front() {
                    self.tell(event);
                }
            }
            self.plan();
            if self.flying.is_empty() && self.queues.iter().all(VecDeque::is_empty) {
                self.check_stamps();
                match [self.index.next_due(), self.index.next_transition()].into_iter().flatten().min() {
                    Some(due) => {
                        self.now = self.now.max(due);
                        continue;
                    }
                    None => break,
                }
            }
            for action in std::mem::take(&mut self.flying) {
                self.execute(&action, 2);
            }
        }
        self.check_desired();
        let desired: BTreeMap<ObjectKey, AzureAssignedIdentity> =
            self.index.desired_assignments().iter().map(|o| (assigned_key(o), o.clone())).collect();
        for (key, object) in &self.assigned {
            if ours(object) {
                assert_eq!(desired.get(key), Some(&content(object)), "{key}");
            }
        }
        for key in desired.keys() {
            assert!(self.assigned.contains_key(key), "{key} is missing");
        }
        let writes = self.writes;
        for kind in 0..5 {
            self.relist(kind);
        }
        self.now += SignedDuration::from_hours(1);
        assert_eq!(self.index.plan(self.now), [], "a relist of what is there asks for nothing");
        // A controller that starts finds nothing to do, in whatever order it learns things.
        let mut fresh = Index::new(self.options.clone());
        fresh.apply(Event::Relist(Relist::Assigned(self.assigned.values().cloned().collect())));
        fresh.apply(Event::Relist(Relist::Pods(self.pods.values().cloned().collect())));
        assert_eq!(fresh.plan(self.now), []);
        fresh.apply(Event::Relist(Relist::Bindings(self.bindings.values().cloned().collect())));
        assert_eq!(fresh.plan(self.now), []);
        fresh.apply(Event::Relist(Relist::Identities(self.identities.values().cloned().collect())));
        assert_eq!(fresh.plan(self.now), []);
        assert_eq!(self.writes, writes);
    }
}
