//! Who is asking, what they may use, and how much of it is left.
//!
//! A request shows an API key or a JWT; [`Authenticator::identify`] makes a [`Caller`] of it, by a table that is built from the
//! replicated tenants and keys and published whole. [`Caller::allows`] says whether it may ask for a model,
//! [`Caller::begin`] takes a request out of the limits ([`Budget`]) of its tenant and its key.
//!
//! **Limits over all routers.** Every router keeps the whole budget and takes out of it what it admits itself and what the
//! others tell that they admitted ([`Budget::absorb`]). In the long run no more is admitted than the limit, however requests
//! are spread; for a moment, at most what the others admit until they have told (a fraction of a second), and that is taken
//! off what comes next. Requests at the same time are counted likewise; a router that is not heard of any more counts nothing.
mod budget;
mod caller;
mod jwt;
mod table;
mod verified;

#[cfg(test)]
mod tests;

pub use budget::{Budget, Exhausted, Limits, Ongoing, Totals};
pub use caller::{Caller, Grant, Refused};
pub use jwt::{Jwks, JwksError, JwtError, JwtRules, MAX_TOKEN};
pub use table::{Authenticator, Denied, IdentityTable, KeyRule, TenantRule, Verifier, digest_of};
