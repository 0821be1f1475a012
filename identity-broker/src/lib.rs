//! identity-broker
