//! Where the credential of an `AzureIdentity` is, when it is not a managed identity's.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What Entra expects as the audience of an assertion (Microsoft Learn, "Workload identity federation"), outside the
/// sovereign clouds.
pub const FEDERATED_AUDIENCE: &str = "api://AzureADTokenExchange";

/// A Secret that holds a credential.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Namespace of the Secret; the identity's own when absent, and no other unless matching is cluster-wide.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Key in the Secret. When absent, type 1 needs a Secret with one key (or one named `clientSecret`), and type 2
    /// the keys `certificate` and, for PKCS#12, `password`.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A secret or certificate in an Azure Key Vault, read with another identity.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct KeyVaultReference {
    /// The vault: `https://<name>.vault.azure.net`.
    #[schemars(length(max = 512))]
    #[serde(rename = "vaultURL", default, skip_serializing_if = "Option::is_none")]
    pub vault_url: Option<String>,
    /// Name of the secret that is the client secret (type 1), or that holds a certificate as PKCS#12 or PEM (type 2).
    #[schemars(length(max = 127))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Name of the certificate, whose private key must be exportable (type 2).
    #[schemars(length(max = 127))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_name: Option<String>,
    /// One version, for ever; the newest enabled one, followed as it changes, when absent.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Name of the `AzureIdentity` of this namespace with which the vault is read.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_ref: Option<String>,
}

/// Whose token Entra is shown (type 3).
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FederatedSubject {
    /// The node daemon's: one federated credential serves any number of pods.
    #[default]
    Broker,
    /// The pod's own service account, bound to that pod.
    Pod,
}

/// How a type 3 identity proves itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct FederatedCredential {
    /// Whose token is exchanged: `Broker` (the node daemon's service account, also when absent) or `Pod` (the pod's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<FederatedSubject>,
    /// Audience of that token; `api://AzureADTokenExchange` when absent.
    #[schemars(length(max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
}

impl FederatedCredential {
    /// Whose token is exchanged.
    pub fn subject(&self) -> FederatedSubject {
        self.subject.unwrap_or_default()
    }

    /// The audience of that token.
    pub fn audience(&self) -> &str {
        self.audience.as_deref().filter(|a| !a.is_empty()).unwrap_or(FEDERATED_AUDIENCE)
    }
}
