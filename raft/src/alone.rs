//! A group of one member has nobody to send heartbeats to and no election to wait for. Openraft's clock, a wake-up every few milliseconds,
//! stands still there until somebody joins.

use openraft::ServerState;

use crate::types::Metrics;

/// This member leads, and there is no other, not even a learner.
pub(crate) fn leads_alone(metrics: &Metrics) -> bool {
    metrics.state == ServerState::Leader
        && metrics
            .membership_config
            .nodes()
            .all(|(id, _)| *id == metrics.id)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::types::{Member, Membership, StoredMembership};

    fn metrics(state: ServerState, members: &[u64]) -> Metrics {
        let nodes: BTreeMap<u64, Member> =
            members.iter().map(|id| (*id, Member::default())).collect();
        // Only the first one votes.
        let membership = Membership::new(vec![[1].into()], nodes).unwrap();
        Metrics {
            state,
            membership_config: Arc::new(StoredMembership::new(None, membership)),
            ..Metrics::new_initial(1)
        }
    }

    #[test]
    fn only_who_leads_and_has_nobody_beside_it() {
        assert!(leads_alone(&metrics(ServerState::Leader, &[1])));
        assert!(!leads_alone(&metrics(ServerState::Leader, &[1, 2])));
        assert!(!leads_alone(&metrics(ServerState::Follower, &[1])));
        assert!(!leads_alone(&metrics(ServerState::Candidate, &[1])));
    }
}
