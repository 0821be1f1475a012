//! identity-controller

fn main() {}
