//! Deciders: whether a stage of a disaggregated request runs.

pub mod always;
pub mod prefix_based;
