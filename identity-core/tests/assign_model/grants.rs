//! Grants: what people do to them, what the server makes of their status, and what assignments are to carry by a plain
//! reading of what is persisted.

use identity_core::{
    assign::{Event, GrantUpdate, Outcome, Relist},
    object::ObjectKey,
};
use identity_crd::{AzureIdentityGrant, GrantPhase};
use jiff::Timestamp;
use serde_json::{from_value, json};

use crate::{World, common::key};

/// For a binding that takes grants and asks for no approval.
pub(crate) fn policy() -> identity_crd::TimeBox {
    from_value(json!({"grant": {"required": true, "maxDuration": "10m", "minApprovals": 0}})).unwrap()
}

fn key_of(grant: &AzureIdentityGrant) -> ObjectKey {
    key(grant.metadata.namespace.as_deref().unwrap(), grant.metadata.name.as_deref().unwrap())
}

fn until(grant: &AzureIdentityGrant) -> Option<Timestamp> {
    grant.status.as_ref()?.active_until.as_ref()?.parse().ok()
}

impl World {
    pub(crate) fn ask(&mut self, name: &ObjectKey, binding: &ObjectKey, pod: Option<&str>, minutes: u8) {
        if self.grants.contains_key(name) {
            return;
        }
        let uid = format!("grant-{}", self.next());
        let object: AzureIdentityGrant = from_value(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant",
            "metadata": {"namespace": &*name.namespace, "name": &*name.name, "uid": uid},
            "spec": {"bindingName": &*binding.name, "podName": pod, "reason": "r", "duration": format!("{minutes}m"),
                "requestedBy": "ann"},
        }))
        .unwrap();
        self.put_grant(object);
    }

    pub(crate) fn put_grant(&mut self, mut object: AzureIdentityGrant) -> AzureIdentityGrant {
        object.metadata.resource_version = Some(self.next().to_string());
        self.queues[4].push_back(Event::Grant(Box::new(object.clone())));
        self.grants.insert(key_of(&object), object.clone());
        object
    }

    pub(crate) fn revoke(&mut self, name: &ObjectKey) {
        let Some(mut object) = self.grants.get(name).cloned() else { return };
        object.spec.revoked = from_value(json!({"by": "bob"})).unwrap();
        self.put_grant(object);
    }

    pub(crate) fn delete_grant(&mut self, name: &ObjectKey) {
        if let Some(object) = self.grants.remove(name) {
            self.next();
            self.queues[4].push_back(Event::GrantDeleted { key: name.clone(), uid: object.metadata.uid });
        }
    }

    pub(crate) fn list_grants(&self) -> Relist {
        Relist::Grants(self.grants.values().cloned().collect())
    }

    /// What the server makes of a status.
    pub(crate) fn write_grant(&mut self, update: &GrantUpdate) -> Outcome {
        let Some(there) = self.grants.get(&update.key).cloned() else { return Outcome::Conflict };
        let meta = &there.metadata;
        if meta.uid.as_ref() != Some(&update.precondition.uid)
            || meta.resource_version.as_ref() != Some(&update.precondition.resource_version)
        {
            return Outcome::Conflict;
        }
        let phase = |status: Option<&identity_crd::AzureIdentityGrantStatus>| status.and_then(|status| status.phase);
        let (before, after) = (phase(there.status.as_ref()), phase(Some(&update.status)));
        assert!(before.is_none_or(|phase| !phase.is_final()), "{before:?} is final, and becomes {after:?}");
        let written = self.put_grant(AzureIdentityGrant { status: Some(update.status.clone()), ..there.clone() });
        if after == Some(GrantPhase::Active) {
            assert!(there.spec.revoked.is_none(), "activated though revoked");
            let (deadline, most) = (until(&written).unwrap(), self.now + jiff::SignedDuration::from_mins(10));
            assert!(until(&there).is_none_or(|former| former == deadline), "the deadline moved");
            assert!(deadline <= most, "{deadline} is later than allowed");
            let uid = written.metadata.uid.clone().unwrap();
            self.activated.insert((uid, key_of(&written), deadline.to_string()));
        }
        Outcome::Granted(Box::new(written))
    }

    /// After a plan nothing is to be carried that was never persisted.
    pub(crate) fn check_stamps_are_persisted(&self) {
        for object in self.index.desired_assignments() {
            let Some(grant) = object.spec.grant else { continue };
            let namespace = object.spec.azure_binding_ref.as_ref().unwrap().metadata.namespace.clone().unwrap();
            let known = self.activated.iter().any(|(_, key, until)| {
                *key.namespace == *namespace && *key.name == *grant.name && *until == grant.until
            });
            assert!(known, "{grant:?} was never activated");
            assert!(grant.until.parse::<Timestamp>().unwrap() > self.now, "{grant:?} is over");
        }
    }

    /// When all was told and done: each assignment carries the grant that lasts longest, and no other.
    pub(crate) fn check_stamps(&self) {
        for object in self.index.desired_assignments() {
            let binding = object.spec.azure_binding_ref.as_ref().unwrap();
            let takes = binding.spec.time_box.is_some();
            let expected = self
                .grants
                .values()
                .filter(|grant| takes && grant.metadata.namespace == binding.metadata.namespace)
                .filter(|grant| grant.status.as_ref().is_some_and(|s| s.phase == Some(GrantPhase::Active)))
                .filter(|grant| grant.status.as_ref().unwrap().binding_uid == binding.metadata.uid)
                .filter(|grant| grant.spec.pod_name.is_none() || grant.spec.pod_name == object.spec.pod)
                .filter(|grant| grant.spec.revoked.is_none())
                .map(|grant| until(grant).unwrap())
                .filter(|until| *until > self.now)
                .max();
            let carried = object.spec.grant.map(|grant| grant.until.parse().unwrap());
            assert_eq!(carried, expected, "{:?}", object.metadata.name);
        }
        // And nothing that may be active waits.
        for (name, grant) in &self.grants {
            if self.failed.contains_key(&key(&name.namespace, grant.metadata.uid.as_ref().unwrap())) {
                continue;
            }
            let binding = self.bindings.get(&key(&name.namespace, &grant.spec.binding_name));
            let takes = binding.is_some_and(|binding| binding.spec.time_box.is_some());
            let phase = grant.status.as_ref().and_then(|status| status.phase);
            assert!(phase.is_some(), "{name} was not looked at");
            assert!(!takes || phase != Some(GrantPhase::Pending), "{name} waits for nothing");
            assert!(grant.spec.revoked.is_none() || phase != Some(GrantPhase::Active), "{name} is revoked");
        }
    }
}
