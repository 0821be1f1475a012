//! What proves to Entra who an application is: read, parsed, tried before it takes over, and said what is wrong with it.

mod checker;
mod material;
mod notice;
mod pkcs12_cost;

pub use checker::{Checked, Checker};
pub(crate) use material::{Certificate, Credential, certificate, client_secret};
pub use material::{CredentialError, CredentialProblem};
pub use notice::Notice;
