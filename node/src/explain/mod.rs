//! Records of requests on this node: found, listed, written to a file; and the same asked of the other nodes.

mod desk;
mod peers;
mod recording;

pub use desk::{Desk, Query};
pub use peers::{DecisionReceiver, others};
pub use recording::{FileOptions, describe};
