//! identityctl

fn main() {}
