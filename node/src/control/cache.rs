//! What is known of the engines' KV caches, on this node and all others.

mod lookup;

use super::deadline::patience;
use super::{ControlContext, status};
use crate::cache::desk::{by_incarnation, followed, is_followed};
use crate::cache::exchange::client;
use crate::cache::merge::{self, Known};
use crate::cache::regions::region_of;
use crate::others::others;
use quorate_cache::index::HolderKey;
use quorate_proto::peer::v1::{CacheReport, CacheReportRequest};
use quorate_proto::v1::{
    CacheLookupRequest, CacheLookupResponse, CacheStatusRequest, CacheStatusResponse, CacheTopPool,
    CacheTopRequest, CacheTopResponse, Kind, SilentNode, cache_server::Cache,
};
use quorate_raft::MemberStatus;
use quorate_routing::RoutingView;
use quorate_routing::view::Pool;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// Prefixes of a pool that each node is asked for.
const ASKED: u32 = 500;
/// Prefixes of a pool in an answer, unless the caller says how many, and at most.
const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 100;

pub struct Service {
    context: ControlContext,
}

impl Service {
    pub fn new(context: ControlContext) -> Self {
        Self { context }
    }

    /// Fails unless the pool is there and follows its engines' caches; an empty name means all that do.
    fn check(&self, view: &RoutingView, name: &str) -> Result<(), Status> {
        if name.is_empty() {
            return Ok(());
        }
        self.pool(view, name).map(|_| ())
    }

    fn pool<'v>(&self, view: &'v RoutingView, name: &str) -> Result<&'v Arc<Pool>, Status> {
        if self.context.cluster.view().get(Kind::Pool, name).is_none() {
            return Err(status::not_found(Kind::Pool, name));
        }
        let pool = view.pool(name).filter(|pool| is_followed(pool));
        pool.ok_or_else(|| {
            let message = format!(
                "pool {name:?} does not follow its engines' caches: its scheduling config has no precise-prefix-cache-producer \
                 (see `quorate config presets precise-prefix`)"
            );
            status::precondition(&format!("pool/{name}"), message)
        })
    }

    /// What each of those nodes knows, this one first.
    async fn reports(
        &self,
        pool: &str,
        prefixes: u32,
        those: impl Fn(&MemberStatus) -> bool,
    ) -> (Vec<CacheReport>, Vec<String>, Vec<SilentNode>) {
        let cluster = &self.context.cluster;
        let asked = CacheReportRequest {
            cluster_id: cluster.cluster_id().to_owned(),
            node_id: cluster.node_id(),
            pool: pool.to_owned(),
            prefixes,
        };
        let (theirs, silent) = others(cluster, those, |channel| {
            let asked = asked.clone();
            async move { client(channel).report(asked).await }
        })
        .await;
        let own = usize::try_from(prefixes).unwrap_or(0);
        let own = self.context.cache.report(pool, own);
        let mut answered = vec![cluster.node_name().to_owned()];
        let mut reports = vec![own];
        for (name, report) in theirs {
            answered.push(name);
            reports.push(report);
        }
        (reports, answered, silent)
    }

    fn known(&self, view: &RoutingView, pool: &str, region: &str) -> Vec<Known> {
        let desk = &self.context.cache;
        let live = self.context.plane.live_nodes();
        let live = Arc::clone(&live.borrow());
        let map = desk.holders();
        let endpoints = by_incarnation(followed(view, pool));
        let known = endpoints.into_iter().map(|(incarnation, endpoint)| {
            let spec = endpoint.spec();
            let key = |rank| HolderKey {
                endpoint: incarnation,
                rank,
            };
            let held = map.range(key(0)..=key(u32::MAX));
            let mut ranks: Vec<_> = held
                .map(|(key, held)| desk.holder(endpoint, key.rank, Some(held)))
                .collect();
            if ranks.is_empty() {
                ranks.push(desk.holder(endpoint, spec.rank.unwrap_or(0), None));
            }
            Known {
                ranks,
                owner: live.endpoint_owner(&spec.name, &spec.region),
                near: *spec.region == *region,
            }
        });
        known.collect()
    }
}

#[tonic::async_trait]
impl Cache for Service {
    async fn status(
        &self,
        request: Request<CacheStatusRequest>,
    ) -> Result<Response<CacheStatusResponse>, Status> {
        let pool = request.into_inner().pool;
        let desk = &self.context.cache;
        self.check(&desk.view.load(), &pool)?;
        let (reports, _, silent) = self.reports(&pool, 0, |_| true).await;
        let members = self.context.cluster.status().members;
        let region = desk.region();
        let known = self.known(&desk.view.load(), &pool, &region);
        let name_of = |id: u64| {
            let member = members.iter().find(|member| member.node_id == id);
            member.map_or_else(String::new, |member| member.name.clone())
        };
        let holders = merge::holders(known, &reports, &silent, name_of);
        let regions: BTreeSet<String> = members
            .iter()
            .map(|member| region_of(member).to_owned())
            .filter(|of| !of.is_empty() && *of != region)
            .collect();
        Ok(Response::new(CacheStatusResponse {
            node: self.context.cluster.node_name().to_owned(),
            holders,
            replicas: reports
                .into_iter()
                .filter_map(|report| report.replica)
                .collect(),
            regions: desk.regions.all(&regions, &pool, Instant::now()),
            region,
            silent,
        }))
    }

    async fn lookup(
        &self,
        request: Request<CacheLookupRequest>,
    ) -> Result<Response<CacheLookupResponse>, Status> {
        let patience = patience(request.metadata());
        let request = request.into_inner();
        let view = self.context.cache.view.load_full();
        if request.pool.is_empty() {
            return Err(status::invalid("pool", "must be set"));
        }
        let pool = self.pool(&view, &request.pool)?;
        let found = lookup::look_up(&view, pool, &request, patience).await?;
        Ok(Response::new(CacheLookupResponse {
            node: self.context.cluster.node_name().to_owned(),
            ..found
        }))
    }

    async fn top(
        &self,
        request: Request<CacheTopRequest>,
    ) -> Result<Response<CacheTopResponse>, Status> {
        let request = request.into_inner();
        let desk = &self.context.cache;
        self.check(&desk.view.load(), &request.pool)?;
        let limit = match usize::try_from(request.limit).unwrap_or(MAX_LIMIT) {
            0 => DEFAULT_LIMIT,
            limit => limit.min(MAX_LIMIT),
        };
        let region = desk.region();
        let near = |member: &MemberStatus| region_of(member) == region;
        let (reports, answered, silent) = self.reports(&request.pool, ASKED, near).await;
        let pools = merge::counted(reports.into_iter().map(|report| report.pools));
        let pools = pools.into_iter().map(|pool| {
            let mut prefixes = merge::hottest(pool.prefixes, limit);
            let keys: Vec<u64> = prefixes
                .iter()
                .map(|of| u64::from_str_radix(&of.key, 16).unwrap_or(0))
                .collect();
            for (of, holders) in prefixes.iter_mut().zip(desk.holders_of(&keys)) {
                of.holders = holders;
            }
            CacheTopPool { prefixes, ..pool }
        });
        Ok(Response::new(CacheTopResponse {
            pools: pools.collect(),
            answered,
            silent,
        }))
    }
}
