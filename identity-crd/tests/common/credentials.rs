//! Where a credential is: Key Vault, federation, and what excludes what.

#![expect(clippy::needless_pass_by_value, reason = "reads better in the table")]

use serde_json::{Value, json};

use super::{
    Case,
    Expect::{self, Accepted, Refused, TooMuch},
    managed, merge, principal,
};

fn in_vault(of_vault: Value) -> Value {
    let vault = json!({"vaultURL": "https://demo.vault.azure.net", "secretName": "app", "identityRef": "reader"});
    principal(json!({"clientPassword": null, "keyVault": merge(vault, &of_vault)}))
}

fn certificate(of_vault: Value) -> Value {
    let vault = json!({"vaultURL": "https://demo.vault.azure.net/", "certificateName": "app", "identityRef": "reader"});
    principal(json!({"type": 2, "clientPassword": null, "keyVault": merge(vault, &of_vault)}))
}

fn federated(change: Value) -> Value {
    merge(json!({"type": 3, "tenantID": "t.example.com", "clientID": "c"}), &change)
}

pub(super) fn cases() -> Vec<Case> {
    let identity = |name, spec, expect: Expect| Case { name, kind: "AzureIdentity", spec, expect };
    vec![
        identity("a secret in a vault", in_vault(json!({})), Accepted),
        identity("a version of it", in_vault(json!({"version": "0123456789abcdef0123456789abcdef"})), Accepted),
        identity("a certificate in a vault", certificate(json!({})), Accepted),
        identity(
            "empty strings in a vault are as if absent",
            in_vault(json!({"version": "", "certificateName": ""})),
            Accepted,
        ),
        identity(
            "a Secret without a name beside a vault is none",
            merge(in_vault(json!({})), &json!({"clientPassword": {"name": ""}})),
            Accepted,
        ),
        identity("a federated identity", federated(json!({})), Accepted),
        identity("the broker's token", federated(json!({"federated": {"subject": "Broker"}})), Accepted),
        identity(
            "the pod's token",
            federated(json!({"federated": {"subject": "Pod", "audience": "api://AzureADTokenExchangeUSGov"}})),
            Accepted,
        ),
        identity("federation that leaves all to the defaults", federated(json!({"federated": {}})), Accepted),
        identity(
            "a federated identity's empty password is none",
            federated(json!({"clientPassword": {"name": ""}})),
            Accepted,
        ),
        // Which credential
        identity(
            "two credentials",
            principal(json!({"keyVault": in_vault(json!({}))["keyVault"]})),
            Refused(&["spec.keyVault"]),
        ),
        identity(
            "a vault of a managed identity",
            managed(json!({"keyVault": in_vault(json!({}))["keyVault"]})),
            Refused(&["spec.keyVault"]),
        ),
        identity(
            "a vault of a federated identity",
            federated(json!({"keyVault": in_vault(json!({}))["keyVault"]})),
            Refused(&["spec.keyVault"]),
        ),
        identity("federation of a managed identity", managed(json!({"federated": {}})), Refused(&["spec.federated"])),
        identity(
            "federation without its type",
            merge(managed(json!({"federated": {"subject": "Pod"}})), &json!({"type": null})),
            Refused(&["spec.federated"]),
        ),
        identity(
            "a password of a federated identity",
            federated(json!({"clientPassword": {"name": "s"}})),
            Refused(&["spec.clientPassword"]),
        ),
        identity("a federated identity with nothing", json!({"type": 3}), Refused(&["spec.clientID", "spec.tenantID"])),
        identity(
            "a federated tenant that leads elsewhere",
            federated(json!({"tenantID": "a/b"})),
            Refused(&["spec.tenantID"]),
        ),
        identity(
            "a federated endpoint over http",
            federated(json!({"adEndpoint": "http://a/"})),
            Refused(&["spec.adEndpoint"]),
        ),
        identity(
            "an audience of two words for the exchange",
            federated(json!({"federated": {"audience": "a b"}})),
            Refused(&["spec.federated.audience"]),
        ),
        // What is in the vault
        identity(
            "an empty vault",
            principal(json!({"clientPassword": null, "keyVault": {}})),
            Refused(&["spec.keyVault.vaultURL", "spec.keyVault.secretName", "spec.keyVault.identityRef"]),
        ),
        identity(
            "a vault over http",
            in_vault(json!({"vaultURL": "http://demo.vault.azure.net"})),
            Refused(&["spec.keyVault.vaultURL"]),
        ),
        identity(
            "a vault's URL with a path",
            in_vault(json!({"vaultURL": "https://demo.vault.azure.net/secrets/app"})),
            Refused(&["spec.keyVault.vaultURL"]),
        ),
        identity("a vault's name alone", in_vault(json!({"vaultURL": "demo"})), Refused(&["spec.keyVault.vaultURL"])),
        identity(
            "a certificate as a client secret",
            in_vault(json!({"secretName": null, "certificateName": "app"})),
            Refused(&["spec.keyVault.secretName"]),
        ),
        identity(
            "both of a vault",
            in_vault(json!({"certificateName": "app"})),
            Refused(&["spec.keyVault.secretName"]),
        ),
        identity(
            "a certificate that is a secret",
            certificate(json!({"secretName": "app", "certificateName": null})),
            Accepted,
        ),
        identity(
            "a certificate that is both",
            certificate(json!({"secretName": "app"})),
            Refused(&["spec.keyVault.certificateName"]),
        ),
        identity(
            "a certificate that is neither",
            certificate(json!({"certificateName": null})),
            Refused(&["spec.keyVault.certificateName"]),
        ),
        identity(
            "a secret for a certificate that leads elsewhere",
            certificate(json!({"secretName": "a/b", "certificateName": null})),
            Refused(&["spec.keyVault.certificateName"]),
        ),
        identity(
            "a name that leads elsewhere in the vault",
            certificate(json!({"certificateName": "app/../../keys"})),
            Refused(&["spec.keyVault.certificateName"]),
        ),
        identity("a version that is a path", in_vault(json!({"version": "a/b"})), Refused(&["spec.keyVault.version"])),
        identity(
            "nobody reads the vault",
            in_vault(json!({"identityRef": null})),
            Refused(&["spec.keyVault.identityRef"]),
        ),
        identity(
            "somebody of another namespace reads the vault",
            in_vault(json!({"identityRef": "other/reader"})),
            Refused(&["spec.keyVault.identityRef"]),
        ),
        identity(
            "an identity that reads its own credential",
            in_vault(json!({"identityRef": "case"})),
            Refused(&["spec.keyVault.identityRef"]),
        ),
        identity(
            "a long URL of a vault",
            in_vault(json!({"vaultURL": format!("https://{}", "a".repeat(512))})),
            TooMuch("spec.keyVault.vaultURL"),
        ),
        identity(
            "a long name in a vault",
            in_vault(json!({"secretName": "a".repeat(128)})),
            TooMuch("spec.keyVault.secretName"),
        ),
        identity(
            "a long audience for the exchange",
            federated(json!({"federated": {"audience": "a".repeat(513)}})),
            TooMuch("spec.federated.audience"),
        ),
    ]
}
