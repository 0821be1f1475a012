//! What is asked and what is answered.

use std::{net::IpAddr, sync::Arc};

pub use identity_crd::FederatedSubject;
use identity_crd::IdentityType;
use jiff::Timestamp;

use crate::{
    pod::PodRef,
    schedule::{Gate, Reason},
};

/// Who asks: the peer address of the connection, and the pod the connection began with, if it has been told.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Peer address.
    pub address: IpAddr,
    /// UID of the pod that an earlier request on this connection was decided for.
    pub pinned: Option<&'a str>,
}

/// Which identity a request names. Values are compared without ASCII case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestedIdentity<'a> {
    /// None: highest weight, else the sole one, else an error.
    Default,
    /// `client_id`.
    ClientId(&'a str),
    /// `object_id`.
    ObjectId(&'a str),
    /// `msi_res_id` or `mi_res_id`.
    ResourceId(&'a str),
}

/// A token request, reduced to what the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `resource`, as sent.
    pub resource: &'a str,
    /// Which identity.
    pub identity: RequestedIdentity<'a>,
}

/// What may be done with a request.
#[derive(Clone, Debug)]
pub enum Decision {
    /// A token may be issued.
    Allow(Allow),
    /// Not yet: hold the request until the snapshot changes, for a bounded time.
    Wait(Wait),
    /// Refused.
    Deny(Deny),
}

/// Permission for one token.
#[derive(Clone, Debug)]
pub struct Allow {
    /// The calling pod.
    pub pod: Arc<PodRef>,
    /// On what ground.
    pub source: Source,
    /// No answer may claim a lifetime past this instant: the time box closes then, or the grant ends.
    pub until: Option<Timestamp>,
}

/// On what ground a token is issued.
#[derive(Clone, Debug)]
pub enum Source {
    /// An assignment.
    Assignment(Arc<Assignment>),
    /// An `AzurePodIdentityException` exempts the pod: its own request, with whatever identity it names, goes to the node's
    /// own metadata service.
    Exception(Arc<ObjectRef>),
}

/// An object in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// UID, empty when the source has none.
    pub uid: Arc<str>,
    /// `metadata.generation`, 0 when the source has none.
    pub generation: i64,
}

/// One identity assigned to one pod through one binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The `AzureAssignedIdentity`.
    pub object: ObjectRef,
    /// UID of the pod it is for.
    pub pod_uid: Arc<str>,
    /// The binding.
    pub binding: ObjectRef,
    /// The binding's weight.
    pub weight: i32,
    /// The binding's audiences; empty = any.
    pub binding_audiences: Box<[Box<str>]>,
    /// The identity.
    pub identity: Arc<Identity>,
    /// Whether it may be used already (`status.status` is `Assigned`).
    pub ready: bool,
    /// The time boxes of binding and identity; `None`: they are always open.
    pub gate: Option<Arc<Gate>>,
    /// The active grant.
    pub granted: Option<Granted>,
}

/// A grant that has been activated for an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Name of the `AzureIdentityGrant`, in the pod's namespace.
    pub name: Box<str>,
    /// Its end, the beginning of time when that, or anything else of it, cannot be read.
    pub until: Timestamp,
}

/// An `AzureIdentity`, as a node needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The `AzureIdentity`.
    pub object: ObjectRef,
    /// What backs it.
    pub kind: IdentityType,
    /// `clientID`.
    pub client_id: Option<Box<str>>,
    /// `objectID`.
    pub object_id: Option<Box<str>>,
    /// `resourceID`.
    pub resource_id: Option<Box<str>>,
    /// `tenantID`.
    pub tenant_id: Option<Box<str>>,
    /// `adEndpoint`.
    pub authority: Option<Box<str>>,
    /// Where its credential is.
    pub credential: CredentialSource,
    /// `audiences`; empty = any.
    pub audiences: Box<[Box<str>]>,
}

/// Where the credential of an identity is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum CredentialSource {
    /// It has none: a managed identity (type 0).
    #[default]
    None,
    /// `clientPassword`, the namespace filled in.
    Secret(SecretKeyRef),
    /// `keyVault`.
    KeyVault(VaultRef),
    /// `federated` (type 3).
    Federated(Federation),
}

impl CredentialSource {
    /// The Secret, when it is in one.
    pub const fn secret(&self) -> Option<&SecretKeyRef> {
        match self {
            Self::Secret(secret) => Some(secret),
            Self::None | Self::KeyVault(_) | Self::Federated(_) => None,
        }
    }
}

/// An object in a Key Vault.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VaultRef {
    /// `vaultURL`, as written.
    pub url: Box<str>,
    /// Which object.
    pub object: VaultObject,
    /// Its version; the current one when absent.
    pub version: Option<Box<str>>,
    /// Name of the `AzureIdentity` that reads it, in the same namespace.
    pub identity: Box<str>,
}

/// What kind of object in a Key Vault, with its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VaultObject {
    /// `secretName`.
    Secret(Box<str>),
    /// `certificateName`.
    Certificate(Box<str>),
}

/// Workload identity federation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Federation {
    /// Whose token is the assertion.
    pub subject: FederatedSubject,
    /// Audience of that token.
    pub audience: Box<str>,
    /// The pod whose token it is, in what is decided for a pod. Only for the subject `Pod`: so that what is got for one pod is
    /// not taken for another's.
    pub pod: Option<Arc<PodRef>>,
}

/// A Secret, or a key in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretKeyRef {
    /// Namespace.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// Key; which keys are looked for when absent depends on the identity's type.
    pub key: Option<Box<str>>,
}

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// No pod has this address yet.
    UnknownAddress,
    /// More than one pod has this address.
    AmbiguousAddress,
    /// A binding selects the pod, its assignment has yet to come or to become usable.
    Assignment(Arc<PodRef>),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deny {
    /// The address belongs to the node itself or to a host-network pod.
    HostNetwork,
    /// The address now belongs to another pod than the connection began with.
    AddressChangedHands,
    /// No binding selects the pod.
    NoBinding(Arc<PodRef>),
    /// The pod has assignments, but none for the identity that the request names.
    IdentityNotFound(Arc<PodRef>),
    /// The request names no identity and several have the highest weight.
    MultipleIdentities(Arc<PodRef>),
    /// The identity or the binding does not allow this resource.
    Audience(Arc<PodRef>, Arc<Assignment>),
    /// The time box of the binding or of its identity is closed, or a grant is missing.
    Closed {
        /// The calling pod.
        pod: Arc<PodRef>,
        /// What it would have, of several the one that opens first.
        assignment: Arc<Assignment>,
        /// When it opens next by itself, if it does.
        opens: Option<Timestamp>,
        /// Why it is closed.
        reason: Reason,
    },
}
