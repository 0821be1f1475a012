//! The engine of pod identity: what is assigned, who is calling, may they.
//!
//! Everything outside the feature `runtime` is pure: no I/O, no clock (time is an argument), no randomness; effects are
//! returned as data.

pub mod assign;
pub mod explain;
pub mod lookup;
pub mod object;
pub mod pod;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod selector;
