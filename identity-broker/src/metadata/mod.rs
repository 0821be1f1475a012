//! The rest of the node's metadata service: what pods may reach of it, and what passes it on.
//!
//! ```text
//! header ─ verb ─ path ─ pod ─ policy ─ share of the VM's requests ─ exchange ─ still that pod? ─ answer, streamed
//! ```
//!
//! * [`MetadataPath`]: what could ever be passed on, as a type. Only the canonical path by which requests are routed is sent,
//!   and nothing that leads to a credential is one.
//! * [`Policy`]: who may read what, the default or a file.
//! * [`Shares`]: the VM may ask 5 times a second; no pod uses that up for the others.
//! * [`Passthrough`]: all of it, and tokens for pods that an `AzurePodIdentityException` exempts.

mod body;
mod exempt;
mod headers;
mod passthrough;
mod path;
mod policy;
mod policy_file;
mod proxy;
mod turns;

pub use body::BodyError;
pub use passthrough::{Passthrough, PassthroughConfig};
pub use path::{MetadataPath, PathError};
pub use policy::{Action, Policy, Rule, Verb};
pub use policy_file::{MAX_FILE, MAX_RULES, PolicyError};
pub use proxy::{Bounds, ProxyError};
pub use turns::{Refused, Shares};
