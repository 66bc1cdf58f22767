//! Scorers: how good each candidate is, 0 to 1.

pub mod context_length;
pub mod endpoint_attribute;
pub mod header_label_affinity;
pub mod in_flight;
pub mod latency;
pub mod lora_affinity;
pub mod no_hit_lru;
pub mod prefill_cost;
pub mod prefix;
pub mod relative;
pub mod session;
pub mod topology_affinity;
pub mod utilization;
