//! What the audit is told of a grant: who asked, who approved, what became of it and until when.

use identity_crd::{
    Approval, AzureIdentityBinding, AzureIdentityGrant, AzureIdentityGrantStatus, GrantPhase, GrantPolicy,
};
use jiff::Timestamp;

use super::approval::approvals;
use crate::object::ObjectKey;

/// Something that becomes of a grant. Made before it is done, so that it can be recorded before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// By the controller's clock.
    pub time: Timestamp,
    /// The reason of the Event: `GrantRequested`, `GrantApproved`, `GrantActivated`, …
    pub reason: &'static str,
    /// The Event's words.
    pub message: String,
    /// What it was; `None`: no controller had seen it.
    pub from: Option<GrantPhase>,
    /// What it becomes; the same, if somebody has only approved.
    pub to: GrantPhase,
    /// The grant.
    pub grant: ObjectKey,
    /// Its `metadata.uid`.
    pub grant_uid: String,
    /// The version of it that was judged. Its status is written on no other: of several records on one version one at most
    /// became true.
    pub grant_version: String,
    /// When it was created, by the API server's clock.
    pub requested_at: Option<Timestamp>,
    /// The binding that it is for.
    pub binding: ObjectKey,
    /// `metadata.uid` of the binding as it was judged, or of the one that it was activated for.
    pub binding_uid: Option<String>,
    /// `metadata.generation` of it, when it was there.
    pub binding_generation: Option<i64>,
    /// For the pod of this name alone.
    pub pod: Option<String>,
    /// Who asks.
    pub requested_by: String,
    /// Groups that the requester wanted to be known for.
    pub requester_groups: Vec<String>,
    /// What for.
    pub purpose: String,
    /// How long, as asked for.
    pub duration: String,
    /// Approvals that count: all of them, when the binding is not there to say which.
    pub approvals: Vec<Approval>,
    /// How many it takes, where the binding says so.
    pub approvals_needed: Option<usize>,
    /// Its beginning, as in its status.
    pub active_from: Option<String>,
    /// Its deadline, as in its status.
    pub active_until: Option<String>,
    /// Who has denied or revoked it.
    pub ended_by: Option<String>,
    /// Why.
    pub ended_reason: Option<String>,
}

/// What every record of one look at a grant has in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looked<'a> {
    pub(crate) time: Timestamp,
    pub(crate) key: &'a ObjectKey,
    pub(crate) grant: &'a AzureIdentityGrant,
    pub(crate) binding_key: &'a ObjectKey,
    pub(crate) binding: Option<&'a AzureIdentityBinding>,
    /// As it is to be.
    pub(crate) status: Option<&'a AzureIdentityGrantStatus>,
}

impl Looked<'_> {
    pub(crate) fn record(&self, reason: &'static str, message: &str, to: GrantPhase) -> Record {
        let (meta, spec) = (&self.grant.metadata, &self.grant.spec);
        let policy: Option<&GrantPolicy> = self.binding.and_then(|b| b.spec.time_box.as_ref()?.grant.as_ref());
        let judged = policy.map(|policy| approvals(spec, policy));
        let counts = |approval: &&Approval| judged.as_ref().is_none_or(|judged| judged.by.contains(&&*approval.by));
        let binding = self.binding.map(|binding| &binding.metadata);
        let withdrawal = spec.revoked.as_ref().or(spec.denied.as_ref());
        Record {
            time: self.time,
            reason,
            message: message.to_owned(),
            from: self.grant.status.as_ref().and_then(|status| status.phase),
            to,
            grant: self.key.clone(),
            grant_uid: meta.uid.clone().unwrap_or_default(),
            grant_version: meta.resource_version.clone().unwrap_or_default(),
            requested_at: meta.creation_timestamp.as_ref().map(|time| time.0),
            binding: self.binding_key.clone(),
            binding_uid: self
                .status
                .and_then(|status| status.binding_uid.clone())
                .or_else(|| binding.and_then(|meta| meta.uid.clone())),
            binding_generation: binding.and_then(|meta| meta.generation),
            pod: spec.pod_name.clone().filter(|name| !name.is_empty()),
            requested_by: spec.requested_by.clone(),
            requester_groups: spec.requester_groups.clone().unwrap_or_default(),
            purpose: spec.reason.clone(),
            duration: spec.duration.clone(),
            approvals: spec.approvals.iter().filter(counts).cloned().collect(),
            approvals_needed: judged.as_ref().map(|judged| judged.needed),
            active_from: self.status.and_then(|status| status.active_from.clone()),
            active_until: self.status.and_then(|status| status.active_until.clone()),
            ended_by: withdrawal.map(|said| said.by.clone()),
            ended_reason: withdrawal.and_then(|said| said.reason.clone()),
        }
    }
}
