//! The policies of `identity_crd` as files.

use identity_crd::policies::{self, CONTROLLER, NODE, Policy};

use super::yaml;

fn render(comment: &[&str], policies: &[Policy]) -> anyhow::Result<String> {
    let mut documents = Vec::new();
    for policy in policies {
        documents.extend([yaml::document(&policy.policy)?, yaml::document(&policy.binding)?]);
    }
    Ok(yaml::render(comment, &documents))
}

/// Who writes assignments.
pub(super) fn assignments() -> anyhow::Result<String> {
    render(
        &[
            "Only the users in the variable `writers` create or change assignments, whatever RBAC says of others.",
            "Deleting them is left to RBAC: it takes a right away and gives none. If the controller runs as another",
            "user, put its name there; while the predecessor's controller still runs, its name too",
            "(system:serviceaccount:<namespace>:aad-pod-id-mic-service-account, or aad-pod-identity-mic with Helm).",
        ],
        &[policies::assignments(&[CONTROLLER])],
    )
}

/// Who says what in a grant.
pub(super) fn grants() -> anyhow::Result<String> {
    render(
        &[
            "Names in a grant are true: whoever asks, approves, denies or revokes writes its own name and its own groups.",
            "",
            "The controller activates no grant unless the first policy and its binding are exactly these, have never been",
            "edited, and are a minute or more older than the grant. So a change of the first two objects (a new version of",
            "the product) has to be made by deleting and creating them; grants from before are then refused.",
            "",
            "The second policy refuses approvals by people who are no approvers of the binding; the controller does not count",
            "them in any case.",
        ],
        &[policies::grants(&[CONTROLLER]), policies::approvers()],
    )
}

/// Who may bind an identity.
pub(super) fn delegation() -> anyhow::Result<String> {
    render(
        &[
            "Whoever creates or changes an AzureIdentityBinding needs the verb `use` on the AzureIdentity that it names, or, as",
            "AKS identity bindings have it, `use-managed-identity` on the client id in its spec.clientID. As installed it is",
            "said as a warning and noted in the API server's audit, and nothing is refused: existing manifests go on applying.",
            "examples/delegation/enforce.yaml refuses; deleting a binding switches its warnings off.",
            "",
            "The second policy asks the same of whoever writes an AzureIdentity whose credential another one is to read from a",
            "Key Vault (keyVault.identityRef): `use` on that one.",
        ],
        &[policies::delegation(), policies::delegated_readers()],
    )
}

/// An example: delegation as a condition.
pub(super) fn enforced_delegation() -> anyhow::Result<String> {
    let bindings = policies::enforced_delegation();
    let documents: Result<Vec<_>, _> = bindings.iter().map(yaml::document).collect();
    Ok(yaml::render(
        &[
            "Refuses what deploy/admission-policy-delegation.yaml warns of. Give the right `use` first, as in role.yaml (or the",
            "one to a client id, as in aks-role.yaml), to people and tools that create bindings. Deleting this takes it back to",
            "warnings.",
        ],
        &documents?,
    ))
}

/// What the node daemon makes of `serviceaccounts/token`.
pub(super) fn tokens() -> anyhow::Result<String> {
    render(
        &[
            "Nothing in deploy/ lets the node daemon make tokens of pods' service accounts; examples/federated-pod does, for",
            "identities of type 3 with `subject: Pod`. This confines that right before anybody gives it: tokens for Entra",
            "alone, bound to one pod. In another cloud add its audience to the variable `audiences`. If the daemon runs as",
            "another user, put its name into the match condition.",
        ],
        &[policies::pod_tokens(&[NODE])],
    )
}
