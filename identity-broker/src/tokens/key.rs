//! What a token is of and for.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use identity_core::lookup::{CredentialSource, Identity, ObjectRef};

/// An identity and an audience, as the pod sent it: Entra writes it into the token's `aud` to the last slash, so that two
/// spellings are two tokens. The tenant is the identity's.
///
/// The version of the credential is not part of it but of the token: it is known only once one has been got.
#[derive(Clone)]
pub(super) struct Key(Arc<Inner>);

struct Inner {
    identity: Arc<Identity>,
    resource: Box<str>,
    hash: u64,
    group: u64,
    source: u64,
}

/// Hashes of a key: of itself, and of its identity's object alone.
#[derive(Clone, Copy)]
pub(super) struct Hashes {
    pub(super) key: u64,
    pub(super) group: u64,
}

impl Hashes {
    /// `hasher` is seeded at random: pods choose audiences.
    pub(super) fn of(hasher: &impl BuildHasher, identity: &Identity, resource: &str) -> Self {
        let mut state = Self::object(hasher, &identity.object);
        let group = state.finish();
        state.write(resource.as_bytes());
        // Pods with tokens of their own are not to be looked for one by one.
        if let Some(pod) = pod(identity) {
            state.write(pod.as_bytes());
        }
        Self { key: state.finish(), group }
    }

    /// Of the object that all keys of an identity have.
    pub(super) fn group(hasher: &impl BuildHasher, object: &ObjectRef) -> u64 {
        Self::object(hasher, object).finish()
    }

    fn object<B: BuildHasher>(hasher: &B, object: &ObjectRef) -> B::Hasher {
        let mut state = hasher.build_hasher();
        for part in [&*object.uid, &*object.namespace, &*object.name] {
            state.write(part.as_bytes());
            state.write_u8(0xff);
        }
        state
    }
}

impl Key {
    pub(super) fn new(hashes: Hashes, identity: &Arc<Identity>, resource: &str) -> Self {
        Self(Arc::new(Inner {
            identity: Arc::clone(identity),
            resource: resource.into(),
            hash: hashes.key,
            group: hashes.group,
            source: source(identity),
        }))
    }

    /// The same audience of the same identity, as its object is now.
    pub(super) fn of(&self, identity: &Arc<Identity>) -> Self {
        Self::new(Hashes { key: self.0.hash, group: self.0.group }, identity, &self.0.resource)
    }

    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.0.identity
    }

    pub(super) fn resource(&self) -> &str {
        &self.0.resource
    }

    pub(super) fn hash(&self) -> u64 {
        self.0.hash
    }

    /// Whether it is for one pod alone.
    pub(super) fn is_for_one_pod(&self) -> bool {
        pod(&self.0.identity).is_some()
    }

    /// Of the identity's object.
    pub(super) fn group(&self) -> u64 {
        self.0.group
    }

    /// Of everything that goes upstream but the audience: an object that is changed has another one from then on.
    pub(super) fn source(&self) -> u64 {
        self.0.source
    }

    pub(super) fn is(&self, identity: &Arc<Identity>, resource: &str) -> bool {
        *self.0.resource == *resource && (Arc::ptr_eq(&self.0.identity, identity) || same(&self.0.identity, identity))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.hash == other.0.hash && self.is(&other.0.identity, &other.0.resource)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = &self.0.identity.object;
        write!(f, "{}/{} {}", object.namespace, object.name, self.0.resource)
    }
}

/// The pod whose own token proves the identity, by its UID: tokens got for it are its own.
fn pod(identity: &Identity) -> Option<&str> {
    match &identity.credential {
        CredentialSource::Federated(federation) => federation.pod.as_ref().map(|pod| &*pod.uid),
        CredentialSource::None | CredentialSource::Secret(_) | CredentialSource::KeyVault(_) => None,
    }
}

fn source(identity: &Identity) -> u64 {
    let Identity { object, kind, client_id, resource_id, tenant_id, authority, credential, .. } = identity;
    let object = (&object.uid, &object.namespace, &object.name);
    let what = format!("{:?}", (object, kind, client_id, resource_id, tenant_id, authority, credential));
    crate::digest::first64(what.as_bytes())
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
        && one.credential == other.credential
}

/// When a key was last asked for, in seconds since the epoch: written by whoever answers from what is published.
#[derive(Debug, Default)]
pub(super) struct Mark(AtomicI64);

impl Mark {
    pub(super) fn touch(&self, second: i64) {
        // Most often it is the same second: no write, no cache line taken from others.
        if self.0.load(Ordering::Relaxed) != second {
            self.0.store(second, Ordering::Relaxed);
        }
    }

    pub(super) fn second(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}
