//! `lab.yaml`: what a directory of manifests says about the lab itself.

use serde::Deserialize;

use crate::emulator::{
    Fault, Group, KeyVaultConfig, Limits, ManagedIdentity, SystemAssigned, TOKEN_EXCHANGE, Tenant, VirtualMachine,
    vaults::Vault,
};

/// `lab.yaml` in the directory of manifests. All of it optional; unknown fields are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Overrides {
    /// Tenant (a GUID) of managed identities whose manifest names none.
    pub tenant: Option<String>,
    /// Tenants with applications: an application here replaces the seeded one with the same client id.
    pub tenants: Vec<Tenant>,
    /// Identities on the VM: one here replaces the seeded one with the same resource id.
    pub managed_identities: Vec<ManagedIdentity>,
    /// Client ids of applications and resource ids of managed identities that Azure must not know although manifests name them.
    pub absent: Vec<String>,
    /// The VM's own identity.
    pub system_assigned: Option<SystemAssigned>,
    /// Resources that no tenant knows.
    pub unknown_resources: Vec<String>,
    /// Directory groups: one here replaces the seeded one with the same id.
    pub groups: Vec<Group>,
    /// Key Vaults: what one here names (secrets, certificates; roles, if there are any) replaces what was seeded under that name.
    pub vaults: Vec<Vault>,
    /// The token service.
    pub entra: Entra,
    /// The metadata service.
    pub imds: Imds,
    /// Key Vault.
    pub key_vault: KeyVaultConfig,
    /// The node's projected service-account token.
    pub projected_token: ProjectedToken,
    /// Has both binaries and the emulators follow a clock of the lab's own (`identity-lab clock`), which begins at this time:
    /// `now`, or an RFC 3339 time such as `2026-11-27T23:59:00-08:00`.
    pub clock: Option<String>,
    /// Faults that are on from the start.
    pub faults: Vec<Fault>,
    /// Further host names that resolve to the emulators.
    pub hosts: Vec<String>,
    /// Further arguments of identity-node.
    pub node_arguments: Vec<String>,
    /// Further arguments of identity-controller.
    pub controller_arguments: Vec<String>,
}

/// `projectedToken` of `lab.yaml`: what a kubelet is told about the token that a pod has a volume for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProjectedToken {
    /// `expirationSeconds`. As a kubelet does, the lab replaces the token when a fifth of it is left. (A real API server issues
    /// none for less than 600.)
    pub lifetime_seconds: u32,
    /// `audience`.
    pub audience: String,
}

impl Default for ProjectedToken {
    fn default() -> Self {
        Self { lifetime_seconds: 3600, audience: TOKEN_EXCHANGE.to_owned() }
    }
}

/// `entra` of `lab.yaml`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Entra {
    /// Milliseconds by which each answer is held back.
    pub latency_ms: u64,
    /// Lifetime of a token in seconds.
    pub token_lifetime_seconds: Option<u32>,
    /// `refresh_in` of answers, in seconds; none when left out.
    pub refresh_in_seconds: Option<u32>,
    /// `Retry-After` of the fault `entra-429`, in seconds.
    pub retry_after_seconds: Option<u32>,
    /// Whether one client assertion may be used several times.
    pub accept_replayed_assertions: bool,
}

/// `imds` of `lab.yaml`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Imds {
    /// Milliseconds by which each answer is held back.
    pub latency_ms: u64,
    /// Lifetime of a token in seconds.
    pub token_lifetime_seconds: Option<u32>,
    /// `refresh_in` of answers, in seconds; none when left out.
    pub refresh_in_seconds: Option<u32>,
    /// Limits; the real service's when left out.
    pub limits: Option<Limits>,
    /// What the VM is.
    pub virtual_machine: Option<VirtualMachine>,
}

impl Overrides {
    /// Reads `lab.yaml`.
    ///
    /// # Errors
    /// What is wrong, with line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Option<Self> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        Ok(value.unwrap_or_default())
    }
}
