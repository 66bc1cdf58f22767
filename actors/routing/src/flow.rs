//! Flow control: how many requests a pool takes at once, and who goes next when not all can.
//!
//! [`FlowControl::admit`] gives a [`Permit`] at once while the pool is not saturated and nobody waits: a few atomics, no lock, no
//! queue. Otherwise the request waits in its flow (fairness id and priority) of its priority band. A permit that is dropped, new
//! capacity or an endpoint that comes back wakes the best waiting request in the same moment; nothing runs on a tick but expiry.
//!
//! The rules are pure and in files of their own: [`order`] within a flow, [`fairness`] between flows, [`ceiling`] for bands,
//! [`saturation`], [`capacity`], [`lifetime`], [`eviction`]; [`queue`] puts them together. [`Outcome`] says how a request left, and
//! what its client is told. [`share`] makes several routers act as one.

pub mod capacity;
pub mod ceiling;
mod control;
mod core;
pub mod eviction;
pub mod fairness;
mod gate;
pub mod lifetime;
mod meter;
pub mod order;
mod outcome;
mod permit;
mod places;
pub mod queue;
mod revoke;
pub mod saturation;
pub mod share;
mod upkeep;

pub use control::{Clock, FlowControl, FlowRequest, FlowStatus, system_clock};
pub use meter::describe as describe_metrics;
pub use outcome::{Outcome, Refusal};
pub use permit::{Admission, Permit};

#[cfg(test)]
mod tests;
