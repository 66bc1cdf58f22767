//! The L7 gateway: takes OpenAI, Anthropic and engine-native HTTP requests and forwards each to an endpoint of the right pool.
//!
//! A request passes through the stages in `service.rs`: trace, answer (own paths and errors), parse, classify (pool, model rewrite,
//! priority, flow), admit (flow control), forward (schedule, reserve, send, retry), and its answer is inspected, measured and where need be changed
//! back frame by frame. Bodies are parsed once and forwarded byte for byte but for what a rule rewrites. Each worker thread has its own runtime, its client connections and the upstream connections they use.
//!
//! * reads: the published [`quorate_routing::RoutingView`], certificate files
//! * writes: reservations and observations on endpoints, metrics
//! * takes no messages: [`GatewayShared`] holds what the node may change, [`GatewayHandle`] drains and stops
mod accept;
mod admit;
mod answer;
mod authenticate;
mod authorize;
mod body;
mod budget;
mod call;
mod change;
mod classify;
mod client;
mod client_io;
mod config;
mod deadline;
mod duration;
mod error;
mod forward;
mod gaps;
mod gateway;
mod gather;
mod grpc;
mod headers;
mod hints;
mod inspect;
mod listen;
mod metrics;
mod observe;
mod parse;
mod picker;
mod record;
mod serve;
mod service;
mod sse;
mod thread;
mod tls;
mod tokenize;
mod trace;
mod transport;
mod turn;
mod upstream;
mod usage;
mod watched;
mod worker;

pub use accept::{accept_until, bind};
pub use config::{ConfigError, GatewayConfig, RetryConfig, TlsConfig, UpstreamConfig};
pub use duration::{DurationError, HumanDuration};
pub use gateway::{Gateway, GatewayHandle, StartError};
pub use metrics::{BUCKETS, describe};
pub use picker::{
    Admitted, Asked, Choice, Denied, Entered, Passing, Picker, PickerOptions, Traced, Waiting,
    Wanted,
};
pub use thread::spawn_worker;
pub use tls::{TlsError, upstream_client_config};
pub use worker::GatewayShared;
