//! What the owner of an endpoint does: from its engine's events to batches of the replicated log.
//!
//! [`Mirror`] keeps one holder's blocks as the engine tells of them, in keys. [`OwnedSet`] knows which of them the log has been told, so that
//! what waits is merged: a block that came and went costs nothing, and overload makes batches larger and fewer. [`Holder`] numbers the
//! sections and answers refusals. [`Proposals`] makes batches of all holders. All of it is plain rules without I/O or clock; [`actor`]
//! has the links and the log.
//!
//! An engine's stream is dialled ([`actor`]), or opened by the engine (attributed by `dialled`), or polled (`polled`). What is found wrong with it
//! (`check`, `probe`) is a [`Condition`] of the endpoint.
//!
//! **Numbers.** A section ends with `(number of the engine's last batch + 1) << 16`, or one more than the section before where that is not
//! larger (parts of a full set, engines without numbers). Its mark, the hash of that batch, is set only when nothing waits any more: then
//! the set is exactly what the engine had said, and another owner may go on from there if the engine's replay proves it.
//!
//! **Epochs.** An owner takes the epoch that it knows plus one, with a number of its own in the lower 32 bits: higher than any before, and not
//! that of another that takes over at the same moment. Where two still believe that they own the same, the higher one has it, and the
//! other finds out by its next section or by the audit ([`Proposals::audit`]).

pub mod actor;
mod check;
pub mod condition;
mod dialled;
mod holder;
mod mirror;
mod names;
mod outcome;
mod polled;
mod probe;
mod proposals;
mod replica;
mod set;
mod sources;
mod status;
mod version;

#[cfg(test)]
mod model;

pub use condition::Condition;
pub use holder::{Holder, HolderTotals, Verdict, next_epoch};
pub use mirror::{Counts, Mirror, Naming};
pub use outcome::{decode_outcomes, encode_outcomes};
pub use polled::Polled;
pub use proposals::{Answer, Proposals};
pub use replica::{ReplicaTotals, Replicated};
pub use set::OwnedSet;
pub use sources::{Asking, Engines, Found};
pub use status::FeederStatus;
pub use version::Version;
