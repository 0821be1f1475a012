//! Writes Events whose content somebody else decides: makes one, or changes its count. Each call is one request, never
//! repeated by itself; when, and how often again, is for the caller to say.

use std::{sync::Arc, time::Duration};

use http::Request;
use kube::{
    Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    Clock, FIELD_MANAGER, StateDir,
    request::{Failure, send},
    source::Source,
    state_dir::append,
};

/// For one request.
const LIMIT: Duration = Duration::from_secs(5);
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces";

/// What is to be written: an Event of `events.k8s.io/v1`.
#[derive(Clone, Copy, Debug)]
pub struct EventWrite<'a> {
    /// Its namespace: that of what it is about, or `default`.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The whole object.
    pub whole: &'a Value,
    /// A JSON merge patch (RFC 7396) of the object, which is there; `None`: it is made.
    pub patch: Option<&'a Value>,
}

/// Writes Events to where a [`Source`] reads from: the API server, or `events.jsonl` in the state directory.
#[derive(Clone, Debug)]
pub struct AuditEvents(Target);

#[derive(Clone)]
enum Target {
    Kubernetes(Client),
    Files(StateDir, Arc<dyn Clock>),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kubernetes(_) => "Kubernetes",
            Self::Files(..) => "Files",
        })
    }
}

impl AuditEvents {
    /// To where `source` reads from.
    pub fn new(source: &Source, clock: Arc<dyn Clock>) -> Self {
        Self(match source {
            Source::Kubernetes(client) => Target::Kubernetes(client.clone()),
            Source::Manifests(manifests) => Target::Files(manifests.state().clone(), clock),
        })
    }

    /// One request, at most 5 s; or one line.
    ///
    /// # Errors
    /// [`Failure::Conflict`]: it is to be made, and is there. [`Failure::NotFound`]: it is to be changed, and is not there; or
    /// its namespace is not. Otherwise why it was not done, or is not known to be.
    pub async fn write(&self, write: EventWrite<'_>) -> Result<(), Failure> {
        match &self.0 {
            Target::Kubernetes(client) => send::<Value>(client, request(write)?, LIMIT).await.map(drop),
            Target::Files(state, clock) => {
                let (path, line, state) = (state.events(), line(write, clock.now()), state.clone());
                let written = tokio::task::spawn_blocking(move || state.create().and_then(|()| append(&path, &line)));
                match written.await {
                    Ok(result) => result.map_err(|error| Failure::Disk(error.to_string())),
                    Err(error) => Err(Failure::Disk(error.to_string())),
                }
            }
        }
    }
}

/// Whether a refusal is about this one Event, not about all of them: its namespace is being deleted.
pub fn is_about_namespace(failure: &Failure) -> bool {
    matches!(failure, Failure::Forbidden(message) if message.contains("is being terminated"))
}

fn request(write: EventWrite<'_>) -> Result<Request<Vec<u8>>, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::Refused { code: 0, message: error.to_string() };
    let base = kube::core::Request::new(format!("{EVENTS}/{}/events", write.namespace));
    let body = |value: &Value| serde_json::to_vec(value).map_err(|error| wrong(&error));
    match write.patch {
        None => {
            let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            base.create(&params, body(write.whole)?).map_err(|error| wrong(&error))
        }
        Some(patch) => {
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            base.patch(write.name, &params, &Patch::Merge(patch)).map_err(|error| wrong(&error))
        }
    }
}

/// As the other Events there, with count and pod.
fn line(write: EventWrite<'_>, now: jiff::Timestamp) -> Value {
    let event = write.whole;
    let about = &event["regarding"];
    json!({
        "time": now,
        "type": event["type"],
        "reason": event["reason"],
        "kind": about["kind"],
        "namespace": write.namespace,
        "name": about["name"],
        "message": event["note"],
        "event": write.name,
        "count": event["series"]["count"].as_u64().unwrap_or(1),
        "pod": event["related"]["name"],
        "first": event["eventTime"],
        "last": event["series"].get("lastObservedTime").unwrap_or(&event["eventTime"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{
        clock::testing::TokioClock,
        testing::{Call, answer, mock, status},
    };

    fn whole() -> Value {
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "web.0a", "namespace": "demo"}, "type": "Normal", "reason": "TokenIssued", "note": "n",
            "eventTime": "2026-11-24T12:00:00.000000Z",
            "series": {"count": 3, "lastObservedTime": "2026-11-24T13:00:00.000000Z"},
            "regarding": {"kind": "AzureIdentityBinding", "name": "web"}, "related": {"kind": "Pod", "name": "web-0"},
        })
    }

    #[tokio::test]
    async fn an_event_is_made_or_its_count_changed_in_one_request() {
        let (client, mut handle) = mock();
        let events = AuditEvents::new(&Source::kubernetes(client), Arc::new(TokioClock::new()));
        let (whole, patch) = (whole(), json!({"series": {"count": 3}}));
        let write = EventWrite { namespace: "demo", name: "web.0a", whole: &whole, patch: None };
        let server = async {
            let mut calls = Vec::new();
            for code in [201, 409, 200, 404, 429, 403] {
                let (request, respond) = handle.next_request().await.unwrap();
                calls.push(Call::read(request).await);
                let body = if code < 300 { json!({}) } else { status(code, "why") };
                respond.send_response(answer(code, &body));
            }
            calls
        };
        let client = async {
            events.write(write).await.unwrap();
            assert!(matches!(events.write(write).await, Err(Failure::Conflict(_))));
            let write = EventWrite { patch: Some(&patch), ..write };
            events.write(write).await.unwrap();
            assert!(matches!(events.write(write).await, Err(Failure::NotFound(_))));
            assert!(matches!(events.write(write).await, Err(Failure::Busy { code: 429, .. })));
            assert!(matches!(events.write(write).await, Err(Failure::Forbidden(_))));
        };
        let (calls, ()) = tokio::join!(server, client);
        assert_eq!((&*calls[0].method, &*calls[0].path), ("POST", "/apis/events.k8s.io/v1/namespaces/demo/events"));
        assert_eq!(calls[0].body, whole);
        assert_eq!(
            (&*calls[2].method, &*calls[2].path),
            ("PATCH", "/apis/events.k8s.io/v1/namespaces/demo/events/web.0a")
        );
        assert_eq!((&*calls[2].content_type, &calls[2].body), ("application/merge-patch+json", &patch));
        assert!(calls.iter().all(|call| call.query.contains("fieldManager=entra-pod-identity")));
    }

    #[test]
    fn a_namespace_that_goes_is_no_trouble_for_the_others() {
        let words = "events.events.k8s.io \"web.0a\" is forbidden: unable to create new content in namespace demo because it is being terminated";
        assert!(is_about_namespace(&Failure::Forbidden(words.to_owned())));
        assert!(!is_about_namespace(&Failure::Forbidden("events.events.k8s.io is forbidden".to_owned())));
        assert!(!is_about_namespace(&Failure::NotFound(words.to_owned())));
    }

    #[tokio::test]
    async fn without_an_api_server_each_count_is_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let source = Source::manifests(directory.path(), directory.path().join("state"));
        let events = AuditEvents::new(&source, Arc::new(TokioClock::new()));
        let whole = whole();
        events.write(EventWrite { namespace: "demo", name: "web.0a", whole: &whole, patch: None }).await.unwrap();
        let text = std::fs::read_to_string(directory.path().join("state/events.jsonl")).unwrap();
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["reason"], &line["count"], &line["pod"]),
            (&"TokenIssued".into(), &3.into(), &"web-0".into())
        );
        assert_eq!(line["last"], "2026-11-24T13:00:00.000000Z");
    }
}
