//! One look at a grant.

use identity_crd::{
    AssignedGrant, AzureIdentityBinding, AzureIdentityGrant, AzureIdentityGrantSpec, AzureIdentityGrantStatus,
    Condition, GrantPhase, GrantPolicy, TimeBox, parse_duration, set_condition,
};
use jiff::{SignedDuration, Timestamp};

use super::{
    approval::{Approvals, judge},
    proof::{Proof, Proven},
};

/// Condition of a grant: its spec means something.
pub const VALID: &str = "Valid";
/// Condition of a grant: enough approvers have approved.
pub const APPROVED: &str = "Approved";
/// Condition of a grant: it gives access now.
pub const ACTIVE: &str = "Active";

/// How much of an approver's reason is said in conditions and Events, in characters.
const REASON_IN_SHORT: usize = 160;

/// What keeps a grant from giving access. Named so that the model can leave out each in turn and see what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Guard {
    /// There are as many approvals as the binding asks for.
    Enough,
    /// Each approver counts once.
    Distinct,
    /// The requester does not approve.
    NotRequester,
    /// Only the binding's approvers count.
    Approver,
    /// It lasts no longer than the binding allows.
    MaxDuration,
    /// It counts for the binding that it was activated for, not for one re-created under its name.
    SameBinding,
    /// Somebody refused it.
    NotDenied,
    /// Somebody ended it.
    NotRevoked,
    /// It is going, or gone.
    NotDeleted,
    /// Its time is not over.
    Deadline,
    /// What is final stays so.
    Final,
    /// Who asked and who approved is proven.
    Proof,
    /// What proves it was there before the grant.
    ProofAge,
    /// Its deadline is persisted before it gives anything.
    Persisted,
}

/// All guards but one at most; all, outside the model.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Guards {
    without: Option<Guard>,
}

impl Guards {
    pub(super) const ALL: Self = Self { without: None };

    #[cfg(test)]
    pub(super) const fn without(guard: Guard) -> Self {
        Self { without: Some(guard) }
    }

    /// Whether a guard stops something: what it looks for is there, and it is on duty.
    pub(super) fn fail(self, guard: Guard, found: bool) -> bool {
        found && self.without != Some(guard)
    }

    fn on_duty(self, guard: Guard) -> bool {
        self.without != Some(guard)
    }
}

/// Access that a grant gives now: for the assignments of its binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Name of the grant.
    pub name: String,
    /// UID of the binding that it is for.
    pub binding_uid: String,
    /// Only for the pod of this name.
    pub pod: Option<String>,
    /// Its deadline, as persisted.
    pub until: Timestamp,
}

impl From<&Stamp> for AssignedGrant {
    fn from(stamp: &Stamp) -> Self {
        Self::new(&*stamp.name, stamp.until.to_string())
    }
}

/// The stamp that an assignment of a binding to a pod carries: of all that are for it, the one that lasts longest.
pub fn stamp_for<'a>(stamps: impl IntoIterator<Item = &'a Stamp>, binding_uid: &str, pod: &str) -> Option<&'a Stamp> {
    let fits = |stamp: &&Stamp| stamp.binding_uid == binding_uid && stamp.pod.as_deref().is_none_or(|name| name == pod);
    // Of two that end at once always the same, so that nothing is written twice.
    stamps.into_iter().filter(fits).max_by(|a, b| a.until.cmp(&b.until).then_with(|| b.name.cmp(&a.name)))
}

/// What happened to a grant: an Event on its binding, and a record for the audit, once the status is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What it was; `None`: nobody had seen it.
    pub from: Option<GrantPhase>,
    /// What it is.
    pub to: GrantPhase,
    /// One word, for the Event: `GrantRequested`, `GrantActivated`, …
    pub reason: &'static str,
    /// Who, what, how long.
    pub message: String,
}

/// What becomes of a grant.
#[derive(Clone, Debug, PartialEq)]
pub struct Review {
    /// What it is, once `status` is written.
    pub phase: GrantPhase,
    /// The status to write, on the version that was reviewed and no other; `None` when it says all that already.
    pub status: Option<AzureIdentityGrantStatus>,
    /// What that means, if the phase is another one.
    pub transition: Option<Transition>,
    /// What it gives now, by what is persisted already.
    pub stamp: Option<Stamp>,
    /// When to look at it again, if nothing changes before.
    pub next: Option<Timestamp>,
    /// There is a transition, and it is one because the binding is what it is, or is not there.
    pub hangs_on_binding: bool,
}

/// Where it stands, in words.
struct Standing {
    phase: GrantPhase,
    /// For the condition that is about it, and the Event.
    reason: &'static str,
    message: String,
    /// The span, if it has been or is now active.
    span: Option<(Timestamp, Timestamp)>,
    binding_uid: Option<String>,
    /// It would be another one with another binding.
    by_binding: bool,
}

/// What has been persisted about it.
struct Persisted<'a> {
    phase: Option<GrantPhase>,
    span: Option<(Timestamp, Timestamp)>,
    binding_uid: Option<&'a str>,
}

impl<'a> From<&'a AzureIdentityGrant> for Persisted<'a> {
    fn from(grant: &'a AzureIdentityGrant) -> Self {
        let Some(status) = &grant.status else { return Self { phase: None, span: None, binding_uid: None } };
        let instant = |text: Option<&String>| text.and_then(|text| text.parse::<Timestamp>().ok());
        Self {
            phase: status.phase,
            span: instant(status.active_from.as_ref()).zip(instant(status.active_until.as_ref())),
            binding_uid: status.binding_uid.as_deref(),
        }
    }
}

/// Looks at a grant as it is persisted. `binding` is the one of its namespace that it names, if there is one; `now` is the
/// controller's time.
pub fn review(
    grant: &AzureIdentityGrant,
    binding: Option<&AzureIdentityBinding>,
    proof: &Proof,
    now: Timestamp,
) -> Review {
    review_with(grant, binding, proof, now, Guards::ALL)
}

pub(super) fn review_with(
    grant: &AzureIdentityGrant,
    binding: Option<&AzureIdentityBinding>,
    proof: &Proof,
    now: Timestamp,
    guards: Guards,
) -> Review {
    let persisted = Persisted::from(grant);
    let standing = stand(grant, &persisted, binding, proof, now, guards);
    let policy = binding.and_then(policy_of);
    let status = status(grant, &standing, policy, guards, now);
    let changed = grant.status.as_ref() != Some(&status);
    let transition = (persisted.phase != Some(standing.phase)).then(|| Transition {
        from: persisted.phase,
        to: standing.phase,
        reason: standing.reason,
        message: match (persisted.phase, standing.phase) {
            (None, GrantPhase::Pending) => {
                let spec = &grant.spec;
                format!("{} asks for {} ({}): {}", spec.requested_by, spec.duration, spec.reason, standing.message)
            }
            _ => standing.message.clone(),
        },
    });
    let active = standing.phase == GrantPhase::Active;
    let given = (persisted.phase == Some(GrantPhase::Active) || !guards.on_duty(Guard::Persisted)) && active;
    let stamp =
        standing.span.zip(standing.binding_uid.clone()).filter(|_| given).map(|((_, until), binding_uid)| Stamp {
            name: grant.metadata.name.clone().unwrap_or_default(),
            binding_uid,
            pod: grant.spec.pod_name.clone().filter(|name| !name.is_empty()),
            until,
        });
    Review {
        phase: standing.phase,
        status: changed.then_some(status),
        transition,
        stamp,
        next: standing.span.map(|(_, until)| until).filter(|_| active),
        hangs_on_binding: standing.by_binding && persisted.phase != Some(standing.phase),
    }
}

fn policy_of(binding: &AzureIdentityBinding) -> Option<&GrantPolicy> {
    binding.spec.time_box.as_ref()?.grant.as_ref()
}

/// The phase that follows.
fn stand(
    grant: &AzureIdentityGrant,
    persisted: &Persisted<'_>,
    binding: Option<&AzureIdentityBinding>,
    proof: &Proof,
    now: Timestamp,
    guards: Guards,
) -> Standing {
    match persisted.phase {
        Some(phase) if guards.fail(Guard::Final, phase.is_final()) => as_it_is(grant, phase, persisted),
        Some(GrantPhase::Active) => match persisted.span {
            Some(span) => while_active(grant, persisted, span, binding, now, guards),
            None => Standing {
                phase: GrantPhase::Revoked,
                reason: "GrantRevoked",
                message:
                    "its status is Active without a readable activeFrom and activeUntil: nobody knows its deadline"
                        .into(),
                span: None,
                binding_uid: persisted.binding_uid.map(str::to_owned),
                by_binding: false,
            },
        },
        _ => while_pending(grant, binding, proof, now, guards),
    }
}

/// Nothing changes any more.
fn as_it_is(grant: &AzureIdentityGrant, phase: GrantPhase, persisted: &Persisted<'_>) -> Standing {
    let conditions = grant.status.iter().flat_map(|status| &status.conditions);
    let said = conditions.filter(|c| c.type_ == ACTIVE).map(|c| c.message.clone()).next();
    Standing {
        phase,
        reason: reason_of(phase),
        message: said.unwrap_or_default(),
        span: persisted.span,
        binding_uid: persisted.binding_uid.map(str::to_owned),
        by_binding: false,
    }
}

const fn reason_of(phase: GrantPhase) -> &'static str {
    match phase {
        GrantPhase::Pending => "GrantRequested",
        GrantPhase::Active => "GrantActivated",
        GrantPhase::Expired => "GrantExpired",
        GrantPhase::Denied => "GrantDenied",
        GrantPhase::Revoked => "GrantRevoked",
        GrantPhase::Refused => "GrantRefused",
    }
}

fn said(by: &str, why: Option<&String>) -> String {
    match why.filter(|why| !why.is_empty()) {
        Some(why) => format!("by {by}: {why}"),
        None => format!("by {by}"),
    }
}

/// Whether somebody has taken it back, and who.
fn withdrawn(grant: &AzureIdentityGrant, guards: Guards) -> Option<(GrantPhase, String)> {
    let spec = &grant.spec;
    if guards.fail(Guard::NotDeleted, grant.metadata.deletion_timestamp.is_some()) {
        return Some((GrantPhase::Revoked, "it is being deleted".into()));
    }
    if let Some(revoked) = spec.revoked.as_ref().filter(|_| guards.on_duty(Guard::NotRevoked)) {
        return Some((GrantPhase::Revoked, format!("revoked {}", said(&revoked.by, revoked.reason.as_ref()))));
    }
    let denied = spec.denied.as_ref().filter(|_| guards.on_duty(Guard::NotDenied))?;
    Some((GrantPhase::Denied, format!("denied {}", said(&denied.by, denied.reason.as_ref()))))
}

fn while_active(
    grant: &AzureIdentityGrant,
    persisted: &Persisted<'_>,
    span: (Timestamp, Timestamp),
    binding: Option<&AzureIdentityBinding>,
    now: Timestamp,
    guards: Guards,
) -> Standing {
    let end = |phase, message| Standing {
        phase,
        reason: reason_of(phase),
        message,
        span: Some(span),
        binding_uid: persisted.binding_uid.map(str::to_owned),
        by_binding: false,
    };
    let gone = |message| Standing { by_binding: true, ..end(GrantPhase::Revoked, message) };
    let name = &grant.spec.binding_name;
    if guards.fail(Guard::Deadline, now >= span.1) {
        return end(GrantPhase::Expired, format!("its time was over at {}", span.1));
    }
    // Whoever denies what is active already ends it.
    if let Some((_, why)) = withdrawn(grant, guards) {
        return end(GrantPhase::Revoked, why);
    }
    let Some(binding) = binding else {
        return gone(format!("AzureIdentityBinding {name} is gone"));
    };
    if guards.fail(Guard::SameBinding, binding.metadata.uid.as_deref() != persisted.binding_uid) {
        return gone(format!("AzureIdentityBinding {name} was deleted and created anew"));
    }
    if binding.metadata.deletion_timestamp.is_some() {
        return gone(format!("AzureIdentityBinding {name} is being deleted"));
    }
    if policy_of(binding).is_none() {
        return gone(format!("AzureIdentityBinding {name} has no spec.timeBox.grant any more"));
    }
    let mut standing = end(GrantPhase::Active, format!("active until {}", span.1));
    standing.binding_uid.clone_from(&binding.metadata.uid);
    standing
}

fn while_pending(
    grant: &AzureIdentityGrant,
    binding: Option<&AzureIdentityBinding>,
    proof: &Proof,
    now: Timestamp,
    guards: Guards,
) -> Standing {
    let stand = |phase, message| Standing {
        phase,
        reason: reason_of(phase),
        message,
        span: None,
        binding_uid: None,
        by_binding: false,
    };
    let spec = &grant.spec;
    if let Some((phase, why)) = withdrawn(grant, guards) {
        return stand(phase, why);
    }
    let refuse = |message| stand(GrantPhase::Refused, message);
    if spec.requested_by.is_empty() {
        return refuse("spec.requestedBy is missing".into());
    }
    let Some(duration) = parse_duration(&spec.duration).filter(|d| !d.is_zero()) else {
        return refuse(format!("spec.duration: `{}` is no duration; write one such as 30m", spec.duration));
    };
    let created = grant.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let proven = proof.covers(created, guards.on_duty(Guard::ProofAge));
    if let Proven::Never(why) = proven {
        return refuse(why);
    }
    // It may be on its way: objects that are applied together come one after the other.
    let Some(binding) = binding else {
        return stand(GrantPhase::Pending, format!("there is no AzureIdentityBinding {}", spec.binding_name));
    };
    let refuse_by_binding = |message| Standing { by_binding: true, ..refuse(message) };
    let Some(policy) = policy_of(binding) else {
        return refuse_by_binding(format!(
            "AzureIdentityBinding {} takes no grants: it has no spec.timeBox.grant",
            spec.binding_name
        ));
    };
    let Some(most) = parse_duration(&policy.max_duration) else {
        return refuse_by_binding(format!(
            "spec.timeBox.grant.maxDuration of AzureIdentityBinding {}: `{}` is no duration; write one such as 2h",
            spec.binding_name, policy.max_duration
        ));
    };
    if guards.fail(Guard::MaxDuration, duration > most) {
        return refuse_by_binding(format!(
            "spec.duration: {} is longer than the {} that AzureIdentityBinding {} allows; ask for less",
            spec.duration, policy.max_duration, spec.binding_name
        ));
    }
    if let Proven::NotNow(why) = proven
        && guards.on_duty(Guard::Proof)
    {
        return stand(GrantPhase::Pending, why);
    }
    let approvals = judge(spec, policy, guards);
    if guards.fail(Guard::Enough, !approvals.are_enough()) {
        let nobody = policy
            .approvers
            .as_ref()
            .is_none_or(|a| a.users.as_ref().is_none_or(Vec::is_empty) && a.groups.as_ref().is_none_or(Vec::is_empty));
        let hint = if nobody { "; the binding names no approvers, so nobody can approve" } else { "" };
        return stand(GrantPhase::Pending, waiting(spec, &approvals) + hint);
    }
    if binding.metadata.deletion_timestamp.is_some() {
        return stand(GrantPhase::Pending, format!("AzureIdentityBinding {} is being deleted", spec.binding_name));
    }
    if let Some(foreign) = binding.spec.time_box.iter().flat_map(TimeBox::foreign_fields).next() {
        return stand(
            GrantPhase::Pending,
            format!(
                "spec.timeBox.{foreign} of AzureIdentityBinding {} is not known to this version, which cannot tell what it \
                 asks of a grant; correct the name, remove it, or upgrade",
                spec.binding_name
            ),
        );
    }
    // Whole seconds, so that what is written is what is meant.
    let from = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let until = SignedDuration::try_from(duration).ok().and_then(|duration| from.checked_add(duration).ok());
    let Some(until) = until else { return refuse(format!("spec.duration: {} is too long", spec.duration)) };
    let whom = match approvals.by.as_slice() {
        [] => "nobody, since none is needed".to_owned(),
        by => names(spec, by),
    };
    Standing {
        phase: GrantPhase::Active,
        reason: reason_of(GrantPhase::Active),
        message: format!(
            "requested by {} ({}), approved by {whom}; active for {} until {until}",
            spec.requested_by, spec.reason, spec.duration
        ),
        span: Some((from, until)),
        binding_uid: binding.metadata.uid.clone(),
        by_binding: true,
    }
}

/// Those who have approved, with what they gave as their reason.
fn names(spec: &AzureIdentityGrantSpec, by: &[&str]) -> String {
    let named = |by: &&str| {
        let approval = spec.approvals.iter().find(|approval| approval.by == **by);
        match approval.and_then(|approval| approval.reason.as_deref()).filter(|why| !why.trim().is_empty()) {
            Some(why) => format!("{by} ({})", in_short(why)),
            None => (*by).to_owned(),
        }
    };
    by.iter().map(named).collect::<Vec<_>>().join(", ")
}

/// Sixteen approvers may give a reason each, and an Event is short. All of it stays in the grant, and in the audit record.
fn in_short(why: &str) -> String {
    match why.char_indices().nth(REASON_IN_SHORT) {
        Some((end, _)) => format!("{}…", &why[..end]),
        None => why.to_owned(),
    }
}

fn waiting(spec: &AzureIdentityGrantSpec, approvals: &Approvals<'_>) -> String {
    let mut text = format!("{} of {} approvals", approvals.by.len(), approvals.needed);
    if !approvals.by.is_empty() {
        text = format!("{text} (by {})", names(spec, &approvals.by));
    }
    for (by, why) in &approvals.ignored {
        text = match *by {
            "" => format!("{text}; one names nobody"),
            by => format!("{text}; one by {by} does not count: {by} {why}"),
        };
    }
    text
}

/// What is written about it.
fn status(
    grant: &AzureIdentityGrant,
    standing: &Standing,
    policy: Option<&GrantPolicy>,
    guards: Guards,
    now: Timestamp,
) -> AzureIdentityGrantStatus {
    let mut status = grant.status.clone().unwrap_or_default();
    let settled = status.phase.is_some_and(|phase| guards.fail(Guard::Final, phase.is_final()));
    if settled {
        return status;
    }
    status.phase = Some(standing.phase);
    if let Some((from, until)) = standing.span {
        (status.active_from, status.active_until) = (Some(from.to_string()), Some(until.to_string()));
    }
    status.binding_uid.clone_from(&standing.binding_uid);
    let generation = grant.metadata.generation;
    let violations = grant.spec.validate();
    let valid = match violations.first() {
        Some(violation) => Condition::new(VALID, false, "Invalid", violation.to_string(), generation),
        None => Condition::new(VALID, true, "AsExpected", "", generation),
    };
    set_condition(&mut status.conditions, valid, now);
    if let Some(policy) = policy.filter(|_| !matches!(standing.phase, GrantPhase::Expired | GrantPhase::Revoked)) {
        let approvals = judge(&grant.spec, policy, guards);
        let (enough, text) = (approvals.are_enough(), waiting(&grant.spec, &approvals));
        let reason = if enough { "EnoughApprovals" } else { "WaitingForApprovals" };
        set_condition(&mut status.conditions, Condition::new(APPROVED, enough, reason, text, generation), now);
    }
    let active = standing.phase == GrantPhase::Active;
    let message = standing.message.clone();
    let reason = if standing.phase == GrantPhase::Pending { "Waiting" } else { standing.phase.as_str() };
    // What was said at the activation stays: who asked, and who approved.
    let known = status.conditions.iter().any(|c| c.type_ == ACTIVE && c.reason == reason && active);
    if !known {
        set_condition(&mut status.conditions, Condition::new(ACTIVE, active, reason, message, generation), now);
    }
    status
}
