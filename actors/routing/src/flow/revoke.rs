//! The engine revoking running requests for a band that is blocked; with other routers in the pool, when the dispatcher says so.

use crate::flow::ceiling;
use crate::flow::control::FlowControl;
use crate::flow::core::{Core, rank};
use crate::flow::eviction::{VictimKey, needed};
use crate::flow::meter;
use crate::flow::saturation::Load;

impl FlowControl {
    /// A band with work is blocked: running requests of lower bands give way, if the configuration says so.
    pub(super) fn reclaim(&self, core: &mut Core, index: usize, load: Load) {
        if !core.config.eviction || core.pool_empty() {
            return;
        }
        let Some(priority) = core.queue.bands().get(index).map(|b| b.priority()) else {
            return;
        };
        let rank = rank(&core.queue, index);
        let ceiling = ceiling::hard(&core.config.usage_limit, rank);
        let saturation = core.budget.saturation(load);
        let pending = self.victims.lock().pending();
        let wanted = needed(saturation, ceiling, load.requests, pending);
        self.revoke(core, priority, wanted);
    }

    /// Revokes up to so many running requests of priorities below this.
    pub(super) fn revoke(&self, core: &mut Core, below: i32, wanted: u64) {
        if wanted == 0 {
            return;
        }
        let mut victims = self.victims.lock();
        let revoked = victims.revoke(below, wanted, self.now());
        let pending = victims.pending();
        drop(victims);
        if !revoked.is_empty() {
            core.meter.revoked(&revoked, wanted);
            meter::pending_reclaim(self.pool(), pending);
        }
    }

    /// A request that might have been revoked ended.
    pub(super) fn victim_ended(&self, key: VictimKey) {
        let mut victims = self.victims.lock();
        let confirmed = victims.ended(key, self.now());
        let pending = victims.pending();
        drop(victims);
        if let Some(confirmed) = confirmed {
            if confirmed.in_time {
                meter::revocations(self.pool(), "confirmed", 1, Some(confirmed.after));
            }
            meter::pending_reclaim(self.pool(), pending);
        }
    }
}
