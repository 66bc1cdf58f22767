//! What comes from the network and from files, each kind as a function that takes any bytes.
//!
//! `targets` has the functions: the targets of cargo-fuzz call one each, and a test of `quorate-cache` runs all of them on mutated
//! `seeds`, on any toolchain. They do what the router does with the bytes and check what must hold whatever these are.

pub mod seeds;
pub mod targets;
