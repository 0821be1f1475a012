//! What is at hand, for any number of readers without a lock: shards of maps that one writer replaces as a whole, and in
//! them what is published of each key, replaced by itself.
//!
//! `loom` cannot look into `arc-swap`, and there is no synchronisation of our own here; the tests use many threads.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use identity_core::lookup::{Identity, ObjectRef};
use smallvec::SmallVec;

use super::{
    key::{Hashes, Key, Mark},
    machine::View,
};

/// A power of two. At 4,096 keys a shard has 64: little to copy when one is added.
const SHARDS: usize = 64;

type Shard = HashMap<u64, SmallVec<[Arc<Slot>; 1]>, foldhash::fast::FixedState>;

/// All that is at hand.
#[derive(Debug)]
pub(super) struct Shelf {
    shards: Box<[ArcSwap<Shard>]>,
    hasher: foldhash::fast::RandomState,
}

/// What is published of a key.
#[derive(Debug)]
pub(super) struct Slot {
    key: Key,
    pub(super) used: Arc<Mark>,
    pub(super) view: ArcSwap<View>,
}

impl Shelf {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
        }
    }

    pub(super) fn hashes(&self, identity: &Identity, resource: &str) -> Hashes {
        Hashes::of(&self.hasher, identity, resource)
    }

    pub(super) fn group(&self, object: &ObjectRef) -> u64 {
        Hashes::group(&self.hasher, object)
    }

    fn shard(&self, hash: u64) -> &ArcSwap<Shard> {
        // The map in the shard uses the low bits.
        &self.shards[usize::try_from(hash >> 58).unwrap_or(0) % SHARDS]
    }

    /// Reads what is published of a key, if anything is.
    pub(super) fn read<R>(
        &self,
        identity: &Arc<Identity>,
        resource: &str,
        read: impl FnOnce(&Slot, &View) -> R,
    ) -> Option<R> {
        let hash = self.hashes(identity, resource).key;
        let shard = self.shard(hash).load();
        let slot = shard.get(&hash)?.iter().find(|slot| slot.key.is(identity, resource))?;
        Some(read(slot, &slot.view.load()))
    }

    /// Publishes. Only one writer at a time.
    pub(super) fn publish(&self, key: &Key, view: View, used: &Arc<Mark>) {
        let shard = self.shard(key.hash());
        let map = shard.load();
        let view = Arc::new(view);
        if let Some(slot) = map.get(&key.hash()).and_then(|slots| slots.iter().find(|slot| slot.key == *key))
            && Arc::ptr_eq(&slot.used, used)
        {
            slot.view.store(view);
            return;
        }
        let mut map = Shard::clone(&map);
        let slots = map.entry(key.hash()).or_default();
        slots.retain(|slot| slot.key != *key);
        slots.push(Arc::new(Slot { key: key.clone(), used: Arc::clone(used), view: ArcSwap::new(view) }));
        shard.store(Arc::new(map));
    }

    /// Takes away. Only one writer at a time.
    pub(super) fn evict(&self, key: &Key) {
        let shard = self.shard(key.hash());
        let mut map = Shard::clone(&shard.load());
        if let Some(slots) = map.get_mut(&key.hash()) {
            slots.retain(|slot| slot.key != *key);
            if slots.is_empty() {
                map.remove(&key.hash());
            }
            shard.store(Arc::new(map));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.load().values().map(SmallVec::len).sum::<usize>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use identity_core::lookup::CredentialSource;
    use identity_crd::IdentityType;
    use jiff::Timestamp;

    use super::*;
    use crate::tokens::{Issued, Token};

    const KEYS: usize = 200;

    fn identity(n: usize) -> Arc<Identity> {
        let name: Arc<str> = format!("i{}", n % 10).into();
        Arc::new(Identity {
            object: ObjectRef { namespace: "ns".into(), name: Arc::clone(&name), uid: name, generation: 1 },
            kind: IdentityType::ServicePrincipal,
            client_id: None,
            object_id: None,
            resource_id: None,
            tenant_id: None,
            authority: None,
            credential: CredentialSource::None,
            audiences: Box::default(),
        })
    }

    fn resource(n: usize) -> String {
        format!("r{}", n / 10)
    }

    /// A token that says of which key it is and the how manieth.
    fn token(n: usize, version: u64) -> Arc<Token> {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let client_id = n.to_string();
        Arc::new(Token::issued(&Issued {
            access_token: "t",
            resource: "r",
            client_id: Some(&client_id),
            expires_on: now,
            now,
            credential: version,
            request_id: None,
        }))
    }

    /// Keys come, change and go while many read: each reads what was published of that key, never an older one after a newer
    /// one, never nothing of a key that stays.
    #[test]
    fn readers_see_what_was_published_last_or_later() {
        let shelf = Shelf::new();
        let keys: Vec<_> =
            (0..KEYS).map(|n| Key::new(shelf.hashes(&identity(n), &resource(n)), &identity(n), &resource(n))).collect();
        let published: Vec<_> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let marks: Vec<_> = (0..KEYS).map(|_| Arc::new(Mark::default())).collect();
        let done = AtomicBool::new(false);
        let read = AtomicU64::new(0);
        let publish = |n: usize, version: u64| {
            let view = View { token: Some((token(n, version), i64::MAX)), failed: None };
            shelf.publish(&keys[n], view, &marks[n]);
            published[n].store(version, Ordering::SeqCst);
        };
        (0..KEYS).for_each(|n| publish(n, 1));
        std::thread::scope(|threads| {
            for thread in 0..8 {
                let (shelf, published, done, read) = (&shelf, &published, &done, &read);
                threads.spawn(move || {
                    let mut seen = vec![0; KEYS];
                    let mut n = thread;
                    while !done.load(Ordering::SeqCst) {
                        n = (n * 31 + 7) % KEYS;
                        let least = published[n].load(Ordering::SeqCst);
                        let found = shelf.read(&identity(n), &resource(n), |slot, view| {
                            slot.used.touch(i64::try_from(n).unwrap());
                            let (token, _) = view.token.as_ref().unwrap();
                            assert_eq!(token.client_id(), Some(n.to_string().as_str()));
                            token.credential()
                        });
                        // Every third key goes and comes back.
                        let version = match found {
                            Some(version) => version,
                            None if n % 3 == 0 => continue,
                            None => panic!("key {n} is missing"),
                        };
                        assert!(version >= least.max(seen[n]), "{version} after {least} and {}", seen[n]);
                        seen[n] = version;
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            // The one writer.
            let mut version = 1;
            while version < 100 || read.load(Ordering::Relaxed) < 20_000 {
                version += 1;
                for (n, key) in keys.iter().enumerate() {
                    if n % 3 == 0 {
                        shelf.evict(key);
                    }
                    publish(n, version);
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        assert_eq!(shelf.len(), KEYS);
        assert!(marks.iter().any(|mark| mark.second() != 0));
        for key in &keys {
            shelf.evict(key);
        }
        assert_eq!(shelf.len(), 0);
    }
}
