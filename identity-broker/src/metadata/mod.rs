//! The rest of the node's metadata service: what pods may reach of it ([`Policy`]), and the proxy that passes it on.

mod path;
mod policy;
mod policy_file;

pub use path::{MetadataPath, PathError};
pub use policy::{Action, Policy, Rule, Verb};
pub use policy_file::{MAX_FILE, MAX_RULES, PolicyError};
