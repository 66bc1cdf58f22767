//! Where KV-cache blocks lie: the events that engines publish, the hashes by which they name blocks, and the prefix index.
//!
//! `link` holds one connection to each engine's event stream and puts its batches in order: gaps are replayed, a stream
//! that starts again is a new incarnation. `events` decodes what comes out, whatever engine and version wrote it, into one
//! model. `hash` computes block hashes as the engines do, so that a prompt can be looked up before any engine has seen it.
//! `index` is the map itself: which holder has which block on which tier, changed by batches of the replicated log, read by every pick.
//! `feed` is what an endpoint's owner does: from its engine's events to batches of the log. `keys` says by which keys the index knows a block. `tier` names the places where blocks lie. `tokens` turns a request into the token ids that an engine will see.
//!
//! The rules here take plain values and return plain values; only `link` and the tokenizer of an engine open sockets. What an engine sends is untrusted:
//! it can make the map colder, it cannot make it grow without bound or end the process.

pub mod events;
pub mod feed;
pub mod hash;
pub mod index;
pub mod keys;
pub mod link;
pub mod route;
pub mod tier;
pub mod tokens;

pub use keys::KeySpace;
pub use tier::Tier;
