//! How old the local view may be, measured without comparing clocks: note the time, ask the leader how far its log is
//! committed, wait until that much is applied here. The view then reflects at least the moment of the question.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Group, reader::ask_leader};

/// Bounds the age of the local view; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Freshness {
    fresh_as_of: Arc<Mutex<Option<Instant>>>,
}

impl Freshness {
    /// Starts measuring, until `stop`.
    pub(crate) fn spawn(group: Arc<Group>, stop: CancellationToken) -> Self {
        let freshness = Self::default();
        let measured = freshness.clone();
        let interval = group.timing().freshness();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = stop.cancelled() => return,
                }
                let asked = Instant::now();
                let measure = async {
                    // The leader's lease is good enough here: it bounds the age by a lease more at worst.
                    if let Ok(index) = ask_leader(&group, true).await {
                        group.published.wait_applied(index).await;
                        *measured.fresh_as_of.lock() = Some(asked);
                    }
                };
                tokio::select! {
                    () = measure => {}
                    () = stop.cancelled() => return,
                }
            }
        });
        freshness
    }

    /// How far the view may be behind; `None` before the first answer of a leader since start.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.fresh_as_of.lock().map(|then| then.elapsed())
    }
}
