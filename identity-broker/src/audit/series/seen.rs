//! What of a record matters for Events.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Deserialize;

use super::EventReason;

/// A record of a token, as far as Events say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Its number in the journal.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// What happened.
    pub event: EventReason,
    /// Why, in a word.
    pub reason: Cow<'a, str>,
    /// Why, in words.
    pub detail: Cow<'a, str>,
    /// The caller's address.
    pub address: Cow<'a, str>,
    /// The pod, when known.
    pub pod: Option<Object<'a>>,
    /// The binding, if one decided.
    pub binding: Option<Object<'a>>,
    /// The identity, as `namespace/name`.
    pub identity: Option<Cow<'a, str>>,
    /// Whom the token is for.
    pub client_id: Option<Cow<'a, str>>,
    /// The audience asked for.
    pub audience: Cow<'a, str>,
}

/// An object that a record names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    /// Its namespace.
    pub namespace: Cow<'a, str>,
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its UID.
    pub uid: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Fields<'a> {
    time: Timestamp,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    verdict: Cow<'a, str>,
    #[serde(borrow, default)]
    reason: Cow<'a, str>,
    #[serde(borrow, default)]
    detail: Cow<'a, str>,
    #[serde(borrow, default)]
    address: Cow<'a, str>,
    #[serde(borrow)]
    pod_namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pod: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pod_uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    binding: Option<Cow<'a, str>>,
    #[serde(borrow)]
    binding_uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    identity: Option<Cow<'a, str>>,
    #[serde(borrow)]
    client_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    resource: Cow<'a, str>,
}

impl<'a> Seen<'a> {
    /// Of a line of the journal; `None` when it is no record of a token, or one of a kind that is not known.
    pub fn of_line(seq: u64, line: &'a [u8]) -> Option<Self> {
        let fields: Fields<'a> = serde_json::from_slice(line).ok()?;
        if fields.kind != "token" {
            return None;
        }
        let object =
            |namespace, name, uid: Option<Cow<'a, str>>| Object { namespace, name, uid: uid.unwrap_or_default() };
        Some(Self {
            seq,
            time: fields.time,
            event: EventReason::of(&fields.verdict)?,
            reason: fields.reason,
            detail: fields.detail,
            address: fields.address,
            pod: fields.pod_namespace.zip(fields.pod).map(|(namespace, name)| object(namespace, name, fields.pod_uid)),
            binding: fields
                .binding
                .and_then(split)
                .map(|(namespace, name)| object(namespace, name, fields.binding_uid)),
            identity: fields.identity,
            client_id: fields.client_id,
            audience: fields.resource,
        })
    }
}

/// `namespace/name`, taken apart.
fn split(text: Cow<'_, str>) -> Option<(Cow<'_, str>, Cow<'_, str>)> {
    match text {
        Cow::Borrowed(text) => text.split_once('/').map(|(namespace, name)| (namespace.into(), name.into())),
        Cow::Owned(text) => {
            text.split_once('/').map(|(namespace, name)| (namespace.to_owned().into(), name.to_owned().into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use identity_core::{lookup::ObjectRef, pod::PodRef};

    use super::*;
    use crate::{
        Reason,
        audit::{AuditRecord, Verdict, journal::encode::token_body},
    };

    #[test]
    fn a_line_of_the_journal_is_understood() {
        let time = Timestamp::from_second(1_800_000_000).unwrap();
        let pod =
            PodRef { namespace: "demo".into(), name: "web-0".into(), uid: "p".into(), service_account: "sa".into() };
        let binding = ObjectRef { namespace: "demo".into(), name: "web".into(), uid: "b".into(), generation: 3 };
        let mut record = AuditRecord::new(time, Verdict::Denied, Reason::Closed, [10, 0, 0, 1].into(), "api://\"a\"");
        (record.pod, record.binding, record.detail) = (Some(&pod), Some(&binding), "closed until 9:00");
        let line = [b"{".to_vec(), token_body(&record), b"}".to_vec()].concat();
        let seen = Seen::of_line(7, &line).unwrap();
        assert_eq!((seen.seq, seen.time, seen.event), (7, time, EventReason::TokenDenied));
        assert_eq!((&*seen.reason, &*seen.detail, &*seen.address), ("closed", "closed until 9:00", "10.0.0.1"));
        assert_eq!(&*seen.audience, "api://\"a\"");
        let object = |namespace, name, uid| Some(Object { namespace, name, uid });
        assert_eq!(seen.pod, object("demo".into(), "web-0".into(), "p".into()));
        assert_eq!(seen.binding, object("demo".into(), "web".into(), "b".into()));
        assert_eq!(seen.identity, None);
    }

    #[test]
    fn what_is_no_record_of_a_token() {
        for line in [
            "",
            "{}",
            r#"{"seq":1,"kind":"stop","time":"2026-11-24T12:47:34Z"}"#,
            r#"{"seq":1,"kind":"token","time":"2026-11-24T12:47:34Z","verdict":"invented"}"#,
        ] {
            assert_eq!(Seen::of_line(1, line.as_bytes()), None, "{line}");
        }
    }
}
