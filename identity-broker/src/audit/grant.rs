//! What becomes of just-in-time grants, in the same journals as what becomes of tokens.
//!
//! ```text
//! GrantRecord ─ GrantSink ─┬─ Journal   a line of kind `grant`
//!                          └─ LogAudit  an event of the log
//! ```
//!
//! ```
//! # let directory = tempfile::tempdir().unwrap();
//! use identity_broker::audit::{GrantRecord, GrantSink, journal::{Journal, JournalConfig}};
//! # let change = identity_core::grant::Record {
//! #     time: jiff::Timestamp::from_second(1_800_000_000).unwrap(), reason: "GrantActivated", message: "active".into(),
//! #     from: Some(identity_crd::GrantPhase::Pending), to: identity_crd::GrantPhase::Active,
//! #     grant: identity_core::object::ObjectKey::new("demo", "g"), grant_uid: "u".into(), grant_version: "7".into(),
//! #     requested_at: None, binding: identity_core::object::ObjectKey::new("demo", "b"), binding_uid: None,
//! #     binding_generation: None, pod: None, requested_by: "ann".into(), requester_groups: vec![], purpose: "p".into(),
//! #     duration: "30m".into(), approvals: vec![], approvals_needed: None, active_from: None, active_until: None,
//! #     ended_by: None, ended_reason: None,
//! # };
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let clock = || jiff::Timestamp::from_second(1_800_000_000).unwrap();
//! let journal = Journal::open(JournalConfig::new(directory.path(), "controller-1"), clock).unwrap();
//! // Here the controller is about to write that the grant is active: not before this is done.
//! journal.record_grant(&GrantRecord::new("controller-1", &change)).await.unwrap();
//! journal.close().await;
//! let text = std::fs::read_to_string(directory.path().join("journal-00000001.jsonl")).unwrap();
//! assert!(text.contains(r#""kind":"grant""#) && text.contains(r#""reason":"GrantActivated""#));
//! # });
//! ```

use identity_core::{grant::Record, object::ObjectKey};
use identity_crd::Approval;
use jiff::Timestamp;

use super::{
    AuditError, LogAudit,
    journal::Journal,
    json::{self, field},
};

/// Approvals and groups that are itemised; more than the API server lets in, but a manifest may have any number.
const MOST: usize = 64;

/// One record of a grant.
#[derive(Clone, Copy, Debug)]
pub struct GrantRecord<'a> {
    /// Who writes it: the holder's name in the Lease.
    pub controller: &'a str,
    /// What is about to happen, or has.
    pub change: &'a Record,
    /// It was recorded before, and has not happened: why.
    pub withdrawn: Option<&'a str>,
}

impl<'a> GrantRecord<'a> {
    /// Of what is about to happen.
    pub const fn new(controller: &'a str, change: &'a Record) -> Self {
        Self { controller, change, withdrawn: None }
    }
}

/// Writes records of grants.
pub trait GrantSink: Send + Sync + 'static {
    /// Completes when the record is written. Bounded in time by the implementation.
    fn record_grant(&self, record: &GrantRecord<'_>) -> impl Future<Output = Result<(), AuditError>> + Send;
}

impl GrantSink for Journal {
    fn record_grant(&self, record: &GrantRecord<'_>) -> impl Future<Output = Result<(), AuditError>> + Send {
        let mut body = b"\"kind\":\"grant\",\"time\":\"".to_vec();
        json::micros(&mut body, record.change.time);
        body.extend_from_slice(b"\",");
        fields(&mut body, record);
        self.put(&body, None)
    }
}

impl GrantSink for LogAudit {
    fn record_grant(&self, record: &GrantRecord<'_>) -> impl Future<Output = Result<(), AuditError>> + Send {
        std::future::ready(log(record))
    }
}

fn log(record: &GrantRecord<'_>) -> Result<(), AuditError> {
    let &GrantRecord { controller, change, withdrawn } = record;
    if !tracing::enabled!(target: "audit", tracing::Level::INFO) {
        let why = "the log does not take events of target `audit` at level info; install a subscriber that does";
        return Err(AuditError(why.to_owned()));
    }
    let mut approved = Vec::new();
    approvals(&mut approved, &change.approvals);
    tracing::info!(
        target: "audit",
        reason = change.reason,
        withdrawn,
        from = change.from.map(identity_crd::GrantPhase::as_str),
        to = change.to.as_str(),
        controller,
        grant = %change.grant,
        grant_uid = change.grant_uid,
        grant_version = change.grant_version,
        binding = %change.binding,
        binding_uid = change.binding_uid,
        binding_generation = change.binding_generation,
        pod = change.pod,
        requested_by = change.requested_by,
        requester_groups = (!change.requester_groups.is_empty()).then(|| change.requester_groups.join(", ")),
        requested_at = change.requested_at.map(tracing::field::display),
        purpose = change.purpose,
        duration = change.duration,
        approvals = (!change.approvals.is_empty()).then(|| String::from_utf8_lossy(&approved).into_owned()),
        approvals_needed = change.approvals_needed,
        active_from = change.active_from,
        active_until = change.active_until,
        ended_by = change.ended_by,
        ended_reason = change.ended_reason,
        "grant: {}", change.message,
    );
    Ok(())
}

/// Appends the fields of a record, `"reason":"GrantActivated",…` without braces and without its time. What is unknown is left
/// out.
pub fn fields(into: &mut Vec<u8>, record: &GrantRecord<'_>) {
    let &GrantRecord { controller, change, withdrawn } = record;
    field(into, b"\"reason\":", change.reason);
    field(into, b",\"detail\":", &change.message);
    optional(into, b",\"withdrawn\":", withdrawn);
    optional(into, b",\"from\":", change.from.map(identity_crd::GrantPhase::as_str));
    field(into, b",\"to\":", change.to.as_str());
    field(into, b",\"controller\":", controller);
    named(into, b",\"grant\":", &change.grant);
    field(into, b",\"grant_uid\":", &change.grant_uid);
    field(into, b",\"grant_version\":", &change.grant_version);
    named(into, b",\"binding\":", &change.binding);
    optional(into, b",\"binding_uid\":", change.binding_uid.as_deref());
    if let Some(generation) = change.binding_generation {
        into.extend_from_slice(format!(",\"binding_generation\":{generation}").as_bytes());
    }
    if let Some(pod) = &change.pod {
        // Of what a grant is for; with cluster-wide matching the pod may be elsewhere.
        field(into, b",\"pod\":", pod);
    }
    field(into, b",\"requested_by\":", &change.requested_by);
    if !change.requester_groups.is_empty() {
        into.extend_from_slice(b",\"requester_groups\":");
        texts(into, &change.requester_groups);
    }
    instant(into, b",\"requested_at\":\"", change.requested_at);
    field(into, b",\"purpose\":", &change.purpose);
    field(into, b",\"duration\":", &change.duration);
    into.extend_from_slice(b",\"approvals\":");
    approvals(into, &change.approvals);
    if let Some(needed) = change.approvals_needed {
        into.extend_from_slice(format!(",\"approvals_needed\":{needed}").as_bytes());
    }
    optional(into, b",\"active_from\":", change.active_from.as_deref());
    optional(into, b",\"active_until\":", change.active_until.as_deref());
    optional(into, b",\"ended_by\":", change.ended_by.as_deref());
    optional(into, b",\"ended_reason\":", change.ended_reason.as_deref());
}

fn optional(into: &mut Vec<u8>, key: &[u8], text: Option<&str>) {
    if let Some(text) = text {
        field(into, key, text);
    }
}

fn named(into: &mut Vec<u8>, key: &[u8], object: &ObjectKey) {
    field(into, key, &object.to_string());
}

fn instant(into: &mut Vec<u8>, key: &[u8], time: Option<Timestamp>) {
    let Some(time) = time else { return };
    into.extend_from_slice(key);
    json::seconds(into, time);
    into.push(b'"');
}

fn texts(into: &mut Vec<u8>, all: &[String]) {
    list(into, all, |into, text| json::string(into, text));
}

fn approvals(into: &mut Vec<u8>, all: &[Approval]) {
    list(into, all, |into, approval| {
        field(into, b"{\"by\":", &approval.by);
        if let Some(groups) = approval.groups.as_ref().filter(|groups| !groups.is_empty()) {
            into.extend_from_slice(b",\"groups\":");
            texts(into, groups);
        }
        optional(into, b",\"reason\":", approval.reason.as_deref());
        into.push(b'}');
    });
}

fn list<T>(into: &mut Vec<u8>, all: &[T], each: impl Fn(&mut Vec<u8>, &T)) {
    into.push(b'[');
    for (at, one) in all.iter().take(MOST).enumerate() {
        if at > 0 {
            into.push(b',');
        }
        each(into, one);
    }
    into.push(b']');
}

#[cfg(test)]
mod tests {
    use identity_crd::GrantPhase;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::audit::journal::{JournalConfig, verify};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn change() -> Record {
        Record {
            time: at(0),
            reason: "GrantActivated",
            message: "requested by ann (incident), approved by bob (\"known\"); active".into(),
            from: Some(GrantPhase::Pending),
            to: GrantPhase::Active,
            grant: ObjectKey::new("demo", "g"),
            grant_uid: "uid-g".into(),
            grant_version: "41".into(),
            requested_at: Some(at(-60)),
            binding: ObjectKey::new("demo", "vault"),
            binding_uid: Some("uid-b".into()),
            binding_generation: Some(3),
            pod: Some("shell-0".into()),
            requested_by: "ann".into(),
            requester_groups: vec!["dev".into()],
            purpose: "incident\n4711".into(),
            duration: "30m".into(),
            approvals: vec![
                Approval { by: "bob".into(), groups: None, reason: Some("\"known\"".into()) },
                Approval { by: "carla".into(), groups: Some(vec!["sre".into(), "leads".into()]), reason: None },
            ],
            approvals_needed: Some(2),
            active_from: Some(at(0).to_string()),
            active_until: Some(at(1800).to_string()),
            ended_by: Some("ann".into()),
            ended_reason: Some("done".into()),
        }
    }

    fn parsed(record: &GrantRecord<'_>) -> Value {
        let mut text = b"{".to_vec();
        fields(&mut text, record);
        text.push(b'}');
        serde_json::from_slice(&text).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&text)))
    }

    #[test]
    fn every_field_is_there() {
        let whole = change();
        let record = GrantRecord { withdrawn: Some("conflict"), ..GrantRecord::new("controller-1", &whole) };
        assert_eq!(
            parsed(&record),
            json!({
                "reason": "GrantActivated", "detail": "requested by ann (incident), approved by bob (\"known\"); active",
                "withdrawn": "conflict", "from": "Pending", "to": "Active", "controller": "controller-1", "grant": "demo/g",
                "grant_uid": "uid-g", "grant_version": "41", "binding": "demo/vault", "binding_uid": "uid-b",
                "binding_generation": 3, "pod": "shell-0", "requested_by": "ann",
                "requester_groups": ["dev"], "requested_at": "2027-01-15T07:59:00Z", "purpose": "incident\n4711",
                "duration": "30m", "approvals": [{"by": "bob", "reason": "\"known\""}, {"by": "carla", "groups": ["sre", "leads"]}],
                "approvals_needed": 2, "active_from": "2027-01-15T08:00:00Z", "active_until": "2027-01-15T08:30:00Z",
                "ended_by": "ann", "ended_reason": "done",
            })
        );
        let mut short = change();
        (short.from, short.binding_uid, short.binding_generation, short.pod) = (None, None, None, None);
        (short.requested_at, short.approvals_needed, short.active_from, short.active_until) = (None, None, None, None);
        (short.ended_by, short.ended_reason) = (None, None);
        short.requester_groups.clear();
        short.approvals.clear();
        let parsed = parsed(&GrantRecord::new("c", &short));
        assert_eq!(parsed.as_object().unwrap().len(), 12, "{parsed}");
        assert_eq!(parsed["approvals"], json!([]));
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "\\PC{0,40}|[\\x00-\\x7f]{0,40}", count in 0..100_usize) {
            let mut change = change();
            let approval = Approval { by: text.clone(), groups: Some(vec![text.clone()]), reason: Some(text.clone()) };
            change.approvals = vec![approval; count];
            (change.purpose, change.requested_by, change.message) = (text.clone(), text.clone(), text.clone());
            let parsed = parsed(&GrantRecord::new(&text, &change));
            prop_assert_eq!(&parsed["purpose"], &json!(text));
            let all = parsed["approvals"].as_array().unwrap();
            prop_assert_eq!(all.len(), count.min(MOST));
            let same = json!({"by": text, "groups": [text], "reason": text});
            prop_assert!(all.iter().all(|one| *one == same));
        }
    }

    #[tokio::test]
    async fn records_are_in_the_chain() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(JournalConfig::new(directory.path(), "c"), || at(0)).unwrap();
        let change = change();
        journal.record_grant(&GrantRecord::new("c", &change)).await.unwrap();
        let withdrawn = GrantRecord { withdrawn: Some("conflict"), ..GrantRecord::new("c", &change) };
        journal.record_grant(&withdrawn).await.unwrap();
        journal.close().await;
        let file = directory.path().join("journal-00000001.jsonl");
        let text = std::fs::read_to_string(&file).unwrap();
        let options = verify::Options::default;
        let report = verify::verify([("journal", text.as_bytes())], options());
        assert!(report.is_whole(), "{:?}", report.findings);
        assert_eq!((report.token_records, report.grant_records), (0, 2));
        for (part, other) in [("\"by\":\"bob\"", "\"by\":\"eve\""), ("30m", "90m"), ("08:30:00Z", "09:30:00Z")] {
            assert!(text.contains(part));
            let changed = text.replacen(part, other, 1);
            assert!(!verify::verify([("journal", changed.as_bytes())], options()).is_whole(), "{other}");
        }
        let refused = journal.record_grant(&GrantRecord::new("c", &change)).await.unwrap_err();
        assert!(refused.to_string().contains("closed"), "{refused}");
    }
}
