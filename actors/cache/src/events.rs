//! KV-cache events of all engines in one model.
//!
//! [`decode`] reads the payload of an event message of vLLM or SGLang, any format that they have published so far;
//! [`trtllm`] reads the list that TensorRT-LLM answers to a poll. Both fill a [`Batch`], which keeps its memory from one
//! message to the next. What a decoder does not know it counts ([`Skipped`]) and passes over: an event of a new kind, a new
//! field, a malformed event never costs the batch. Only bytes that are no MessagePack at all do.

mod batch;
mod decode;
mod event;
mod msgpack;
mod scalar;
pub mod trtllm;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod vectors;

pub use batch::{Batch, Event, ExtraKey, Removed, Skipped, SpecKind, Stored};
pub use decode::{DecodeError, MAX_PAYLOAD, decode};
