//! Where and how to ask, and where credentials come from.

use std::{fmt, sync::Arc, time::Duration};

use ::http::Uri;

use super::AuthorityHosts;
use crate::{
    credentials::RotationConfig,
    federated::AssertionSource,
    secrets::{IdentitySource, SecretSource},
    vault::VaultSuffixes,
};

/// Where and how to ask.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// The node's own IMDS, `http://169.254.169.254`.
    pub metadata_endpoint: Uri,
    /// Hosts that credentials may be sent to.
    pub authority_hosts: AuthorityHosts,
    /// Key Vaults that credentials may be read from: hosts under these suffixes.
    pub vault_suffixes: VaultSuffixes,
    /// For one request.
    pub request_timeout: Duration,
    /// For all attempts together, without the waiting for turns.
    pub total_timeout: Duration,
    /// For waiting for a turn: the node asks only so often.
    pub turn_timeout: Duration,
    /// The most attempts.
    pub attempts: u32,
    /// A Secret that nobody follows is read again before use when it was read so long ago.
    pub credential_age: Duration,
    /// Times of the rotation of credentials.
    pub rotation: RotationConfig,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            metadata_endpoint: Uri::from_static("http://169.254.169.254"),
            authority_hosts: AuthorityHosts::default(),
            vault_suffixes: VaultSuffixes::default(),
            request_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(10),
            turn_timeout: Duration::from_secs(15),
            attempts: 3,
            credential_age: Duration::from_mins(1),
            rotation: RotationConfig::default(),
        }
    }
}

/// Where credentials come from.
#[derive(Clone)]
pub struct Sources {
    /// Secrets.
    pub secrets: Arc<dyn SecretSource>,
    /// Identities that read Key Vaults; without it none is found.
    pub identities: Option<Arc<dyn IdentitySource>>,
    /// Tokens of the cluster that prove federated identities; without it there is none.
    pub assertions: Option<Arc<dyn AssertionSource>>,
}

impl<S: SecretSource> From<Arc<S>> for Sources {
    fn from(secrets: Arc<S>) -> Self {
        Self { secrets, identities: None, assertions: None }
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}
