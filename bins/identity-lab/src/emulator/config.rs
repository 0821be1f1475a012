//! What the emulators are told: addresses, certificates, and the part of Azure that they play.

use std::{fmt, net::SocketAddr, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{fault::Fault, vaults::Vault};

/// Everything that [`run`](super::run) needs. JSON, camelCase; unknown fields are errors.
///
/// ```
/// let config: identity_lab::emulator::Config = serde_json::from_str(r#"{
///     "imds": {"listen": "127.0.0.1:0"},
///     "directory": {
///         "managedIdentities": [{
///             "resourceId": "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo",
///             "clientId": "22222222-2222-2222-2222-222222222222",
///             "tenantId": "11111111-1111-1111-1111-111111111111"
///         }]
///     },
///     "faults": ["imds-429"]
/// }"#)?;
/// assert!(config.entra.is_none());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The Entra token service; left out, there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entra: Option<EntraConfig>,
    /// The VM's instance metadata service; left out, there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imds: Option<ImdsConfig>,
    /// Key Vault, which is served on Entra's address: every host that is one of the directory's vaults, or ends as vaults do.
    #[serde(default)]
    pub key_vault: KeyVaultConfig,
    /// Tenants, applications and identities: the part that can be replaced while the emulators run.
    #[serde(default)]
    pub directory: Directory,
    /// Faults that are on from the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
    /// Unix socket on which faults and the directory are changed (see [`control`](super::control)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// File to which every request is appended as one line of JSON (see [`Record`](super::Record)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_log: Option<PathBuf>,
    /// File with a clock's distance from the machine's (see [`Clock::following`](super::Clock::following)); the machine's own
    /// clock when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<PathBuf>,
}

/// The Entra emulator.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EntraConfig {
    /// Address to serve TLS on; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The server's certificate chain.
    pub certificate: Pem,
    /// The server's private key, PKCS#8.
    pub key: Pem,
    /// Lifetime of an access token, in seconds.
    #[serde(default = "an_hour")]
    pub token_lifetime_seconds: u32,
    /// `refresh_in` of answers, in seconds; left out, answers have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_in_seconds: Option<u32>,
    /// How long each answer is held back, in milliseconds.
    #[serde(default)]
    pub latency_ms: u64,
    /// `Retry-After` of the fault `entra-429`, in seconds. Entra's own is 60.
    #[serde(default = "a_minute")]
    pub retry_after_seconds: u32,
    /// Whether a client assertion may be used more than once. MSAL for Python reuses one for ten minutes, and the real service
    /// lets it; off by default, because a client of ours has no reason to.
    #[serde(default)]
    pub accept_replayed_assertions: bool,
}

/// The Key Vault emulator.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KeyVaultConfig {
    /// How long each answer is held back, in milliseconds.
    pub latency_ms: u64,
    /// `Retry-After` of the fault `vault-429`, in seconds.
    pub retry_after_seconds: u32,
}

impl Default for KeyVaultConfig {
    fn default() -> Self {
        Self { latency_ms: 0, retry_after_seconds: 1 }
    }
}

/// The instance metadata emulator.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImdsConfig {
    /// Address to serve plain HTTP on; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Lifetime of an access token, in seconds.
    #[serde(default = "a_day")]
    pub token_lifetime_seconds: u32,
    /// `refresh_in` of answers, in seconds; left out, answers have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_in_seconds: Option<u32>,
    /// How long each answer is held back, in milliseconds. It counts for the limit on concurrent requests.
    #[serde(default)]
    pub latency_ms: u64,
    /// What one VM may ask for.
    #[serde(default)]
    pub limits: Limits,
    /// The VM that the service describes.
    #[serde(default)]
    pub virtual_machine: VirtualMachine,
}

/// What one VM may ask its metadata service. `null` lifts a limit.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Requests of the identity category in any one second.
    pub requests_per_second: Option<u32>,
    /// Requests of the identity category in flight at one time.
    pub concurrent: Option<u32>,
    /// Requests of all other categories in any one second.
    pub other_requests_per_second: Option<u32>,
}

impl Default for Limits {
    /// The documented limits: 20 a second and 5 at a time for the identity category, 5 a second for the rest.
    fn default() -> Self {
        Self { requests_per_second: Some(20), concurrent: Some(5), other_requests_per_second: Some(5) }
    }
}

impl Limits {
    /// No limits, for load tests.
    pub const NONE: Self = Self { requests_per_second: None, concurrent: None, other_requests_per_second: None };
}

/// A VM as `/metadata/instance` describes it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VirtualMachine {
    /// Its name.
    pub name: String,
    /// Subscription (a GUID).
    pub subscription_id: String,
    /// Resource group.
    pub resource_group: String,
    /// Region.
    pub location: String,
}

impl Default for VirtualMachine {
    fn default() -> Self {
        Self {
            name: "lab-vm-0".to_owned(),
            subscription_id: "44444444-4444-4444-4444-444444444444".to_owned(),
            resource_group: "lab".to_owned(),
            location: "westeurope".to_owned(),
        }
    }
}

impl VirtualMachine {
    /// Its Azure resource id.
    pub fn resource_id(&self) -> String {
        format!(
            "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.Compute/virtualMachines/{}",
            self.subscription_id, self.resource_group, self.name
        )
    }
}

/// The part of Azure that the emulators play.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Directory {
    /// Entra tenants.
    pub tenants: Vec<Tenant>,
    /// User-assigned identities that are on the VM.
    pub managed_identities: Vec<ManagedIdentity>,
    /// The VM's own identity, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_assigned: Option<SystemAssigned>,
    /// Resources that no tenant knows. Any other `https://…`, `api://…` or GUID is known to all.
    pub unknown_resources: Vec<String>,
    /// Directory groups.
    pub groups: Vec<Group>,
    /// Key Vaults.
    pub vaults: Vec<Vault>,
    /// Issuers of assertions that federated credentials may trust. An assertion of any other issuer is refused.
    pub issuers: Vec<Issuer>,
}

/// A directory group. Its id is in the claim `groups` of its members' tokens from the next token on.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Group {
    /// Object id (a GUID).
    pub id: String,
    /// Members: client id, object id or resource id of an application or managed identity.
    #[serde(default)]
    pub members: Vec<String>,
}

/// An OpenID Connect issuer: what `{issuer}/.well-known/openid-configuration` leads to.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    /// Its URL, exactly as in the claim `iss`.
    pub issuer: String,
    /// Its keys (RFC 7517), RSA. The emulators then serve discovery and keys under the issuer's host themselves, on Entra's
    /// address, and its tokens' times are those of the emulators' clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<serde_json::Value>,
    /// Where to find it when `jwks` is left out. Its tokens' times are the machine's, whatever the emulators' clock shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<IssuerServer>,
}

/// A server of an issuer, such as a kube-apiserver with anonymous access to its discovery.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IssuerServer {
    /// Where it listens; the name in the issuer's URL is what its certificate must be for.
    pub address: SocketAddr,
    /// The authority of its certificate.
    pub ca: Pem,
}

/// An Entra tenant.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tenant {
    /// Tenant id (a GUID).
    pub id: String,
    /// Domain names that also name the tenant.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Applications of the tenant.
    #[serde(default)]
    pub applications: Vec<Application>,
}

/// An application with its service principal.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Application {
    /// Application (client) id.
    pub client_id: String,
    /// Object id of the service principal; made from the client id when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_id: Option<String>,
    /// Client secrets.
    #[serde(default)]
    pub secrets: Vec<ClientSecret>,
    /// Certificates registered for client assertions. RSA only, as with Entra.
    #[serde(default)]
    pub certificates: Vec<ClientCertificate>,
    /// Subject names whose certificates are accepted without being registered, when the assertion carries their chain (`x5c`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_subjects: Vec<TrustedSubject>,
    /// Federated credentials, 20 at most.
    #[serde(default)]
    pub federated_credentials: Vec<FederatedCredential>,
}

impl Application {
    /// One without any credential.
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            object_id: None,
            secrets: Vec::new(),
            certificates: Vec::new(),
            trusted_subjects: Vec::new(),
            federated_credentials: Vec::new(),
        }
    }
}

/// Subject name and issuer authentication: any certificate of this authority for this name, so that a renewed one needs no
/// registration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustedSubject {
    /// The authority's certificate.
    pub authority: Pem,
    /// Common name or DNS name of the certificate.
    pub subject: String,
}

/// A client secret.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientSecret {
    /// The secret.
    pub value: Secret,
    /// When it stops working; never, when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// When it has reached all of Entra, which refuses it as unknown until then; at once, when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// A registered certificate: PEM text or a path, or an object with these fields.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(from = "CertificateForm", rename_all = "camelCase")]
pub struct ClientCertificate {
    /// The certificate.
    pub pem: Pem,
    /// As [`ClientSecret::since`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum CertificateForm {
    Bare(Pem),
    #[serde(rename_all = "camelCase")]
    Full {
        pem: Pem,
        #[serde(default)]
        since: Option<Timestamp>,
    },
}

impl From<CertificateForm> for ClientCertificate {
    fn from(form: CertificateForm) -> Self {
        match form {
            CertificateForm::Bare(pem) => pem.into(),
            CertificateForm::Full { pem, since } => Self { pem, since },
        }
    }
}

impl From<Pem> for ClientCertificate {
    fn from(pem: Pem) -> Self {
        Self { pem, since: None }
    }
}

/// A federated identity credential: whose assertions an application accepts in place of a secret. All three must match exactly.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FederatedCredential {
    /// One of [`Directory::issuers`].
    pub issuer: String,
    /// `system:serviceaccount:NAMESPACE:NAME`
    pub subject: String,
    /// The audience; `api://AzureADTokenExchange` when left out.
    #[serde(default = "token_exchange")]
    pub audience: String,
    /// As [`ClientSecret::since`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// A user-assigned managed identity.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedIdentity {
    /// `/subscriptions/…/providers/Microsoft.ManagedIdentity/userAssignedIdentities/…`
    pub resource_id: String,
    /// Client id.
    pub client_id: String,
    /// Object id of the service principal; made from the client id when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_id: Option<String>,
    /// Tenant.
    pub tenant_id: String,
}

/// The VM's own managed identity.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SystemAssigned {
    /// Client id.
    pub client_id: String,
    /// Object id of the service principal; made from the client id when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_id: Option<String>,
    /// Tenant.
    pub tenant_id: String,
}

/// A string that Debug output does not show.
#[derive(Clone, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// PEM text, or the path of a file that holds it: text begins with `-----BEGIN`. Debug output shows neither.
#[derive(Clone, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Pem(String);

impl Pem {
    /// The text, read from the file when this is a path.
    pub(crate) fn load(&self) -> std::io::Result<String> {
        if self.0.trim_start().starts_with("-----BEGIN") {
            return Ok(self.0.clone());
        }
        std::fs::read_to_string(&self.0).map_err(|error| {
            std::io::Error::new(error.kind(), format!("neither PEM text nor a readable file: {error}"))
        })
    }
}

impl From<&str> for Pem {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl From<String> for Pem {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[PEM]")
    }
}

/// The audience of federated credentials in the public cloud.
pub const TOKEN_EXCHANGE: &str = "api://AzureADTokenExchange";

fn token_exchange() -> String {
    TOKEN_EXCHANGE.to_owned()
}

fn an_hour() -> u32 {
    3599
}

fn a_day() -> u32 {
    86399
}

fn a_minute() -> u32 {
    60
}
