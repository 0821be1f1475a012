//! Secrets by name, from the API server or from manifests. Values never appear in an error, a log or `Debug` output.
//!
//! From an API server, a Secret that is asked for is followed from then on: one list and watch with the field selector
//! `metadata.name`, which RBAC allows to an account that may `list` and `watch` that name alone. Answers then come from
//! memory, through an outage too. An account that may only `get` is served by asking again: at each question, at most once a
//! second, and every minute. How many are followed is bounded, and what nobody asks for is dropped.

mod followed;
#[cfg(test)]
mod secrecy_tests;
mod store;
mod wire;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use secrecy::SecretSlice;
use tokio::sync::watch;

pub(crate) use self::store::{SecretData, Store};
use self::{followed::Followed, store::Held};
use super::{
    observe::{Nobody, Observer},
    source::Source,
};
use crate::object::ObjectKey;

/// Bytes that are wiped when they are dropped, and that `Debug` does not show.
pub type SecretBytes = SecretSlice<u8>;

/// Why a Secret, or a key of it, is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such Secret.
    #[error("there is no Secret {namespace}/{name}")]
    NotFound {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// The Secret lacks a key.
    #[error("Secret {namespace}/{name} has no key `{key}`; it has {}", list(has))]
    KeyMissing {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// The key that was looked for.
        key: String,
        /// The keys it has.
        has: Vec<String>,
    },
    /// This account may not read it.
    #[error(
        "not allowed to read Secret {namespace}/{name}: grant verb `get` on resource `secrets` named `{name}` in namespace \
         `{namespace}` to this account (examples/secret-access/role.yaml). The API server said: {message}"
    )]
    Forbidden {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// The server's words.
        message: String,
    },
    /// It cannot be told now.
    #[error("Secret {namespace}/{name} cannot be read now: {reason}")]
    Unavailable {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Why.
        reason: String,
    },
    /// What is there is no Secret as Kubernetes has them.
    #[error("Secret {namespace}/{name} is malformed: {reason}")]
    Malformed {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Why; no value.
        reason: String,
    },
}

fn list(keys: &[String]) -> String {
    if keys.is_empty() { "no keys at all".to_owned() } else { keys.join(", ") }
}

/// How Secrets of an API server are followed.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most that are followed at once. Each is a watch, and so a connection. Beyond it the one that was used least recently
    /// gives way, unless it was used within the last minute; then the newcomer is read and not followed.
    pub most: usize,
    /// One that nobody asked for in so long a time is dropped, unless a receiver of [`Secrets::follow`] lives.
    pub idle: Duration,
    /// Where it may be read and not watched: how often it is read again.
    pub poll: Duration,
    /// Who counts.
    pub observer: Arc<dyn Observer>,
}

impl Default for Config {
    /// 128 at once, 30 minutes, every minute.
    fn default() -> Self {
        Self { most: 128, idle: Duration::from_mins(30), poll: Duration::from_mins(1), observer: Arc::new(Nobody) }
    }
}

/// Reads Secrets, and follows those that are read. Cheap to clone; clones share what is followed.
#[derive(Clone)]
pub struct Secrets(Inner);

#[derive(Clone)]
enum Inner {
    Kubernetes(Arc<Followed>),
    Manifests(Arc<Store>),
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Inner::Kubernetes(_) => "Secrets(Kubernetes)",
            Inner::Manifests(_) => "Secrets(manifests)",
        })
    }
}

impl Secrets {
    /// Secrets of the same source as other objects. From manifests they are to be had once `source` is being watched.
    pub fn new(source: &Source) -> Self {
        Self::with(source, Config::default())
    }

    /// The same, followed as `config` says. Within a tokio runtime.
    pub fn with(source: &Source, config: Config) -> Self {
        Self(match source {
            Source::Kubernetes(client) => Inner::Kubernetes(Followed::new(client.clone(), config)),
            Source::Manifests(manifests) => Inner::Manifests(manifests.secrets().clone()),
        })
    }

    /// A number that changes whenever the Secret may have changed, appeared or gone, or whether it may be read. When the
    /// sender is gone, it is followed no longer (there are too many): ask again now and then.
    pub fn follow(&self, namespace: &str, name: &str) -> watch::Receiver<u64> {
        let key = ObjectKey::new(namespace, name);
        match &self.0 {
            Inner::Kubernetes(followed) => followed.follow(&key),
            Inner::Manifests(store) => store.follow(key),
        }
    }

    /// All keys and values of a Secret. Answers within 5 seconds.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, SecretBytes>, Error> {
        let (owned_namespace, owned_name) = (namespace.to_owned(), name.to_owned());
        match &self.0 {
            Inner::Kubernetes(followed) => {
                let data = followed.get(&ObjectKey::new(namespace, name)).await?;
                Ok(data.copy())
            }
            Inner::Manifests(store) => match store.get(&ObjectKey::new(namespace, name)) {
                Held::Data(data) => Ok(data.copy()),
                Held::Nothing => Err(Error::NotFound { namespace: owned_namespace, name: owned_name }),
                Held::Unread => Err(Error::Unavailable {
                    namespace: owned_namespace,
                    name: owned_name,
                    reason: "the manifests have yet to be read".to_owned(),
                }),
            },
        }
    }

    /// One value of a Secret.
    pub async fn key(&self, namespace: &str, name: &str, key: &str) -> Result<SecretBytes, Error> {
        let mut all = self.get(namespace, name).await?;
        all.remove(key).ok_or_else(|| Error::KeyMissing {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            has: all.into_keys().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn secrets() -> Secrets {
        let store = Store::default();
        let mut data = SecretData::new();
        data.insert("clientsecret".into(), SecretBytes::from(b"hunter2".to_vec()));
        store.put(ObjectKey::new("team", "sp"), Arc::new(data));
        store.ready();
        Secrets(Inner::Manifests(Arc::new(store)))
    }

    #[tokio::test]
    async fn values_come_out_only_when_asked_for() {
        let secrets = secrets();
        let value = secrets.key("team", "sp", "clientsecret").await.unwrap();
        assert_eq!(value.expose_secret(), b"hunter2");
        let all = secrets.get("team", "sp").await.unwrap();
        let Inner::Manifests(store) = &secrets.0 else { unreachable!() };
        for shown in [format!("{value:?}"), format!("{all:?}"), format!("{secrets:?}"), format!("{store:?}")] {
            // Neither as text nor as a list of bytes.
            assert!(!shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
        }
    }

    #[tokio::test]
    async fn errors_name_what_is_missing() {
        let secrets = secrets();
        assert_eq!(
            secrets.key("team", "sp", "password").await.unwrap_err().to_string(),
            "Secret team/sp has no key `password`; it has clientsecret"
        );
        assert_eq!(secrets.get("team", "other").await.unwrap_err().to_string(), "there is no Secret team/other");
        let unread = Secrets(Inner::Manifests(Arc::default()));
        assert!(matches!(unread.get("team", "sp").await, Err(Error::Unavailable { .. })));
    }
}
