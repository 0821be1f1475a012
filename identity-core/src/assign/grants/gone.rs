//! Active grants that are there no more. There is nothing left to write to, so that they are told of by themselves; and nobody
//! may have seen them go.

use std::collections::HashMap;

use identity_crd::{AzureIdentityBinding, AzureIdentityGrant, AzureIdentityGrantStatus, GrantPhase};
use jiff::Timestamp;

use super::{Grants, Index, MOST_NOTICES, ObjectKey, binding_of, key_of};
use crate::grant::Looked;

const DELETED: &str = "it was deleted";
const DELETED_UNSEEN: &str = "it was deleted while no controller ran";

/// An active grant that is there no more.
#[derive(Debug)]
pub(super) struct Gone {
    grant: Box<AzureIdentityGrant>,
    message: &'static str,
    /// Seen while another controller led, which has said so, unless it stopped before.
    pub(super) told_by_others: bool,
}

impl Gone {
    /// It was there a moment ago.
    pub(super) const fn seen(grant: Box<AzureIdentityGrant>) -> Self {
        Self { grant, message: DELETED, told_by_others: false }
    }
}

impl Grants {
    pub(super) fn miss(&mut self, gone: Gone) {
        if self.gone.len() == MOST_NOTICES {
            self.gone.pop_front();
        }
        self.gone.push_back(gone);
    }
}

impl Index {
    /// Of active grants that were deleted there is nothing left to write to.
    pub(super) fn tell_of_gone(&mut self, now: Timestamp) {
        if !std::mem::replace(&mut self.grants.missed, true) {
            self.find_missed(now);
        }
        for Gone { grant, message, told_by_others } in std::mem::take(&mut self.grants.gone) {
            let (key, binding) = (key_of(&grant.metadata), binding_of(&grant));
            if told_by_others && !self.is_stamped(&key.name, &binding) {
                continue;
            }
            let notice = self.told(&key, &binding, &grant, "GrantRevoked", message);
            self.grants.notice(notice);
            let looked = Looked {
                time: now,
                key: &key,
                grant: &grant,
                binding_key: &binding,
                binding: self.bindings.get(&binding).map(|state| &*state.object),
                status: grant.status.as_ref(),
            };
            let record = looked.record("GrantRevoked", message, GrantPhase::Revoked);
            if self.grants.records.len() < MOST_NOTICES {
                self.grants.records.push(record);
            }
        }
    }

    /// Whether an assignment carries what a grant of this name gives through this binding.
    fn is_stamped(&self, name: &str, binding: &ObjectKey) -> bool {
        self.observed.values().any(|held| {
            let spec = &held.content.spec;
            let of = |embedded: &AzureIdentityBinding| key_of(&embedded.metadata) == *binding;
            spec.grant.as_ref().is_some_and(|grant| grant.name == name)
                && spec.azure_binding_ref.as_ref().is_some_and(|embedded| of(embedded))
        })
    }

    /// What assignments carry of grants that nobody has seen go.
    fn find_missed(&mut self, now: Timestamp) {
        let mut missed = HashMap::new();
        for held in self.observed.values() {
            let spec = &held.content.spec;
            let Some((grant, of)) = spec.grant.as_ref().zip(spec.azure_binding_ref.as_ref()) else { continue };
            let over = grant.until.parse::<Timestamp>().is_ok_and(|until| until <= now);
            let binding = key_of(&of.metadata);
            let key = ObjectKey::new(binding.namespace.clone(), grant.name.as_str());
            let known = self.grants.entries.contains_key(&key)
                || self.grants.gone.iter().any(|gone| key_of(&gone.grant.metadata) == key);
            if !over && !known {
                missed.insert(key, (binding, grant.until.clone(), of.metadata.uid.clone()));
            }
        }
        for (key, (binding, until, binding_uid)) in missed {
            let mut grant = Box::<AzureIdentityGrant>::default();
            (grant.metadata.namespace, grant.metadata.name) =
                (Some(key.namespace.to_string()), Some(key.name.to_string()));
            grant.spec.binding_name = binding.name.to_string();
            grant.status = Some(AzureIdentityGrantStatus {
                phase: Some(GrantPhase::Active),
                active_until: Some(until),
                binding_uid,
                ..AzureIdentityGrantStatus::default()
            });
            self.grants.miss(Gone { grant, message: DELETED_UNSEEN, told_by_others: false });
        }
    }
}
