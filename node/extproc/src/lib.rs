//! Quorate as the endpoint picker of an existing Envoy: a server of `envoy.service.ext_proc.v3.ExternalProcessor`.
//!
//! Envoy opens one stream for each HTTP request, shows it what passes, and does what the answers say. Here the request's body is
//! gathered, understood and routed exactly as the gateway does it ([`quorate_gateway::Picker`]: the same view, policies, refusals
//! and metrics); the answer names the endpoint, and the response is followed until its end, so that the endpoint's
//! reservation lives exactly as long as the request. A stream's whole state is one value that is polled ([`exchange`]): no task,
//! no channel and no lock for each request.
//!
//! * reads: the published routing view, what Envoy sends
//! * writes: reservations and observations on endpoints, metrics
//! * takes no messages: [`ExtProcHandle`] drains and stops it
mod addresses;
mod answer;
mod config;
mod exchange;
mod health;
mod listen;
mod metrics;
mod modes;
mod received;
mod server;
mod service;

pub use config::{ConfigError, ExtProcConfig, TlsConfig};
pub use metrics::{BUCKETS, describe};
pub use server::{ExtProc, ExtProcHandle, StartError};
