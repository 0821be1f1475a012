//! Grants: what becomes of each, worked out from what is persisted ([`grant::review`](crate::grant::review)), and the stamps
//! that assignments carry for them.
//!
//! A grant that waits is looked at only with a proof that was asked for after that version of it was seen: whatever a watch
//! has shown of the admission policy may be older than a forged approval. Until all grants were listed once, assignments keep
//! the stamps they have.

mod gone;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use identity_crd::{AssignedGrant, AzureIdentityGrant, AzureIdentityGrantStatus, GrantPhase, find_condition};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use self::gone::Gone;
use super::{
    Action, GrantReference, Index, Notice, Outcome, Pair, Precondition, StatusTarget,
    join::{gone, key_of},
    observed::older,
};
use crate::{
    grant::{APPROVED, Looked, Proof, Record, Review, Stamp, Transition, approvals, review, stamp_for},
    object::ObjectKey,
};

/// How often the proof is asked for again while something waits that it does not cover.
const MISSING: SignedDuration = SignedDuration::from_secs(15);
/// The same after it could not be read.
const UNREAD: SignedDuration = SignedDuration::from_secs(2);
/// Events that wait to be handed out.
const MOST_NOTICES: usize = 256;

/// Write this status of a grant, on this version of it and no other.
#[derive(Clone, Debug, PartialEq)]
pub struct GrantUpdate {
    /// The `AzureIdentityGrant`.
    pub key: ObjectKey,
    /// The version that was reviewed.
    pub precondition: Precondition,
    /// The whole status.
    pub status: AzureIdentityGrantStatus,
    /// The binding that it is for.
    pub binding: ObjectKey,
    /// What that means.
    pub transition: Option<Transition>,
    /// Approvals that are new.
    pub approved: Option<String>,
    /// The same for the audit, in the order in which it happens: to be recorded before the status is written.
    pub records: Vec<Record>,
    /// The binding as it was seen, if the transition hangs on that: it must still be so at the API server when the status is
    /// written, or else there was a newer one to judge by.
    pub judged_by: Option<JudgedBy>,
}

/// What was seen of a binding: as much of it as decides about a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JudgedBy {
    /// There was none.
    Nothing,
    /// This one.
    Binding {
        /// `metadata.uid`.
        uid: Option<String>,
        /// `metadata.generation`, which changes with its spec.
        generation: Option<i64>,
        /// Whether it was going already.
        deleting: bool,
    },
}

impl JudgedBy {
    /// By this binding, or by none.
    pub fn seen(binding: Option<&ObjectMeta>) -> Self {
        binding.map_or(Self::Nothing, |meta| Self::Binding {
            uid: meta.uid.clone(),
            generation: meta.generation,
            deleting: meta.deletion_timestamp.is_some(),
        })
    }
}

/// What came of asking for the proof that names in grants are true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofAnswer {
    /// What [`Index::ask_for_proof`] has answered.
    pub request: u64,
    /// When it came.
    pub at: Timestamp,
    /// The proof; none when it could not be read.
    pub proof: Option<Proof>,
}

/// All grants.
#[derive(Debug, Default)]
pub(super) struct Grants {
    listed: bool,
    entries: HashMap<ObjectKey, Entry>,
    of_binding: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    stamps: HashMap<ObjectKey, Vec<Stamp>>,
    dirty: BTreeSet<ObjectKey>,
    due: BTreeSet<(Timestamp, ObjectKey)>,
    /// Those that wait for a proof.
    unproven: BTreeSet<ObjectKey>,
    /// Counts what is seen and what is asked, so that it is known which came first.
    serial: u64,
    proof: Option<(u64, Proof)>,
    asking: Option<u64>,
    ask_again: Option<Timestamp>,
    notices: Vec<Notice>,
    /// Active grants that are there no more, and of which nothing was said yet.
    gone: VecDeque<Gone>,
    /// It was looked whether assignments carry grants that went while no controller ran.
    missed: bool,
    /// The same for the audit: there is no status to write, so they are handed out by themselves.
    records: Vec<Record>,
}

#[derive(Debug)]
struct Entry {
    object: Box<AzureIdentityGrant>,
    binding: ObjectKey,
    /// When this version of it was seen, or a newer proof for it became due.
    seen: u64,
    in_flight: bool,
    retry_at: Option<Timestamp>,
    /// A status was written on this version, and what came of it is still to be seen.
    written: Option<String>,
    due: Option<Timestamp>,
    stamp: Option<Stamp>,
}

fn binding_of(grant: &AzureIdentityGrant) -> ObjectKey {
    ObjectKey::new(grant.metadata.namespace.as_deref().unwrap_or_default(), grant.spec.binding_name.as_str())
}

fn version(grant: &AzureIdentityGrant) -> Precondition {
    let meta = &grant.metadata;
    Precondition {
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
    }
}

fn phase(grant: &AzureIdentityGrant) -> Option<GrantPhase> {
    grant.status.as_ref()?.phase
}

/// What is told of one update, in the order in which it happened: reasons and words.
fn in_order<'a>(transition: Option<&'a Transition>, approved: Option<&'a String>) -> Vec<(&'static str, &'a str)> {
    let approved = approved.map(|text| ("GrantApproved", text.as_str()));
    let transition = transition.map(|change| (change.reason, change.message.as_str()));
    let mut told: Vec<_> = [approved, transition].into_iter().flatten().collect();
    told.sort_by_key(|(reason, _)| *reason != "GrantRequested");
    told
}

impl Grants {
    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// When there is something to look at though nothing happens.
    pub(super) fn next(&self) -> Option<Timestamp> {
        let ask = self.ask_again.filter(|_| !self.unproven.is_empty() && self.asking.is_none());
        [ask, self.due.first().map(|(at, _)| *at)].into_iter().flatten().min()
    }

    pub(super) fn binding_changed(&mut self, binding: &ObjectKey) {
        for key in self.of_binding.get(binding).into_iter().flatten() {
            self.dirty.insert(key.clone());
            // Perhaps it is what was waited for.
            if let Some(entry) = self.entries.get_mut(key) {
                entry.retry_at = None;
            }
        }
    }

    /// Those that give something now, through this binding.
    pub(super) fn stamps(&self, binding: &ObjectKey) -> &[Stamp] {
        self.stamps.get(binding).map_or(&[], Vec::as_slice)
    }

    pub(super) fn forget_in_flight(&mut self) {
        self.notices.clear();
        for gone in &mut self.gone {
            gone.told_by_others = true;
        }
        (self.asking, self.ask_again) = (None, None);
        for (key, entry) in &mut self.entries {
            if std::mem::take(&mut entry.in_flight) {
                self.dirty.insert(key.clone());
            }
        }
    }

    pub(super) fn clock_went_back(&mut self) {
        self.ask_again = None;
        for (key, entry) in &mut self.entries {
            entry.retry_at = None;
            self.dirty.insert(key.clone());
        }
    }

    fn schedule(&mut self, key: &ObjectKey, at: Option<Timestamp>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let Some(former) = std::mem::replace(&mut entry.due, at) {
            self.due.remove(&(former, key.clone()));
        }
        if let Some(at) = at {
            self.due.insert((at, key.clone()));
        }
    }

    fn notice(&mut self, notice: Notice) {
        if self.notices.len() < MOST_NOTICES {
            self.notices.push(notice);
        }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Entry> {
        self.schedule(key, None);
        self.unproven.remove(key);
        self.dirty.remove(key);
        let entry = self.entries.remove(key)?;
        if let Some(grants) = self.of_binding.get_mut(&entry.binding) {
            grants.remove(key);
            if grants.is_empty() {
                self.of_binding.remove(&entry.binding);
            }
        }
        Some(entry)
    }
}

impl Index {
    pub(super) fn set_grant(&mut self, object: Box<AzureIdentityGrant>) {
        let key = key_of(&object.metadata);
        let former = self.grants.entries.get(&key).map(|entry| version(&entry.object));
        let now = version(&object);
        if former.as_ref().is_some_and(|former| former.uid == now.uid && older(&now, former)) {
            return;
        }
        if self.grants.entries.get(&key).is_some_and(|entry| entry.object == object) {
            return;
        }
        if former.as_ref().is_some_and(|former| former.uid != now.uid) {
            // The same name, another grant.
            self.remove_grant(&key, None);
        }
        let binding = binding_of(&object);
        let seen = self.grants.next_serial();
        let old = self.grants.remove(&key);
        if let Some(other) = old.as_ref().map(|old| &old.binding).filter(|other| **other != binding).cloned() {
            self.collect_stamps(&other);
        }
        let (in_flight, retry_at, written, stamp) =
            old.map_or((false, None, None, None), |old| (old.in_flight, old.retry_at, old.written, old.stamp));
        self.grants.of_binding.entry(binding.clone()).or_default().insert(key.clone());
        let entry = Entry { object, binding, seen, in_flight, retry_at, written, due: None, stamp };
        self.grants.entries.insert(key.clone(), entry);
        self.grants.dirty.insert(key);
    }

    pub(super) fn remove_grant(&mut self, key: &ObjectKey, uid: Option<&str>) {
        let there = self.grants.entries.get(key).and_then(|entry| entry.object.metadata.uid.as_deref());
        if uid.is_some_and(|uid| there != Some(uid)) {
            return;
        }
        let Some(entry) = self.grants.remove(key) else { return };
        if phase(&entry.object) == Some(GrantPhase::Active) {
            self.grants.miss(Gone::seen(entry.object));
        }
        self.collect_stamps(&entry.binding);
    }

    pub(super) fn relist_grants(&mut self, objects: Vec<AzureIdentityGrant>) {
        let listed: HashSet<ObjectKey> = objects.iter().map(|object| key_of(&object.metadata)).collect();
        for key in gone(self.grants.entries.keys(), &listed) {
            self.remove_grant(&key, None);
        }
        for object in objects {
            self.set_grant(Box::new(object));
        }
        if !std::mem::replace(&mut self.grants.listed, true) {
            // What was kept so far may be over.
            let stamped = self.observed.iter().filter(|(_, held)| held.content.spec.grant.is_some());
            self.dirty.extend(stamped.map(|(key, _)| key.clone()));
        }
    }

    /// Whether the proof is to be asked for now, and under which number the answer is to be reported.
    pub fn ask_for_proof(&mut self, now: Timestamp) -> Option<u64> {
        let grants = &mut self.grants;
        if grants.unproven.is_empty() || grants.asking.is_some() || grants.ask_again.is_some_and(|at| now < at) {
            return None;
        }
        let request = grants.next_serial();
        (grants.asking, grants.ask_again) = (Some(request), None);
        Some(request)
    }

    pub(super) fn set_proof(&mut self, answer: ProofAnswer) {
        let grants = &mut self.grants;
        if grants.asking != Some(answer.request) {
            return;
        }
        grants.asking = None;
        match answer.proof {
            Some(proof) => {
                grants.proof = Some((answer.request, proof));
                grants.dirty.append(&mut grants.unproven);
            }
            None => grants.ask_again = answer.at.checked_add(UNREAD).ok(),
        }
    }

    /// Looks at the grants that something has happened to. Writes of their status, and Events.
    pub(super) fn plan_grants(&mut self, now: Timestamp) -> Vec<Action> {
        if !self.grants.listed {
            return Vec::new();
        }
        while let Some((_, key)) = self.grants.due.first().filter(|(at, _)| *at <= now).cloned() {
            self.grants.schedule(&key, None);
            let seen = self.grants.next_serial();
            if let Some(entry) = self.grants.entries.get_mut(&key) {
                entry.seen = seen;
            }
            self.grants.dirty.insert(key);
        }
        self.tell_of_gone(now);
        let mut actions = Vec::new();
        for key in std::mem::take(&mut self.grants.dirty) {
            actions.extend(self.review_grant(&key, now));
        }
        actions.extend(std::mem::take(&mut self.grants.notices).into_iter().map(Action::Event));
        actions
    }

    /// What is to be recorded of grants that are there no more, beside [`GrantUpdate::records`].
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.grants.records)
    }

    fn review_grant(&mut self, key: &ObjectKey, now: Timestamp) -> Option<Action> {
        let entry = self.grants.entries.get(key)?;
        let settled = phase(&entry.object).is_some_and(|phase| phase.is_final() || phase == GrantPhase::Active);
        let asked = self.grants.proof.as_ref().filter(|(asked, _)| entry.seen < *asked).map(|(_, proof)| proof);
        let nothing = Proof::Missing(String::new());
        // What is settled needs no proof any more.
        let proof = self.options.proof.as_ref().or(asked).or_else(|| settled.then_some(&nothing));
        let Some(proof) = proof.cloned() else {
            self.grants.unproven.insert(key.clone());
            return None;
        };
        let binding = self.bindings.get(&entry.binding).map(|state| &*state.object);
        let Review { phase, status, transition, stamp, next, hangs_on_binding } =
            review(&entry.object, binding, &proof, now);
        let judged_by = hangs_on_binding.then(|| JudgedBy::seen(binding.map(|binding| &binding.metadata)));
        // Of names that nothing proves nobody is told as if they were true.
        let proven = !matches!(proof, Proof::Missing(_));
        let approved = status.as_ref().filter(|_| proven).and_then(|status| self.newly_approved(&entry.object, status));
        let looked = Looked {
            time: now,
            key,
            grant: &entry.object,
            binding_key: &entry.binding,
            binding,
            status: status.as_ref(),
        };
        let happens = in_order(transition.as_ref(), approved.as_ref());
        let records = happens.into_iter().map(|(reason, message)| looked.record(reason, message, phase)).collect();
        let (binding, precondition) = (entry.binding.clone(), version(&entry.object));
        let held = entry.in_flight || entry.written.as_ref() == Some(&precondition.resource_version);
        let retry_at = entry.retry_at.filter(|at| now < *at);

        let missing =
            phase == GrantPhase::Pending && matches!(proof, Proof::Missing(_)) && self.options.proof.is_none();
        let again = missing.then(|| now.checked_add(MISSING).ok()).flatten();
        let next = [next, again, retry_at.filter(|_| status.is_some())].into_iter().flatten().min();
        self.grants.schedule(key, next);
        let entry = self.grants.entries.get_mut(key)?;
        if entry.stamp != stamp {
            entry.stamp = stamp;
            self.collect_stamps(&binding);
        }
        let status = status.filter(|_| !held && retry_at.is_none())?;
        self.grants.entries.get_mut(key)?.in_flight = true;
        let key = key.clone();
        let update = GrantUpdate { key, precondition, status, binding, transition, approved, records, judged_by };
        Some(Action::Grant(Box::new(update)))
    }

    /// What the condition says, when it counts others than it did.
    fn newly_approved(&self, grant: &AzureIdentityGrant, status: &AzureIdentityGrantStatus) -> Option<String> {
        let said = |status: &AzureIdentityGrantStatus| {
            find_condition(&status.conditions, APPROVED).map(|condition| condition.message.clone())
        };
        let binding = self.bindings.get(&binding_of(grant))?;
        let policy = binding.object.spec.time_box.as_ref()?.grant.as_ref()?;
        let waits = matches!(status.phase, Some(GrantPhase::Pending | GrantPhase::Active));
        let some = waits && !approvals(&grant.spec, policy).by.is_empty();
        let now = said(status).filter(|_| some)?;
        (grant.status.as_ref().and_then(said).as_ref() != Some(&now)).then_some(now)
    }

    pub(super) fn grant_done(&mut self, update: &GrantUpdate, outcome: Outcome) {
        let key = &update.key;
        let Some(entry) = self.grants.entries.get_mut(key) else { return };
        // Of another one of that name nothing is known by this.
        if entry.object.metadata.uid.as_deref().unwrap_or_default() != update.precondition.uid {
            return;
        }
        entry.in_flight = false;
        entry.retry_at = match &outcome {
            Outcome::Failed { retry_at } => Some(*retry_at),
            _ => None,
        };
        let done = matches!(outcome, Outcome::Granted(_) | Outcome::Done);
        entry.written = done.then(|| update.precondition.resource_version.clone());
        match outcome {
            Outcome::Granted(object) => self.set_grant(object),
            // The watch tells the rest, perhaps together with what comes after: such as that it is gone again.
            Outcome::Done => entry.object.status = Some(update.status.clone()),
            _ => {}
        }
        self.grants.dirty.insert(key.clone());
        if !done {
            return;
        }
        for (reason, message) in in_order(update.transition.as_ref(), update.approved.as_ref()) {
            let Some(entry) = self.grants.entries.get(key) else { return };
            let notice = self.told(key, &update.binding, &entry.object, reason, message);
            self.grants.notice(notice);
        }
    }

    fn told(
        &self,
        key: &ObjectKey,
        binding: &ObjectKey,
        grant: &AzureIdentityGrant,
        reason: &str,
        message: &str,
    ) -> Notice {
        let there = self.bindings.get(binding).and_then(|state| state.object.metadata.uid.clone());
        let persisted = grant.status.as_ref().and_then(|status| status.binding_uid.clone());
        Notice {
            target: StatusTarget::Binding(binding.clone()),
            uid: there.or(persisted),
            warning: matches!(reason, "GrantRefused" | "GrantDenied" | "GrantRevoked"),
            grant: Some(GrantReference { key: key.clone(), uid: grant.metadata.uid.clone() }),
            reason: reason.to_owned(),
            message: format!("AzureIdentityGrant {}: {message}", key.name),
        }
    }

    /// Puts together what grants give through a binding; what that changes is written at the next plan.
    fn collect_stamps(&mut self, binding: &ObjectKey) {
        let grants = self.grants.of_binding.get(binding).into_iter().flatten();
        let stamps: Vec<Stamp> =
            grants.filter_map(|key| self.grants.entries.get(key)).filter_map(|entry| entry.stamp.clone()).collect();
        let former = if stamps.is_empty() {
            self.grants.stamps.remove(binding)
        } else {
            self.grants.stamps.insert(binding.clone(), stamps.clone())
        };
        if former.unwrap_or_default() == stamps {
            return;
        }
        self.boxes.dirty.insert(binding.clone());
        self.statuses.dirty.insert(StatusTarget::Binding(binding.clone()));
        let pods = self.bindings.get(binding).into_iter().flat_map(|state| &state.pods);
        let assignments = pods.filter_map(|pod| self.pods.get(pod)?.selected.get(binding));
        self.dirty.extend(assignments.cloned());
    }

    /// The stamp that an assignment is to carry.
    pub(super) fn stamp(&self, key: &ObjectKey, pair: &Pair) -> Option<AssignedGrant> {
        if !self.grants.listed {
            return self.observed.get(key)?.content.spec.grant.clone();
        }
        let stamps = self.grants.stamps.get(&pair.binding)?;
        let uid = self.bindings.get(&pair.binding)?.object.metadata.uid.as_deref()?;
        stamp_for(stamps, uid, &pair.pod.name).map(AssignedGrant::from)
    }

    /// Whether an action gives or takes what a grant gives: such writes come before all others.
    pub fn concerns_grant(&self, action: &Action) -> bool {
        match action {
            Action::Grant(_) => true,
            Action::Apply(apply) => {
                let held = self.observed.get(&key_of(&apply.object.metadata));
                held.is_some_and(|held| held.content.spec.grant != apply.object.spec.grant)
            }
            _ => false,
        }
    }
}
