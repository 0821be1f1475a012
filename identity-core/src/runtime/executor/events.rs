//! Kubernetes Events, repeated ones as a series (kube's recorder).

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{self, EventType, Reporter},
};
use serde_json::{Value, json};

use crate::{
    assign::Notice,
    runtime::{
        FIELD_MANAGER,
        request::{Failure, describe, refusal},
    },
};

/// The API's limit for a note.
const LONGEST_NOTE: usize = 1024;

pub(super) struct Recorder(events::Recorder);

impl Recorder {
    pub(super) fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(instance.to_owned()) };
        Self(events::Recorder::new(client, reporter))
    }

    pub(super) async fn publish(&self, notice: &Notice, limit: Duration) -> Result<(), Failure> {
        let key = notice.target.key();
        let reference = ObjectReference {
            api_version: Some(format!("{}/{}", identity_crd::GROUP, identity_crd::VERSION)),
            kind: Some(notice.target.kind().to_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: notice.uid.clone(),
            ..ObjectReference::default()
        };
        let event = events::Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.clone(),
            note: Some(note(&notice.message)),
            action: "Reconcile".to_owned(),
            secondary: notice.grant.as_ref().map(|grant| ObjectReference {
                api_version: Some(format!("{}/{}", identity_crd::GROUP, identity_crd::GRANT_VERSION)),
                kind: Some("AzureIdentityGrant".to_owned()),
                namespace: Some(grant.key.namespace.to_string()),
                name: Some(grant.key.name.to_string()),
                uid: grant.uid.clone(),
                ..ObjectReference::default()
            }),
        };
        match tokio::time::timeout(limit, self.0.publish(&event, &reference)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(kube::Error::Api(status))) => Err(refusal(status.code, &status, None)),
            Ok(Err(error)) => Err(Failure::Unreachable(describe(&error))),
            Err(_) => Err(Failure::Timeout(limit)),
        }
    }
}

fn note(message: &str) -> String {
    let mut end = message.len().min(LONGEST_NOTE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

/// The same as a line of a file.
pub(super) fn line(notice: &Notice, time: jiff::Timestamp) -> Value {
    let key = notice.target.key();
    json!({
        "time": time,
        "type": if notice.warning { "Warning" } else { "Normal" },
        "reason": notice.reason,
        "kind": notice.target.kind(),
        "namespace": &*key.namespace,
        "name": &*key.name,
        "message": notice.message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(note("short"), "short");
        let long = "é".repeat(1000);
        assert_eq!(note(&long).len(), 1024);
        assert_eq!(note(&format!("a{long}")).len(), 1023);
    }
}
