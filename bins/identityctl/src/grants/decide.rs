//! What to write, or why not: of what is known, before anything is asked.

use identity_crd::{
    Approval, AzureIdentityBinding, AzureIdentityGrant, AzureIdentityGrantSpec, GrantPhase, GrantPolicy, parse_duration,
};
use jiff::Timestamp;
use serde_json::json;

use super::{
    args::Request,
    cluster::{Edit, Known, Me},
    trouble::Trouble,
    words::{approvers, hours, policy},
};

/// What an approver or the requester says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Approve,
    Deny,
    Revoke,
}

impl Word {
    const fn done(self) -> &'static str {
        match self {
            Self::Approve => "approved",
            Self::Deny => "denied",
            Self::Revoke => "revoked",
        }
    }
}

/// Groups of mine that the binding's approvers know; the others are nobody's business.
fn groups(me: &Me, policy: Option<&GrantPolicy>) -> Option<Vec<String>> {
    let known = policy?.approvers.as_ref()?.groups.as_ref()?;
    let mine: Vec<_> = me.groups.iter().filter(|group| known.contains(group)).cloned().collect();
    (!mine.is_empty()).then_some(mine)
}

/// A grant to create, and what is worth knowing about it.
pub(super) fn new_grant(
    args: &Request,
    namespace: &str,
    me: &Me,
    known: &Known,
    now: Timestamp,
) -> Result<(AzureIdentityGrant, Vec<String>), Trouble> {
    let name = &args.binding;
    let mut notes = Vec::new();
    let policy = match known {
        Known::Absent => {
            return Err(Trouble::refused(format!("there is no AzureIdentityBinding {name} in namespace {namespace}")));
        }
        Known::Unreadable => None,
        Known::There(binding) => {
            let policy = policy(binding).ok_or_else(|| {
                Trouble::refused(format!(
                    "AzureIdentityBinding {name} takes no grants: it has no spec.timeBox.grant (docs/time-boxes.md)"
                ))
            })?;
            allows(name, policy, &args.duration)?;
            let closed = |why| Trouble::refused(format!("AzureIdentityBinding {name}: {why}"));
            notes.extend(hours(binding, now).map_err(closed)?);
            Some(policy)
        }
    };
    let spec = AzureIdentityGrantSpec {
        binding_name: name.clone(),
        pod_name: args.pod.clone(),
        reason: args.reason.clone(),
        duration: args.duration.clone(),
        requested_by: me.name.clone(),
        requester_groups: groups(me, policy),
        ..AzureIdentityGrantSpec::default()
    };
    let violations: Vec<_> = spec.validate().iter().map(ToString::to_string).collect();
    if !violations.is_empty() {
        return Err(Trouble::refused(violations.join("; ")));
    }
    let mut grant = AzureIdentityGrant { spec, ..AzureIdentityGrant::default() };
    grant.metadata.namespace = Some(namespace.to_owned());
    match &args.name {
        Some(name) => grant.metadata.name = Some(name.clone()),
        None => grant.metadata.generate_name = Some(format!("{name}-")),
    }
    Ok((grant, notes))
}

/// Whether a binding's policy can ever let such a grant be.
fn allows(name: &str, policy: &GrantPolicy, duration: &str) -> Result<(), Trouble> {
    let Some(most) = parse_duration(&policy.max_duration) else {
        return Err(Trouble::refused(format!(
            "spec.timeBox.grant.maxDuration of AzureIdentityBinding {name}: `{}` is no duration; it takes no grants until that \
             is corrected",
            policy.max_duration
        )));
    };
    if parse_duration(duration).is_some_and(|wanted| wanted > most) {
        return Err(Trouble::refused(format!(
            "{duration} is longer than the {} that AzureIdentityBinding {name} allows (spec.timeBox.grant.maxDuration); ask for \
             less",
            policy.max_duration
        )));
    }
    let named = policy.approvers.as_ref().map_or(0, |approvers| {
        approvers.users.as_ref().map_or(0, Vec::len) + approvers.groups.as_ref().map_or(0, Vec::len)
    });
    if policy.min_approvals() > 0 && named == 0 {
        return Err(Trouble::refused(format!(
            "AzureIdentityBinding {name} names no approvers, so nobody could approve; see to its spec.timeBox.grant.approvers"
        )));
    }
    Ok(())
}

/// What becomes of a grant by somebody's word.
pub(super) fn next(
    word: Word,
    grant: &AzureIdentityGrant,
    binding: Option<&AzureIdentityBinding>,
    me: &Me,
    reason: Option<&str>,
) -> Result<Edit<String>, Trouble> {
    let name = grant.metadata.name.as_deref().unwrap_or_default();
    let phase = grant.status.as_ref().and_then(|status| status.phase);
    if word == Word::Approve {
        return approval(name, grant, phase, binding, me, reason);
    }
    if let Some(phase) = phase.filter(|phase| phase.is_final()) {
        return Ok(Edit::Nothing(format!("{name} gives no access already: it is {}", phase.as_str())));
    }
    let spec = &grant.spec;
    let said = if word == Word::Deny { &spec.denied } else { &spec.revoked };
    if let Some(said) = said {
        return Ok(Edit::Nothing(format!("{name} has been {} already, by {}", word.done(), said.by)));
    }
    let field = word.done();
    let mut withdrawal = json!({"by": me.name});
    if let Some(reason) = reason {
        withdrawal["reason"] = json!(reason);
    }
    let was = if phase == Some(GrantPhase::Active) { "; it was active, and its access ends" } else { "" };
    Ok(Edit::Spec(json!({field: withdrawal}), format!("{name} {field}{was}")))
}

fn approval(
    name: &str,
    grant: &AzureIdentityGrant,
    phase: Option<GrantPhase>,
    binding: Option<&AzureIdentityBinding>,
    me: &Me,
    reason: Option<&str>,
) -> Result<Edit<String>, Trouble> {
    let spec = &grant.spec;
    if let Some(phase) = phase.filter(|phase| phase.is_final()) {
        return Err(Trouble::refused(format!(
            "{name} is {}, for good; {} has to ask anew",
            phase.as_str(),
            spec.requested_by
        )));
    }
    if let Some((word, by)) = [("denied", &spec.denied), ("revoked", &spec.revoked)]
        .iter()
        .find_map(|(word, said)| said.as_ref().map(|said| (word, &said.by)))
    {
        return Err(Trouble::refused(format!("{name} was {word} by {by}; {} has to ask anew", spec.requested_by)));
    }
    if spec.requested_by == me.name {
        let who = binding.and_then(policy).map(|policy| format!(": {}", approvers(policy))).unwrap_or_default();
        return Err(Trouble::refused(format!("you have asked for {name} yourself; somebody else must approve{who}")));
    }
    if spec.approvals.iter().any(|approval| approval.by == me.name) {
        return Ok(Edit::Nothing(format!("you have approved {name} already")));
    }
    if phase == Some(GrantPhase::Active) {
        return Ok(Edit::Nothing(format!("{name} is active already, with the approvals that it has")));
    }
    let policy = binding.and_then(policy);
    let mine = groups(me, policy);
    if let Some(policy) = policy
        && !policy.may_approve(&me.name, mine.as_deref().unwrap_or_default())
    {
        return Err(Trouble::refused(format!(
            "{} is not an approver of AzureIdentityBinding {}; these are: {}",
            me.name,
            spec.binding_name,
            approvers(policy)
        )));
    }
    let mut all = spec.approvals.clone();
    all.push(Approval { by: me.name.clone(), groups: mine, reason: reason.map(str::to_owned) });
    Ok(Edit::Spec(json!({"approvals": all}), format!("{name} approved")))
}
