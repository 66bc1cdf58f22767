//! From the replicated view to the endpoint plane: what is declared, and which other nodes there are.

use futures_util::FutureExt;
use quorate_endpoint::{CheckCaller, Declared, Peer};
use quorate_proto::v1::{Kind, Resource};
use quorate_raft::Cluster;
use quorate_raft::watch::{WatchEventType, WatchFilter};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Changes that come within this time make one new value.
const GATHER: Duration = Duration::from_millis(2);
/// How often reachability and addresses of peers are looked at besides changes of the view.
const LOOK: Duration = Duration::from_millis(500);

/// Who may call the further services on the peer listener in which node's name: as consensus has it.
pub fn check_caller(cluster: &Cluster) -> CheckCaller {
    let cluster = cluster.clone();
    Arc::new(move |node_id, call| cluster.check_caller(node_id, call))
}

/// Pools and endpoints as declared, and how the pools schedule. Follows the view until the cluster or the receiver is gone; writes of other kinds cost it
/// nothing.
pub fn declared(cluster: &Cluster) -> watch::Receiver<Declared> {
    let (sender, receiver) = watch::channel(list(cluster));
    let cluster = cluster.clone();
    tokio::spawn(async move {
        let filter = WatchFilter {
            kinds: vec![
                Kind::Pool,
                Kind::Endpoint,
                Kind::SchedulingConfig,
                Kind::Objective,
                Kind::ModelRewrite,
            ],
            name: None,
        };
        while let Ok(mut changes) = cluster.watch(filter.clone(), None) {
            // Ends when this reader was too slow or a snapshot came: then the whole state is read anew.
            while let Ok(change) = changes.next().await {
                if change.kind == WatchEventType::Bookmark {
                    continue;
                }
                tokio::time::sleep(GATHER).await;
                // What came meanwhile is in the list already; an error shows again at the next turn.
                while let Some(Ok(_)) = changes.next().now_or_never() {}
                let now = list(&cluster);
                sender.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
                if sender.is_closed() {
                    return;
                }
            }
        }
    });
    receiver
}

fn list(cluster: &Cluster) -> Declared {
    let view = cluster.view();
    let of = |kind| view.list(kind).map(|r| Resource::clone(r)).collect();
    Declared {
        pools: of(Kind::Pool),
        endpoints: of(Kind::Endpoint),
        configs: of(Kind::SchedulingConfig),
        objectives: of(Kind::Objective),
        rewrites: of(Kind::ModelRewrite),
    }
}

/// The other nodes of the cluster.
pub fn peers(cluster: &Cluster) -> watch::Receiver<Vec<Peer>> {
    let list = |cluster: &Cluster| -> Vec<Peer> {
        let known = cluster.peers().into_iter().filter_map(|info| {
            // A node without an open door is no peer yet; the next look finds it.
            cluster.peer_channel(info.node_id)?;
            let (from, node_id) = (cluster.clone(), info.node_id);
            let first = cluster.peer_channel(node_id)?;
            Some(Peer {
                node_id,
                region: info.region.into(),
                address: info.address.into(),
                connect: Arc::new(move || {
                    from.peer_channel(node_id).unwrap_or_else(|| first.clone())
                }),
            })
        });
        known.collect()
    };
    let (sender, receiver) = watch::channel(list(cluster));
    let cluster = cluster.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(LOOK);
        let facts = |peers: &[Peer]| -> Vec<(u64, Arc<str>, Arc<str>)> {
            peers
                .iter()
                .map(|p| (p.node_id, Arc::clone(&p.region), Arc::clone(&p.address)))
                .collect()
        };
        while !sender.is_closed() {
            tick.tick().await;
            let now = list(&cluster);
            sender.send_if_modified(|before| {
                let changed = facts(before) != facts(&now);
                if changed {
                    *before = now;
                }
                changed
            });
        }
    });
    receiver
}
