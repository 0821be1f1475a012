//! Stand-ins for what lives in Azure, and a node without a cluster: the parts of `identity-lab`, also used by tests and benchmarks.
//!
//! * [`emulator`]: Entra and IMDS
//! * [`kube`]: a real control plane on loopback
//!

pub mod emulator;
pub mod files;
pub mod kube;
pub mod manifest;
pub mod process;
