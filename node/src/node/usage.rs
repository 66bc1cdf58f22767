//! Keeps the limits of tenants and keys in step over all nodes: tells the others what this one used, and takes in what they did.
//!
//! Totals are sent, not differences: a report that got lost is made good by the next one, and one that came twice changes
//! nothing.

use quorate_endpoint::{CheckCaller, Peer};
use quorate_proto::peer::v1::usage_exchange_client::UsageExchangeClient;
use quorate_proto::peer::v1::usage_exchange_server::{UsageExchange, UsageExchangeServer};
use quorate_proto::peer::v1::{BudgetUse, UsageAck, UsageReport};
use quorate_routing::identity::{Authenticator, Totals};
use quorate_routing::now_ms;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Time between two looks at what was used.
const LOOK: Duration = Duration::from_millis(100);
/// A node says that it lives at least this often.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// A node that was not heard of for this long has no open requests any more.
const SILENT_MS: u64 = 2_000;
/// Longest time for one report.
const PATIENCE: Duration = Duration::from_secs(1);
/// Budgets in a report at most; the rest comes with the next.
const MAX_USES: usize = 10_000;

/// Who this node is, for the others.
#[derive(Clone, Debug)]
pub struct Me {
    pub cluster_id: String,
    pub node_id: u64,
    pub start_id: u64,
}

/// Takes reports once the node knows who it is.
#[derive(Clone, Default)]
pub struct UsageReceiver(Arc<OnceLock<Door>>);

struct Door {
    me: Me,
    check_caller: CheckCaller,
    authenticator: Arc<Authenticator>,
    /// When each origin was heard of last.
    heard: Mutex<HashMap<u64, u64>>,
}

impl UsageReceiver {
    /// What goes to the peer listener.
    pub fn server(&self) -> UsageExchangeServer<Self> {
        UsageExchangeServer::new(self.clone())
    }

    /// From here on reports are taken, and silent nodes forgotten until `stop`.
    pub fn open(
        &self,
        me: Me,
        check_caller: CheckCaller,
        authenticator: Arc<Authenticator>,
        stop: CancellationToken,
    ) {
        let door = Door {
            me,
            check_caller,
            authenticator,
            heard: Mutex::default(),
        };
        // Called once, by the one place that assembles the node.
        if self.0.set(door).is_err() {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(HEARTBEAT);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                if let Some(door) = this.0.get() {
                    door.forget_silent(now_ms());
                }
            }
        });
    }
}

impl Door {
    fn take(&self, report: &UsageReport, now: u64) {
        let origin = report.start_id;
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(origin, now);
        let table = self.authenticator.table();
        for used in &report.uses {
            if let Some(budget) = table.budget_of(&used.budget) {
                let totals = Totals {
                    requests: used.requests,
                    tokens: used.tokens,
                    open: used.open,
                };
                budget.absorb(origin, totals, now);
            }
        }
    }

    fn forget_silent(&self, now: u64) {
        let mut silent = Vec::new();
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|origin, heard| {
                let lives = now.saturating_sub(*heard) < SILENT_MS;
                if !lives {
                    silent.push(*origin);
                }
                lives
            });
        let table = self.authenticator.table();
        for budget in table.budgets() {
            for origin in &silent {
                budget.forget(*origin);
            }
        }
    }
}

#[tonic::async_trait]
impl UsageExchange for UsageReceiver {
    async fn share(&self, request: Request<UsageReport>) -> Result<Response<UsageAck>, Status> {
        let Some(door) = self.0.get() else {
            return Err(Status::unavailable("this node is still joining"));
        };
        let (_, call, report) = request.into_parts();
        if report.cluster_id != door.me.cluster_id {
            return Err(Status::failed_precondition("another cluster"));
        }
        (door.check_caller)(report.node_id, &call)?;
        if report.uses.len() > MAX_USES {
            return Err(Status::invalid_argument("too many budgets in one report"));
        }
        door.take(&report, now_ms());
        Ok(Response::new(UsageAck {
            node_id: door.me.node_id,
        }))
    }
}

/// Reports to every other node until `stop`.
pub fn tell(
    me: Me,
    authenticator: Arc<Authenticator>,
    mut peers: watch::Receiver<Vec<Peer>>,
    stop: CancellationToken,
) {
    tokio::spawn(async move {
        // A task for each peer: a slow one must not hold up the others.
        let mut tasks: HashMap<u64, CancellationToken> = HashMap::new();
        loop {
            let now = peers.borrow_and_update().clone();
            tasks.retain(|id, task| {
                let stays = now.iter().any(|peer| peer.node_id == *id);
                if !stays {
                    task.cancel();
                }
                stays
            });
            for peer in now {
                tasks.entry(peer.node_id).or_insert_with(|| {
                    let token = stop.child_token();
                    tokio::spawn(tell_one(
                        me.clone(),
                        Arc::clone(&authenticator),
                        peer,
                        token.clone(),
                    ));
                    token
                });
            }
            match stop.run_until_cancelled(peers.changed()).await {
                Some(Ok(())) => {}
                _ => return,
            }
        }
    });
}

async fn tell_one(me: Me, authenticator: Arc<Authenticator>, peer: Peer, stop: CancellationToken) {
    let mut told: HashMap<Arc<str>, Totals> = HashMap::new();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = tokio::time::Instant::now();
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let table = authenticator.table();
        told.retain(|name, _| table.budget_of(name).is_some());
        let changed: Vec<(Arc<str>, Totals)> = table
            .budgets()
            .map(|budget| (Arc::clone(budget.name()), budget.totals()))
            .filter(|(name, totals)| told.get(name) != Some(totals))
            .take(MAX_USES)
            .collect();
        // Without limits there is nothing to say at all.
        let nothing = table.budgets().next().is_none();
        if nothing || changed.is_empty() && last.elapsed() < HEARTBEAT {
            continue;
        }
        let report = UsageReport {
            cluster_id: me.cluster_id.clone(),
            node_id: me.node_id,
            start_id: me.start_id,
            uses: changed
                .iter()
                .map(|(name, totals)| wire(name, *totals))
                .collect(),
        };
        let mut client = UsageExchangeClient::new((peer.connect)());
        let sent = tokio::time::timeout(PATIENCE, client.share(report)).await;
        match sent {
            Ok(Ok(_)) => told.extend(changed),
            // It is told all of it when it is there again.
            _ => told.clear(),
        }
        last = tokio::time::Instant::now();
    }
}

fn wire(name: &str, totals: Totals) -> BudgetUse {
    BudgetUse {
        budget: name.to_owned(),
        requests: totals.requests,
        tokens: totals.tokens,
        open: totals.open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_routing::identity::{Budget, IdentityTable, Limits, TenantRule};

    fn door(concurrent: u32) -> Door {
        let rule = TenantRule {
            name: "t".into(),
            limits: Limits {
                concurrent: Some(concurrent),
                ..Limits::default()
            },
            ..TenantRule::default()
        };
        let authenticator = Arc::new(Authenticator::default());
        let table = IdentityTable::build(&[rule], &[], &IdentityTable::default(), 1);
        authenticator.set_table(Arc::new(table));
        Door {
            me: Me {
                cluster_id: "c".into(),
                node_id: 1,
                start_id: 10,
            },
            check_caller: Arc::new(|_, _| Ok(())),
            authenticator,
            heard: Mutex::default(),
        }
    }

    #[test]
    fn open_requests_of_others_count_until_they_fall_silent() {
        let door = door(2);
        let report = |start_id, open| UsageReport {
            start_id,
            uses: vec![
                wire(
                    "tenant/t",
                    Totals {
                        open,
                        ..Totals::default()
                    },
                ),
                wire("tenant/unknown", Totals::default()),
            ],
            ..UsageReport::default()
        };
        let table = door.authenticator.table();
        let budget = [Arc::clone(table.budget_of("tenant/t").unwrap())];
        door.take(&report(20, 1), 1_000);
        door.take(&report(30, 1), 2_000);
        assert!(Budget::begin(&budget, 0).is_err());
        door.forget_silent(2_999);
        assert!(Budget::begin(&budget, 0).is_err());
        door.forget_silent(3_000);
        assert!(Budget::begin(&budget, 0).is_ok());
        // It was only slow.
        door.take(&report(20, 1), 3_500);
        assert!(Budget::begin(&budget, 0).is_err());
        door.take(&report(20, 0), 3_600);
        assert!(Budget::begin(&budget, 0).is_ok());
    }
}
