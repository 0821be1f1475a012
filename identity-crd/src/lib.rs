//! API types of the group `aadpodidentity.k8s.io`: which identity (`AzureIdentity`), who may use it and when
//! (`AzureIdentityBinding`), just-in-time access (`AzureIdentityGrant`), the result (`AzureAssignedIdentity`), and who is
//! let through to the node's own identities (`AzurePodIdentityException`).
//!
//! Group, plurals, JSON keys, the pod label and the annotation are those of the archived aad-pod-identity project,
//! so that existing manifests apply unchanged. A leaf crate: no client, no runtime.
//!
//! [`crds`] are the definitions to install; each spec's `validate` says what the API server says about its shape, and
//! more; [`unknown_fields`] is for manifests that come from files; [`policies`] are what RBAC cannot say.
//!
//! ```
//! use identity_crd::{AzureIdentity, AzureIdentitySpec};
//!
//! let identity = AzureIdentity::new("demo", AzureIdentitySpec {
//!     resource_id: Some("/subscriptions/0000/resourceGroups/demo".into()),
//!     ..AzureIdentitySpec::default()
//! });
//! let violations = identity.spec.validate();
//! assert_eq!(violations[0].field, "spec.resourceID");
//! assert!(violations[0].message.contains("az identity show"));
//! ```

#![allow(unreachable_pub)] // the schema derive copies each struct into a function body

mod assigned;
mod binding;
mod condition;
mod credential;
mod definitions;
mod exception;
mod foreign;
mod form;
mod grant;
mod identity;
pub mod policies;
mod resource_id;
mod rules;
mod time_box;
mod unknown;
mod validate;
mod violation;

pub use assigned::{
    AssignedGrant, AssignedIdentityState, AzureAssignedIdentity, AzureAssignedIdentitySpec, AzureAssignedIdentityStatus,
};
pub use binding::{AzureIdentityBinding, AzureIdentityBindingSpec, AzureIdentityBindingStatus};
pub use condition::{Condition, ConditionStatus, find_condition, set_condition};
pub use credential::{FEDERATED_AUDIENCE, FederatedCredential, FederatedSubject, KeyVaultReference, SecretReference};
pub use definitions::crds;
pub use exception::{AzurePodIdentityException, AzurePodIdentityExceptionSpec, AzurePodIdentityExceptionStatus};
pub use foreign::ForeignFields;
pub use grant::{
    Approval, AzureIdentityGrant, AzureIdentityGrantSpec, AzureIdentityGrantStatus, GrantPhase, Withdrawal,
};
pub use identity::{AzureIdentity, AzureIdentitySpec, AzureIdentityStatus, IdentityType};
pub use resource_id::{ResourceId, ResourceIdError};
pub use time_box::{Approvers, GrantPolicy, TimeBox, Window, parse_duration};
pub use unknown::unknown_fields;
pub use violation::Violation;

/// API group of all kinds.
pub const GROUP: &str = "aadpodidentity.k8s.io";
/// The served and stored version of the four kinds the predecessor had.
pub const VERSION: &str = "v1";
/// The version of `AzureIdentityGrant`.
pub const GRANT_VERSION: &str = "v1alpha1";
/// Pod label whose value a binding's `selector` equals.
pub const BINDING_LABEL: &str = "aadpodidbinding";
/// Annotation on an `AzureIdentity` that restricts it to its own namespace even under cluster-wide matching.
pub const BEHAVIOR_ANNOTATION: &str = "aadpodidentity.k8s.io/Behavior";
/// Value of [`BEHAVIOR_ANNOTATION`] with that effect (case-sensitive, as in the predecessor).
pub const BEHAVIOR_NAMESPACED: &str = "namespaced";
/// Label on an `AzureAssignedIdentity`: the node its pod runs on.
pub const NODE_LABEL: &str = "nodename";
