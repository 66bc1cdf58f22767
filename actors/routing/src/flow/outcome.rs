//! How a request leaves flow control, and the one mapping of that to a status and a dropped-reason.

/// What became of a request in flow control. The names are those of the `outcome` label of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Released to the scheduler.
    Dispatched,
    /// Refused at the door: a capacity limit is reached, or the band sheds and the pool is saturated.
    RejectedCapacity,
    /// Refused at the door: the pool has no usable endpoint and its waiting room is full.
    RejectedNoEndpoints,
    /// Refused at the door: the router is shutting down.
    RejectedShuttingDown,
    /// Waited longer than its TTL or the client's deadline allowed.
    EvictedTtl,
    /// Waited longer than allowed while the pool had no usable endpoint.
    EvictedNoEndpoints,
    /// The client went away while it waited.
    EvictedContextCancelled,
    /// The router shut down while it waited.
    EvictedShuttingDown,
    /// Was running and was revoked for a request of a higher band.
    Revoked,
}

/// What the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Value of `x-llm-d-request-dropped-reason`.
    pub reason: &'static str,
    /// For people.
    pub message: &'static str,
}

impl Outcome {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 9] = [
        Self::Dispatched,
        Self::RejectedCapacity,
        Self::RejectedNoEndpoints,
        Self::RejectedShuttingDown,
        Self::EvictedTtl,
        Self::EvictedNoEndpoints,
        Self::EvictedContextCancelled,
        Self::EvictedShuttingDown,
        Self::Revoked,
    ];

    /// Value of the metrics' `outcome` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dispatched => "Dispatched",
            Self::RejectedCapacity => "RejectedCapacity",
            Self::RejectedNoEndpoints => "RejectedNoEndpoints",
            Self::RejectedShuttingDown => "RejectedShuttingDown",
            Self::EvictedTtl => "EvictedTTL",
            Self::EvictedNoEndpoints => "EvictedNoEndpoints",
            Self::EvictedContextCancelled => "EvictedContextCancelled",
            Self::EvictedShuttingDown => "EvictedShuttingDown",
            Self::Revoked => "Revoked",
        }
    }

    /// What the client is told; `None`: it was dispatched.
    pub fn refusal(self) -> Option<Refusal> {
        let (status, reason, message) = match self {
            Self::Dispatched => return None,
            Self::RejectedCapacity => (
                429,
                "rejected-saturated",
                "the pool is saturated and its queue takes no more requests of this priority",
            ),
            Self::RejectedNoEndpoints => (
                503,
                "rejected-no-endpoints",
                "the pool has no usable endpoint and no more requests may wait for one",
            ),
            Self::EvictedNoEndpoints => (
                503,
                "rejected-no-endpoints",
                "no endpoint became usable while the request waited",
            ),
            Self::EvictedTtl => (
                429,
                "rejected-ttl-expired",
                "the request waited in the queue for longer than it may",
            ),
            Self::EvictedContextCancelled => (
                503,
                "rejected-context-cancelled",
                "the client went away while the request waited",
            ),
            Self::RejectedShuttingDown | Self::EvictedShuttingDown => (
                503,
                "rejected-shutting-down",
                "this router is shutting down",
            ),
            Self::Revoked => (
                429,
                "evicted",
                "the request was revoked in favour of one of higher priority",
            ),
        };
        Some(Refusal {
            status,
            reason,
            message,
        })
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_status_and_reason() {
        let told: Vec<_> = Outcome::ALL
            .into_iter()
            .map(|o| o.refusal().map(|r| (r.status, r.reason)))
            .collect();
        assert_eq!(
            told,
            [
                None,
                Some((429, "rejected-saturated")),
                Some((503, "rejected-no-endpoints")),
                Some((503, "rejected-shutting-down")),
                Some((429, "rejected-ttl-expired")),
                Some((503, "rejected-no-endpoints")),
                Some((503, "rejected-context-cancelled")),
                Some((503, "rejected-shutting-down")),
                Some((429, "evicted")),
            ]
        );
        for (i, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, i);
        }
    }
}
