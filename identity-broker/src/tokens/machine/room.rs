//! Room for keys: pods choose audiences, so that their number is bounded for each identity, for each pod, and in all.

use super::{Effect, Entry, Machine, Now};
use crate::tokens::key::Key;

impl Machine {
    /// Makes an entry. Where there are as many as there may be, the one that was not asked for longest goes, those without
    /// a token first; never one that somebody waits for. `None` if all are waited for.
    pub(super) fn admit(&mut self, now: Now, key: Key, pod: Option<u64>, out: &mut Vec<Effect>) -> Option<u64> {
        while let Some(scope) = self.full(&key, pod) {
            let victim = self
                .entries
                .iter()
                .filter(|(_, entry)| scope.has(entry) && entry.is_idle())
                .min_by_key(|(id, entry)| (entry.has_token(), entry.used.second(), **id))
                .map(|(id, _)| *id)?;
            self.remove(victim, true, out);
        }
        let id = self.next;
        self.next += 1;
        self.ids.insert(key.clone(), id);
        self.entries.insert(id, Entry::new(key, pod, now));
        Some(id)
    }

    /// Whether something would have to go for this key.
    pub(super) fn is_full(&self, key: &Key) -> bool {
        self.full(key, None).is_some()
    }

    fn full(&self, key: &Key, pod: Option<u64>) -> Option<Scope> {
        let count = |scope: &Scope| self.entries.values().filter(|entry| scope.has(entry)).count();
        let config = &self.config;
        let scopes = [
            (pod.map(Scope::Pod), config.per_pod),
            // A pod's own are bounded by pod: others with the same identity take nothing from it.
            (Some(Scope::Group(key.group())).filter(|_| !key.is_for_one_pod()), config.per_identity),
            (Some(Scope::All), config.capacity),
        ];
        scopes.into_iter().find_map(|(scope, most)| scope.filter(|scope| count(scope) >= most.max(1)))
    }

    pub(super) fn remove(&mut self, id: u64, for_room: bool, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if let Some(at) = entry.wake {
            self.wakes.remove(&(at, id));
        }
        self.ids.remove(&entry.key);
        out.push(Effect::Evict { key: entry.key, for_room });
    }

    /// The sources that keys of a group have.
    pub(super) fn sources(&self, group: u64) -> std::collections::BTreeSet<u64> {
        let keys = self.entries.values().map(|entry| &entry.key);
        keys.filter(|key| key.group() == group).map(Key::source).collect()
    }

    /// Versions of identities that no key is of are worth little.
    pub(super) fn forget_versions(&mut self) {
        if self.versions.len() > self.config.capacity {
            let sources: std::collections::HashSet<u64> =
                self.entries.values().map(|entry| entry.key.source()).collect();
            self.versions.retain(|source, _| sources.contains(source));
        }
    }
}

/// What there may be only so many of.
enum Scope {
    Pod(u64),
    Group(u64),
    All,
}

impl Scope {
    fn has(&self, entry: &Entry) -> bool {
        match self {
            Self::Pod(pod) => entry.pod == Some(*pod),
            Self::Group(group) => entry.key.group() == *group,
            Self::All => true,
        }
    }
}
