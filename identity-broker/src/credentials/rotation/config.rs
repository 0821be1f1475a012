//! Times of rotation.

use std::time::Duration;

/// Times of the rotation of credentials.
#[derive(Clone, Debug)]
pub struct RotationConfig {
    /// A changed credential is tried within this time, each node at a moment of its own.
    pub jitter: Duration,
    /// For so long after it was first seen, Entra's refusal of a credential that it may not know yet is not taken for final:
    /// a new secret or certificate reaches all of Entra within minutes. The former one serves all the while.
    pub propagation: Duration,
    /// Between the first two tries of a credential; doubles up to `retry_max`.
    pub retry: Duration,
    /// The longest between two tries, until it is called refused.
    pub retry_max: Duration,
    /// Between two tries of a credential that is refused but stays where it is.
    pub refused_retry: Duration,
    /// Between readings because Entra refused what is in use, or because there is none, after the first few; doubles up to
    /// `reread_max`.
    pub reread: Duration,
    /// The longest between such readings.
    pub reread_max: Duration,
    /// How long a credential is used without trying to read its source again when that has failed.
    pub pause: Duration,
    /// How often a Key Vault is read, as long as its credential is in use.
    pub vault_poll: Duration,
    /// What nobody wanted for so long is read no longer, until somebody does.
    pub idle: Duration,
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self {
            jitter: Duration::from_secs(5),
            propagation: Duration::from_mins(10),
            retry: Duration::from_secs(5),
            retry_max: Duration::from_mins(1),
            refused_retry: Duration::from_mins(30),
            reread: Duration::from_secs(1),
            reread_max: Duration::from_secs(30),
            pause: Duration::from_secs(5),
            vault_poll: Duration::from_mins(5),
            idle: Duration::from_hours(24),
        }
    }
}
