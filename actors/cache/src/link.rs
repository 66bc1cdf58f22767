//! The connection to an engine's event stream: what arrives is handed on in order, without holes, or after a [`Reset`].
//!
//! Engines publish numbered batches over ZeroMQ and drop them silently when a reader is slow. [`Sequencer`] is the rule that
//! makes a sound stream of it, without I/O: late batches are waited for, missing ones replayed, and before a stream goes on
//! after a break it is proved to be the same one, by asking once more for the last batch that was taken. What cannot be
//! proved starts anew after a reset, so that the reader's map may be colder than the engine's cache and never wrong.
//! [`Subscriber`] is the thin part with the sockets, in either direction: it dials an engine, or engines dial it. `zmtp` is
//! ZeroMQ's protocol; a library's sockets would hide when a peer goes away and which peer sent what, and both matter here.

mod address;
mod discover;
mod hub;
mod replay;
mod sequencer;
mod stream;
mod subscriber;
pub mod zmtp;

#[cfg(test)]
mod model;

pub use address::{Address, AddressError};
pub use discover::{DiscoverError, EventSource, server_info, vllm_event_sources};
pub use hub::{LinkEvent, SourceStatus};
pub use sequencer::Sequencer;
pub use stream::{Counters, Output, Policy, Reset, State};
pub use subscriber::{Direction, LinkConfig, ReplayAt, Subscriber};
