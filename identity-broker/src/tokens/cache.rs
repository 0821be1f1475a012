//! A small token cache: single flight, refresh ahead, stale while upstream fails, short back-off after failures.
//!
//! Readers take no lock: the map is replaced as a whole when a key is added, each key's token by itself. Stands behind
//! [`Tokens`] until a token machine of its own takes its place.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use identity_core::lookup::Identity;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{Backend, Freshness, Token, TokenError, Tokens};
use crate::{clock::Clock, metrics::Metrics};

/// Sizes and times of a [`Cache`].
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The most (identity, audience) pairs held. Each costs about 4 KiB.
    pub capacity: usize,
    /// The most audiences held for one identity.
    pub per_identity: usize,
    /// A token is refreshed when less than this is left (or a fifth of its life, if that is more).
    pub refresh: Duration,
    /// With less than this left a token is waited for before the old one is answered again.
    pub urgent: Duration,
    /// With less than this left a token is not answered.
    pub minimum: Duration,
    /// Back-off after the first failure; doubles up to `backoff_max`.
    pub backoff: Duration,
    /// The longest back-off.
    pub backoff_max: Duration,
    /// The longest that a request waits for a token.
    pub wait: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            capacity: 4096,
            per_identity: 64,
            refresh: Duration::from_mins(5),
            urgent: Duration::from_mins(1),
            minimum: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            wait: Duration::from_secs(15),
        }
    }
}

type Outcome = Option<Result<Arc<Token>, TokenError>>;
type Map = HashMap<u64, Vec<Arc<Slot>>, foldhash::fast::FixedState>;

/// Tokens by identity, credential version and audience.
pub struct Cache<B, C> {
    shared: Arc<Shared<B, C>>,
}

struct Shared<B, C> {
    backend: B,
    clock: C,
    config: CacheConfig,
    metrics: Arc<Metrics>,
    hash: foldhash::fast::RandomState,
    map: ArcSwap<Map>,
    /// Held while a key is added.
    growing: Mutex<()>,
}

struct Slot {
    hash: u64,
    identity: Arc<Identity>,
    resource: Box<str>,
    token: ArcSwapOption<Token>,
    used: AtomicI64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    flight: Option<(watch::Receiver<Outcome>, Freshness)>,
    failures: u32,
    failed: Option<(TokenError, Timestamp)>,
}

impl State {
    /// The failure of a moment ago, with what is left of its `retry_after`.
    fn failed_at(&self, now: Timestamp) -> Option<TokenError> {
        let (error, until) = self.failed.as_ref().filter(|(_, until)| now < *until)?;
        let mut error = error.clone();
        if let TokenError::Unavailable { retry_after, .. } = &mut error {
            *retry_after = Duration::try_from(until.duration_since(now)).unwrap_or(*retry_after);
        }
        Some(error)
    }
}

// === impl Cache ===

impl<B: Backend, C: Clock> Cache<B, C> {
    /// An empty cache in front of `backend`.
    pub fn new(backend: B, clock: C, config: CacheConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            shared: Arc::new(Shared {
                backend,
                clock,
                config,
                metrics,
                hash: foldhash::fast::RandomState::default(),
                map: ArcSwap::default(),
                growing: Mutex::new(()),
            }),
        }
    }

    /// Number of (identity, audience) pairs held.
    pub fn len(&self) -> usize {
        self.shared.map.load().values().map(Vec::len).sum()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<B: Backend, C: Clock> Tokens for Cache<B, C> {
    fn ready(&self, identity: &Arc<Identity>, resource: &str) -> Option<Result<Arc<Token>, TokenError>> {
        let shared = &self.shared;
        let now = shared.clock.now();
        let slot = shared.find(identity, resource, now)?;
        let token = shared.usable(&slot, now);
        if let Some(token) = &token {
            let left = token.remaining(now);
            if left > shared.refresh_margin(token) || left > seconds(shared.config.urgent) {
                if left <= shared.refresh_margin(token) {
                    // Ahead of time: whoever asks meanwhile gets the old one.
                    let _ = shared.fly(&slot, now, Freshness::Any);
                }
                shared.metrics.cache_hits.inc();
                return Some(Ok(Arc::clone(token)));
            }
        }
        let failed = {
            let state = lock(&slot.state);
            // What is under way may turn out better.
            state.flight.is_none().then(|| state.failed_at(now)).flatten()
        };
        failed.map(|error| token.ok_or(error))
    }

    async fn get(
        &self,
        identity: &Arc<Identity>,
        resource: &str,
        freshness: Freshness,
    ) -> Result<Arc<Token>, TokenError> {
        if freshness == Freshness::Any
            && let Some(ready) = self.ready(identity, resource)
        {
            return ready;
        }
        let shared = &self.shared;
        let now = shared.clock.now();
        let slot = shared.slot(identity, resource, now);
        let fresh = match shared.fly(&slot, now, freshness) {
            Ok(flight) => shared.land(flight).await,
            Err(Grounded::Failed(failed)) => Err(failed),
            Err(Grounded::Other(flight)) => {
                // What is under way may be answered from a cache of the node's: after it, not instead of it.
                let _ = shared.land(flight).await;
                match shared.fly(&slot, shared.clock.now(), freshness) {
                    Ok(flight) | Err(Grounded::Other(flight)) => shared.land(flight).await,
                    Err(Grounded::Failed(failed)) => Err(failed),
                }
            }
        };
        match fresh {
            // Better a token that is about to end than none, unless a new one was asked for.
            Err(error) if freshness == Freshness::Any => shared.usable(&slot, shared.clock.now()).ok_or(error),
            fresh => fresh,
        }
    }
}

/// Why a request upstream was not begun.
enum Grounded {
    /// There was a failure a moment ago.
    Failed(TokenError),
    /// Another is under way, and it is not for a token past every cache.
    Other(watch::Receiver<Outcome>),
}

// === impl Shared ===

impl<B: Backend, C: Clock> Shared<B, C> {
    /// The slot's token if it has life left and was got with the credential of today.
    fn usable(&self, slot: &Slot, now: Timestamp) -> Option<Arc<Token>> {
        let token = slot.token.load_full()?;
        let current = token.credential() == self.backend.credential_version(&slot.identity);
        (current && token.remaining(now) >= seconds(self.config.minimum)).then_some(token)
    }

    fn refresh_margin(&self, token: &Token) -> i64 {
        let lifetime = token.lifetime();
        seconds(self.config.refresh).max(lifetime / 5).min(lifetime / 2)
    }

    /// Joins the request that is under way, or begins one; or the failure that was a moment ago.
    fn fly(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        now: Timestamp,
        freshness: Freshness,
    ) -> Result<watch::Receiver<Outcome>, Grounded> {
        let mut state = lock(&slot.state);
        if let Some((flight, flying)) = &state.flight {
            return if freshness == Freshness::Any || *flying == freshness {
                Ok(flight.clone())
            } else {
                Err(Grounded::Other(flight.clone()))
            };
        }
        if let Some(error) = state.failed_at(now) {
            return Err(Grounded::Failed(error));
        }
        let (done, flight) = watch::channel(None);
        state.flight = Some((flight.clone(), freshness));
        drop(state);
        self.metrics.cache_misses.inc();
        let (shared, slot) = (Arc::clone(self), Arc::clone(slot));
        // A task of its own, so that a waiter who goes away takes nobody's token with it.
        tokio::spawn(async move {
            let clear = ClearFlight(&slot);
            let outcome = shared.backend.fetch(&slot.identity, &slot.resource, freshness).await.map(Arc::new);
            shared.settle(&slot, &outcome);
            drop(clear);
            done.send_replace(Some(outcome));
        });
        Ok(flight)
    }

    fn settle(&self, slot: &Slot, outcome: &Result<Arc<Token>, TokenError>) {
        let now = self.clock.now();
        match outcome {
            Ok(token) => {
                slot.token.store(Some(Arc::clone(token)));
                let mut state = lock(&slot.state);
                (state.failures, state.failed) = (0, None);
            }
            Err(error) => {
                let mut state = lock(&slot.state);
                let backoff = self.config.backoff.saturating_mul(1 << state.failures.min(16));
                let mut pause = backoff.min(self.config.backoff_max).mul_f64(0.75 + rand::random::<f64>() / 4.0);
                if let TokenError::Unavailable { retry_after, .. } = error {
                    pause = pause.max(*retry_after);
                }
                state.failures = state.failures.saturating_add(1);
                let until = now.saturating_add(jiff::SignedDuration::from_secs_f64(pause.as_secs_f64()));
                state.failed = until.ok().map(|until| (error.clone(), until));
            }
        }
    }

    async fn land(&self, mut flight: watch::Receiver<Outcome>) -> Result<Arc<Token>, TokenError> {
        let outcome = tokio::time::timeout(self.config.wait, flight.wait_for(Option::is_some)).await;
        if let Ok(Ok(outcome)) = outcome
            && let Some(result) = outcome.as_ref()
        {
            return result.clone();
        }
        Err(TokenError::Unavailable {
            message: "The token was not obtained in time; try again".to_owned(),
            retry_after: Duration::from_secs(1),
        })
    }

    /// The slot of a key, if there is one.
    fn find(&self, identity: &Arc<Identity>, resource: &str, now: Timestamp) -> Option<Arc<Slot>> {
        let slot = find(&self.map.load(), self.hash_of(identity, resource), identity, resource)?;
        slot.used.store(now.as_second(), Ordering::Relaxed);
        Some(slot)
    }

    /// The slot of a key; made when there is none.
    fn slot(&self, identity: &Arc<Identity>, resource: &str, now: Timestamp) -> Arc<Slot> {
        if let Some(slot) = self.find(identity, resource, now) {
            return slot;
        }
        let hash = self.hash_of(identity, resource);
        let _growing = lock(&self.growing);
        let mut map = Map::clone(&self.map.load());
        if let Some(slot) = find(&map, hash, identity, resource) {
            return slot;
        }
        self.make_room(&mut map, identity);
        let slot = Arc::new(Slot {
            hash,
            identity: Arc::clone(identity),
            resource: resource.into(),
            token: ArcSwapOption::empty(),
            used: AtomicI64::new(now.as_second()),
            state: Mutex::default(),
        });
        map.entry(hash).or_default().push(Arc::clone(&slot));
        self.map.store(Arc::new(map));
        slot
    }

    /// Removes the least worthy slot of the identity, or of all, where the limit is reached: first those without a
    /// token, then the one not asked for longest. A request under way goes on; only its result is not kept.
    fn make_room(&self, map: &mut Map, identity: &Identity) {
        let worth = |slot: &&Arc<Slot>| (slot.token.load().is_some(), slot.used.load(Ordering::Relaxed));
        let of_identity = || map.values().flatten().filter(|slot| same(&slot.identity, identity));
        let victim = if of_identity().count() >= self.config.per_identity {
            of_identity().min_by_key(worth)
        } else if map.values().map(Vec::len).sum::<usize>() >= self.config.capacity {
            map.values().flatten().min_by_key(worth)
        } else {
            None
        };
        let Some(victim) = victim.cloned() else { return };
        self.metrics.cache_evictions.inc();
        if let Some(bucket) = map.get_mut(&victim.hash) {
            bucket.retain(|slot| !Arc::ptr_eq(slot, &victim));
            if bucket.is_empty() {
                map.remove(&victim.hash);
            }
        }
    }

    fn hash_of(&self, identity: &Identity, resource: &str) -> u64 {
        let mut hasher = self.hash.build_hasher();
        for part in [&*identity.object.uid, &*identity.object.namespace, &*identity.object.name, resource] {
            hasher.write(part.as_bytes());
            hasher.write_u8(0xff);
        }
        hasher.finish()
    }
}

/// Clears a slot's flight, also when the task that flew it panicked.
struct ClearFlight<'a>(&'a Slot);

impl Drop for ClearFlight<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).flight = None;
    }
}

/// Whether two identities get the same tokens: everything that goes upstream, nothing that only decides.
pub(crate) fn same(one: &Identity, other: &Identity) -> bool {
    one.object.uid == other.object.uid
        && one.object.namespace == other.object.namespace
        && one.object.name == other.object.name
        && one.kind == other.kind
        && one.client_id == other.client_id
        && one.resource_id == other.resource_id
        && one.tenant_id == other.tenant_id
        && one.authority == other.authority
        && one.secret == other.secret
}

fn find(map: &Map, hash: u64, identity: &Arc<Identity>, resource: &str) -> Option<Arc<Slot>> {
    map.get(&hash)?
        .iter()
        .find(|slot| {
            *slot.resource == *resource && (Arc::ptr_eq(&slot.identity, identity) || same(&slot.identity, identity))
        })
        .cloned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
