//! What identities were asked for: their tokens are got again before a pod that gets such an identity asks for them.

use std::{collections::HashMap, sync::Arc};

use identity_core::lookup::Identity;

use super::{Effect, Machine, Now};
use crate::tokens::{ManagerConfig, key::Key};

/// Audiences for which tokens were got, by the group of an identity, the latest first.
#[derive(Debug, Default)]
pub(super) struct History(HashMap<u64, Vec<Key>>);

impl History {
    /// A token was got.
    pub(super) fn note(&mut self, config: &ManagerConfig, key: &Key) {
        // A pod's own token is got when that pod asks.
        if config.prefetch == 0 || key.is_for_one_pod() {
            return;
        }
        if self.0.len() >= config.capacity && !self.0.contains_key(&key.group()) {
            // Far beyond any node's number of identities: start over rather than grow.
            self.0.clear();
        }
        let keys = self.0.entry(key.group()).or_default();
        if keys.first() != Some(key) {
            keys.retain(|known| known.resource() != key.resource());
            keys.insert(0, key.clone());
            keys.truncate(config.prefetch);
        }
    }
}

impl Machine {
    /// A pod of this node has got an identity: what it was asked for before is asked for again, unless it is there. Nothing
    /// makes room for that.
    pub(super) fn assigned(&mut self, now: Now, group: u64, identity: &Arc<Identity>, out: &mut Vec<Effect>) {
        let keys: Vec<Key> = self.history.0.get(&group).into_iter().flatten().map(|key| key.of(identity)).collect();
        for key in keys {
            let id = match self.ids.get(&key).copied() {
                Some(id) => id,
                None if self.is_full(&key) => continue,
                None => {
                    let Some(id) = self.admit(now, key, None, out) else { continue };
                    id
                }
            };
            self.change(id, now, out, |entry, _, _, out| entry.wanted_soon(now, out));
        }
    }
}
