//! Grants in a table.

use std::{cmp::Reverse, collections::HashMap};

use identity_core::grant::approvals;
use identity_crd::{AzureIdentityBinding, AzureIdentityGrant, AzureIdentityGrantSpec, GrantPhase};
use jiff::Timestamp;
use serde::Serialize;

use super::words::{left, policy, until};
use crate::table::{harmless, table};

const HEAD: [&str; 10] =
    ["NAMESPACE", "NAME", "BINDING", "POD", "REQUESTED-BY", "PHASE", "APPROVALS", "UNTIL", "LEFT", "REASON"];

/// A grant as `-o json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    namespace: String,
    name: String,
    binding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    requested_by: String,
    requested_at: Option<Timestamp>,
    reason: String,
    duration: String,
    /// `New`: the controller has not seen it.
    phase: &'static str,
    /// Who has approved; of those only who may, where the binding can be read.
    approved_by: Vec<String>,
    /// What was said by those who approved, denied or revoked, where they gave a reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    said: Vec<Said>,
    /// How many it takes, if that can be read.
    approvals_needed: Option<usize>,
    active_until: Option<Timestamp>,
    /// Of an active grant.
    seconds_left: Option<i64>,
}

/// A reason that somebody gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Said {
    by: String,
    /// `approved`, `denied` or `revoked`.
    word: &'static str,
    reason: String,
}

impl Said {
    fn of(spec: &AzureIdentityGrantSpec) -> Vec<Self> {
        let approved = spec.approvals.iter().map(|approval| ("approved", &approval.by, &approval.reason));
        let taken_back = [("denied", &spec.denied), ("revoked", &spec.revoked)];
        let taken_back = taken_back.into_iter().filter_map(|(word, said)| {
            let said = said.as_ref()?;
            Some((word, &said.by, &said.reason))
        });
        let all = approved.chain(taken_back).filter_map(|(word, by, reason)| {
            let reason = reason.clone().filter(|reason| !reason.trim().is_empty())?;
            Some(Self { by: by.clone(), word, reason })
        });
        all.collect()
    }
}

impl Row {
    fn new(grant: AzureIdentityGrant, binding: Option<&AzureIdentityBinding>, now: Timestamp) -> Self {
        let until = until(&grant);
        let phase = grant.status.as_ref().and_then(|status| status.phase);
        let seconds_left = until.filter(|_| phase == Some(GrantPhase::Active));
        let seconds_left = seconds_left.map(|until| until.duration_since(now).as_secs().max(0));
        let judged = binding.and_then(policy).map(|policy| approvals(&grant.spec, policy));
        let (approved_by, approvals_needed) = match judged {
            Some(judged) => (judged.by.iter().map(|by| (*by).to_owned()).collect(), Some(judged.needed)),
            None => (grant.spec.approvals.iter().map(|approval| approval.by.clone()).collect(), None),
        };
        let said = Said::of(&grant.spec);
        Self {
            said,
            namespace: grant.metadata.namespace.unwrap_or_default(),
            name: grant.metadata.name.unwrap_or_default(),
            requested_at: grant.metadata.creation_timestamp.map(|time| time.0),
            binding: grant.spec.binding_name,
            pod: grant.spec.pod_name.filter(|name| !name.is_empty()),
            requested_by: grant.spec.requested_by,
            reason: grant.spec.reason,
            duration: grant.spec.duration,
            phase: phase.map_or("New", GrantPhase::as_str),
            approved_by,
            approvals_needed,
            active_until: until,
            seconds_left,
        }
    }

    fn cells(&self) -> Vec<String> {
        let needed = self.approvals_needed.map_or("?".to_owned(), |needed| needed.to_string());
        let or_none = |text: Option<String>| text.unwrap_or("-".to_owned());
        let seconds_left = self.seconds_left.map(|seconds| match seconds {
            0 => "over".to_owned(),
            seconds => left(jiff::SignedDuration::from_secs(seconds)),
        });
        [
            self.namespace.clone(),
            self.name.clone(),
            self.binding.clone(),
            or_none(self.pod.clone()),
            self.requested_by.clone(),
            self.phase.to_owned(),
            format!("{}/{needed}", self.approved_by.len()),
            or_none(self.active_until.map(|until| until.to_string())),
            // Of what is not active yet: what it asks for.
            or_none(
                seconds_left
                    .or_else(|| matches!(self.phase, "New" | "Pending").then(|| format!("({})", self.duration))),
            ),
            self.reason_and_said(),
        ]
        .map(|cell| harmless(&cell))
        .to_vec()
    }

    /// Why it was asked for, and why it was approved or taken back.
    fn reason_and_said(&self) -> String {
        let said: Vec<_> =
            self.said.iter().map(|Said { by, word, reason }| format!("{word} by {by}: {reason}")).collect();
        if said.is_empty() { self.reason.clone() } else { format!("{} ({})", self.reason, said.join("; ")) }
    }

    fn rank(&self) -> u8 {
        match self.phase {
            "Active" => 0,
            "New" | "Pending" => 1,
            _ => 2,
        }
    }
}

/// Grants with what their bindings say, in the order in which they matter. `bindings`: `None` when they cannot be read.
pub(super) fn rows(
    grants: Vec<AzureIdentityGrant>,
    bindings: Option<&[AzureIdentityBinding]>,
    now: Timestamp,
) -> Vec<Row> {
    let key = |namespace: &Option<String>, name: &str| (namespace.clone().unwrap_or_default(), name.to_owned());
    let by_name: HashMap<_, _> = bindings
        .unwrap_or_default()
        .iter()
        .map(|binding| {
            (key(&binding.metadata.namespace, binding.metadata.name.as_deref().unwrap_or_default()), binding)
        })
        .collect();
    let mut rows: Vec<_> = grants
        .into_iter()
        .map(|grant| {
            let binding = by_name.get(&key(&grant.metadata.namespace, &grant.spec.binding_name)).copied();
            Row::new(grant, binding, now)
        })
        .collect();
    rows.sort_by(|a, b| {
        (a.rank(), Reverse(a.requested_at), &a.namespace, &a.name).cmp(&(
            b.rank(),
            Reverse(b.requested_at),
            &b.namespace,
            &b.name,
        ))
    });
    rows
}

/// On a terminal: aligned, under a head; the namespace only if there may be several.
pub(super) fn aligned(rows: &[Row], everywhere: bool) -> String {
    let from = usize::from(!everywhere);
    let cells: Vec<_> = rows.iter().map(|row| row.cells()[from..].to_vec()).collect();
    table(&HEAD[from..], &cells)
}

/// Into a pipe.
pub(super) fn tabbed(rows: &[Row], everywhere: bool) -> String {
    let from = usize::from(!everywhere);
    rows.iter().map(|row| row.cells()[from..].join("\t") + "\n").collect()
}
