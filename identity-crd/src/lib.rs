//! API types of the group `aadpodidentity.k8s.io`: which identity (`AzureIdentity`), who may use it
//! (`AzureIdentityBinding`), the result (`AzureAssignedIdentity`), and who is let through to the node's own
//! identities (`AzurePodIdentityException`).
//!
//! Group, plurals, JSON keys, the pod label and the annotation are those of the archived aad-pod-identity project,
//! so that existing manifests apply unchanged. A leaf crate: no client, no runtime.

#![allow(unreachable_pub)] // the schema derive copies each struct into a function body

mod assigned;
mod binding;
mod condition;
mod exception;
mod identity;

pub use assigned::{
    AssignedIdentityState, AzureAssignedIdentity, AzureAssignedIdentitySpec, AzureAssignedIdentityStatus,
};
pub use binding::{AzureIdentityBinding, AzureIdentityBindingSpec, AzureIdentityBindingStatus};
pub use condition::{Condition, ConditionStatus};
pub use exception::{AzurePodIdentityException, AzurePodIdentityExceptionSpec, AzurePodIdentityExceptionStatus};
pub use identity::{AzureIdentity, AzureIdentitySpec, AzureIdentityStatus, IdentityType, SecretReference};

/// API group of all kinds.
pub const GROUP: &str = "aadpodidentity.k8s.io";
/// The served and stored version of the four kinds the predecessor had.
pub const VERSION: &str = "v1";
/// Pod label whose value a binding's `selector` equals.
pub const BINDING_LABEL: &str = "aadpodidbinding";
/// Annotation on an `AzureIdentity` that restricts it to its own namespace even under cluster-wide matching.
pub const BEHAVIOR_ANNOTATION: &str = "aadpodidentity.k8s.io/Behavior";
/// Value of [`BEHAVIOR_ANNOTATION`] with that effect (case-sensitive, as in the predecessor).
pub const BEHAVIOR_NAMESPACED: &str = "namespaced";
/// Label on an `AzureAssignedIdentity`: the node its pod runs on.
pub const NODE_LABEL: &str = "nodename";
