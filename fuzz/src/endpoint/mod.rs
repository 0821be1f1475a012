//! What pods send.

#![allow(unreachable_pub, clippy::missing_panics_doc, reason = "also a module of a test, and panics are its findings")]

pub mod form_body;
pub mod imds_request;
#[path = "../../../identity-broker/src/endpoint/lenient.rs"]
pub mod lenient;
pub mod model;
pub mod path_normalise;
