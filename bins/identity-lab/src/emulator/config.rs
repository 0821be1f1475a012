//! What the emulators are told: addresses, certificates, and the part of Azure that they play.

use std::{fmt, net::SocketAddr, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::fault::Fault;

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

/// The instance metadata emulator.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImdsConfig {
    /// Address to serve plain HTTP on; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Lifetime of an access token, in seconds.
    #[serde(default = "a_day")]
    pub token_lifetime_seconds: u32,
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
    pub certificates: Vec<Pem>,
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
    pub(super) fn load(&self) -> std::io::Result<String> {
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

fn an_hour() -> u32 {
    3599
}

fn a_day() -> u32 {
    86399
}

fn a_minute() -> u32 {
    60
}
