//! Secrets by name, from the API server or from manifests. Values never appear in an error, a log or `Debug` output.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::{Client, api::GetParams};
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use serde::Deserialize;

use super::{
    request::{Failure, send},
    source::Source,
};
use crate::object::ObjectKey;

/// Bytes that are wiped when they are dropped, and that `Debug` does not show.
pub type SecretBytes = SecretSlice<u8>;

/// How long one read of a Secret may take.
const LIMIT: Duration = Duration::from_secs(5);

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

/// Reads Secrets. Cheap to clone. Nothing is cached: whoever asks decides how often.
#[derive(Clone)]
pub struct Secrets(Inner);

#[derive(Clone)]
enum Inner {
    Kubernetes(Client),
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
        Self(match source {
            Source::Kubernetes(client) => Inner::Kubernetes(client.clone()),
            Source::Manifests(manifests) => Inner::Manifests(manifests.secrets().clone()),
        })
    }

    /// All keys and values of a Secret. Answers within 5 seconds.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, SecretBytes>, Error> {
        let (owned_namespace, owned_name) = (namespace.to_owned(), name.to_owned());
        match &self.0 {
            Inner::Kubernetes(client) => fetch(client, namespace, name).await,
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

async fn fetch(client: &Client, namespace: &str, name: &str) -> Result<BTreeMap<String, SecretBytes>, Error> {
    #[derive(Deserialize)]
    struct Wire {
        #[serde(default)]
        data: Option<BTreeMap<String, Wiped>>,
    }
    let (namespace_, name_) = (namespace.to_owned(), name.to_owned());
    let url = format!("/api/v1/namespaces/{namespace}/secrets");
    let request = kube::core::Request::new(url).get(name, &GetParams::default());
    let request = match request {
        Ok(request) => request,
        Err(error) => {
            return Err(Error::Malformed { namespace: namespace_, name: name_, reason: error.to_string() });
        }
    };
    let wire: Wire = send(client, request, LIMIT).await.map_err(|failure| match failure {
        Failure::NotFound(_) => Error::NotFound { namespace: namespace_.clone(), name: name_.clone() },
        Failure::Forbidden(message) => Error::Forbidden { namespace: namespace_.clone(), name: name_.clone(), message },
        // The parser's words may quote a value.
        Failure::Unreadable(_) => Error::Malformed {
            namespace: namespace_.clone(),
            name: name_.clone(),
            reason: "the API server's answer cannot be read".to_owned(),
        },
        other => Error::Unavailable { namespace: namespace_.clone(), name: name_.clone(), reason: other.to_string() },
    })?;
    let mut data = BTreeMap::new();
    for (key, Wiped(encoded)) in wire.data.unwrap_or_default() {
        let Ok(bytes) = STANDARD.decode(encoded.expose_secret()) else {
            let reason = format!("the value of key `{key}` is not base64");
            return Err(Error::Malformed { namespace: namespace_, name: name_, reason });
        };
        data.insert(key, SecretBytes::from(bytes));
    }
    Ok(data)
}

/// A string that is wiped after use.
struct Wiped(SecretString);

impl<'de> Deserialize<'de> for Wiped {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.into()))
    }
}

/// The data of one Secret from a manifest.
#[derive(Debug, Default)]
pub(crate) struct SecretData(BTreeMap<String, SecretBytes>);

impl SecretData {
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn insert(&mut self, key: String, value: SecretBytes) {
        self.0.insert(key, value);
    }

    fn copy(&self) -> BTreeMap<String, SecretBytes> {
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
}

/// What the store knows about one Secret.
enum Held {
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
        self.lock().secrets.insert(key, data);
    }

    pub(crate) fn remove(&self, key: &ObjectKey) {
        self.lock().secrets.remove(key);
    }

    pub(crate) fn ready(&self) {
        self.lock().ready = true;
    }

    fn get(&self, key: &ObjectKey) -> Held {
        let stored = self.lock();
        match stored.secrets.get(key) {
            Some(data) => Held::Data(data.clone()),
            None if stored.ready => Held::Nothing,
            None => Held::Unread,
        }
    }
}

#[cfg(test)]
mod tests {
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

    #[tokio::test(start_paused = true)]
    async fn an_api_server_is_asked_each_time() {
        use crate::runtime::testing::{Fault, Server};
        let server = Server::new();
        let secrets = Secrets::new(&Source::kubernetes(server.client()));
        let secret = |data: serde_json::Value| serde_json::json!({"kind": "Secret", "metadata": {"name": "sp", "namespace": "team"}, "data": data});
        let get = || secrets.key("team", "sp", "a");
        assert_eq!(get().await.unwrap_err().to_string(), "there is no Secret team/sp");
        server.put("secrets", secret(serde_json::json!({"a": "aHVudGVyMg=="})));
        assert_eq!(get().await.unwrap().expose_secret(), b"hunter2");
        assert_eq!(server.calls(|_| true)[1].text(), "GET /api/v1/namespaces/team/secrets/sp?\n");
        // What is wrong with it is said without saying it.
        for data in
            [serde_json::json!({"a": "hunter2"}), serde_json::json!({"a": 271_828}), serde_json::json!("hunter2")]
        {
            server.put("secrets", secret(data));
            let error = get().await.unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
            let text = format!("{error:?} {error}");
            assert!(!text.contains("hunter2") && !text.contains("271"), "{text}");
        }
        server.put("secrets", serde_json::json!({"metadata": {"name": "sp", "namespace": "team"}}));
        assert!(matches!(get().await.unwrap_err(), Error::KeyMissing { has, .. } if has.is_empty()));
        server.rule(|_| Some(Fault::Code(403, None)));
        let text = get().await.unwrap_err().to_string();
        assert!(text.contains("grant verb `get` on resource `secrets` named `sp` in namespace `team`"), "{text}");
        let (_never, gate) = tokio::sync::watch::channel(false);
        server.rule(move |_| Some(Fault::Slow(gate.clone())));
        let began = tokio::time::Instant::now();
        assert!(matches!(get().await.unwrap_err(), Error::Unavailable { .. }));
        assert_eq!(began.elapsed().as_secs(), 5);
    }
}
