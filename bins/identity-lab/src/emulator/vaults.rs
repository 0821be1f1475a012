//! Key Vaults of the [`Directory`](super::Directory): what is in them and who may read it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::config::{Pem, Secret};

/// A vault.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vault {
    /// Its host name, such as `demo.vault.azure.net`. What follows the first label is the cloud's, and with `https://` before
    /// it the resource that tokens must be for.
    pub host: String,
    /// Tenant (a GUID) whose tokens it accepts.
    pub tenant_id: String,
    /// Secrets.
    #[serde(default)]
    pub secrets: Vec<VaultSecret>,
    /// Certificates; the private key of each is the secret of the same name.
    #[serde(default)]
    pub certificates: Vec<VaultCertificate>,
    /// Who may do what.
    #[serde(default)]
    pub access: Vec<RoleAssignment>,
}

impl Vault {
    /// An empty one.
    pub fn new(host: impl Into<String>, tenant_id: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            tenant_id: tenant_id.into(),
            secrets: Vec::new(),
            certificates: Vec::new(),
            access: Vec::new(),
        }
    }
}

/// A secret with its versions.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultSecret {
    /// Its name.
    pub name: String,
    /// Its versions, the current one last.
    pub versions: Vec<SecretVersion>,
}

/// One version of a secret.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretVersion {
    /// The value.
    pub value: Secret,
    /// Such as `application/x-pkcs12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// What both kinds of versions have.
    #[serde(flatten)]
    pub attributes: Attributes,
}

/// A certificate with its versions.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultCertificate {
    /// Its name.
    pub name: String,
    /// Its versions, the current one last.
    pub versions: Vec<CertificateVersion>,
}

/// One version of a certificate.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateVersion {
    /// The certificate.
    pub certificate: Pem,
    /// Its private key, PKCS#8.
    pub key: Pem,
    /// How the private key appears as a secret.
    #[serde(default)]
    pub content_type: KeyFormat,
    /// What both kinds of versions have.
    #[serde(flatten)]
    pub attributes: Attributes,
}

/// How a certificate's private key appears as a secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum KeyFormat {
    /// PKCS#12 without a password, base64.
    #[default]
    #[serde(rename = "application/x-pkcs12")]
    Pkcs12,
    /// Private key and certificate, PEM.
    #[serde(rename = "application/x-pem-file")]
    Pem,
}

impl KeyFormat {
    /// The content type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pkcs12 => "application/x-pkcs12",
            Self::Pem => "application/x-pem-file",
        }
    }
}

/// What a version of a secret or certificate has besides its contents.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attributes {
    /// The version: 32 hexadecimal digits; made from its place when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// A version that is not cannot be read.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// `exp`: a hint. Reading goes on afterwards, as with Azure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// `nbf`: a hint, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { version: None, enabled: true, expires: None, not_before: None, created: None }
    }
}

fn yes() -> bool {
    true
}

/// A role on a vault.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleAssignment {
    /// The role.
    #[serde(default)]
    pub role: Role,
    /// Client id, object id or resource id of an application or managed identity, or the id of a group.
    pub principal: String,
}

/// Azure's built-in roles, as far as they matter for reading
/// (<https://learn.microsoft.com/azure/key-vault/general/rbac-guide>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Role {
    /// Reads secrets' values, those with a certificate's private key included.
    #[default]
    #[serde(rename = "Key Vault Secrets User")]
    SecretsUser,
    /// Reads certificates with their private keys.
    #[serde(rename = "Key Vault Certificate User")]
    CertificateUser,
    /// Reads certificates, and of secrets and keys only what surrounds them.
    #[serde(rename = "Key Vault Reader")]
    Reader,
    /// May do everything.
    #[serde(rename = "Key Vault Administrator")]
    Administrator,
}

impl Role {
    /// Whether it includes an action: the data action's name after `Microsoft.KeyVault/vaults/`.
    pub(super) fn allows(self, action: &str) -> bool {
        match action {
            "secrets/getSecret/action" => self != Self::Reader,
            "certificates/read" => self != Self::SecretsUser,
            _ => self == Self::Administrator,
        }
    }
}
