//! `AzureIdentity`: which Entra identity, and what backs it.

use std::fmt;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{Condition, FederatedCredential, KeyVaultReference, SecretReference, TimeBox, rules};

/// What backs an identity; the wire form is the predecessor's integer `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IdentityType {
    /// 0: a user-assigned managed identity, asked for at the node's own IMDS.
    #[default]
    UserAssignedManagedIdentity,
    /// 1: a service principal with a client secret.
    ServicePrincipal,
    /// 2: a service principal with a certificate.
    ServicePrincipalCertificate,
    /// 3: an application that trusts the cluster's tokens; no credential is kept anywhere.
    WorkloadIdentityFederation,
}

impl IdentityType {
    /// The integer in `spec.type`.
    pub const fn as_i32(self) -> i32 {
        match self {
            Self::UserAssignedManagedIdentity => 0,
            Self::ServicePrincipal => 1,
            Self::ServicePrincipalCertificate => 2,
            Self::WorkloadIdentityFederation => 3,
        }
    }

    /// The variant of an integer, `None` when this version does not know it.
    pub const fn from_i32(n: i32) -> Option<Self> {
        match n {
            0 => Some(Self::UserAssignedManagedIdentity),
            1 => Some(Self::ServicePrincipal),
            2 => Some(Self::ServicePrincipalCertificate),
            3 => Some(Self::WorkloadIdentityFederation),
            _ => None,
        }
    }
}

impl fmt::Display for IdentityType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserAssignedManagedIdentity => "user-assigned managed identity",
            Self::ServicePrincipal => "service principal with secret",
            Self::ServicePrincipalCertificate => "service principal with certificate",
            Self::WorkloadIdentityFederation => "workload identity federation",
        })
    }
}

/// An Entra identity that pods may be given through an `AzureIdentityBinding`.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aadpodidentity.k8s.io",
    version = "v1",
    kind = "AzureIdentity",
    plural = "azureidentities",
    singular = "azureidentity",
    namespaced,
    status = "AzureIdentityStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Type","type":"string","jsonPath":".spec.type"}"#,
    printcolumn = r#"{"name":"ClientID","type":"string","jsonPath":".spec.clientID"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"CredentialReady\")].status","priority":1}"#,
    printcolumn = r#"{"name":"Credential-Expiry","type":"string","jsonPath":".status.credentialExpiry","priority":1}"#
)]
#[x_kube(
    validation = rules::TYPE.rule(),
    validation = rules::RESOURCE_ID.rule(),
    validation = rules::CLIENT_ID.rule(),
    validation = rules::CLIENT_ID_FORM.rule(),
    validation = rules::OBJECT_ID_FORM.rule(),
    validation = rules::TENANT_ID.rule(),
    validation = rules::TENANT_ID_FORM.rule(),
    validation = rules::AUXILIARY_TENANTS.rule(),
    validation = rules::PASSWORD.rule(),
    validation = rules::PASSWORD_NAME_FORM.rule(),
    validation = rules::PASSWORD_NAMESPACE_FORM.rule(),
    validation = rules::PASSWORD_KEY_FORM.rule(),
    validation = rules::AD_ENDPOINT.rule(),
    validation = rules::ONE_CREDENTIAL.rule(),
    validation = rules::VAULT_URL.rule(),
    validation = rules::VAULT_SECRET.rule(),
    validation = rules::VAULT_CERTIFICATE.rule(),
    validation = rules::VAULT_VERSION.rule(),
    validation = rules::VAULT_IDENTITY.rule(),
    validation = rules::NO_PASSWORD.rule(),
    validation = rules::KEY_VAULT.rule(),
    validation = rules::FEDERATED.rule(),
    validation = rules::FEDERATED_AUDIENCE.rule(),
    validation = rules::AUDIENCES.rule(),
    validation = rules::NO_GRANT.rule()
)]
#[serde(rename_all = "camelCase")]
pub struct AzureIdentitySpec {
    /// 0 user-assigned managed identity, 1 service principal with secret, 2 service principal with certificate,
    /// 3 workload identity federation. Absent means 0.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub type_: Option<i32>,

    /// ARM id of the user-assigned managed identity (type 0).
    #[schemars(length(max = 512))]
    #[serde(rename = "resourceID", default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,

    /// Client (application) id.
    #[schemars(length(max = 256))]
    #[serde(rename = "clientID", default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,

    /// Object (principal) id, for requests that name the identity by `object_id`.
    #[schemars(length(max = 256))]
    #[serde(rename = "objectID", default, skip_serializing_if = "Option::is_none")]
    pub object_id: Option<String>,

    /// Secret that holds the client secret (type 1) or the certificate (type 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_password: Option<SecretReference>,

    /// Where in Azure Key Vault the client secret (type 1) or the certificate (type 2) is, instead of `clientPassword`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_vault: Option<KeyVaultReference>,

    /// How the identity proves itself (type 3): by the node daemon's token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federated: Option<FederatedCredential>,

    /// Directory (tenant) id of the service principal (types 1 to 3).
    #[schemars(length(max = 256))]
    #[serde(rename = "tenantID", default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,

    /// Further tenants (type 1); kept for the predecessor's objects.
    #[schemars(length(max = 64), inner(length(max = 256)))]
    #[serde(rename = "auxiliaryTenantIDs", default, skip_serializing_if = "Option::is_none")]
    pub auxiliary_tenant_ids: Option<Vec<String>>,

    /// Authority (Entra) endpoint, `https://login.microsoftonline.com/` when absent (types 1 to 3).
    #[schemars(length(max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ad_endpoint: Option<String>,

    /// Unused by the predecessor and here; kept so that existing objects round-trip.
    #[serde(rename = "adResourceID", default, skip_serializing_if = "Option::is_none")]
    pub ad_resource_id: Option<String>,

    /// Unused by the predecessor and here; kept so that existing objects round-trip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,

    /// The only resources (audiences) that may be asked for; empty or absent = any. One trailing slash is ignored.
    #[schemars(length(max = 64), inner(length(max = 512)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audiences: Option<Vec<String>>,

    /// When this identity may be used, whatever a binding says; without `grant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_box: Option<TimeBox>,
}

impl AzureIdentitySpec {
    /// The identity's type, `None` when `spec.type` is one this version does not know.
    pub fn identity_type(&self) -> Option<IdentityType> {
        IdentityType::from_i32(self.type_.unwrap_or(0))
    }
}

/// What the controller last saw of an identity.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AzureIdentityStatus {
    /// Unused; kept for the predecessor's objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_replicas: Option<i32>,
    /// `Valid`: the spec means something; `CredentialReady`: Entra accepts what backs the identity.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// When the credential stops working, RFC 3339, where that is known.
    #[schemars(extend("format" = "date-time"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_expiry: Option<String>,
}
