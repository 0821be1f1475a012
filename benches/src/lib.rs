//! Benchmarks of the lookup path, the planner and the token path.

pub mod stacks;
