//! What this node answers about KV caches: how the engines that it owns are followed, its copy of the map, and what it counted.

use super::regions::Regions;
use super::usage::{Usage, totals};
use super::wire;
use parking_lot::Mutex;
use quorate_cache::feed::Replicated;
use quorate_cache::feed::actor::{FeederHandle, follows};
use quorate_cache::index::{CacheIndex, Columns, HolderKey, HolderStatus};
use quorate_cache::route::CachePlugins;
use quorate_proto::peer::v1::CacheReport;
use quorate_proto::v1::{CacheHolder, CachePool, CacheReplica, CacheTiers, CacheTopPool};
use quorate_raft::{Cluster, VolatileGroup};
use quorate_routing::view::Pool;
use quorate_routing::{Endpoint, RoutingView, SharedView};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::time::Instant;

/// See the module's documentation.
pub struct CacheDesk {
    /// The node.
    pub cluster: Cluster,
    /// What the node routes by.
    pub view: SharedView,
    /// What other regions said of themselves.
    pub regions: Regions,
    pub(super) group: VolatileGroup,
    pub(super) replica: Arc<Replicated>,
    pub(super) feeder: Arc<FeederHandle>,
    pub(super) plugins: CachePlugins,
    pub(super) usage: Mutex<Usage>,
}

/// Whether the pool's engines' caches are followed.
pub fn is_followed(pool: &Pool) -> bool {
    pool.policy.cache.as_deref().is_some_and(follows)
}

/// The pools whose engines' caches are followed; only that of this name, unless it is empty.
pub fn followed<'v>(view: &'v RoutingView, name: &str) -> impl Iterator<Item = &'v Arc<Pool>> {
    let pools = view.pools().iter();
    pools.filter(move |pool| (name.is_empty() || *pool.spec.name == *name) && is_followed(pool))
}

/// Endpoints by the number that holders have.
pub fn by_incarnation<'v>(
    pools: impl Iterator<Item = &'v Arc<Pool>>,
) -> HashMap<u64, &'v Arc<Endpoint>> {
    pools
        .flat_map(|pool| &pool.endpoints)
        .map(|endpoint| (endpoint.spec().incarnation, endpoint))
        .collect()
}

impl CacheDesk {
    /// This node's region.
    pub fn region(&self) -> String {
        let own = self.cluster.node_id();
        let mut members = self.cluster.status().members.into_iter();
        let node = members.find(|member| member.node_id == own);
        node.and_then(|member| member.node)
            .map_or_else(|| self.group.status().region, |node| node.region)
    }

    /// This node's copy of the map.
    pub fn index(&self) -> &Arc<CacheIndex> {
        self.replica.index()
    }

    /// This node leads its region's group, and can.
    pub fn leads(&self) -> bool {
        let status = self.group.status();
        status.quorate && status.leader == Some(status.raft_id)
    }

    /// What only this node knows of a pool, or of all if the name is empty, with its hottest prefixes.
    pub fn report(&self, pool: &str, prefixes: usize) -> CacheReport {
        let view = self.view.load();
        let endpoints = by_incarnation(followed(&view, pool));
        let map = self.holders();
        let now = Instant::now();
        let holders = self.feeder.status();
        let holders = holders.iter().filter_map(|(key, status)| {
            let endpoint = endpoints.get(&key.endpoint)?;
            let held = map.get(key);
            Some(CacheHolder {
                link: Some(wire::link(status, held, now)),
                ..self.holder(endpoint, key.rank, held)
            })
        });
        CacheReport {
            replica: Some(self.replica()),
            holders: holders.collect(),
            pools: self.counted(&view, pool, prefixes, now),
        }
    }

    /// A holder without what only its owner knows.
    pub fn holder(
        &self,
        endpoint: &Endpoint,
        rank: u32,
        held: Option<&HolderStatus>,
    ) -> CacheHolder {
        let spec = endpoint.spec();
        CacheHolder {
            pool: spec.pool.to_string(),
            endpoint: spec.name.to_string(),
            rank,
            incarnation: spec.incarnation,
            region: spec.region.to_string(),
            map: held.map(|held| wire::tiers(&held.pairs)),
            trimmed: held.is_some_and(|held| held.trimmed),
            ..CacheHolder::default()
        }
    }

    /// What this node's copy of the map has, by holder.
    pub fn holders(&self) -> BTreeMap<HolderKey, HolderStatus> {
        let holders = self.index().holders().into_iter();
        holders.map(|status| (status.holder, status)).collect()
    }

    /// This node's copy of the map as a whole.
    pub fn replica(&self) -> CacheReplica {
        wire::replica(
            (self.cluster.node_id(), self.cluster.node_name()),
            &self.region(),
            &self.group.status(),
            &self.index().stats(),
            self.replica.totals(),
            self.index().digests().whole(),
        )
    }

    fn counted(
        &self,
        view: &RoutingView,
        name: &str,
        prefixes: usize,
        now: Instant,
    ) -> Vec<CacheTopPool> {
        let totals = totals(view);
        let usage = self.usage.lock();
        let pools = followed(view, name).map(|pool| {
            let name = &pool.spec.name;
            let sum = totals.get(name).copied().unwrap_or_default();
            let lately = usage.lately(name, &sum, now);
            let hot = self.plugins.hot(name, prefixes).unwrap_or_default();
            wire::counted(name, lately, &hot)
        });
        pools.collect()
    }

    /// What each pool has cached in this region, with what its nodes counted.
    pub fn summary(&self, counted: &[CacheTopPool]) -> Vec<CachePool> {
        let view = self.view.load();
        let map = self.holders();
        let pools = followed(&view, "").map(|pool| {
            let endpoints = by_incarnation(std::iter::once(pool));
            let held = map
                .values()
                .filter(|held| endpoints.contains_key(&held.holder.endpoint));
            let (mut holders, mut blocks) = (0, CacheTiers::default());
            for held in held {
                holders += 1;
                wire::add_tiers(&mut blocks, &wire::tiers(&held.pairs));
            }
            let counted = counted.iter().find(|of| of.pool == *pool.spec.name);
            CachePool {
                pool: pool.spec.name.to_string(),
                holders,
                blocks: Some(blocks),
                usage: counted.and_then(|of| of.usage),
            }
        });
        pools.collect()
    }

    /// How many engines have told that they have a block, each rank for itself.
    pub fn holders_of(&self, keys: &[u64]) -> Vec<u32> {
        let mut columns = Columns::new();
        let count = |key: &u64| {
            self.index().lookup(std::slice::from_ref(key), &mut columns);
            let told = columns.iter().filter(|(_, of)| of.announced() > 0);
            u32::try_from(told.count()).unwrap_or(u32::MAX)
        };
        keys.iter().map(count).collect()
    }

    /// Remembers, from time to time, what was counted so far.
    pub(super) fn note(&self) {
        let view = self.view.load();
        self.usage.lock().note(Instant::now(), || totals(&view));
    }
}
