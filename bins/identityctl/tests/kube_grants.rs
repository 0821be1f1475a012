//! `identityctl` asks, approves and takes back on a real API server with the generated admission policies and the rights of
//! `examples/grant/`; people by impersonation. No controller runs: where a phase is needed, it is set in its name.
//!
//! One control plane for all of it. Needs `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use identity_crd::{AzureIdentityGrant, crds, policies::CONTROLLER};
use identity_lab::kube::ControlPlane;
use jiff::{SignedDuration, Timestamp};
use kube::{Api, Client};
use serde_json::{Value, json};

const GROUP: &str = "0a0b0c0d-0000-4000-8000-000000000000";

const ANN: Person = Person { name: "ann@example.com", groups: &["developers"] };
const BOB: Person = Person { name: "bob@example.com", groups: &["other"] };
const CARLA: Person = Person { name: "carla@example.com", groups: &["on-call", GROUP] };
/// May ask and approve.
const DORA: Person = Person { name: "dora@example.com", groups: &["developers", GROUP] };
/// May write into grants, and is nobody's approver.
/// May not read bindings, either.
const MALLORY: Person = Person { name: "mallory@example.com", groups: &["strangers"] };
/// Has no rights at all.
const EVE: Person = Person { name: "eve@example.com", groups: &[] };

#[derive(Clone, Copy)]
struct Person {
    name: &'static str,
    groups: &'static [&'static str],
}

/// What the program said.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Said {
    /// The name of the grant that was asked for.
    fn name(&self) -> String {
        assert!(self.code == 0 && self.err.lines().all(|line| line.starts_with("note: ")), "{self:?}");
        let name = self.out.strip_suffix('\n').unwrap();
        assert!(!name.contains(char::is_whitespace), "{self:?}");
        name.to_owned()
    }

    fn done(&self) {
        assert_eq!((self.code, self.out.as_str(), self.err.as_str()), (0, "", ""), "{self:?}");
    }

    fn refused(&self, words: &str) {
        assert_eq!(self.code, 3, "{words}: {self:?}");
        assert!(self.err.contains(words), "{words}: {self:?}");
    }
}

struct World {
    client: Client,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    fn command(&self, person: Person, words: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_identityctl"));
        command.args(words).arg("--kubeconfig").arg(&self.kubeconfig).args(["--as", person.name]);
        for group in person.groups {
            command.args(["--as-group", group]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run(&self, person: Person, words: &[&str]) -> Said {
        let output = tokio::time::timeout(Duration::from_mins(1), self.command(person, words).output()).await;
        output.unwrap_or_else(|_| panic!("{words:?} does not end")).unwrap().into()
    }

    async fn asks(&self, person: Person, binding: &str) -> String {
        self.run(person, &["request", binding, "--for", "30m", "--reason", "incident 4711"]).await.name()
    }

    fn grants(&self) -> Api<AzureIdentityGrant> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn grant(&self, name: &str) -> AzureIdentityGrant {
        self.grants().get(name).await.unwrap()
    }

    /// Sets a phase as the controller.
    async fn becomes(&self, name: &str, status: &Value) {
        let uri = format!("/apis/aadpodidentity.k8s.io/v1alpha1/namespaces/default/azureidentitygrants/{name}/status");
        let body = serde_json::to_vec(&json!({"status": status})).unwrap();
        let request = http_request("PATCH", &uri).header("content-type", "application/merge-patch+json");
        let request = request.header("Impersonate-User", CONTROLLER).body(body).unwrap();
        self.client.request::<Value>(request).await.unwrap();
    }

    async fn activate(&self, name: &str) -> Timestamp {
        let from = Timestamp::from_second(identity_process::now().as_second()).unwrap();
        let until = from + SignedDuration::from_mins(30);
        let status = json!({"phase": "Active", "activeFrom": from.to_string(), "activeUntil": until.to_string(), "bindingUID": "b"});
        self.becomes(name, &status).await;
        until
    }

    /// The one grant of this reason, once it is there.
    async fn asked_for(&self, reason: &str) -> String {
        let find = async || {
            let all = self.grants().list(&kube::api::ListParams::default()).await.unwrap();
            all.items.into_iter().find(|grant| grant.spec.reason == reason).and_then(|grant| grant.metadata.name)
        };
        eventually(reason, async || find().await.is_some()).await;
        find().await.unwrap()
    }
}

fn http_request(method: &str, uri: &str) -> http::request::Builder {
    http::Request::builder().method(method).uri(uri)
}

async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}

#[expect(clippy::disallowed_methods, reason = "the tier's runner says where the binaries are")]
fn assets() -> PathBuf {
    std::env::var_os("KUBEBUILDER_ASSETS")
        .expect("KUBEBUILDER_ASSETS must name the directory with etcd and kube-apiserver")
        .into()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[tokio::test]
async fn access_for_a_while() {
    let work = tempfile::tempdir().unwrap();
    let before: Vec<_> = crds().iter().map(|crd| serde_json::to_string(crd).unwrap()).collect();
    let plane = ControlPlane::start_with(&assets(), work.path(), &before).await.unwrap();
    plane.apply_dir(&root().join("deploy")).await.unwrap();
    for file in ["binding.yaml", "roles.yaml"] {
        let text = std::fs::read_to_string(root().join("examples/grant").join(file)).unwrap();
        plane.apply_yaml(&text).await.unwrap();
    }
    let always = json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
        "metadata": {"name": "always", "namespace": "default"}, "spec": {"azureIdentity": "data-store", "selector": "a", "timeBox": {
            "windows": [{"schedule": "0 * * * *", "duration": "1h"}],
            "grant": {"maxDuration": "1h", "approvers": {"users": [BOB.name]}}}}});
    plane.apply_yaml(&always.to_string()).await.unwrap();
    let grants = json!([{"apiGroups": ["aadpodidentity.k8s.io"], "resources": ["azureidentitygrants"],
        "verbs": ["get", "list", "create", "patch"]}]);
    let strangers = [
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "strangers", "namespace": "default"},
            "rules": grants}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "strangers", "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "strangers"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "strangers"}]}),
    ];
    for object in strangers {
        plane.apply_yaml(&object.to_string()).await.unwrap();
    }
    let world = World { client: plane.client(), kubeconfig: plane.kubeconfig(), kubectl: assets().join("kubectl") };
    policies_are_in_force(&world).await;

    asking(&world).await;
    approving(&world).await;
    many_approve_at_once(&world).await;
    taking_back(&world).await;
    opening(&world).await;
    closing(&world).await;
    listing(&world).await;
    without_an_api_server(&world).await;
    plane.stop().await;
}

async fn policies_are_in_force(world: &World) {
    let forged = json!({"apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant", "metadata": {"name": "forged"},
        "spec": {"bindingName": "always", "reason": "r", "duration": "1m", "requestedBy": "somebody"}});
    let body = serde_json::to_vec(&forged).unwrap();
    eventually("the policy of grants to be in force", async || {
        let uri = "/apis/aadpodidentity.k8s.io/v1alpha1/namespaces/default/azureidentitygrants?dryRun=All";
        let request = http_request("POST", uri).header("content-type", "application/json").body(body.clone()).unwrap();
        world.client.request::<Value>(request).await.is_err()
    })
    .await;
    let probe = world.asks(ANN, "production-vault").await;
    eventually("the policy of approvers to be in force", async || {
        world.run(MALLORY, &["deny", &probe]).await.err.contains("is neither")
    })
    .await;
    world.run(ANN, &["revoke", &probe, "--reason", "a probe"]).await.done();
}

async fn asking(world: &World) {
    let name = world.asks(ANN, "production-vault").await;
    assert!(name.starts_with("production-vault-"), "{name}");
    let spec = world.grant(&name).await.spec;
    assert_eq!((spec.requested_by.as_str(), spec.requester_groups), (ANN.name, None), "no group matters");
    assert_eq!((spec.duration.as_str(), spec.reason.as_str()), ("30m", "incident 4711"));

    let words =
        ["request", "production-vault", "--for", "1h30m", "--reason", "r", "--pod", "shell-0", "--name", "mine"];
    assert_eq!(world.run(DORA, &words).await.name(), "mine");
    let spec = world.grant("mine").await.spec;
    assert_eq!((spec.requester_groups, spec.pod_name.as_deref()), (Some(vec![GROUP.to_owned()]), Some("shell-0")));
    world.run(DORA, &words).await.refused("already exists");

    let asks = async |person, binding: &str, duration: &str| {
        world.run(person, &["request", binding, "--for", duration, "--reason", "r"]).await
    };
    asks(DORA, "production-vault", "3h")
        .await
        .refused("3h is longer than the 2h that AzureIdentityBinding production-vault allows");
    asks(DORA, "absent", "30m").await.refused("there is no AzureIdentityBinding absent in namespace default");
    // With the rights of the example alone, as they ask there.
    asks(ANN, "production-vault", "3h").await.refused("3h is longer than the 2h");
    asks(ANN, "absent", "30m").await.refused("there is no AzureIdentityBinding absent");
    asks(EVE, "production-vault", "30m").await.refused(
        "eve@example.com lacks the right to `create` azureidentitygrants.aadpodidentity.k8s.io in namespace default",
    );
    let elsewhere = ["request", "production-vault", "--for", "30m", "--reason", "r", "-n", "kube-system"];
    world.run(ANN, &elsewhere).await.refused("in namespace kube-system");
}

async fn approving(world: &World) {
    let name = world.asks(ANN, "production-vault").await;
    let approves = async |person| world.run(person, &["approve", &name]).await;
    approves(ANN).await.refused("you have asked for");
    let mallory = approves(MALLORY).await;
    mallory.refused("mallory@example.com is not an approver of AzureIdentityBinding production-vault");
    mallory.refused("admission policy azureidentitygrants-approvers");
    mallory.refused("you may not read AzureIdentityBinding");
    approves(EVE).await.refused("eve@example.com lacks the right to `get` azureidentitygrants");
    world.run(BOB, &["approve", &name, "--reason", "known incident"]).await.done();
    approves(BOB).await.done();
    approves(CARLA).await.done();
    let approvals = world.grant(&name).await.spec.approvals;
    let by: Vec<_> = approvals.iter().map(|a| (a.by.as_str(), a.groups.clone(), a.reason.as_deref())).collect();
    assert_eq!(by, [(BOB.name, None, Some("known incident")), (CARLA.name, Some(vec![GROUP.to_owned()]), None)]);
    let listed = world.run(BOB, &["grants"]).await.out;
    assert!(listed.contains("incident 4711 (approved by bob@example.com: known incident)"), "{listed}");
    world.becomes(&name, &json!({"phase": "Expired"})).await;
    approves(DORA).await.refused("is Expired, for good; ann@example.com has to ask anew");
    world.run(BOB, &["approve", "absent"]).await.refused("there is no AzureIdentityGrant absent in namespace default");
}

/// None is lost, though each is added to a list.
async fn many_approve_at_once(world: &World) {
    const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let name = world.asks(ANN, "production-vault").await;
    let running: Vec<_> = NAMES
        .map(|who| world.command(Person { name: who, groups: &[GROUP] }, &["approve", &name]).spawn().unwrap())
        .into_iter()
        .collect();
    for child in running {
        Said::from(child.wait_with_output().await.unwrap()).done();
    }
    let approvals = world.grant(&name).await.spec.approvals;
    let by: BTreeSet<_> = approvals.iter().map(|approval| approval.by.as_str()).collect();
    assert_eq!(by, BTreeSet::from(NAMES));
    assert_eq!(approvals.len(), NAMES.len());
}

async fn taking_back(world: &World) {
    let name = world.asks(ANN, "production-vault").await;
    for word in ["deny", "revoke"] {
        world.run(MALLORY, &[word, &name]).await.refused("and mallory@example.com is neither");
        world.run(EVE, &[word, &name]).await.refused("lacks the right to `get`");
    }
    world.run(CARLA, &["deny", &name, "--reason", "not today"]).await.done();
    world.run(BOB, &["deny", &name]).await.done();
    let denied = world.grant(&name).await.spec.denied.unwrap();
    assert_eq!((denied.by.as_str(), denied.reason.as_deref()), (CARLA.name, Some("not today")));
    world.run(BOB, &["approve", &name]).await.refused("was denied by carla@example.com");

    let name = world.asks(ANN, "production-vault").await;
    world.activate(&name).await;
    world.run(ANN, &["revoke", &name]).await.done();
    assert_eq!(world.grant(&name).await.spec.revoked.unwrap().by, ANN.name);
}

async fn opening(world: &World) {
    let opens = |reason: &'static str, more: &[&'static str]| {
        let words = [&["open", "production-vault", "--for", "30m", "--reason", reason], more].concat();
        world.command(ANN, &words).spawn().unwrap()
    };
    let finished = async |child: tokio::process::Child| Said::from(child.wait_with_output().await.unwrap());

    let waiting = opens("opened", &[]);
    let name = world.asked_for("opened").await;
    let until = world.activate(&name).await;
    let said = finished(waiting).await;
    assert_eq!((said.code, said.out, said.err), (0, format!("{name}\t{until}\n"), String::new()));

    let waiting = opens("refused", &[]);
    let name = world.asked_for("refused").await;
    world.run(BOB, &["deny", &name]).await.done();
    finished(waiting).await.refused("gives no access: denied by bob@example.com");

    let waiting = opens("deleted", &[]);
    let name = world.asked_for("deleted").await;
    world.grants().delete(&name, &kube::api::DeleteParams::default()).await.unwrap();
    finished(waiting).await.refused("gives no access: it was deleted");

    let said = finished(opens("nobody answers", &["--timeout", "1s"])).await;
    let name = world.asked_for("nobody answers").await;
    assert_eq!((said.code, &said.out), (4, &format!("{name}\n")), "{said:?}");
    assert!(said.err.contains("it waits for 1 approval of bob@example.com"), "{said:?}");

    let said = finished(opens("asked only", &["--no-wait"])).await;
    assert_eq!(said.name(), world.asked_for("asked only").await);
}

async fn closing(world: &World) {
    let (first, second) = (world.asks(ANN, "always").await, world.asks(ANN, "always").await);
    world.activate(&first).await;
    let said = world.run(BOB, &["close", "always"]).await;
    assert_eq!(said.out, format!("{first}\n"));
    said.refused("always is open by its own time box");
    assert!(said.err.contains(&format!("not active yet, and left as they are: {second}")), "{said:?}");
    assert_eq!(world.grant(&first).await.spec.revoked.unwrap().by, BOB.name);
    assert_eq!(world.grant(&second).await.spec.revoked, None);

    // What the steps before have left active.
    let said = world.run(CARLA, &["close", "production-vault", "--reason", "enough"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let open = world.asked_for("opened").await;
    assert!(said.out.lines().any(|line| line == open), "{said:?}");
    world.run(CARLA, &["close", "absent"]).await.refused("there is no AzureIdentityBinding absent");
}

async fn listing(world: &World) {
    let words = ["request", "nightly-or-granted", "--for", "20m", "--reason", "look\tinto", "--name", "listed"];
    assert_eq!(world.run(ANN, &words).await.name(), "listed");
    world.run(CARLA, &["approve", "listed"]).await.done();
    let until = world.activate("listed").await;
    let listed = async |person, more: &[&str]| {
        let said = world.run(person, &[&["grants", "--binding", "nightly-or-granted"], more].concat()).await;
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
        said.out
    };
    let line = listed(BOB, &[]).await;
    let cells: Vec<_> = line.trim_end().split('\t').collect();
    let expected = ["listed", "nightly-or-granted", "-", ANN.name, "Active", "1/1", &until.to_string()];
    assert_eq!(cells[..7], expected);
    assert!(["29m", "30m"].contains(&cells[7]), "{line}");
    assert_eq!(cells[8], "look\\tinto");
    assert!(listed(MALLORY, &[]).await.contains("\t1/?\t"), "bindings cannot be read");
    let json: Value = serde_json::from_str(&listed(BOB, &["-o", "json"]).await).unwrap();
    assert_eq!((&json[0]["approvedBy"], &json[0]["approvalsNeeded"]), (&json!([CARLA.name]), &json!(1)));
    world.run(BOB, &["grants", "-A"]).await.refused("lacks the right to `list` azureidentitygrants");
    let everywhere = world.run(BOB, &["grants", "-n", "kube-system"]).await;
    everywhere.refused("in namespace kube-system");

    #[expect(clippy::disallowed_methods, reason = "what people see")]
    let kubectl = tokio::process::Command::new(&world.kubectl)
        .args(["get", "azureidentitygrants", "-o", "wide", "--kubeconfig"])
        .arg(&world.kubeconfig)
        .output()
        .await
        .unwrap();
    let table = String::from_utf8(kubectl.stdout).unwrap();
    let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    let columns =
        ["NAME", "BINDING", "REQUESTED-BY", "APPROVED-BY", "PHASE", "UNTIL", "AGE", "POD", "DURATION", "REASON"];
    assert_eq!(head, columns);
    let row = table.lines().find(|line| line.starts_with("listed ")).unwrap();
    assert!(row.contains(CARLA.name) && row.contains("Active") && row.contains(&until.to_string()), "{row}");
}

async fn without_an_api_server(world: &World) {
    let directory = tempfile::tempdir().unwrap();
    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_identityctl"))
        .args(["request", "b", "--for", "30m", "--reason", "r", "--manifests"])
        .arg(directory.path())
        .env("ENTRA_POD_IDENTITY_KUBECONFIG", &world.kubeconfig)
        .output()
        .await
        .unwrap();
    Said::from(output).refused("--unproven-grants");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    let said = world.run(ANN, &["grants", "--context", "absent"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("absent"), "{said:?}");
}
