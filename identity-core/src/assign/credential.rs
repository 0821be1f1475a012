//! What is said of the credential of an identity, and what becomes of it in the identity's status.

use identity_crd::{Condition, ConditionStatus, IdentityType, find_condition};
use jiff::Unit;

use super::{CREDENTIAL_READY, CredentialVerdict, IdentityState, Index, StatusTarget, status::condition};

impl Index {
    pub(super) fn set_credential(&mut self, verdict: CredentialVerdict) {
        let key = verdict.identity.clone();
        let Some(state) = self.identities.get_mut(&key) else { return };
        let meta = &state.object.metadata;
        if verdict.uid != meta.uid || verdict.generation != meta.generation {
            return;
        }
        if state.credential.as_ref().is_none_or(|there| is_news(there, &verdict)) {
            state.credential = Some(verdict);
            self.statuses.dirty.insert(StatusTarget::Identity(key));
        }
    }
}

/// In other words only, it is news only where something is wrong: how Entra cannot be reached changes by the minute.
fn is_news(there: &CredentialVerdict, verdict: &CredentialVerdict) -> bool {
    let said =
        |verdict: &CredentialVerdict| (verdict.generation, verdict.ready, verdict.reason.clone(), verdict.expires);
    said(there) != said(verdict) || (verdict.ready == Some(false) && there.message != verdict.message)
}

impl IdentityState {
    /// Whether there is a credential to be tried: not that of a managed identity, which is the platform's, and not that of
    /// an identity that nobody gets.
    fn has_credential(&self) -> bool {
        let own =
            self.object.spec.identity_type().is_some_and(|kind| kind != IdentityType::UserAssignedManagedIdentity);
        own && self.usable.is_ok()
    }

    /// The condition [`CREDENTIAL_READY`] and `credentialExpiry`. What was said last stays until this generation was judged: an
    /// older `observedGeneration` says that it was not yet.
    pub(super) fn credential_status(&self) -> (Option<Condition>, Option<String>) {
        if !self.has_credential() {
            return (None, None);
        }
        let Some(verdict) = &self.credential else {
            let there = self.object.status.as_ref();
            let said = there.and_then(|status| find_condition(&status.conditions, CREDENTIAL_READY)).cloned();
            return (said, there.and_then(|status| status.credential_expiry.clone()));
        };
        let ready = verdict.ready.map_or(ConditionStatus::Unknown, ConditionStatus::from);
        let condition = condition(CREDENTIAL_READY, ready, &verdict.reason, &verdict.message, verdict.generation);
        let expires = verdict.expires.map(|at| at.round(Unit::Second).unwrap_or(at).to_string());
        (Some(condition), expires)
    }
}
