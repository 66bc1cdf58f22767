//! The events by which an engine tells which KV blocks it holds, in the wire formats of all engines.
//!
//! `encode` writes batches as one engine version does. `publisher` sends them over ZeroMQ, numbered, with a replay socket;
//! `faults` decides which of them get lost, doubled or swapped on the way. TensorRT-LLM's events wait for a poll instead.
//! `outline` makes of the block model's changes what an engine of that format would tell, `levels` the same for TensorRT-LLM.

mod encode;
mod faults;
mod levels;
mod outline;
mod publisher;
mod settings;

pub use faults::EventFaults;
pub use publisher::{Publisher, Sockets};
pub use settings::{EventFormat, KvEventsConfig, SecondGroup};
