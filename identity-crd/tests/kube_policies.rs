//! A real API server's word on the admission policies of `deploy/`: people by impersonation, with every right that RBAC can
//! give them, and what they are refused all the same.
//!
//! One control plane for all of it. Needs `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod cluster;

use cluster::{CONTROLLER, NODE, Person, assets, collection, create, delete, eventually, get, patch, post, root};
use identity_crd::{crds, policies};
use identity_lab::kube::ControlPlane;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::Client;
use serde_json::{Value, json};

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

struct World {
    admin: Client,
    /// Asks.
    ann: Person,
    /// Approves: the binding names him.
    bob: Person,
    /// Approves: the binding names her group.
    carla: Person,
    /// Has every right on grants and is nobody's approver.
    mallory: Person,
    controller: Person,
    node: Person,
}

#[tokio::test]
async fn what_the_policies_let_pass() {
    let work = tempfile::tempdir().unwrap();
    let before: Vec<_> = crds().iter().map(|crd| serde_json::to_string(crd).unwrap()).collect();
    let plane = ControlPlane::start_with(&assets(), work.path(), &before).await.unwrap();
    plane.apply_dir(&root().join("deploy")).await.unwrap();
    let admin = plane.client();
    let person = |name, groups| Person { admin: admin.clone(), name, groups };
    let world = World {
        ann: person("ann@example.com", &["payments"]),
        bob: person("bob@example.com", &[]),
        carla: person("carla@example.com", &["0a0b0c0d-0000-4000-8000-000000000000", "on-call"]),
        mallory: person("mallory@example.com", &["other"]),
        controller: person(CONTROLLER, &[]),
        node: person(NODE, &[]),
        admin,
    };
    world.may("grants", &["azureidentitygrants", "azureidentitygrants/status"], &["*"]).await;
    world.may("bindings", &["azureidentitybindings"], &["*"]).await;
    let binding = json!({"kind": "AzureIdentityBinding", "apiVersion": "aadpodidentity.k8s.io/v1", "metadata": {"name": "vault"},
        "spec": {"azureIdentity": "reader", "selector": "app", "timeBox": {"grant": {"required": true, "maxDuration": "2h",
            "approvers": {"users": [world.bob.name, world.ann.name], "groups": [world.carla.groups[0]]}}}}});
    create(&world.admin, "azureidentitybindings", "", &binding).await.unwrap();
    create(&world.admin, "azureidentitybindings", "", &named(&binding, "unrelated", &json!({"azureIdentity": "x"})))
        .await
        .unwrap();
    world.are_in_force().await;

    the_live_policies_are_the_generated_ones(&world).await;
    who_asks_is_who_creates(&world).await;
    what_is_asked_for_stays(&world).await;
    who_approves_is_who_adds(&world).await;
    approvals_are_only_added(&world).await;
    who_takes_back_is_who_says_so(&world).await;
    only_the_controller_writes_the_status(&world).await;
    removing_the_policy_shows(&world).await;
    whoever_binds_needs_the_right_to_use(&plane, &world).await;
    the_right_to_a_client_id_will_do(&plane, &world).await;
    whoever_has_a_vault_read_needs_the_right_too(&plane, &world).await;
    the_node_makes_tokens_for_entra_alone(&plane, &world).await;
}

impl World {
    /// Everybody may do this to these resources of the group.
    async fn may(&self, name: &str, resources: &[&str], verbs: &[&str]) {
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [{"apiGroups": [identity_crd::GROUP], "resources": resources, "verbs": verbs}]});
        post(&self.admin, &format!("{RBAC}/clusterroles"), "", &role).await.unwrap();
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:authenticated"}]});
        post(&self.admin, &format!("{RBAC}/clusterrolebindings"), "", &binding).await.unwrap();
    }

    /// The API server takes policies up in its own time, and looks up the kinds of their parameters now and then.
    async fn are_in_force(&self) {
        self.grants_are_in_force().await;
        self.request("probe").await;
        eventually("the approvers' policy to be in force", async || {
            let said = self.mallory.patch(&at("probe"), &json!({"spec": {"denied": {"by": self.mallory.name}}})).await;
            said.expect_err("not Mallory").message.contains("is neither")
        })
        .await;
        delete(&self.admin, &at("probe"), &json!({})).await.unwrap();
    }

    async fn grants_are_in_force(&self) {
        eventually("the policy of grants to be in force", async || {
            let forged = grant("forged", &json!({"requestedBy": "somebody"}));
            self.ann.create("azureidentitygrants", "dryRun=All", &forged).await.is_err()
        })
        .await;
    }

    /// Ann asks.
    async fn request(&self, name: &str) -> Value {
        self.ann.create("azureidentitygrants", "", &grant(name, &json!({}))).await.expect("Ann asks")
    }
}

async fn the_live_policies_are_the_generated_ones(world: &World) {
    let all = [
        policies::assignments(&[CONTROLLER]),
        policies::grants(&[CONTROLLER]),
        policies::approvers(),
        policies::delegation(),
        policies::delegated_readers(),
        policies::pod_tokens(&[NODE]),
    ];
    for expected in all {
        let (policy, binding) = live(world, &expected).await;
        expected.in_force_since(policy.as_ref(), binding.as_ref()).unwrap();
        let warnings = policy.unwrap().status.and_then(|s| s.type_checking?.expression_warnings);
        assert_eq!(warnings, None, "{}", expected.name());
    }
}

async fn who_asks_is_who_creates(world: &World) {
    let asks = async |change: Value| world.ann.create("azureidentitygrants", "dryRun=All", &grant("g", &change)).await;
    asks(json!({})).await.expect("her own name");
    asks(json!({"requesterGroups": ["payments", "system:authenticated"]})).await.expect("her own groups");
    asks(json!({"requesterGroups": null, "denied": null})).await.expect("null is as if absent");
    for (change, said) in [
        (json!({"requestedBy": "bob@example.com"}), "spec.requestedBy must be your own name, which is ann@example.com"),
        (json!({"requestedBy": "ANN@example.com"}), "spec.requestedBy must be your own name"),
        (
            json!({"requesterGroups": ["payments", "on-call"]}),
            "a group that ann@example.com is not in; leave it out, or name some of payments",
        ),
        (json!({"approvals": [{"by": "bob@example.com"}]}), "a new grant has no spec.approvals"),
        (
            json!({"denied": {"by": "ann@example.com"}}),
            "a new grant has no spec.approvals, spec.denied or spec.revoked",
        ),
        (json!({"revoked": {"by": "ann@example.com"}}), "a new grant has no"),
    ] {
        refused(asks(change.clone()).await, said);
    }
    // When it was asked is the API server's word: a grant that is younger than the policy has passed it.
    let mut early = grant("g", &json!({}));
    let metadata = json!({"name": "g", "creationTimestamp": "2099-01-01T00:00:00Z", "generation": 7, "uid": "mine"});
    early["metadata"] = metadata;
    let stored =
        world.ann.create("azureidentitygrants", "dryRun=All", &early).await.expect("what is not hers is dropped");
    let created: jiff::Timestamp = stored["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
    assert!(created < "2099-01-01T00:00:00Z".parse().unwrap(), "{stored}");
    assert!(stored["metadata"]["generation"] == 1 && stored["metadata"]["uid"] != "mine", "{stored}");
    // What the schema says, in its own order.
    for (change, field) in [
        (json!({"duration": "0s"}), "spec.duration"),
        (json!({"reason": ""}), "spec.reason"),
        (json!({"approvals": [{"by": "ann@example.com"}]}), "spec.approvals"),
    ] {
        let refusal = asks(change).await.expect_err(field);
        assert_eq!((refusal.code, &refusal.fields[..]), (422, &[field.to_owned()][..]), "{refusal:?}");
    }
    // The controller of another team is held to its own name as well.
    let forged = grant("g", &json!({}));
    refused(
        world.controller.create("azureidentitygrants", "dryRun=All", &forged).await,
        "which is system:serviceaccount:",
    );
}

async fn what_is_asked_for_stays(world: &World) {
    world.request("edited").await;
    for change in [
        json!({"bindingName": "unrelated"}),
        json!({"podName": "web-0"}),
        json!({"reason": "another"}),
        json!({"duration": "2h"}),
        json!({"requestedBy": "bob@example.com"}),
        json!({"requesterGroups": ["payments"]}),
    ] {
        for person in [&world.ann, &world.bob, &world.controller] {
            let said = person.patch(&at("edited"), &json!({"spec": change})).await;
            refused(said, if person.name == CONTROLLER { "" } else { "what is asked for stays as it was asked" });
        }
    }
    let before = get(&world.admin, &at("edited")).await.unwrap();
    for forged in
        [json!({"creationTimestamp": "2099-01-01T00:00:00Z"}), json!({"generation": 1}), json!({"generation": 9})]
    {
        // Refused or dropped, as the API server likes.
        let _ = world.ann.patch(&at("edited"), &json!({"metadata": forged})).await;
    }
    let after = get(&world.admin, &at("edited")).await.unwrap();
    assert_eq!(before["metadata"]["creationTimestamp"], after["metadata"]["creationTimestamp"]);
    assert_eq!(before["metadata"]["generation"], after["metadata"]["generation"]);
    let labelled = world.ann.patch(&at("edited"), &json!({"metadata": {"labels": {"ticket": "7"}}})).await;
    labelled.expect("labels are nobody's business");
}

async fn who_approves_is_who_adds(world: &World) {
    world.request("asked").await;
    let approves = async |person: &Person, approval: Value| {
        person.patch(&format!("{}?dryRun=All", at("asked")), &json!({"spec": {"approvals": [approval]}})).await
    };
    let [bob, carla, ann] = [world.bob.name, world.carla.name, world.ann.name];
    approves(&world.bob, json!({"by": bob})).await.expect("a user of the list");
    let groups = json!(world.carla.groups);
    approves(&world.carla, json!({"by": carla, "groups": groups})).await.expect("a member of the group");
    for (person, approval, said) in [
        (&world.mallory, json!({"by": bob}), "by must be your own name, which is mallory@example.com"),
        (&world.ann, json!({"by": bob}), "by must be your own name, which is ann@example.com"),
        (
            &world.mallory,
            json!({"by": "mallory@example.com", "groups": [world.carla.groups[0]]}),
            "names a group that mallory@example.com is not in; name some of other",
        ),
        (
            &world.mallory,
            json!({"by": "mallory@example.com"}),
            "mallory@example.com is not an approver of AzureIdentityBinding vault",
        ),
        (&world.carla, json!({"by": carla}), "or does not name the group that makes one"),
        (&world.carla, json!({"by": carla, "groups": ["on-call"]}), "groups [0a0b0c0d-"),
    ] {
        refused(approves(person, approval).await, said);
    }
    // Ann is in the binding's list, but it is her request: the schema says so before anybody else.
    let own = approves(&world.ann, json!({"by": ann})).await.expect_err("her own");
    assert_eq!(own.fields, ["spec.approvals"], "{own:?}");
    assert!(own.message.contains("the requester, who cannot approve"), "{own:?}");
}

async fn approvals_are_only_added(world: &World) {
    world.request("approved").await;
    let path = at("approved");
    let set =
        async |person: &Person, approvals: Value| person.patch(&path, &json!({"spec": {"approvals": approvals}})).await;
    let (bob, carla) = (
        json!({"by": world.bob.name, "reason": "known incident"}),
        json!({"by": world.carla.name, "groups": [world.carla.groups[0]]}),
    );
    // By server-side apply one names only oneself.
    let applied = json!({"apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant", "metadata": {"name": "approved"},
        "spec": {"approvals": [bob]}});
    world.bob.apply(&path, &applied).await.expect("Bob approves");
    refused(set(&world.bob, json!([bob, carla])).await, "by must be your own name");
    refused(set(&world.carla, json!([carla])).await, "spec.approvals may only be added to");
    refused(
        set(&world.carla, json!([merged(&bob, &json!({"groups": ["on-call"]})), carla])).await,
        "may only be added to",
    );
    for changed in [json!({"by": world.bob.name}), json!({"by": world.bob.name, "reason": "another one"})] {
        refused(set(&world.bob, json!([changed])).await, "may only be added to");
    }
    refused(set(&world.ann, json!([])).await, "may only be added to");
    refused(
        set(&world.bob, json!([merged(&bob, &json!({"groups": ["system:authenticated"]}))])).await,
        "may only be added to",
    );
    let twice = set(&world.bob, json!([bob, bob])).await.expect_err("twice");
    assert!(twice.message.contains("Duplicate value"), "{twice:?}");
    set(&world.carla, json!([bob, carla])).await.expect("Carla approves as well");
    set(&world.mallory, json!([bob, carla])).await.expect("nothing changes");
}

async fn who_takes_back_is_who_says_so(world: &World) {
    for field in ["denied", "revoked"] {
        let name = format!("to-be-{field}");
        world.request(&name).await;
        let set = async |person: &Person, query: &str, by: &str| {
            let value = json!({"spec": {field: {"by": by, "reason": "enough"}}});
            person.patch(&format!("{}{query}", at(&name)), &value).await
        };
        let dry = "?dryRun=All";
        for (person, by, said) in [
            (&world.mallory, world.mallory.name, "mallory@example.com is neither"),
            (&world.mallory, world.bob.name, "by must be your own name, which is mallory@example.com"),
            (&world.bob, world.carla.name, "by must be your own name, which is bob@example.com"),
        ] {
            refused(set(person, dry, by).await, said);
        }
        for person in [&world.ann, &world.bob, &world.carla] {
            set(person, dry, person.name).await.expect("the requester and both approvers");
        }
        set(&world.carla, "", world.carla.name).await.expect("Carla");
        refused(set(&world.bob, "", world.bob.name).await, &format!("spec.{field} is set already, and for good"));
        let undone = world.carla.patch(&at(&name), &json!({"spec": {field: null}})).await;
        refused(undone, &format!("spec.{field} is set already"));
    }
}

async fn only_the_controller_writes_the_status(world: &World) {
    world.request("status").await;
    let path = format!("{}/status", at("status"));
    let active = json!({"status": {"phase": "Active", "activeUntil": "2027-01-01T00:00:00Z"}});
    for person in [&world.ann, &world.bob, &world.node] {
        refused(person.patch(&path, &active).await, &format!("this is {}", person.name));
    }
    refused(patch(&world.admin, &path, &active).await, "may write the status of a grant");
    let stored = world.controller.patch(&path, &active).await.expect("the controller");
    assert_eq!(stored["status"]["phase"], "Active");
    // Neither with the object, nor while it is made.
    let smuggled = world.bob.patch(&at("status"), &json!({"status": {"phase": "Expired"}})).await.expect("dropped");
    assert_eq!(smuggled["status"]["phase"], "Active");
    let born = merged(&grant("born-active", &json!({})), &active);
    let stored = world.ann.create("azureidentitygrants", "", &born).await.expect("dropped");
    assert!(stored.get("status").is_none(), "{stored}");
    let wrong = world.controller.patch(&path, &json!({"status": {"phase": "Open"}})).await.expect_err("no such phase");
    assert!(wrong.message.contains("status.phase: Unsupported value"), "{wrong:?}");
}

/// Takes the proof away, approves in somebody's name, and puts the proof back.
async fn removing_the_policy_shows(world: &World) {
    let expected = policies::grants(&[CONTROLLER]);
    let since = async || {
        let (policy, binding) = live(world, &expected).await;
        expected.in_force_since(policy.as_ref(), binding.as_ref())
    };
    let asked = world.request("behind").await;
    since().await.expect("in force");

    // Editing and editing back.
    let path = format!("{ADMISSION}/validatingadmissionpolicybindings/{}", expected.name());
    patch(&world.admin, &path, &json!({"spec": {"validationActions": ["Audit"]}})).await.unwrap();
    let said = since().await.expect_err("only audited").to_string();
    assert!(said.contains("spec.validationActions[0] is not what"), "{said}");
    patch(&world.admin, &path, &json!({"spec": {"validationActions": ["Deny"]}})).await.unwrap();
    let said = since().await.expect_err("was only audited").to_string();
    assert!(said.contains("has been edited since it was created"), "{said}");
    for forged in [json!({"generation": 1}), json!({"creationTimestamp": "2020-01-01T00:00:00Z"})] {
        let _ = patch(&world.admin, &path, &json!({"metadata": forged})).await;
        let said = since().await.expect_err("an administrator cannot say otherwise").to_string();
        assert!(said.contains("has been edited since it was created"), "{said}");
    }

    // Deleting, forging, putting back.
    delete(&world.admin, &path, &json!({})).await.unwrap();
    let said = since().await.expect_err("gone").to_string();
    assert!(said.contains("is not there; apply deploy/admission-policy-grants.yaml"), "{said}");
    // An approver who approves for another one: the other policy has nothing against that.
    let forged = json!({"spec": {"approvals": [{"by": world.carla.name}]}});
    eventually("the policy to be out of force", async || world.bob.patch(&at("behind"), &forged).await.is_ok()).await;
    // The API server's clock has whole seconds.
    let created: jiff::Timestamp = asked["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
    eventually("another second", async || {
        let probe = world.admin_probe().await;
        delete(&world.admin, &at("probe"), &json!({})).await.unwrap();
        probe > created
    })
    .await;
    // Put back with a date: the API server writes its own.
    let mut dated = serde_json::to_value(&expected.binding).unwrap();
    dated["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
    post(&world.admin, &format!("{ADMISSION}/validatingadmissionpolicybindings"), "", &dated).await.unwrap();
    world.grants_are_in_force().await;
    let again = since().await.expect("in force again");
    assert!(again > created, "what was forged is older than the proof: {again} after {created}");
}

impl World {
    /// The API server's time.
    async fn admin_probe(&self) -> jiff::Timestamp {
        let probe = self.request("probe").await;
        probe["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap()
    }
}

async fn whoever_binds_needs_the_right_to_use(plane: &ControlPlane, world: &World) {
    let binding = |name: &str, identity: &str| {
        json!({"kind": "AzureIdentityBinding", "apiVersion": "aadpodidentity.k8s.io/v1", "metadata": {"name": name},
            "spec": {"azureIdentity": identity, "selector": "app"}})
    };
    let binds = async |person: &Person, name: &str, identity: &str| {
        person.create("azureidentitybindings", "dryRun=All", &binding(name, identity)).await
    };
    // As installed nobody is refused: existing manifests go on applying.
    binds(&world.mallory, "b", "reader").await.expect("a warning at most");
    world.mallory.create("azureidentitybindings", "", &binding("older", "reader")).await.expect("a warning at most");

    for file in ["enforce.yaml", "role.yaml"] {
        plane.apply_yaml(&cluster::read(&format!("examples/delegation/{file}"))).await.unwrap();
    }
    eventually("the right to be asked for", async || binds(&world.mallory, "b", "reader").await.is_err()).await;
    let said = "mallory@example.com needs the verb `use` on AzureIdentity reader of namespace default";
    refused(binds(&world.mallory, "b", "reader").await, said);
    let team = Person { admin: world.admin.clone(), name: "tina@example.com", groups: &["payments-team"] };
    eventually("the role to be known", async || binds(&team, "b", "reader").await.is_ok()).await;
    refused(binds(&team, "b", "other").await, "on AzureIdentity other of namespace default");
    create(&world.admin, "azureidentitybindings", "dryRun=All", &binding("b", "other"))
        .await
        .expect("an administrator");

    // Changes need it, what changes nothing of the binding does not, and deleting takes a right away.
    let older = format!("{}/older", collection("azureidentitybindings"));
    refused(world.mallory.patch(&older, &json!({"spec": {"selector": "mine"}})).await, said);
    refused(team.patch(&older, &json!({"spec": {"azureIdentity": "other"}})).await, "on AzureIdentity other");
    world.mallory.patch(&older, &json!({"metadata": {"labels": {"a": "b"}}})).await.expect("a label");
    team.patch(&older, &json!({"spec": {"timeBox": {"notAfter": "2027-01-01T00:00:00Z"}}})).await.expect("the team");
    let status = json!({"status": {"matchedPods": 1}});
    world.controller.patch(&format!("{older}/status"), &status).await.expect("the controller's status");
    delete(&world.admin, &older, &json!({})).await.unwrap();

    not_enforced(world).await;
}

/// What AKS identity bindings give: a right to a client id, whatever the object is called that has it.
async fn the_right_to_a_client_id_will_do(plane: &ControlPlane, world: &World) {
    const MINE: &str = "cccccccc-0000-4000-8000-000000000003";
    const OTHER: &str = "dddddddd-0000-4000-8000-000000000004";
    let team = Person { admin: world.admin.clone(), name: "rita@example.com", groups: &["reports-team"] };
    let binding = |name: &str, spec: Value| {
        json!({"kind": "AzureIdentityBinding", "apiVersion": "aadpodidentity.k8s.io/v1", "metadata": {"name": name},
            "spec": merged(&json!({"azureIdentity": "reports", "selector": "app"}), &spec)})
    };
    let binds = async |person: &Person, spec: Value| {
        person.create("azureidentitybindings", "dryRun=All", &binding("b", spec)).await
    };
    let bindings = collection("azureidentitybindings");

    // As installed: a warning for those without the right, silence for those with it.
    plane.apply_yaml(&cluster::read("examples/delegation/aks-role.yaml")).await.unwrap();
    let pinned = binding("b", json!({"clientID": MINE}));
    eventually("the role to be known", async || team.warnings(&bindings, &pinned).await.is_empty()).await;
    let warnings = team.warnings(&bindings, &binding("b", json!({}))).await.join("\n");
    assert!(warnings.contains("rita@example.com needs the verb `use` on AzureIdentity reports"), "{warnings}");
    assert!(!warnings.contains("use-managed-identity"), "of a client id nothing was said: {warnings}");
    let warnings = team.warnings(&bindings, &binding("b", json!({"clientID": OTHER}))).await.join("\n");
    let said = format!("resources [{OTHER}], verbs [use-managed-identity] gives that");
    assert!(warnings.contains(&said), "{warnings}");

    plane.apply_yaml(&cluster::read("examples/delegation/enforce.yaml")).await.unwrap();
    let said = "rita@example.com needs the verb `use` on AzureIdentity reports of namespace default";
    eventually("the right to be asked for", async || binds(&team, json!({})).await.is_err()).await;
    binds(&team, json!({"clientID": MINE})).await.expect("her client id");
    binds(&team, json!({"clientID": MINE.to_uppercase()})).await.expect("in whatever letters");
    binds(&team, json!({"clientID": MINE, "azureIdentity": "nothing-yet"})).await.expect("whatever has it");
    for spec in [json!({}), json!({"clientID": null}), json!({"clientID": OTHER})] {
        refused(binds(&team, spec).await, said);
    }
    for spec in [json!({"clientID": ""}), json!({"clientID": "*"}), json!({"clientID": format!("{MINE}/x")})] {
        let refusal = binds(&team, spec).await.expect_err("no client id");
        assert_eq!((refusal.code, &refusal.fields[..]), (422, &["spec.clientID".to_owned()][..]), "{refusal:?}");
    }
    refused(binds(&world.mallory, json!({"clientID": MINE})).await, "mallory@example.com needs the verb `use`");

    // The role is bound in this namespace alone, and so is the right.
    let elsewhere = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}});
    post(&world.admin, "/api/v1/namespaces", "", &elsewhere).await.unwrap();
    let there = bindings.replace("/default/", "/elsewhere/");
    refused(team.post(&there, &pinned).await, "of namespace elsewhere");

    // By other ways to write one.
    let applied = binding("applied", json!({"clientID": OTHER}));
    refused(team.apply(&format!("{bindings}/applied"), &applied).await, said);
    let mut generated = binding("", json!({"clientID": OTHER}));
    generated["metadata"] = json!({"generateName": "b-"});
    refused(team.create("azureidentitybindings", "", &generated).await, said);

    // The pin stays: without it, or with another, the right by name is needed.
    team.create("azureidentitybindings", "", &binding("mine", json!({"clientID": MINE}))).await.expect("hers");
    let mine = format!("{bindings}/mine");
    for change in [
        json!({"clientID": null}),
        json!({"clientID": OTHER}),
        json!({"clientID": null, "azureIdentity": "other"}),
        json!({"clientID": OTHER, "selector": "mine"}),
    ] {
        let refusal = team.patch(&mine, &json!({"spec": change})).await.expect_err("the pin");
        assert!(refusal.code == 403 && refusal.message.contains("needs the verb `use`"), "{change}: {refusal:?}");
    }
    let unpinned = binding("mine", json!({}));
    refused(team.put(&mine, &unpinned).await, said);
    team.patch(&mine, &json!({"spec": {"selector": "mine"}})).await.expect("the rest is hers");
    team.patch(&mine, &json!({"spec": {"azureIdentity": "renamed"}})).await.expect("whatever has it");
    refused(world.mallory.patch(&mine, &json!({"spec": {"selector": "x"}})).await, "needs the verb `use`");
    // Not by the back door of the status either: it carries no spec.
    let smuggled = json!({"spec": {"clientID": OTHER}, "status": {"matchedPods": 1}});
    let stored = world.controller.patch(&format!("{mine}/status"), &smuggled).await.expect("the spec is dropped");
    assert_eq!(stored["spec"]["clientID"], MINE);
    // Somebody with the right by name may drop it.
    let by_name = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "use-renamed"}, "rules": [{"apiGroups": [identity_crd::GROUP],
            "resources": ["azureidentities"], "resourceNames": ["renamed"], "verbs": ["use"]}]});
    let roles = format!("{RBAC}/namespaces/default");
    post(&world.admin, &format!("{roles}/roles"), "", &by_name).await.unwrap();
    let bound = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "use-renamed"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "use-renamed"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": world.mallory.name}]});
    post(&world.admin, &format!("{roles}/rolebindings"), "", &bound).await.unwrap();
    eventually("the right by name", async || {
        world.mallory.patch(&mine, &json!({"spec": {"clientID": null}})).await.is_ok()
    })
    .await;

    // AKS binds its ClusterRole in the whole cluster.
    let everywhere = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "as-in-aks"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": format!("use-mi-{MINE}")},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": team.name}]});
    post(&world.admin, &format!("{RBAC}/clusterrolebindings"), "", &everywhere).await.unwrap();
    eventually("the right everywhere", async || team.post(&there, &pinned).await.is_ok()).await;
    not_enforced(world).await;
}

/// Who may write an identity, and is nobody to the one that would read its credential.
async fn whoever_has_a_vault_read_needs_the_right_too(plane: &ControlPlane, world: &World) {
    world.may("identities", &["azureidentities"], &["get", "create", "update", "patch"]).await;
    let identity = |name: &str, reader: &str| {
        json!({"kind": "AzureIdentity", "apiVersion": "aadpodidentity.k8s.io/v1", "metadata": {"name": name},
            "spec": {"type": 1, "clientID": "c", "tenantID": "t",
                "keyVault": {"vaultURL": "https://v.vault.azure.net", "secretName": "s", "identityRef": reader}}})
    };
    let identities = collection("azureidentities");
    let writes = async |person: &Person, object: &Value| person.create("azureidentities", "dryRun=All", object).await;
    let team = Person { admin: world.admin.clone(), name: "tina@example.com", groups: &["payments-team"] };
    let said = "needs the verb `use` on AzureIdentity reader of namespace default, which is to read the Key Vault";

    eventually("the right to write identities", async || {
        writes(&world.mallory, &identity("i", "reader")).await.is_ok()
    })
    .await;
    let warnings = world.mallory.warnings(&identities, &identity("i", "reader")).await.join("\n");
    assert!(warnings.contains(said), "{warnings}");
    assert_eq!(team.warnings(&identities, &identity("i", "reader")).await, [""; 0]);

    plane.apply_yaml(&cluster::read("examples/delegation/enforce.yaml")).await.unwrap();
    let asked = async || writes(&world.mallory, &identity("i", "reader")).await.is_err();
    eventually("the right to be asked for", asked).await;
    refused(writes(&world.mallory, &identity("i", "reader")).await, said);
    writes(&team, &identity("i", "reader")).await.expect("the team has the right");
    refused(writes(&team, &identity("i", "other")).await, "on AzureIdentity other of namespace default");

    let mut without = identity("mine", "reader");
    for vault in [Value::Null, json!({"vaultURL": null})] {
        without["spec"]["keyVault"] = vault.clone();
        without["spec"]["clientPassword"] = json!({"name": "s"});
        let answer = writes(&world.mallory, &without).await;
        assert!(answer.as_ref().is_ok_and(|_| vault.is_null()) || answer.is_err_and(|e| e.code == 422), "{vault}");
    }
    without["spec"].as_object_mut().unwrap().remove("keyVault");
    world.mallory.create("azureidentities", "", &without).await.expect("nobody reads it");
    let mine = format!("{identities}/mine");
    let vault = &identity("mine", "reader")["spec"]["keyVault"];
    let change = json!({"spec": {"clientPassword": null, "keyVault": vault}});
    refused(world.mallory.patch(&mine, &change).await, said);
    team.patch(&mine, &change).await.expect("the team has the right");
    let other = json!({"spec": {"keyVault": {"secretName": "another"}}});
    refused(world.mallory.patch(&mine, &other).await, said);
    world.mallory.patch(&mine, &json!({"metadata": {"labels": {"a": "b"}}})).await.expect("a label");
    delete(&world.admin, &mine, &json!({})).await.unwrap();
    not_enforced(world).await;
}

/// Takes the refusals back.
async fn not_enforced(world: &World) {
    for enforced in policies::enforced_delegation() {
        let name = enforced.metadata.name.unwrap();
        let path = format!("{ADMISSION}/validatingadmissionpolicybindings/{name}");
        delete(&world.admin, &path, &json!({})).await.unwrap();
    }
    let binding = json!({"kind": "AzureIdentityBinding", "apiVersion": "aadpodidentity.k8s.io/v1",
        "metadata": {"name": "probe"}, "spec": {"azureIdentity": "nobodys", "selector": "app"}});
    eventually("nobody to be refused again", async || {
        world.mallory.create("azureidentitybindings", "dryRun=All", &binding).await.is_ok()
    })
    .await;
}

async fn the_node_makes_tokens_for_entra_alone(plane: &ControlPlane, world: &World) {
    const TOKEN: &str = "/api/v1/namespaces/default/serviceaccounts/demo/token";
    let namespaced = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    post(&world.admin, "/api/v1/namespaces/default/serviceaccounts", "", &namespaced("ServiceAccount", "demo"))
        .await
        .unwrap();
    let spec = json!({"serviceAccountName": "demo", "containers": [{"name": "c", "image": "none"}]});
    let pod = merged(&namespaced("Pod", "demo"), &json!({"spec": spec}));
    let pod = post(&world.admin, "/api/v1/namespaces/default/pods", "", &pod).await.unwrap();
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "demo", "uid": pod["metadata"]["uid"]});

    let entra = json!(["api://AzureADTokenExchange"]);
    let request = |spec: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let right = request(json!({"audiences": entra, "boundObjectRef": bound, "expirationSeconds": 3600}));
    let unasked = world.node.post(TOKEN, &right).await.expect_err("deploy/ gives no such right");
    assert_eq!(unasked.code, 403, "{unasked:?}");

    plane.apply_yaml(&cluster::read("examples/federated-pod/role.yaml")).await.unwrap();
    eventually("the role to be known", async || world.node.post(TOKEN, &right).await.is_ok()).await;
    let token = world.node.post(TOKEN, &right).await.unwrap();
    assert!(token["status"]["token"].as_str().is_some_and(|t| t.starts_with("ey")), "a token");
    for (spec, said) in [
        (json!({"boundObjectRef": bound}), "makes tokens for api://AzureADTokenExchange only"),
        (json!({"audiences": [], "boundObjectRef": bound}), "makes tokens for api://AzureADTokenExchange only"),
        (
            json!({"audiences": ["https://kubernetes.default.svc"], "boundObjectRef": bound}),
            "AzureADTokenExchange only",
        ),
        (
            json!({"audiences": ["api://AzureADTokenExchange", "https://kubernetes.default.svc"], "boundObjectRef": bound}),
            "AzureADTokenExchange only",
        ),
        (json!({"audiences": entra}), "bound to one pod"),
        (
            json!({"audiences": entra, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "demo"}}),
            "by its UID",
        ),
        (
            json!({"audiences": entra, "boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": "u"}}),
            "bound to one pod",
        ),
        (json!({"audiences": entra, "boundObjectRef": bound, "expirationSeconds": 7200}), "for an hour at most"),
    ] {
        refused(world.node.post(TOKEN, &request(spec)).await, said);
    }
    // Others are not its business.
    post(&world.admin, TOKEN, "", &request(json!({"expirationSeconds": 7200}))).await.expect("an administrator");
}

// Objects

/// Ann's request for the binding `vault`, changed.
fn grant(name: &str, change: &Value) -> Value {
    let spec =
        json!({"bindingName": "vault", "reason": "incident 7", "duration": "30m", "requestedBy": "ann@example.com"});
    json!({"apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant", "metadata": {"name": name},
        "spec": merged(&spec, change)})
}

fn at(name: &str) -> String {
    format!("{}/{name}", collection("azureidentitygrants"))
}

fn named(object: &Value, name: &str, spec: &Value) -> Value {
    let spec = merged(&object["spec"], spec);
    merged(object, &json!({"metadata": {"name": name}, "spec": spec}))
}

fn merged(object: &Value, more: &Value) -> Value {
    let mut object = object.clone();
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

/// Refused by a policy, in these words.
#[track_caller]
fn refused(answer: Result<Value, cluster::Refusal>, said: &str) {
    let refusal = answer.expect_err(said);
    assert_eq!(refusal.code, 403, "{refusal:?}");
    assert!(refusal.message.contains(said), "{said}: {refusal:?}");
}

async fn live(
    world: &World,
    expected: &policies::Policy,
) -> (Option<ValidatingAdmissionPolicy>, Option<ValidatingAdmissionPolicyBinding>) {
    let name = expected.name();
    let policy = get(&world.admin, &format!("{ADMISSION}/validatingadmissionpolicies/{name}")).await.ok();
    let binding = get(&world.admin, &format!("{ADMISSION}/validatingadmissionpolicybindings/{name}")).await.ok();
    (
        policy.map(|policy| serde_json::from_value(policy).unwrap()),
        binding.map(|binding| serde_json::from_value(binding).unwrap()),
    )
}
