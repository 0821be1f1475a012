//! The life of a just-in-time grant: (what is persisted, what is known, now) → what to persist next, and what it gives now.
//!
//! Values only: [`review()`] looks at an `AzureIdentityGrant` as the API server has it, at its binding and at what proves who
//! wrote it, and says what becomes of it. Nothing is remembered between two reviews, so a controller that restarts, or two
//! that overlap, go on from what is persisted.
//!
//! ```text
//!            enough approvals             now ≥ activeUntil
//! Pending ────────────────────▶ Active ────────────────────▶ Expired
//!    │  denied                     │  revoked, denied, deleted, binding gone or without grant
//!    ├─────────▶ Denied            └────────────────────▶ Revoked
//!    │  revoked
//!    ├─────────▶ Revoked
//!    │  never to be honoured
//!    └─────────▶ Refused
//! ```
//!
//! Whoever carries it out keeps to five rules, which the model of this module (`grant/model.rs`) shows to be enough for two
//! controllers at once, whatever they have seen of each other's writes:
//! 1. a status is written only on the version of the grant that was reviewed (`metadata.uid` and `resourceVersion`);
//! 2. a [`Stamp`] comes from a grant whose activation is persisted, so that its deadline is written before it gives
//!    access, and nobody ever gives a later one;
//! 3. when a stamp is gone, it goes from the assignments, too;
//! 4. before an activation is written, the [`Proof`] is asked for at the API server, after the grant was seen, and the grant
//!    reviewed again with it: what a watch has shown of the admission policy may be older than a forged approval;
//! 5. a transition that [hangs on the binding](Review::hangs_on_binding) is written only after the API server has shown that
//!    the binding is the one that was reviewed: grants and bindings are watched apart, so either may have been seen late, and
//!    what is final cannot be taken back.
//!
//! ```
//! use identity_core::grant::{Proof, review};
//! use identity_crd::{AzureIdentityBinding, AzureIdentityGrant, GrantPhase};
//! use serde_json::{from_value, json};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let binding: AzureIdentityBinding = from_value(json!({
//!     "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
//!     "metadata": {"namespace": "demo", "name": "break-glass", "uid": "binding-1"},
//!     "spec": {"azureIdentity": "admin", "selector": "ops", "timeBox": {"grant":
//!         {"required": true, "maxDuration": "2h", "minApprovals": 1, "approvers": {"groups": ["sre"]}}}},
//! }))?;
//! let mut grant: AzureIdentityGrant = from_value(json!({
//!     "apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant",
//!     "metadata": {"namespace": "demo", "name": "g", "uid": "grant-1", "creationTimestamp": "2026-11-24T12:00:00Z"},
//!     "spec": {"bindingName": "break-glass", "reason": "incident 4711", "duration": "30m", "requestedBy": "ann"},
//! }))?;
//! let proof = Proof::Since("2026-11-01T00:00:00Z".parse()?);
//! let now = "2026-11-24T12:05:00Z".parse()?;
//!
//! let waiting = review(&grant, Some(&binding), &proof, now);
//! assert_eq!(waiting.phase, GrantPhase::Pending);
//!
//! grant.spec.approvals = from_value(json!([{"by": "bob", "groups": ["sre"]}]))?;
//! let approved = review(&grant, Some(&binding), &proof, now);
//! assert_eq!(approved.phase, GrantPhase::Active);
//! assert_eq!(approved.stamp, None, "not before the deadline is written");
//!
//! grant.status = approved.status; // here the API server would write it
//! let active = review(&grant, Some(&binding), &proof, now);
//! assert_eq!(active.stamp.unwrap().until, "2026-11-24T12:35:00Z".parse()?);
//! # Ok(())
//! # }
//! ```

mod approval;
#[cfg(test)]
mod model;
mod proof;
mod record;
mod review;
#[cfg(test)]
mod tests;

pub use approval::{Approvals, approvals};
pub use proof::{Proof, SETTLING};
pub(crate) use record::Looked;
pub use record::Record;
pub use review::{ACTIVE, APPROVED, Review, Stamp, Transition, VALID, review, stamp_for};
