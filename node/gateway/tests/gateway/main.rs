//! The gateway on real sockets, in front of small engines made for each test.
mod drain;
mod errors;
mod limits;
mod metrics;
mod protocols;
mod proxy;
mod retry;
mod streams;
mod support;
