//! Volatile groups: bulk state that the routers of a region share, in memory only. See `OVERVIEW.md`, "Volatile groups".
//!
//! A group is an openraft group beside `control` whose log and contents end with their processes. The control group says who
//! may take part (`state/volatile.rs`): each process gets a raft id of its own, and each time the group has to begin anew, an
//! epoch of its own. Within an epoch it is ordinary Raft; between two, one member's contents are carried over.

mod contents;
mod driver;
mod founding;
mod hosted;
mod instance;
mod machine;
mod plan;
mod propose;
mod reconcile;
mod replica;
mod status;

#[cfg(test)]
mod conformance;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use hosted::Hosted;
pub(crate) use instance::Instance;
pub use replica::{Frozen, Install, Replica};
pub use status::{VolatileMemberStatus, VolatileStatus};

use contents::Contents;
use driver::Driver;

use crate::{
    cluster::{Cluster, Inner},
    error::Error,
    group::Group,
};

const GAUGES: Duration = Duration::from_secs(1);

/// This process' part in a volatile group. Clones are handles of the same; it takes part until
/// [`VolatileGroup::shutdown`] or [`Cluster::shutdown`].
#[derive(Clone)]
pub struct VolatileGroup {
    name: &'static str,
    region: Arc<parking_lot::Mutex<String>>,
    control: Arc<Group>,
    contents: Arc<Contents>,
    current: watch::Receiver<Option<Arc<Instance>>>,
    epoch: watch::Receiver<u64>,
    warm: watch::Receiver<bool>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    /// Closed once everything of the group has ended.
    ended: watch::Receiver<()>,
}

impl std::fmt::Debug for VolatileGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolatileGroup")
            .field("name", &self.name)
            .field("epoch", &*self.epoch.borrow())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Takes part in the volatile group `name` of this node's region, from now on and in the background; what the group holds
    /// is put into `replica`, which is empty now. All routers of the region open the same groups.
    ///
    /// # Errors
    /// [`Error::Options`] if the name is not a resource name, or the group is open already.
    pub async fn volatile_group(
        &self,
        name: &'static str,
        replica: Arc<dyn Replica>,
    ) -> Result<VolatileGroup, Error> {
        let inner = &self.inner;
        inner.hosted.open(name, || open(inner, name, replica))
    }
}

fn open(inner: &Inner, name: &'static str, replica: Arc<dyn Replica>) -> VolatileGroup {
    let contents = Arc::new(Contents::new(replica));
    let (current, current_rx) = watch::channel(None);
    let (epoch, epoch_rx) = watch::channel(0);
    let (warm, warm_rx) = watch::channel(false);
    let (alive, ended) = watch::channel(());
    let region = Arc::default();
    // Cancelled with the node, so that nothing outlives a start that failed.
    let stop = inner.stop.child_token();
    let driver = Driver {
        name,
        control: Arc::clone(&inner.group),
        proposer: inner.proposer.clone(),
        contents: Arc::clone(&contents),
        current,
        epoch,
        warm,
        stop: stop.clone(),
        start_id: fastrand::u64(1..),
        region: Arc::clone(&region),
        leaderless: None,
        epochs: VecDeque::new(),
        jitter: Duration::ZERO,
    };
    inner.tasks.spawn(async move {
        driver.run().await;
        drop(alive);
    });
    let group = VolatileGroup {
        name,
        region,
        control: Arc::clone(&inner.group),
        contents,
        current: current_rx,
        epoch: epoch_rx,
        warm: warm_rx,
        permits: Arc::new(Semaphore::new(propose::IN_FLIGHT)),
        stop: stop.clone(),
        ended,
    };
    let gauges = group.clone();
    inner.tasks.spawn(async move {
        let mut ticks = tokio::time::interval(GAUGES);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => gauges.gauges(),
            }
        }
    });
    group
}

impl VolatileGroup {
    /// The instance of the present epoch, if this process is a member.
    fn current(&self) -> Option<Arc<Instance>> {
        self.current.borrow().clone()
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The epoch that this process takes part in; 0: none yet. Whoever writes should write anew, or check, what it is the
    /// source of whenever the number changes: the end of the epoch before may be gone.
    pub fn epoch(&self) -> watch::Receiver<u64> {
        self.epoch.clone()
    }

    /// Returns once this process has applied everything that the group's leader had committed when the two first met, or
    /// leads itself. Stays so through later epochs: contents are kept until newer ones are there. Never returns before that,
    /// however long there is no leader; returns as well when the group is shut down.
    pub async fn warm(&self) {
        let mut warm = self.warm.clone();
        // An error: the driver has ended.
        let _ = warm.wait_for(|warm| *warm).await;
    }

    /// Hands the leadership over, leaves the group and ends. Later calls wait for the same end.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let mut ended = self.ended.clone();
        // Only ever ends by the sender's drop.
        while ended.changed().await.is_ok() {}
    }
}
