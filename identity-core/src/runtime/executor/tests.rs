//! Each action as the exact request that it becomes, and what its answers mean; the same for files.

use std::{fmt::Write as _, fs, path::PathBuf};

use identity_crd::AzureAssignedIdentity;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::{
    assign::{Apply, Delete, Notice, Precondition, StatusTarget, StatusUpdate},
    runtime::{
        clock::testing::TokioClock,
        lease,
        testing::{Call, Handle, Told, answer, mock, status},
    },
};

const LIMIT: Duration = Duration::from_secs(10);

fn assigned() -> AzureAssignedIdentity {
    serde_json::from_value(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
        "metadata": {"name": "p-1", "namespace": "team", "labels": {"nodename": "node-1"}},
        "spec": {"pod": "p", "podNamespace": "team", "nodename": "node-1", "podUID": "u"},
        "status": {"status": "Assigned"},
    }))
    .unwrap()
}

fn precondition(version: &str) -> Precondition {
    Precondition { uid: "uid-1".into(), resource_version: version.into() }
}

fn create() -> Action {
    Action::Apply(Box::new(Apply { object: assigned(), precondition: None }))
}

fn update(version: &str) -> Action {
    Action::Apply(Box::new(Apply { object: assigned(), precondition: Some(precondition(version)) }))
}

fn delete(version: &str) -> Action {
    Action::Delete(Delete { key: ObjectKey::new("team", "p-1"), precondition: precondition(version) })
}

fn status_of(target: fn(ObjectKey) -> StatusTarget, pods: Option<i32>) -> Action {
    let condition = serde_json::from_value(json!({
        "type": "Valid", "status": "True", "reason": "AsExpected", "message": "",
        "lastTransitionTime": "2026-11-24T00:00:00Z", "observedGeneration": 3,
    }));
    Action::Status(Box::new(StatusUpdate {
        target: target(ObjectKey::new("team", "x")),
        uid: Some("uid-x".into()),
        conditions: vec![condition.unwrap()],
        matched_pods: pods,
        credential_expiry: None,
        next_transition: None,
        residual_until: None,
    }))
}

fn notice() -> Action {
    Action::Event(Notice {
        target: StatusTarget::Binding(ObjectKey::new("team", "x")),
        uid: Some("uid-x".into()),
        warning: true,
        grant: None,
        reason: "NotFound".into(),
        message: "no such identity".into(),
    })
}

/// What the server has after a write.
fn stored() -> Value {
    let mut object = serde_json::to_value(assigned()).unwrap();
    object["metadata"]["uid"] = json!("uid-1");
    object["metadata"]["resourceVersion"] = json!("8");
    object["metadata"]["managedFields"] = json!([{"manager": "entra-pod-identity"}]);
    object
}

struct Rig {
    executor: Arc<Executor>,
    fence: Arc<Fence>,
    handle: Handle,
    told: Arc<Told>,
}

impl Rig {
    fn new() -> Self {
        let (client, handle) = mock();
        let clock = Arc::new(TokioClock::new());
        let fence = Arc::new(Fence::new(clock.clone()));
        fence.set(Some(Duration::from_hours(1)));
        let told = Arc::new(Told::default());
        let source = Source::kubernetes(client);
        let executor = Executor::new(&source, "controller-a", clock, fence.clone(), told.clone(), LIMIT);
        Self { executor: Arc::new(executor), fence, handle, told }
    }

    /// Carries out an action against a server that gives these answers, one for each request.
    async fn run(&mut self, action: Action, answers: Vec<(u16, Value)>) -> (Report, Vec<Call>) {
        let executor = self.executor.clone();
        let task = tokio::spawn(async move { executor.execute(&action).await });
        let mut calls = Vec::new();
        for (code, body) in answers {
            let (request, respond) = self.handle.next_request().await.unwrap();
            calls.push(Call::read(request).await);
            respond.send_response(answer(code, &body));
        }
        (task.await.unwrap(), calls)
    }
}

#[tokio::test(start_paused = true)]
async fn requests_are_exactly_these() {
    let mut text = String::new();
    for (what, action, body) in [
        ("create: refused where something is", create(), stored()),
        ("update: of this version only", update("7"), stored()),
        ("delete: of this version only", delete("7"), json!({"kind": "Status", "status": "Success"})),
        ("status of an identity", status_of(StatusTarget::Identity, None), json!({})),
        ("status of a binding", status_of(StatusTarget::Binding, Some(2)), json!({})),
    ] {
        let mut rig = Rig::new();
        let (report, calls) = rig.run(action, vec![(200, body)]).await;
        assert!(report.result.is_ok(), "{what}: {report:?}");
        writeln!(text, "# {what}\n{}", calls[0].text()).unwrap();
        assert_eq!(rig.told.count(WriteOutcome::Done), 1);
    }
    insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!(text) });
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_write_is_what_is_there_now() {
    let mut rig = Rig::new();
    let (report, _) = rig.run(create(), vec![(201, stored())]).await;
    let Ok(Success::Applied(object)) = report.result else { panic!("{report:?}") };
    assert_eq!(object.metadata.resource_version.as_deref(), Some("8"));
    assert_eq!(object.metadata.managed_fields, None, "nobody reads these");
}

#[tokio::test(start_paused = true)]
async fn an_event_is_published() {
    let mut rig = Rig::new();
    let (report, calls) = rig.run(notice(), vec![(201, json!({"metadata": {}, "eventTime": null}))]).await;
    assert!(report.result.is_ok(), "{report:?}");
    let Call { method, path, body, .. } = &calls[0];
    assert_eq!((method.as_str(), path.as_str()), ("POST", "/apis/events.k8s.io/v1/namespaces/team/events"));
    assert_eq!(
        (&body["reason"], &body["type"], &body["note"]),
        (&json!("NotFound"), &json!("Warning"), &json!("no such identity"))
    );
    assert_eq!(body["regarding"]["uid"], "uid-x");
    assert_eq!(body["reportingInstance"], "controller-a");

    let (report, _) = Rig::new().run(notice(), vec![(403, status(403, "no"))]).await;
    assert!(matches!(report.result, Err(Failure::Forbidden(_))), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_conflict_it_looks() {
    for action in [create(), update("7"), delete("7")] {
        let mut rig = Rig::new();
        let (report, calls) = rig.run(action, vec![(409, status(409, "modified")), (200, stored())]).await;
        assert_eq!(report.result.unwrap_err(), Failure::Conflict("modified".into()));
        let Some(Seen::Object(object)) = report.seen else { panic!() };
        assert_eq!(object.metadata.resource_version.as_deref(), Some("8"));
        assert_eq!(
            (calls[1].method.as_str(), calls[1].path.as_str()),
            ("GET", "/apis/aadpodidentity.k8s.io/v1/namespaces/team/azureassignedidentities/p-1")
        );
        assert_eq!(rig.told.count(WriteOutcome::Conflict), 1);

        // Gone, or not to be seen.
        let (report, _) = rig.run(update("7"), vec![(409, status(409, "")), (404, status(404, ""))]).await;
        assert!(matches!(report.seen, Some(Seen::Nothing)));
        let (report, _) = rig.run(update("7"), vec![(409, status(409, "")), (500, status(500, ""))]).await;
        assert!(report.seen.is_none());
    }
    // Of a status there is nothing to see.
    let (report, _) = Rig::new().run(status_of(StatusTarget::Identity, None), vec![(409, status(409, "uid"))]).await;
    assert_eq!((report.result.unwrap_err(), report.seen.is_none()), (Failure::Conflict("uid".into()), true));
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_need_not_be_deleted() {
    for action in [delete("7"), status_of(StatusTarget::Binding, Some(0))] {
        let (report, _) = Rig::new().run(action, vec![(404, status(404, "not found"))]).await;
        assert!(matches!(report.result, Ok(Success::Done)));
    }
}

#[tokio::test(start_paused = true)]
async fn failures_say_what_to_do_next() {
    let busy = |code, message: &str, retry_after: Option<u64>| Failure::Busy {
        code,
        message: message.into(),
        retry_after: retry_after.map(Duration::from_secs),
    };
    let mut slow = status(429, "slow down");
    slow["details"] = json!({"retryAfterSeconds": 7});
    for (code, body, failure) in [
        (429, slow, busy(429, "slow down", Some(7))),
        (503, json!("no leader"), busy(503, "\"no leader\"", None)),
        (500, status(500, "etcd"), busy(500, "etcd", None)),
        (403, status(403, "no"), Failure::Forbidden("no".into())),
        (422, status(422, "bad"), Failure::Refused { code: 422, message: "bad".into() }),
    ] {
        let (report, _) = Rig::new().run(create(), vec![(code, body)]).await;
        assert_eq!(report.result.unwrap_err(), failure);
    }
    let (report, _) = Rig::new().run(create(), vec![(200, json!({"kind": "Surprise"}))]).await;
    assert!(matches!(report.result, Err(Failure::Unreadable(_))));

    let mut rig = Rig::new();
    let executor = rig.executor.clone();
    let task = tokio::spawn(async move { executor.execute(&create()).await });
    rig.handle.next_request().await.unwrap().1.send_error("reset");
    assert!(matches!(task.await.unwrap().result, Err(Failure::Unreachable(_))));
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_no_longer_than_its_limit_or_the_lease() {
    for (lease, limit) in [(Duration::from_hours(1), LIMIT), (Duration::from_secs(3), Duration::from_secs(3))] {
        let mut rig = Rig::new();
        rig.fence.set(Some(lease));
        let began = tokio::time::Instant::now();
        let executor = rig.executor.clone();
        let task = tokio::spawn(async move { executor.execute(&create()).await });
        let _unanswered = rig.handle.next_request().await.unwrap();
        let report = task.await.unwrap();
        assert_eq!(report.result.unwrap_err(), Failure::Timeout(limit));
        assert!(began.elapsed() < limit + Duration::from_millis(10), "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_without_the_lease() {
    let mut rig = Rig::new();
    for lease in [None, Some(Duration::ZERO), Some(lease::RESERVE / 2)] {
        rig.fence.set(lease);
        for action in [create(), update("7"), delete("7"), status_of(StatusTarget::Identity, None), notice()] {
            assert_eq!(rig.executor.execute(&action).await.result.unwrap_err(), Failure::Fenced);
        }
    }
    assert_eq!(rig.told.count(WriteOutcome::Fenced), 15);
    drop(rig.executor);
    // The client is gone, and never asked for anything.
    assert!(rig.handle.next_request().await.is_none());
}

struct Room {
    temp: tempfile::TempDir,
    executor: Executor,
    fence: Arc<Fence>,
}

impl Room {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let (executor, fence) = Self::executor(&temp);
        Self { temp, executor, fence }
    }

    /// As after a restart.
    fn executor(temp: &tempfile::TempDir) -> (Executor, Arc<Fence>) {
        // Of 1970: as if the machine's clock had lost its battery.
        #[derive(Debug)]
        struct Epoch;
        impl Clock for Epoch {
            fn now(&self) -> Timestamp {
                Timestamp::UNIX_EPOCH
            }

            fn uptime(&self) -> Duration {
                Duration::ZERO
            }
        }
        let fence = Arc::new(Fence::new(Arc::new(Epoch)));
        fence.set(Some(Duration::from_hours(1)));
        let source = Source::manifests(temp.path().join("manifests"), temp.path().join("state"));
        let told = Arc::new(Told::default());
        (Executor::new(&source, "a", Arc::new(Epoch), fence.clone(), told, LIMIT), fence)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join("state").join(name)
    }

    async fn run(&self, action: Action) -> Report {
        self.executor.execute(&action).await
    }

    /// UID and version of what a write made.
    async fn applied(&self, precondition: Option<Precondition>) -> Precondition {
        let report = self.run(Action::Apply(Box::new(Apply { object: assigned(), precondition }))).await;
        let Ok(Success::Applied(object)) = report.result else { panic!("{report:?}") };
        let there: AzureAssignedIdentity =
            serde_json::from_slice(&fs::read(self.path("assignments/team/p-1.json")).unwrap()).unwrap();
        assert_eq!(there, *object);
        Precondition { uid: object.metadata.uid.unwrap(), resource_version: object.metadata.resource_version.unwrap() }
    }

    fn delete(precondition: &Precondition) -> Action {
        Action::Delete(Delete { key: ObjectKey::new("team", "p-1"), precondition: precondition.clone() })
    }
}

fn number(precondition: &Precondition) -> u64 {
    precondition.resource_version.parse().unwrap()
}

#[tokio::test]
async fn files_have_the_preconditions_of_an_api_server() {
    let room = Room::new();
    let first = room.applied(None).await;
    let report = room.run(create()).await;
    assert!(matches!(report.result, Err(Failure::Conflict(_))), "{report:?}");
    let Some(Seen::Object(seen)) = report.seen else { panic!() };
    assert_eq!(seen.metadata.uid.as_deref(), Some(&*first.uid));

    let second = room.applied(Some(first.clone())).await;
    assert_eq!(second.uid, first.uid);
    assert!(number(&second) > number(&first));
    let stale = Action::Apply(Box::new(Apply { object: assigned(), precondition: Some(first.clone()) }));
    assert!(matches!(room.run(stale).await.result, Err(Failure::Conflict(_))));
    assert!(matches!(room.run(Room::delete(&first)).await.result, Err(Failure::Conflict(_))));
    let other = Precondition { uid: "other".into(), ..second.clone() };
    assert!(matches!(room.run(Room::delete(&other)).await.result, Err(Failure::Conflict(_))));

    assert!(matches!(room.run(Room::delete(&second)).await.result, Ok(Success::Done)));
    assert!(!room.path("assignments/team/p-1.json").exists());
    assert!(matches!(room.run(Room::delete(&second)).await.result, Ok(Success::Done)), "gone is gone");
    let gone = Action::Apply(Box::new(Apply { object: assigned(), precondition: Some(second.clone()) }));
    assert!(matches!(room.run(gone).await.result, Err(Failure::NotFound(_))));
    let anew = room.applied(None).await;
    assert_ne!(anew.uid, second.uid, "another object");
    assert!(number(&anew) > number(&second));
    assert_eq!(fs::read_dir(room.path("assignments/team")).unwrap().count(), 1, "no temporary file stays");
}

#[tokio::test]
async fn versions_of_files_grow_over_restarts() {
    let mut room = Room::new();
    let mut last = room.applied(None).await;
    for _ in 0..3 {
        (room.executor, room.fence) = Room::executor(&room.temp);
        let next = room.applied(Some(last.clone())).await;
        assert!(number(&next) > number(&last));
        last = next;
    }
}

#[tokio::test]
async fn a_file_that_is_no_assignment_is_replaced() {
    let room = Room::new();
    room.applied(None).await;
    // As a crash of the machine leaves it.
    fs::write(room.path("assignments/team/p-1.json"), "").unwrap();
    room.applied(None).await;
}

#[tokio::test]
async fn files_are_fenced_too() {
    let room = Room::new();
    room.fence.set(None);
    assert_eq!(room.run(create()).await.result.unwrap_err(), Failure::Fenced);
    assert!(!room.path("assignments").exists());
}

#[tokio::test]
async fn status_and_events_are_files() {
    let room = Room::new();
    room.applied(None).await;
    for _ in 0..2 {
        assert!(room.run(status_of(StatusTarget::Binding, Some(2))).await.result.is_ok());
        assert!(room.run(notice()).await.result.is_ok());
    }
    let read = |name: &str| fs::read_to_string(room.path(name)).unwrap();
    let text = format!("{}\n{}", read("status/AzureIdentityBinding/team/x.json"), read("events.jsonl"));
    insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!(text) });
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written_says_so() {
    let room = Room::new();
    fs::write(room.path(""), "a file").unwrap_err();
    fs::write(room.temp.path().join("state"), "a file").unwrap();
    let failure = room.run(create()).await.result.unwrap_err();
    assert!(failure.is_transient());
    let text = failure.to_string();
    assert!(text.starts_with("the state directory: ") && text.contains("/state/assignments/team/p-1.json: "), "{text}");

    let mut escape = assigned();
    escape.metadata.namespace = Some("..".into());
    let action = Action::Apply(Box::new(Apply { object: escape, precondition: None }));
    assert!(room.run(action).await.result.unwrap_err().to_string().contains("`..` is no name of an object"));
}
