//! What a developer runs: set-up, demo, test tiers, checks, benchmarks. A library, so that the end-to-end tests drive
//! the lab with the same code as the demo.

pub mod application;
pub mod bench;
pub mod check;
pub mod clock;
pub mod demo;
pub mod files;
pub mod fuzz;
pub mod generate;
pub mod jwt;
pub mod kit;
pub mod lab;
pub mod paths;
pub mod run;
pub mod setup;
pub mod term;
pub mod tiers;

/// The README's examples, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
