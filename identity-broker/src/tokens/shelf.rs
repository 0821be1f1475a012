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
