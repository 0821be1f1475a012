//! What the index is told, what it asks for, and what came of it.

use identity_crd::{AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzureIdentityGrant, Condition};
use jiff::{SignedDuration, Timestamp};

use super::{GrantUpdate, ProofAnswer};
use crate::{grant::Proof, object::ObjectKey, pod::Pod};

/// How assignments are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The predecessor's matching: a binding selects pods of every namespace. Default: of its own only.
    pub cluster_wide: bool,
    /// How long the assignments of a pod that is gone are left to the cluster's garbage collector (they are owned by the
    /// pod) before the index asks for their deletion itself. Zero where there is no collector. Default: one minute.
    pub orphan_grace: SignedDuration,
    /// Least time between two writes of one object's status. Default: 5 seconds. That a time box has opened or closed waits for
    /// half a second at most.
    pub status_interval: SignedDuration,
    /// How long an identity may be missing before its binding is told: manifests are applied one after the other, and kinds
    /// are watched apart. Default: 2 seconds.
    pub missing_grace: SignedDuration,
    /// What proves who asked for a grant and who approved, where that is known beforehand. Default: it has to be asked for
    /// ([`Index::ask_for_proof`](super::Index::ask_for_proof)).
    pub proof: Option<Proof>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_wide: false,
            orphan_grace: SignedDuration::from_secs(60),
            status_interval: SignedDuration::from_secs(5),
            missing_grace: SignedDuration::from_secs(2),
            proof: None,
        }
    }
}

/// Something happened to an object. Events of one kind arrive in the order in which they happened; kinds are independent.
#[derive(Clone, Debug)]
pub enum Event {
    /// A pod appeared or changed.
    Pod(Pod),
    /// A pod is gone.
    PodDeleted(ObjectKey),
    /// An identity appeared or changed.
    Identity(Box<AzureIdentity>),
    /// An identity is gone.
    IdentityDeleted(ObjectKey),
    /// A binding appeared or changed.
    Binding(Box<AzureIdentityBinding>),
    /// A binding is gone.
    BindingDeleted(ObjectKey),
    /// An assignment (anybody's) appeared or changed. What is older than the answer to the index's own last write is
    /// recognised by its resource version and ignored.
    Assigned(Box<AzureAssignedIdentity>),
    /// An assignment is gone. `uid` says which; without it whatever has the name counts as gone.
    AssignedDeleted {
        /// Namespace and name.
        key: ObjectKey,
        /// `metadata.uid` of the deleted object.
        uid: Option<String>,
    },
    /// A grant appeared or changed. What is older than the answer to the index's own last write is ignored.
    Grant(Box<AzureIdentityGrant>),
    /// A grant is gone.
    GrantDeleted {
        /// Namespace and name.
        key: ObjectKey,
        /// `metadata.uid` of the deleted object.
        uid: Option<String>,
    },
    /// The proof that names in grants are true was asked for.
    Proof(ProofAnswer),
    /// The credential of an identity was tried, or could not be. What is said of another object of that name, or of another
    /// generation than the newest that is known, is ignored.
    Credential(Box<CredentialVerdict>),
    /// All objects of one kind as they are now: what is not in the list is gone. [`Index::plan`](super::Index::plan)
    /// stays empty until each of the first four kinds was listed once.
    Relist(Relist),
}

/// What is known of the credential of an identity: what its condition [`CREDENTIAL_READY`](super::CREDENTIAL_READY) says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialVerdict {
    /// The `AzureIdentity`.
    pub identity: ObjectKey,
    /// `metadata.uid` of the object that was judged, when it has one.
    pub uid: Option<String>,
    /// `metadata.generation` of it.
    pub generation: Option<i64>,
    /// Whether Entra takes the credential. `None`: it cannot be told where this was asked, or not now.
    pub ready: Option<bool>,
    /// One word in CamelCase.
    pub reason: String,
    /// For a person: what is wrong, and what to do.
    pub message: String,
    /// When the credential ends, where that is known.
    pub expires: Option<Timestamp>,
}

/// All objects of one kind.
#[derive(Clone, Debug)]
pub enum Relist {
    /// Pods.
    Pods(Vec<Pod>),
    /// `AzureIdentity`.
    Identities(Vec<AzureIdentity>),
    /// `AzureIdentityBinding`.
    Bindings(Vec<AzureIdentityBinding>),
    /// `AzureAssignedIdentity`.
    Assigned(Vec<AzureAssignedIdentity>),
    /// `AzureIdentityGrant`.
    Grants(Vec<AzureIdentityGrant>),
}

/// The version of an object that a write is meant for; the server refuses it for any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

/// One effect that the index asks for. Nothing about the same object is asked for again until the result was reported to
/// [`Index::done`](super::Index::done).
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write an assignment, complete with its status, in one request.
    Apply(Box<Apply>),
    /// Delete an assignment.
    Delete(Delete),
    /// Write the status of an identity or binding.
    Status(Box<StatusUpdate>),
    /// Write the status of a grant.
    Grant(Box<GrantUpdate>),
    /// Emit a Kubernetes Event. Best effort: its result need not be reported.
    Event(Notice),
}

/// Write this assignment.
#[derive(Clone, Debug, PartialEq)]
pub struct Apply {
    /// The object as it should be: metadata (name, namespace, labels, owner), spec and status; no `uid` or
    /// `resourceVersion`.
    pub object: AzureAssignedIdentity,
    /// The version it replaces. `None`: it must not exist yet.
    pub precondition: Option<Precondition>,
}

/// Delete this assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The version that is to go.
    pub precondition: Precondition,
}

/// An object whose status the controller writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StatusTarget {
    /// An `AzureIdentity`.
    Identity(ObjectKey),
    /// An `AzureIdentityBinding`.
    Binding(ObjectKey),
}

impl StatusTarget {
    /// Namespace and name.
    pub const fn key(&self) -> &ObjectKey {
        let (Self::Identity(key) | Self::Binding(key)) = self;
        key
    }

    /// `AzureIdentity` or `AzureIdentityBinding`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Identity(_) => "AzureIdentity",
            Self::Binding(_) => "AzureIdentityBinding",
        }
    }
}

/// Write this status (subresource `status`), leaving the conditions of other types alone.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusUpdate {
    /// Of which object.
    pub target: StatusTarget,
    /// `metadata.uid` of the object that was judged, when it has one.
    pub uid: Option<String>,
    /// The conditions that are this controller's, all of them.
    pub conditions: Vec<Condition>,
    /// `matchedPods` (bindings only).
    pub matched_pods: Option<i32>,
    /// `credentialExpiry` (identities only), RFC 3339.
    pub credential_expiry: Option<String>,
    /// `nextTransition` (bindings only), RFC 3339.
    pub next_transition: Option<String>,
    /// `residualUntil` (bindings only), RFC 3339.
    pub residual_until: Option<String>,
}

/// Something a person should see in `kubectl describe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// About which object.
    pub target: StatusTarget,
    /// Its `metadata.uid`.
    pub uid: Option<String>,
    /// `Warning` rather than `Normal`.
    pub warning: bool,
    /// The grant that it is because of: Events of two grants are two, where others with one reason are counted as one.
    pub grant: Option<GrantReference>,
    /// One word in CamelCase.
    pub reason: String,
    /// For a person.
    pub message: String,
}

/// An `AzureIdentityGrant`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantReference {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`.
    pub uid: Option<String>,
}

/// What came of an [`Action`].
#[derive(Clone, Debug)]
pub enum Outcome {
    /// [`Action::Apply`] was done: the object as the server answered it.
    Applied(Box<AzureAssignedIdentity>),
    /// [`Action::Grant`] was done: the object as the server answered it.
    Granted(Box<AzureIdentityGrant>),
    /// [`Action::Delete`] (also when it was gone already), [`Action::Status`] or [`Action::Event`] was done.
    Done,
    /// The precondition did not hold: what the index had observed was out of date. It waits for the newer version.
    Conflict,
    /// It failed. Worked out anew, and handed out again if still wanted, no earlier than this.
    Failed {
        /// Earliest time of the next attempt (the executor's back-off).
        retry_at: Timestamp,
    },
}

/// What [`Index::plan_status`](super::Index::plan_status) answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatusPlan {
    /// What to write now.
    pub actions: Vec<Action>,
    /// When a held-back change becomes due.
    pub next_due: Option<Timestamp>,
}
