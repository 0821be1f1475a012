//! Stand-ins for what lives in Azure, and a node without a cluster: the parts of `identity-lab`, also used by tests and benchmarks.
//!
//! * [`emulator`]: Entra, Key Vault and the instance metadata service
//! * [`kube`]: a real control plane on loopback
//! * [`node`]: the node, its pods in network namespaces, and the process that holds them
//! * [`seed`]: what the emulators must know for a set of manifests to work
//!
//! Nothing here depends on the product's own crates: an emulator must not share a mistake with what it tests.
//!
//! ```
//! let documents = identity_lab::manifest::documents("kind: A\n---\nkind: B\n");
//! assert_eq!(documents.len(), 2);
//! ```

pub mod emulator;
pub mod files;
pub mod kube;
pub mod manifest;
pub mod node;
pub mod process;
pub mod seed;
