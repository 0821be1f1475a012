//! Sizes and times of the token manager.

use std::time::Duration;

/// Sizes and times of a [`Manager`](super::Manager).
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// The most (identity, audience) pairs held. Each costs about 4 KiB.
    pub capacity: usize,
    /// The most audiences held for one identity.
    pub per_identity: usize,
    /// The most pairs held that one pod was the first to ask for.
    pub per_pod: usize,
    /// A token with less than this left is not answered while upstream is well: SDKs take it for expired and ask again at
    /// every call. A quarter of its life where that is less.
    pub floor: Duration,
    /// Tokens that live for at least this long are refreshed at half their life, others just before `floor`. Microsoft's
    /// SDKs do the same with two hours.
    pub long_life: Duration,
    /// A token that nobody asked for since it was got, nor within this time, is not refreshed ahead.
    pub idle: Duration,
    /// How long a request that could be answered with a token of little life waits for a better one.
    pub patience: Duration,
    /// How long tokens of a former credential are answered after the change is known, unless upstream fails meanwhile.
    pub superseded: Duration,
    /// Back-off after the first failure; doubles up to `backoff_max`.
    pub backoff: Duration,
    /// The longest back-off of one's own; the upstream may ask for more.
    pub backoff_max: Duration,
    /// The longest that a request waits for a token.
    pub wait: Duration,
    /// The longest that getting one may take, in case the backend does not bound it.
    pub fetch: Duration,
    /// The most audiences of an identity that tokens are got for when a pod gets it, before the pod asks: those that it was
    /// asked for last. 0: none.
    pub prefetch: usize,
    /// How many requests may be on their way to the task that gets tokens.
    pub queue: usize,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            capacity: 4096,
            per_identity: 64,
            per_pod: 64,
            floor: Duration::from_mins(5),
            long_life: Duration::from_hours(2),
            idle: Duration::from_mins(10),
            patience: Duration::from_secs(1),
            superseded: Duration::from_mins(1),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            wait: Duration::from_secs(15),
            fetch: Duration::from_secs(30),
            prefetch: 4,
            queue: 1024,
        }
    }
}
