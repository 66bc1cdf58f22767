//! Capacity limits of the queue, checked at the door.

use crate::config::{BandConfig, FlowControlConfig};
use crate::flow::queue::Held;

/// The limit that a request would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Bytes in all bands.
    GlobalBytes,
    /// Requests in all bands.
    GlobalRequests,
    /// Bytes in its band.
    BandBytes,
    /// Requests in its band.
    BandRequests,
}

/// Checks in the order global bytes, global requests, band bytes, band requests. `all` and `in_band` is what waits already, on
/// all routers.
///
/// # Errors
/// The first limit that one more request of `bytes` would break.
pub fn check(
    config: &FlowControlConfig,
    band: &BandConfig,
    all: Held,
    in_band: Held,
    bytes: u64,
) -> Result<(), Full> {
    let over = |held: u64, more: u64, limit: u64| held.saturating_add(more) > limit;
    let checks = [
        (
            config
                .max_bytes
                .is_some_and(|max| over(all.bytes, bytes, max)),
            Full::GlobalBytes,
        ),
        (
            config
                .max_requests
                .is_some_and(|max| over(all.requests, 1, max)),
            Full::GlobalRequests,
        ),
        (over(in_band.bytes, bytes, band.max_bytes), Full::BandBytes),
        (
            over(in_band.requests, 1, band.max_requests),
            Full::BandRequests,
        ),
    ];
    match checks.into_iter().find(|(full, _)| *full) {
        Some((_, which)) => Err(which),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inclusive_and_checked_in_order() {
        let held = |requests, bytes| Held { requests, bytes };
        let config = FlowControlConfig {
            max_bytes: Some(100),
            max_requests: Some(10),
            ..FlowControlConfig::default()
        };
        let band = BandConfig {
            max_bytes: 50,
            max_requests: 5,
            ..BandConfig::default()
        };
        let at = |all, in_band, bytes| check(&config, &band, all, in_band, bytes);
        assert_eq!(at(held(9, 90), held(4, 40), 10), Ok(()));
        assert_eq!(at(held(10, 90), held(5, 50), 11), Err(Full::GlobalBytes));
        assert_eq!(at(held(10, 90), held(5, 50), 10), Err(Full::GlobalRequests));
        assert_eq!(at(held(9, 60), held(5, 50), 1), Err(Full::BandBytes));
        assert_eq!(at(held(9, 60), held(5, 49), 1), Err(Full::BandRequests));
        let open = FlowControlConfig::default();
        assert_eq!(
            check(&open, &band, held(u64::MAX, u64::MAX), held(0, 0), 50),
            Ok(())
        );
    }
}
