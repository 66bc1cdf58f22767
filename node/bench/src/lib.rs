//! Load generators: `quorate bench http` for the gateway (or any OpenAI-compatible server), `quorate bench control` for the
//! replicated control API.
//!
//! * HTTP, closed loop: each connection sends its next request when the last one has ended.
//! * HTTP, open loop: requests start on a schedule (constant, Poisson or a recorded trace) whatever the server does, and latency
//!   counts from the intended start, so that a stall is seen by every request that it delayed (no coordinated omission).
//! * Streams: time to first token and between tokens, taken from the SSE events themselves.
//! * Control: durable writes, linearizable reads, and the outage that a client sees when the leader dies.
//!
//! Both run on threads of their own, so [`run_http`] and [`run_control`] may be called from anywhere; they block
//! until the run is over.

mod args;
mod control;
mod engines;
mod http_load;
mod process;
mod quantiles;
mod report;

pub use args::{Api, ArgError, Arrival, Header, HttpArgs, SharedPrefix, Target};
pub use control::{ControlArgs, ControlOp, FailoverArgs, LoadArgs, run_control};
pub use http_load::run_http;
pub use process::ProcessReport;
pub use quantiles::Quantiles;
pub use report::{ControlReport, CpuReport, EnginesReport, HttpReport, Report, UrlReport, Usage};
