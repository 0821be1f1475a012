//! Assertions of workload identity federation: whose token the cluster gives, and where from.
//!
//! An assertion is a service account's token that the cluster made for one audience. Entra takes it as it is
//! (`client_assertion`) when the application has a federated credential with the same issuer, subject and audience. With the
//! subject `Broker` it is the node's own projected token ([`TokenFile`]), the same for all pods; with `Pod` it is the token of
//! the pod that asks ([`PodTokens`]). What each of them means when a node is stolen is in ADR 17 and in the threat model.

mod assertion;
mod error;
mod explain;
mod file;
mod source;

pub use assertion::Assertion;
pub use error::{AssertionError, PodTokenError};
pub use explain::explain;
pub use file::TokenFile;
pub use source::{AssertionSource, Assertions, PodTokens};
