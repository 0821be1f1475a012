//! What fuzzing checks, as plain functions: the targets call them with libFuzzer's inputs, the ordinary tests
//! (`identity-broker/tests/corpora.rs`, which includes this file by its path) with everything in `corpus/`.
//!
//! Each function takes any bytes and panics when something does not hold.

#![allow(unreachable_pub, clippy::missing_panics_doc, reason = "also a module of a test, and panics are its findings")]

pub mod form_body;
pub mod imds_request;
#[path = "../../identity-broker/src/endpoint/lenient.rs"]
pub mod lenient;
pub mod model;
pub mod path_normalise;
