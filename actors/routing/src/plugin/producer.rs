//! Data producers: what is found out about a request and the candidates before the profiles run.

pub mod approx_prefix;
pub mod burst_prefix;
pub mod encoded_items;
pub mod inflight_load;
pub mod p2p_source;
pub mod session_id;
