//! Secrets read from manifests.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use secrecy::ExposeSecret as _;
use tokio::sync::watch;

use super::SecretBytes;
use crate::object::ObjectKey;

/// The most that are followed at once; a program follows what it has identities for.
const MOST: usize = 4096;

/// The data of one Secret.
#[derive(Debug, Default)]
pub(crate) struct SecretData(BTreeMap<String, SecretBytes>);

impl SecretData {
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn insert(&mut self, key: String, value: SecretBytes) {
        self.0.insert(key, value);
    }

    pub(super) fn copy(&self) -> BTreeMap<String, SecretBytes> {
        self.0.iter().map(|(k, v)| (k.clone(), SecretBytes::from(v.expose_secret().to_vec()))).collect()
    }
}

/// To notice a change of a manifest; nobody who could measure the time it takes gets to choose a value.
impl PartialEq for SecretData {
    fn eq(&self, other: &Self) -> bool {
        let plain = |data: &Self| -> Vec<(String, usize)> {
            data.0.iter().map(|(k, v)| (k.clone(), v.expose_secret().len())).collect()
        };
        plain(self) == plain(other)
            && self.0.values().zip(other.0.values()).all(|(a, b)| a.expose_secret() == b.expose_secret())
    }
}

/// Secrets read from manifests.
#[derive(Debug, Default)]
pub(crate) struct Store(Mutex<Stored>);

#[derive(Debug, Default)]
struct Stored {
    ready: bool,
    secrets: HashMap<ObjectKey, Arc<SecretData>>,
    followers: HashMap<ObjectKey, watch::Sender<u64>>,
}

impl Stored {
    fn tell(&self, key: &ObjectKey) {
        if let Some(follower) = self.followers.get(key) {
            follower.send_modify(|changes| *changes += 1);
        }
    }
}

/// What the store knows about one Secret.
pub(super) enum Held {
    Data(Arc<SecretData>),
    Nothing,
    /// The manifests have yet to be read.
    Unread,
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, key: ObjectKey, data: Arc<SecretData>) {
        let mut stored = self.lock();
        let changed = stored.secrets.get(&key) != Some(&data);
        if changed {
            stored.tell(&key);
        }
        stored.secrets.insert(key, data);
    }

    pub(crate) fn remove(&self, key: &ObjectKey) {
        let mut stored = self.lock();
        if stored.secrets.remove(key).is_some() {
            stored.tell(key);
        }
    }

    /// All manifests were read: what is not there does not exist.
    pub(crate) fn ready(&self) {
        let mut stored = self.lock();
        if !std::mem::replace(&mut stored.ready, true) {
            for follower in stored.followers.values() {
                follower.send_modify(|changes| *changes += 1);
            }
        }
    }

    pub(super) fn follow(&self, key: ObjectKey) -> watch::Receiver<u64> {
        let mut stored = self.lock();
        if stored.followers.len() >= MOST {
            stored.followers.retain(|_, follower| follower.receiver_count() > 0);
        }
        if stored.followers.len() >= MOST && !stored.followers.contains_key(&key) {
            return watch::channel(0).1;
        }
        stored.followers.entry(key).or_default().subscribe()
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Held {
        let stored = self.lock();
        match stored.secrets.get(key) {
            Some(data) => Held::Data(data.clone()),
            None if stored.ready => Held::Nothing,
            None => Held::Unread,
        }
    }
}
