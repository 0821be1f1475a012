//! Grants against an API server in memory, in stopped time: what is asked, what is written, in which order.

use identity_crd::policies;

use super::{
    boxes::{events, is_open},
    *,
};
use crate::runtime::testing::GRANTS;

const POLICIES: &str = "validatingadmissionpolicies";
const POLICY_BINDINGS: &str = "validatingadmissionpolicybindings";

/// `TokioClock` begins here.
pub(super) fn begin() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn ago(seconds: i64) -> String {
    (begin() - SignedDuration::from_secs(seconds)).to_string()
}

/// The admission policy, as it was installed so many seconds before.
pub(super) fn install(server: &Server, seconds: i64) {
    let policies::Policy { policy, binding, .. } = policies::grants(&[policies::CONTROLLER]);
    for (plural, mut object) in [(POLICIES, json!(policy)), (POLICY_BINDINGS, json!(binding))] {
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] = json!(ago(seconds));
        server.put(plural, object);
    }
}

fn uninstall(server: &Server) {
    let wanted = policies::grants(&[policies::CONTROLLER]);
    server.remove(POLICIES, "", wanted.name());
    server.remove(POLICY_BINDINGS, "", wanted.name());
}

pub(super) fn granting(name: &str) -> Value {
    let mut object = binding(name, "demo");
    object["spec"]["timeBox"] =
        json!({"grant": {"required": true, "maxDuration": "1h", "minApprovals": 1, "approvers": {"users": ["bob"]}}});
    object
}

pub(super) fn grant(name: &str) -> Value {
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant",
        "metadata": {"name": name, "namespace": "team", "uid": format!("grant-{name}"), "generation": 1,
            "creationTimestamp": ago(60)},
        "spec": {"bindingName": "jit", "reason": "incident", "duration": "10m", "requestedBy": "ann"},
    })
}

/// Changes the spec of a grant, as people do.
pub(super) fn edit(server: &Server, name: &str, field: &str, value: Value) {
    let mut object = server.get(GRANTS, "team", name).unwrap();
    object["spec"][field] = value;
    server.put(GRANTS, object);
}

pub(super) fn phase(server: &Server, name: &str) -> Option<String> {
    server.get(GRANTS, "team", name)?["status"]["phase"].as_str().map(str::to_owned)
}

pub(super) fn stamps(server: &Server) -> Vec<Value> {
    server.all(ASSIGNED).iter().map(|object| object["spec"]["grant"].clone()).collect()
}

/// Two pods and a binding that opens with a grant.
pub(super) fn jit() -> Server {
    let server = server(2);
    server.remove(BINDINGS, "team", "demo");
    server.put(BINDINGS, granting("jit"));
    server
}

pub(super) async fn until_phase(server: &Server, name: &str, wanted: &str) {
    server.until(&format!("{name} is {wanted}"), |server| phase(server, name).as_deref() == Some(wanted)).await;
}

#[tokio::test(start_paused = true)]
async fn a_grant_from_the_request_to_its_revocation() {
    let server = jit();
    install(&server, 3600);
    let rig = Rig::on(&server, "a");
    server.until("assigned", |server| server.all(ASSIGNED).len() == 2).await;
    server.until("closed", |server| is_open(server, "jit") == Some(false)).await;
    server.put(GRANTS, grant("g"));
    until_phase(&server, "g", "Pending").await;
    server.until("told", |server| events(server, "GrantRequested") == 1).await;
    assert_eq!(stamps(&server), [Value::Null, Value::Null]);

    edit(&server, "g", "approvals", json!([{"by": "bob"}]));
    until_phase(&server, "g", "Active").await;
    let until = server.get(GRANTS, "team", "g").unwrap()["status"]["activeUntil"].clone();
    let stamp = json!({"name": "g", "until": until});
    server.until("stamped", |server| stamps(server) == [stamp.clone(), stamp.clone()]).await;
    server.until("open", |server| is_open(server, "jit") == Some(true)).await;
    for reason in ["GrantApproved", "GrantActivated", "WindowOpened"] {
        server.until(reason, |server| events(server, reason) == 1).await;
    }

    // In that order: the policy was read after the approval was there, the deadline written after it, the stamp after that.
    let calls = server.calls(|_| true);
    let last = |which: &dyn Fn(&Call) -> bool| calls.iter().rposition(which).unwrap();
    let activation = last(&|call| call.is_write_of(GRANTS) && call.body["status"]["phase"] == "Active");
    let policy = last(&|call| call.method == "GET" && call.path.contains(POLICIES));
    let first_stamp =
        calls.iter().position(|call| is_assignment(call) && !call.body["spec"]["grant"].is_null()).unwrap();
    assert!(policy < activation && activation < first_stamp, "{policy} {activation} {first_stamp}");
    let write = &calls[activation];
    assert!(write.path.ends_with("/azureidentitygrants/g/status"), "{write:?}");
    assert!(!write.query.contains("force=true"), "never by force: {}", write.query);
    assert!(write.body["metadata"]["uid"].is_string() && write.body["metadata"]["resourceVersion"].is_string());

    edit(&server, "g", "revoked", json!({"by": "bob"}));
    let began = tokio::time::Instant::now();
    server.until("taken back", |server| stamps(server) == [Value::Null, Value::Null]).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    until_phase(&server, "g", "Revoked").await;
    server.until("closed again", |server| is_open(server, "jit") == Some(false)).await;
    server.until("told", |server| events(server, "GrantRevoked") == 1).await;
    server.until("told of the pods", |server| events(server, "Assigned") == 1).await;
    let before = server.count(|call| call.is_write() && !call.is_write_of("leases"));
    let_it_settle().await;
    assert_eq!(server.count(|call| call.is_write() && !call.is_write_of("leases")), before, "and that is all");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_grant_ends_by_its_deadline_by_being_deleted_and_with_its_binding() {
    let server = jit();
    install(&server, 3600);
    let clock = boxes::SetClock::new();
    let start =
        |holder: &str| Rig::start(Source::kubernetes(server.client()), holder, |config| config.clock = clock.clone());
    let rig = start("a");
    server.until("assigned", |server| server.all(ASSIGNED).len() == 2).await;
    let approved = |name: &str| {
        let mut object = grant(name);
        object["spec"]["approvals"] = json!([{"by": "bob"}]);
        object
    };
    let mut single = approved("one-pod");
    single["spec"]["podName"] = json!("p1");
    server.put(GRANTS, single);
    server.until("one of them", |server| stamps(server).iter().filter(|stamp| !stamp.is_null()).count() == 1).await;
    assert_eq!(is_open(&server, "jit"), Some(false), "not for all");
    server.put(GRANTS, approved("longer"));
    tokio::time::sleep(MINUTE).await;

    // Somebody sets the clock past the deadline: noticed within a second. A standby that takes over has nothing to add.
    rig.stop().await;
    let rig = start("b");
    let_it_settle().await;
    assert_eq!(phase(&server, "longer").as_deref(), Some("Active"));
    assert!(stamps(&server).iter().all(|stamp| !stamp.is_null()), "they stay over a restart");
    clock.put_ahead(3600);
    tokio::time::sleep(Duration::from_millis(1300)).await;
    for name in ["one-pod", "longer"] {
        assert_eq!(phase(&server, name).as_deref(), Some("Expired"));
    }
    assert_eq!(stamps(&server), [Value::Null, Value::Null]);

    server.put(GRANTS, approved("deleted"));
    server.until("stamped", |server| stamps(server).iter().all(|stamp| stamp["name"] == "deleted")).await;
    let revoked = server.count(|call| call.is_write_of("events"));
    server.remove(GRANTS, "team", "deleted");
    server.until("taken back", |server| stamps(server) == [Value::Null, Value::Null]).await;
    server.until("told", |server| server.count(|call| call.is_write_of("events")) > revoked).await;

    server.put(GRANTS, approved("orphan"));
    server.until("stamped", |server| stamps(server).iter().all(|stamp| stamp["name"] == "orphan")).await;
    server.remove(BINDINGS, "team", "jit");
    until_phase(&server, "orphan", "Revoked").await;
    let mut again = granting("jit");
    again["metadata"]["uid"] = json!("another");
    server.put(BINDINGS, again);
    let_it_settle().await;
    assert_eq!(phase(&server, "orphan").as_deref(), Some("Revoked"), "for good");
    assert_eq!(stamps(&server), [Value::Null, Value::Null]);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_the_policy_or_with_one_that_is_too_young_nothing_is_activated() {
    let server = jit();
    let rig = Rig::on(&server, "a");
    server.until("assigned", |server| server.all(ASSIGNED).len() == 2).await;
    let mut forged = grant("g");
    forged["spec"]["approvals"] = json!([{"by": "bob"}]);
    server.put(GRANTS, forged);
    until_phase(&server, "g", "Pending").await;
    let says = |server: &Server, text: &str| {
        server.get(GRANTS, "team", "g").unwrap()["status"]["conditions"].to_string().contains(text)
    };
    assert!(says(&server, "is not there; apply"), "{:?}", server.get(GRANTS, "team", "g"));
    // It cannot be read: nothing is known, and that is asked again.
    server.rule(|call| call.path.contains(POLICIES).then_some(Fault::Code(503, None)));
    tokio::time::sleep(3 * MINUTE).await;
    assert_eq!(phase(&server, "g").as_deref(), Some("Pending"));
    server.well_again();
    install(&server, 90);
    until_phase(&server, "g", "Refused").await;
    assert!(says(&server, "ask again with a new grant"));

    // Seen Pending with the policy there; then it is removed, an approval forged, and the policy put back.
    install(&server, 3600);
    server.put(GRANTS, grant("h"));
    until_phase(&server, "h", "Pending").await;
    uninstall(&server);
    edit(&server, "h", "approvals", json!([{"by": "bob"}]));
    let_it_settle().await;
    assert_eq!(phase(&server, "h").as_deref(), Some("Pending"), "the proof of before is not taken");
    install(&server, 0);
    until_phase(&server, "h", "Refused").await;
    assert_eq!(stamps(&server), [Value::Null, Value::Null]);
    assert_eq!(server.count(|call| call.body["status"]["phase"] == "Active"), 0);
    assert_eq!(events(&server, "GrantApproved"), 0, "a forged approval is nobody's word");
    assert_eq!(server.count(|call| is_assignment(call) && !call.body["spec"]["grant"].is_null()), 0);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_the_lease_nothing_becomes_of_a_grant_and_without_the_kind_everything_else_goes_on() {
    let server = jit();
    install(&server, 3600);
    server.rule(|call| (call.method == "GET" && call.path.ends_with(GRANTS)).then_some(Fault::Code(404, None)));
    let mut rig = Rig::on(&server, "a");
    rig.until_ready().await;
    server.until("assigned", |server| server.all(ASSIGNED).len() == 2).await;
    server.well_again();
    take_lease(&server, "b");
    rig.until("on standby", |health| health.leadership == Leadership::Standby { leader: "b".into() }).await;
    let mut object = grant("g");
    object["spec"]["approvals"] = json!([{"by": "bob"}]);
    server.put(GRANTS, object);
    for _ in 0..30 {
        take_lease(&server, "b");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(phase(&server, "g"), None);
    take_lease(&server, "");
    until_phase(&server, "g", "Active").await;
    server.until("stamped", |server| stamps(server).iter().all(|stamp| stamp["name"] == "g")).await;
    rig.stop().await;
}

#[tokio::test]
async fn with_manifests_a_grant_is_honoured_where_the_operator_takes_names_for_true() {
    use std::fs;

    use super::manifests::{manifests, until_really};

    let temp = tempfile::tempdir().unwrap();
    let (directory, state) = (temp.path().join("manifests"), temp.path().join("state"));
    fs::create_dir(&directory).unwrap();
    let all = [pod("a"), identity("demo"), granting("jit")];
    fs::write(directory.join("all.yaml"), manifests(&all)).unwrap();
    let write = |change: &dyn Fn(&mut Value)| {
        let mut object = grant("g");
        object["metadata"] = json!({"name": "g", "namespace": "team"});
        change(&mut object);
        fs::write(directory.join("grant.yaml"), manifests(&[object])).unwrap();
    };
    let read = |path: &str| -> Value {
        fs::read(state.join(path)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    };
    let status = || read("status/AzureIdentityGrant/team/g.json")["status"].clone();
    let stamp = || {
        let entry = fs::read_dir(state.join("assignments/team"))
            .ok()?
            .flatten()
            .find(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))?;
        let object: Value = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
        Some(object["spec"]["grant"].clone())
    };
    let start = |holder: &str, proof: Option<Proof>| {
        Rig::start(Source::manifests(&directory, &state), holder, |config| config.options.proof = proof)
    };
    write(&|object| object["spec"]["approvals"] = json!([{"by": "bob"}]));
    let rig = start("a", None);
    until_really("it says why not", || status().to_string().contains("--unproven-grants")).await;
    assert_eq!(status()["phase"], "Pending");
    until_really("assigned", || stamp() == Some(Value::Null)).await;
    rig.stop().await;

    let rig = start("b", Some(Proof::Waived));
    until_really("active", || status()["phase"] == "Active").await;
    let until = status()["activeUntil"].clone();
    until_really("stamped", || stamp() == Some(json!({"name": "g", "until": until}))).await;
    rig.stop().await;
    let rig = start("c", Some(Proof::Waived));
    // What it is told of first: the rest of the file.
    fs::write(directory.join("more.yaml"), manifests(&[binding("more", "demo")])).unwrap();
    until_really("it works", || state.join("status/AzureIdentityBinding/team/more.json").exists()).await;
    assert_eq!(status()["activeUntil"], until, "the deadline never moves");
    write(&|object| {
        object["spec"]["approvals"] = json!([{"by": "bob"}]);
        object["spec"]["revoked"] = json!({"by": "ann"});
    });
    until_really("revoked", || status()["phase"] == "Revoked").await;
    let log = || fs::read_to_string(state.join("events.jsonl")).unwrap_or_default();
    until_really("told", || ["GrantActivated", "GrantRevoked"].iter().all(|reason| log().contains(reason))).await;
    // Its name, asking for something else, is another grant.
    write(&|object| {
        object["spec"]["reason"] = json!("another incident");
        object["spec"]["approvals"] = json!([{"by": "bob"}]);
    });
    until_really("active again", || status()["phase"] == "Active").await;
    fs::remove_file(directory.join("grant.yaml")).unwrap();
    until_really("deleted", || log().matches("it was deleted").count() >= 1).await;
    rig.stop().await;
}
