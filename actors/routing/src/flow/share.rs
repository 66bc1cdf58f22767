//! One pool, several routers: limits, fairness and priority hold for the pool as a whole.
//!
//! The pool's dispatcher is one of its routers. While there are free places to spare, every router holds some of them
//! ([`Member::standing`](member::Member)) and admits without asking. When somebody has to wait, the dispatcher takes the unused places
//! back and from then on gives out each place by itself: routers tell it what waits ([`message::Demand`]) and it grants
//! ([`message::Grant`]) by the same bands, policies and ceilings that a router alone would follow.
//!
//! A place is counted from the moment a grant is sent until a router says that it is free, so the sum over all routers never
//! exceeds the limit, whatever is on its way. All messages tell state, not differences, where that is possible; where it is not,
//! they belong to a session, and whatever may have been missed starts a new one.

pub mod account;
pub mod dispatcher;
pub mod member;
pub mod message;
mod pool;
mod router;

pub use pool::PoolShare;

#[cfg(test)]
mod tests;
