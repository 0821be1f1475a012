//! What proves to Entra who an application is: read, parsed, tried before it takes over, and said what is wrong with it.
//!
//! ```text
//! Credentials::get ── in use and fresh ──────────────────────────────────────────── credential
//!        └─ task of the credential ─ rotation machine ─ effects ─┬─ source: Secret, Key Vault ─ parse
//!                                                                ├─ try at Entra
//!                                                                └─ notices, expiry, answers
//! ```

mod checker;
mod material;
mod notice;
mod parse;
mod pkcs12_cost;
mod rotation;
#[cfg(test)]
mod secrecy_tests;
mod source;
mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod vault_tests;
mod vaults;
mod verdict;

pub use checker::{Checked, Checker};
pub(crate) use material::{Certificate, Credential, SKEW};
pub use material::{CredentialError, CredentialProblem, Part};
pub use notice::Notice;
pub use rotation::RotationConfig;
pub(crate) use store::{Bearers, Credentials, Tried, Try};
pub(crate) use verdict::explain;
pub use verdict::{RefusalCause, Verdict};
