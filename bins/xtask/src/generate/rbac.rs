//! Accounts and what they may do: no more than the code asks for.

use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject},
};

use super::{
    names::{CONTROLLER, LEASE, NAMESPACE, NODE, cluster_meta, meta},
    yaml,
};

fn strings(list: &[&str]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.iter().map(|s| (*s).into()).collect())
}

fn rule(group: &str, resources: &[&str], names: &[&str], verbs: &[&str]) -> PolicyRule {
    PolicyRule {
        api_groups: strings(&[group]),
        resources: strings(resources),
        resource_names: strings(names),
        verbs: verbs.iter().map(|s| (*s).into()).collect(),
        ..PolicyRule::default()
    }
}

fn account(name: &str) -> ServiceAccount {
    ServiceAccount { metadata: meta(name), ..ServiceAccount::default() }
}

fn subject(name: &str) -> Subject {
    Subject {
        kind: "ServiceAccount".into(),
        name: name.into(),
        namespace: Some(NAMESPACE.into()),
        ..Subject::default()
    }
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef { api_group: Some("rbac.authorization.k8s.io".into()), kind: kind.into(), name: name.into() }
}

fn cluster_wide(name: &str, rules: Vec<PolicyRule>) -> anyhow::Result<Vec<String>> {
    Ok(vec![
        yaml::document(&account(name))?,
        yaml::document(&ClusterRole { metadata: cluster_meta(name), rules: Some(rules), ..ClusterRole::default() })?,
        yaml::document(&ClusterRoleBinding {
            metadata: cluster_meta(name),
            role_ref: role_ref("ClusterRole", name),
            subjects: Some(vec![subject(name)]),
        })?,
    ])
}

const READ: [&str; 3] = ["get", "list", "watch"];

/// Account and roles of the controller.
pub(super) fn controller() -> anyhow::Result<String> {
    let group = identity_crd::GROUP;
    let mut documents = cluster_wide(
        CONTROLLER,
        vec![
            rule("", &["pods"], &[], &READ),
            rule(group, &["azureidentities", "azureidentitybindings"], &[], &READ),
            rule(group, &["azureidentities/status", "azureidentitybindings/status"], &[], &["patch"]),
            rule(
                group,
                &["azureassignedidentities"],
                &[],
                &["get", "list", "watch", "create", "update", "patch", "delete"],
            ),
            rule("events.k8s.io", &["events"], &[], &["create", "patch"]),
        ],
    )?;
    documents.push(yaml::document(&Role {
        metadata: meta(LEASE),
        rules: Some(vec![
            rule("coordination.k8s.io", &["leases"], &[], &["create"]),
            rule("coordination.k8s.io", &["leases"], &[LEASE], &["get", "list", "watch", "update", "patch"]),
        ]),
    })?);
    documents.push(yaml::document(&RoleBinding {
        metadata: meta(LEASE),
        role_ref: role_ref("Role", LEASE),
        subjects: Some(vec![subject(CONTROLLER)]),
    })?);
    Ok(yaml::render(
        &[
            "The controller reads pods, identities and bindings, writes assignments, conditions and Events, and holds one Lease.",
        ],
        &documents,
    ))
}

/// Account and role of the node daemon.
pub(super) fn node() -> anyhow::Result<String> {
    let group = identity_crd::GROUP;
    let documents = cluster_wide(
        NODE,
        vec![
            rule("", &["pods"], &[], &READ),
            rule(
                group,
                &["azureassignedidentities", "azureidentitybindings", "azurepodidentityexceptions"],
                &[],
                &READ,
            ),
        ],
    )?;
    Ok(yaml::render(
        &[
            "The node daemon only reads: the pods of its node (it asks with a field selector; RBAC cannot say that), its",
            "assignments, and bindings to know what is still to be expected. It writes nothing.",
            "",
            "Credentials are not here on purpose: grant them where they are, namespace by namespace, as in",
            "examples/secret-access/role.yaml.",
        ],
        &documents,
    ))
}

/// An example: access to the credentials of one namespace.
pub(super) fn secret_access() -> anyhow::Result<String> {
    let metadata = |name: &str| {
        let mut metadata = cluster_meta(name);
        metadata.namespace = Some("default".into());
        metadata
    };
    let name = "entra-pod-identity-credentials";
    let documents = [
        yaml::document(&Role {
            metadata: metadata(name),
            rules: Some(vec![rule("", &["secrets"], &["demo-sp", "demo-sp-certificate"], &["get"])]),
        })?,
        yaml::document(&RoleBinding {
            metadata: metadata(name),
            role_ref: role_ref("Role", name),
            subjects: Some(vec![subject(NODE)]),
        })?,
    ];
    Ok(yaml::render(
        &[
            "Identities of type 1 and 2 keep their credential in a Secret, and the node daemon has to read it. Nothing in",
            "deploy/ grants that for the whole cluster: whoever gets hold of one node's token could then read every Secret.",
            "Copy this into each namespace that has such identities, name its Secrets, and apply it.",
        ],
        &documents,
    ))
}
