//! identity-lab
