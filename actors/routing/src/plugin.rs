//! The plugins, by what they are. Their type names, parameters and defaults are llm-d's; each file says its formula.

pub mod admitter;
pub mod decider;
pub mod filter;
pub mod handler;
pub mod labels;
pub mod picker;
pub mod producer;
pub mod reporter;
pub mod scalar;
pub mod scorer;
pub mod screener;
pub mod session;
pub mod topology;
