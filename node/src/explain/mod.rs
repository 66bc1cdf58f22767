//! Records of requests on this node: found, listed, written to a file; and told to other nodes.

mod desk;
mod peers;
mod recording;

pub use desk::{Desk, Query};
pub use peers::{DecisionReceiver, client};
pub use recording::{FileOptions, describe};
