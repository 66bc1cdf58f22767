//! Which voters are alive, and whether enough of them would be left.

use std::time::{Duration, Instant};

use super::Group;
use crate::error::ChangeError;

/// A node that was heard of this recently counts as alive.
const ALIVE: Duration = Duration::from_secs(3);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(20);

impl Group {
    /// Heard of a short time ago, or this node itself.
    pub(super) fn alive(&self, id: u64) -> bool {
        id == self.local.node_id
            || self
                .peers
                .get(id)
                .and_then(|peer| peer.silent_for())
                .is_some_and(|silent| silent < ALIVE)
    }

    /// Refuses a change after which the voters that are alive would be no majority. A voter counts as alive only if it is heard
    /// of after the question was put: one that died a moment ago must not carry the change that leaves no quorum behind.
    pub(super) async fn check_quorum_without(
        &self,
        id: u64,
        plus: Option<u64>,
    ) -> Result<(), ChangeError> {
        let mut voters = self.voters();
        voters.remove(&id);
        voters.extend(plus);
        if voters.is_empty() {
            return Err(ChangeError::Refused(format!("node {id} is the only voter")));
        }
        // What a node sent before it died is still arriving for a moment.
        let asked = Instant::now() + self.timing().heartbeat();
        let (_, longest) = self.timing().election();
        loop {
            let heard = |voter: &u64| {
                let silent = self.peers.get(*voter).and_then(|peer| peer.silent_for());
                *voter == self.local.node_id
                    || silent.is_some_and(|silent| silent < asked.elapsed())
            };
            let alive = voters.iter().filter(|voter| heard(voter)).count();
            if alive * 2 > voters.len() {
                return Ok(());
            }
            if asked.elapsed() > 2 * longest {
                return Err(ChangeError::Refused(format!(
                    "without node {id} only {alive} of {} voters would be reachable, which is no majority",
                    voters.len()
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
