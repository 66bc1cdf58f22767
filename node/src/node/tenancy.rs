//! From the replicated tenants and API keys to the table that the gateway asks.

use futures_util::FutureExt;
use prost_types::Timestamp;
use quorate_proto::v1::{self, Kind};
use quorate_raft::Cluster;
use quorate_raft::state::{ControlView, ResourceExt as _};
use quorate_raft::watch::{WatchEventType, WatchFilter};
use quorate_routing::identity::{Authenticator, IdentityTable, KeyRule, Limits, TenantRule};
use quorate_routing::now_ms;
use std::sync::Arc;
use std::time::Duration;

/// Changes that come within this time make one new table.
const GATHER: Duration = Duration::from_millis(2);

/// Follows the view until the cluster is gone.
pub fn follow(cluster: &Cluster, authenticator: Arc<Authenticator>) {
    publish(&cluster.view(), &authenticator);
    let cluster = cluster.clone();
    tokio::spawn(async move {
        let filter = WatchFilter {
            kinds: vec![Kind::Tenant, Kind::ApiKey],
            name: None,
        };
        while let Ok(mut changes) = cluster.watch(filter.clone(), None) {
            // Ends when this reader was too slow or a snapshot came: then the whole state is read anew.
            while let Ok(change) = changes.next().await {
                if change.kind == WatchEventType::Bookmark {
                    continue;
                }
                tokio::time::sleep(GATHER).await;
                while let Some(Ok(_)) = changes.next().now_or_never() {}
                publish(&cluster.view(), &authenticator);
            }
        }
    });
}

fn publish(view: &ControlView, authenticator: &Authenticator) {
    let tenants: Vec<TenantRule> = view.list(Kind::Tenant).filter_map(|r| tenant(r)).collect();
    let keys: Vec<KeyRule> = view.list(Kind::ApiKey).filter_map(|r| key(r)).collect();
    let former = authenticator.table();
    let table = IdentityTable::build(&tenants, &keys, &former, now_ms());
    let (keys, tenants) = table.counts();
    authenticator.set_table(Arc::new(table));
    metrics::gauge!("quorate_api_keys").set(keys as f64);
    metrics::gauge!("quorate_tenants").set(tenants as f64);
}

fn tenant(resource: &v1::Resource) -> Option<TenantRule> {
    let spec = resource.tenant()?;
    Some(TenantRule {
        name: resource.name().to_owned(),
        fairness_id: spec.fairness_id.clone(),
        models: spec.models.clone(),
        objectives: spec.objectives.clone(),
        default_objective: spec.default_objective.clone(),
        limits: limits(spec.limits.as_ref()),
        disabled: spec.disabled,
        trusted: spec.trusted,
    })
}

fn key(resource: &v1::Resource) -> Option<KeyRule> {
    let spec = resource.api_key()?;
    Some(KeyRule {
        name: resource.name().to_owned(),
        tenant: spec.tenant.clone(),
        sha256: spec.sha256.as_slice().try_into().ok()?,
        models: spec.models.clone(),
        objectives: spec.objectives.clone(),
        limits: limits(spec.limits.as_ref()),
        expires_unix_ms: spec.expires_at.as_ref().map(unix_ms),
        revoked: spec.revoked,
    })
}

fn limits(limits: Option<&v1::Limits>) -> Limits {
    limits.map_or_else(Limits::default, |limits| Limits {
        requests_per_second: limits.requests_per_second,
        tokens_per_minute: limits.tokens_per_minute,
        concurrent: limits.concurrent,
    })
}

/// A time before 1970 counts as 1970.
fn unix_ms(time: &Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    let millis = u64::try_from(time.nanos / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(millis)
}
