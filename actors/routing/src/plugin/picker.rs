//! Pickers: who is chosen by the weighted sums.

pub mod max_score;
pub mod random;
pub mod weighted_random;

use crate::config::Fields;

/// `maxNumOfEndpoints`: the primary and its fallbacks.
pub(crate) fn max_endpoints(fields: &mut Fields<'_>) -> usize {
    let max = fields.whole("maxNumOfEndpoints", 1, 1..=1024);
    usize::try_from(max).unwrap_or(1)
}
