//! Admitters: which requests are turned away before anything is picked. Only sheddable ones (priority below 0) ever are.

pub mod latency_slo;
pub mod probabilistic;
pub mod sheddable;

use crate::pick::Denied;
use http::StatusCode;

/// 429 because the pool is too busy.
pub(crate) fn saturated(message: &'static str) -> Denied {
    Denied {
        status: StatusCode::TOO_MANY_REQUESTS,
        reason: Some("rejected-saturated"),
        message: message.into(),
    }
}
