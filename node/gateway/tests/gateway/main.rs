//! The gateway on real sockets, in front of small engines made for each test.
// Helpers are tests too: a failed unwrap in them is a failed test.
#![allow(clippy::unwrap_used)]

mod access;
mod classes;
mod drain;
mod engines;
mod errors;
mod explain;
mod flow;
mod limits;
mod metrics;
mod protocols;
mod proxy;
mod ready;
mod requests;
mod retry;
mod rewrite;
mod streams;
mod support;
mod together;
mod tokens;
mod turns;
