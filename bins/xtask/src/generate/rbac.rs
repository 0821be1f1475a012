//! Accounts and what they may do: no more than the code asks for.

use k8s_openapi::{
    api::{
        core::v1::{Namespace, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
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

/// What a watch asks for: a list, and what has changed since. Nobody asks for single objects that are followed.
const FOLLOW: [&str; 2] = ["list", "watch"];
/// Of Secrets, which are read one by one where an account may not follow them.
const READ: [&str; 3] = ["get", "list", "watch"];

/// Account and roles of the controller.
pub(super) fn controller() -> anyhow::Result<String> {
    let group = identity_crd::GROUP;
    let mut documents = cluster_wide(
        CONTROLLER,
        vec![
            rule("", &["pods"], &[], &FOLLOW),
            rule(group, &["azureidentities", "azureidentitygrants"], &[], &FOLLOW),
            // get: what is final for a grant is not left to a watch that may be late.
            rule(group, &["azureidentitybindings"], &[], &READ),
            rule(
                group,
                &["azureidentities/status", "azureidentitybindings/status", "azureidentitygrants/status"],
                &[],
                &["patch"],
            ),
            // get: what became of a write whose answer was lost. Server-side apply creates, too.
            rule(group, &["azureassignedidentities"], &[], &["get", "list", "watch", "create", "patch", "delete"]),
            rule("events.k8s.io", &["events"], &[], &["create", "patch"]),
            // Is what proves a grant in force?
            rule(
                "admissionregistration.k8s.io",
                &["validatingadmissionpolicies", "validatingadmissionpolicybindings"],
                &[identity_crd::policies::grants(&[]).name()],
                &["get"],
            ),
        ],
    )?;
    documents.push(yaml::document(&Role {
        metadata: meta(LEASE),
        rules: Some(vec![
            rule("coordination.k8s.io", &["leases"], &[], &["create"]),
            rule("coordination.k8s.io", &["leases"], &[LEASE], &["get", "update"]),
        ]),
    })?);
    documents.push(yaml::document(&RoleBinding {
        metadata: meta(LEASE),
        role_ref: role_ref("Role", LEASE),
        subjects: Some(vec![subject(CONTROLLER)]),
    })?);
    Ok(yaml::render(
        &[
            "The controller reads pods, identities, bindings and grants, writes assignments, their status, conditions and Events,",
            "looks whether the policy that proves grants is in force, and holds one Lease.",
            "",
            "Credentials are not here on purpose, as in rbac-node.yaml: without them the condition CredentialReady of the",
            "identities concerned stays Unknown.",
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
            rule("", &["pods"], &[], &FOLLOW),
            rule(
                group,
                &["azureassignedidentities", "azureidentities", "azureidentitybindings", "azurepodidentityexceptions"],
                &[],
                &FOLLOW,
            ),
            rule("events.k8s.io", &["events"], &[], &["create", "patch"]),
        ],
    )?;
    Ok(yaml::render(
        &[
            "The node daemon follows the pods of its node (it asks with a field selector; RBAC cannot say that), its",
            "assignments, bindings to know what is still to be expected, identities because one may read another's Key Vault,",
            "and exceptions in the namespaces that it is told to heed. It writes nothing but Events: about identities, pods and",
            "its node.",
            "",
            "Credentials are not here on purpose: grant them where they are, namespace by namespace, as in",
            "examples/secret-access/role.yaml.",
        ],
        &documents,
    ))
}

/// An example: access to the credentials of one namespace.
pub(super) fn secret_access() -> anyhow::Result<String> {
    let metadata = in_default;
    let name = "entra-pod-identity-credentials";
    let documents = [
        yaml::document(&Role {
            metadata: metadata(name),
            rules: Some(vec![rule("", &["secrets"], &["demo-sp", "demo-sp-certificate"], &READ)]),
        })?,
        yaml::document(&RoleBinding {
            metadata: metadata(name),
            role_ref: role_ref("Role", name),
            subjects: Some(vec![subject(NODE), subject(CONTROLLER)]),
        })?,
    ];
    Ok(yaml::render(
        &[
            "Identities of type 1 and 2 keep their credential in a Secret. The node daemon has to read and follow it; the",
            "controller tries it and says in the condition CredentialReady what Entra thinks of it (leave its subject out, and",
            "that stays Unknown). Nothing in deploy/ grants that for the whole cluster: whoever gets hold of one node's token",
            "could then read every Secret. Copy this into each namespace that has such identities, name its Secrets, and apply",
            "it. `list` and `watch` with names allow only requests for one of these names.",
        ],
        &documents,
    ))
}

/// An example: tokens of the service accounts of one namespace.
pub(super) fn pod_tokens() -> anyhow::Result<String> {
    let name = "entra-pod-identity-tokens";
    let documents = [
        yaml::document(&Role {
            metadata: in_default(name),
            rules: Some(vec![rule("", &["serviceaccounts/token"], &["demo"], &["create"])]),
        })?,
        yaml::document(&RoleBinding {
            metadata: in_default(name),
            role_ref: role_ref("Role", name),
            subjects: Some(vec![subject(NODE)]),
        })?,
    ];
    Ok(yaml::render(
        &[
            "An identity of type 3 with `subject: Pod` shows Entra a token of the pod's own service account, which the node",
            "daemon makes. Apply deploy/admission-policy-tokens.yaml first: it confines what this right makes to tokens for",
            "Entra that are bound to a pod. What it cannot confine: a node may make such a token for a pod of another node.",
            "Copy this into each namespace that has such identities, name the service accounts of their pods, and apply it.",
        ],
        &documents,
    ))
}

/// An example: where nodes publish the checkpoints of their journals.
pub(super) fn checkpoints() -> anyhow::Result<String> {
    let name = "entra-pod-identity-audit";
    let metadata = || ObjectMeta { namespace: Some(name.into()), ..cluster_meta(name) };
    let policy = identity_crd::policies::checkpoints(&[identity_crd::policies::NODE]);
    let documents = [
        yaml::document(&policy.policy)?,
        yaml::document(&policy.binding)?,
        yaml::document(&Namespace { metadata: cluster_meta(name), ..Namespace::default() })?,
        yaml::document(&Role {
            metadata: metadata(),
            // Leases are named after nodes: RBAC cannot say which is whose. The policy does.
            rules: Some(vec![rule("coordination.k8s.io", &["leases"], &[], &["get", "create", "patch"])]),
        })?,
        yaml::document(&RoleBinding {
            metadata: metadata(),
            role_ref: role_ref("Role", name),
            subjects: Some(vec![subject(NODE)]),
        })?,
    ];
    Ok(yaml::render(
        &[
            "With --audit-checkpoint-namespace=entra-pod-identity-audit each node publishes where its audit journal is, in a",
            "Lease of its own. The namespace holds nothing else. The policy lets a node write no Lease but the one of its own",
            "node, in this or any namespace, and only forwards; if the daemon runs as another user, put its name into the",
            "match condition. Leave the daemon's flag out until this is applied.",
        ],
        &documents,
    ))
}

fn in_default(name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some("default".into()), ..cluster_meta(name) }
}
