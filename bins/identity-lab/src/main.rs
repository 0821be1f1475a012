//! identity-lab

fn main() {}
