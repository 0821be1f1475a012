//! Where a grant or a binding stands, in words.

use identity_core::{
    grant::{ACTIVE, APPROVED, approvals},
    schedule::{Gate, Passage},
};
use identity_crd::{AzureIdentityBinding, AzureIdentityGrant, GrantPhase, GrantPolicy};
use jiff::{SignedDuration, Timestamp};

/// Where a grant stands, for whoever waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not yet; for what.
    Waits(String),
    /// It gives access until then.
    Active(Timestamp),
    /// It never will, or no longer does.
    Over(String),
}

pub(super) fn standing(grant: &AzureIdentityGrant, policy: Option<&GrantPolicy>, now: Timestamp) -> Standing {
    let status = grant.status.as_ref();
    let condition = |name: &str| {
        let conditions = status.iter().flat_map(|status| &status.conditions);
        conditions.filter(|c| c.type_ == name && !c.message.is_empty()).map(|c| c.message.clone()).next()
    };
    let phase = status.and_then(|status| status.phase);
    let by = |withdrawal: &Option<identity_crd::Withdrawal>| withdrawal.as_ref().map(|w| w.by.clone());
    match phase {
        Some(GrantPhase::Active) => match until(grant) {
            Some(until) if until > now => Standing::Active(until),
            Some(until) => Standing::Over(format!("its time was over at {until}")),
            None => Standing::Over("its deadline cannot be read".to_owned()),
        },
        Some(phase) if phase.is_final() => {
            let word = phase.as_str().to_lowercase();
            Standing::Over(match condition(ACTIVE) {
                Some(why) if why.starts_with(&word) => why,
                Some(why) => format!("{word}: {why}"),
                None => word,
            })
        }
        // The controller has yet to see it; it can only end so.
        _ if grant.spec.denied.is_some() => {
            Standing::Over(format!("denied by {}", by(&grant.spec.denied).unwrap_or_default()))
        }
        _ if grant.spec.revoked.is_some() => {
            Standing::Over(format!("revoked by {}", by(&grant.spec.revoked).unwrap_or_default()))
        }
        _ => {
            let judged = policy.map(|policy| (approvals(&grant.spec, policy), policy));
            let text = match judged {
                Some((ref counted, policy)) if !counted.are_enough() => {
                    let missing = counted.needed - counted.by.len();
                    format!("for {} of {}", count(missing, "approval", "approvals"), approvers(policy))
                }
                // Enough, as far as can be told here; the controller knows more.
                _ => match (phase, condition(ACTIVE).or_else(|| condition(APPROVED))) {
                    (None, _) if judged.is_none() => {
                        "for approval, and for the controller, which has not seen it yet".to_owned()
                    }
                    (None, _) => "for the controller, which has not seen it yet".to_owned(),
                    (_, Some(why)) if judged.is_none() => format!("for approval; the controller says: {why}"),
                    (_, Some(why)) => format!("for the controller; the last it said: {why}"),
                    _ => "for the controller".to_owned(),
                },
            };
            Standing::Waits(text)
        }
    }
}

pub(super) fn until(grant: &AzureIdentityGrant) -> Option<Timestamp> {
    grant.status.as_ref()?.active_until.as_ref()?.parse().ok()
}

/// Who may approve.
pub(super) fn approvers(policy: &GrantPolicy) -> String {
    let approvers = policy.approvers.as_ref();
    let users = approvers.and_then(|a| a.users.as_deref()).unwrap_or_default();
    let groups = approvers.and_then(|a| a.groups.as_deref()).unwrap_or_default();
    let mut all = users.to_vec();
    if !groups.is_empty() {
        let word = if groups.len() == 1 { "group" } else { "groups" };
        all.push(format!("{word} {}", groups.join(", ")));
    }
    if all.is_empty() { "nobody (the binding names no approvers)".to_owned() } else { all.join(", ") }
}

pub(super) fn policy(binding: &AzureIdentityBinding) -> Option<&GrantPolicy> {
    binding.spec.time_box.as_ref()?.grant.as_ref()
}

pub(super) fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A time that is left: two units at most.
pub(super) fn left(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) if m < 10 => format!("{m}m{s:02}s"),
        (0, 0, m, _) => format!("{m}m"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, ..) => format!("{d}d{h:02}h"),
    }
}

/// A binding without its grants: does its own time box keep it open? `None`: no, and nothing but a grant would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ByItself {
    /// Open, and what to do about it.
    Open(String),
    /// Closed, and when that changes.
    Closed(String),
}

pub(super) fn by_itself(binding: &AzureIdentityBinding, now: Timestamp) -> ByItself {
    let name = binding.metadata.name.as_deref().unwrap_or_default();
    let Some(gate) = Gate::new(binding.spec.time_box.as_ref(), None) else {
        return ByItself::Open(format!(
            "{name} has no spec.timeBox, so it is always open: give it one, or delete the binding"
        ));
    };
    match gate.now(now, None) {
        Passage::Open { until, closes } => {
            let until = match until {
                Some(until) if closes => format!(" until {until}"),
                _ => String::new(),
            };
            ByItself::Open(format!(
                "{name} is open by its own time box{until}; no grant is needed for that and none can be revoked: change \
                 spec.timeBox (kubectl edit azureidentitybinding {name}), such as by a notAfter that has passed"
            ))
        }
        Passage::Closed { opens, reason } => {
            let opens = opens.map(|opens| format!("; it opens by itself at {opens}")).unwrap_or_default();
            let error = gate.error().map(|error| format!(" ({error})")).unwrap_or_default();
            ByItself::Closed(format!("{name} is closed: {reason}{error}{opens}"))
        }
    }
}

/// What somebody who asks for access should know about the binding's own hours; an error when no grant can ever open it.
pub(super) fn hours(binding: &AzureIdentityBinding, now: Timestamp) -> Result<Option<String>, String> {
    let Some(gate) = Gate::new(binding.spec.time_box.as_ref(), None) else { return Ok(None) };
    if let Some(error) = gate.error() {
        return Err(format!("its time box is closed until this is corrected: {error}"));
    }
    // As if the grant were active and without end.
    match (gate.now(now, Some(Timestamp::MAX)), gate.now(now, None)) {
        (Passage::Closed { opens: Some(opens), reason }, _) => Ok(Some(format!(
            "a grant gives no access yet: {reason}; it opens at {opens}, and the grant's time runs from its activation"
        ))),
        (Passage::Closed { opens: None, reason }, _) => Err(format!("no grant opens it any more: {reason}")),
        (_, Passage::Open { until, closes: true }) => {
            let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
            Ok(Some(format!("it is open{until} without a grant")))
        }
        _ => Ok(None),
    }
}

/// How grants are given without an API server.
pub(super) fn by_manifests(directory: &str) -> String {
    format!(
        "nothing is written to {directory}: an AzureIdentityGrant there is a manifest like any other (examples/grant/grant.yaml), \
         and approving or revoking it is editing the file (spec.approvals, spec.revoked) or deleting it. Nothing proves who \
         wrote it, so identity-controller refuses such grants unless it runs with --unproven-grants. What became of it is in \
         the state directory, under status/"
    )
}
