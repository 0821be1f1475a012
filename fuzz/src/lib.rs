//! What fuzzing checks, as plain functions: the targets call them with libFuzzer's inputs, ordinary tests (`corpora.rs` of
//! identity-broker and of identity-core, which include these modules by their paths) with everything in `corpus/`.
//!
//! Each takes any bytes and panics when something does not hold.

pub mod endpoint;
pub mod manifest;
