//! For tests.

use identity_core::lookup::{CredentialSource, Identity, ObjectRef, SecretKeyRef};
use identity_crd::IdentityType;

/// An identity with its credential in Secret ns/cred.
pub(crate) fn identity(kind: IdentityType) -> Identity {
    Identity {
        object: ObjectRef { namespace: "ns".into(), name: "id".into(), uid: "1".into(), generation: 1 },
        kind,
        client_id: Some("client".into()),
        object_id: None,
        resource_id: None,
        tenant_id: Some("tenant".into()),
        authority: None,
        credential: CredentialSource::Secret(SecretKeyRef { namespace: "ns".into(), name: "cred".into(), key: None }),
        audiences: Box::default(),
    }
}
