//! What became of requests and why: records of single requests, the ring that keeps the latest of them, and replaying their decisions
//! under another configuration.
//!
//! A request that is recorded carries its [`RequestRecord`] with it; when it ends, the [`Recorder`] takes the record into its ring. A
//! request that is not recorded costs a look at one atomic number.

mod record;
mod recorder;
pub mod replay;
mod ring;

pub use record::{Attempt, Ending, FlowRecord, RequestFacts, RequestRecord, is_kept};
pub use recorder::{RecordSink, Recorder, RecorderOptions, SinkOptions};
