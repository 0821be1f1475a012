//! identity-node

fn main() {}
