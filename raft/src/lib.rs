//! Placeholder.
pub mod snapshot;
pub mod state;
pub mod watch;
