//! Real processes on real sockets, one theme a file. Run with `--test-threads=1`: each test starts a whole cluster.

mod access;
mod cache;
mod cache_seen;
mod cache_sources;
mod clients;
mod command_line;
mod control_api;
mod dev;
mod discovery;
mod endpoints;
mod envoy;
mod envoy_engines;
mod explain;
mod failover;
mod flow_control;
mod learnt;
mod malformed_control;
mod malformed_http;
mod membership;
mod metrics;
mod openai_client;
mod restart;
mod scheduling;
mod serve;
mod storage;
mod tls;
