//! gRPC health: of the node as a whole, and of the service that needs a leader.

use super::ControlContext;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::{ServingStatus, server::health_reporter};

/// Takes writes and linearizable reads while a leader is known; everything else works without one.
const NEEDS_LEADER: &str = "quorate.v1.Resources";

/// The health service. "" (the whole node) serves while the node has no problem of its own; `quorate.v1.Resources` while in
/// addition a leader is known.
pub fn service(context: &ControlContext) -> HealthServer<impl Health> {
    let (reporter, service) = health_reporter();
    let (mut problem, mut leadership) = (context.cluster.problem(), context.cluster.leadership());
    let stop = context.stop.clone();
    tokio::spawn(async move {
        loop {
            let healthy = !stop.is_cancelled() && problem.borrow_and_update().is_none();
            let led = leadership.borrow_and_update().leader_id.is_some();
            reporter.set_service_status("", serving(healthy)).await;
            reporter
                .set_service_status(NEEDS_LEADER, serving(healthy && led))
                .await;
            if stop.is_cancelled() {
                return;
            }
            let goes_on = tokio::select! {
                () = stop.cancelled() => true,
                changed = problem.changed() => changed.is_ok(),
                changed = leadership.changed() => changed.is_ok(),
            };
            if !goes_on {
                return;
            }
        }
    });
    service
}

fn serving(yes: bool) -> ServingStatus {
    if yes {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}
