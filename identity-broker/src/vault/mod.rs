//! Reads the secrets and certificates of Key Vaults, through Microsoft's own crates over this project's transport (ADR 16).
//!
//! ```text
//! VaultRef ─ suffixes ─ Reader::read ─ azure_security_keyvault_* ─ Guard ─ hyper, rustls
//!            before anything is sent    asks for tokens            nothing leaves but to the vault's host
//! ```
//!
//! A vault's host is looked at before a token is asked for. What a vault answers moves nothing: the token is for the resource
//! that belongs to the host's suffix, it comes from whoever reads, and it goes to the host it was meant for. A certificate's
//! private key and chain are the *secret* of the same name, as Key Vault keeps them.

mod answer;
mod challenge;
mod error;
mod guard;
mod reader;
mod suffixes;

pub use error::{Access, Error};
pub use reader::{Bundle, Reader};
pub use suffixes::{DEFAULT_SUFFIXES, VaultSuffixes};

/// The most that is shown of something that a vault or an object says, in characters.
const MOST: usize = 200;

#[cfg(test)]
mod tests;
