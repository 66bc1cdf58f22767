//! What the routers of other regions are told of this region's caches, and what they told.
//!
//! The leader of a region's cache group asks its region's nodes what they counted and tells the sum to every node outside, every ten
//! seconds: a few hundred bytes a pool. While a region has no leader, or cannot be reached, what it said last stays, and its age says so.

use super::desk::CacheDesk;
use super::exchange::client;
use super::merge;
use crate::others::others;
use parking_lot::Mutex;
use quorate_proto::peer::v1::{CacheReportRequest, CacheSummary};
use quorate_proto::v1::{CachePool, CacheRegion};
use quorate_raft::MemberStatus;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// How often a region tells of itself.
const EVERY: Duration = Duration::from_secs(10);
/// Pools in a summary: more are not taken.
const MAX_POOLS: usize = 1000;

/// What a region said, and when.
#[derive(Clone, Debug)]
struct Said {
    node: String,
    at: Instant,
    pools: Vec<CachePool>,
}

/// The last word of each other region.
#[derive(Debug, Default)]
pub struct Regions(Mutex<BTreeMap<String, Said>>);

/// A member's region; empty until it is known.
pub fn region_of(member: &MemberStatus) -> &str {
    member.node.as_ref().map_or("", |node| &node.region)
}

impl Regions {
    /// A node of the region said this.
    pub fn said(&self, region: &str, node: &str, mut pools: Vec<CachePool>, now: Instant) {
        pools.truncate(MAX_POOLS);
        let said = Said {
            node: node.to_owned(),
            at: now,
            pools,
        };
        self.0.lock().insert(region.to_owned(), said);
    }

    /// What those of these regions said that have said anything; the others are forgotten. Only of this pool, unless its name is empty.
    pub fn all(&self, there_are: &BTreeSet<String>, pool: &str, now: Instant) -> Vec<CacheRegion> {
        let mut regions = self.0.lock();
        regions.retain(|region, _| there_are.contains(region));
        let told = regions.iter().map(|(region, said)| CacheRegion {
            region: region.clone(),
            node: said.node.clone(),
            age: now.duration_since(said.at).try_into().ok(),
            pools: said
                .pools
                .iter()
                .filter(|of| pool.is_empty() || of.pool == pool)
                .cloned()
                .collect(),
        });
        told.collect()
    }
}

/// Tells the other regions of this one, as long as this node leads its group. Runs until it is dropped.
pub async fn tell(desk: &CacheDesk) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let region = desk.region();
        let members = desk.cluster.status().members;
        let outside =
            |member: &MemberStatus| !region_of(member).is_empty() && region_of(member) != region;
        if region.is_empty() || !desk.leads() || !members.iter().any(outside) {
            continue;
        }
        let asked = CacheReportRequest {
            cluster_id: desk.cluster.cluster_id().to_owned(),
            node_id: desk.cluster.node_id(),
            ..CacheReportRequest::default()
        };
        let inside = |member: &MemberStatus| region_of(member) == region;
        let (theirs, _) = others(&desk.cluster, inside, |channel| {
            let asked = asked.clone();
            async move { client(channel).report(asked).await }
        })
        .await;
        let own = desk.report("", 0).pools;
        let counted = theirs.into_iter().map(|(_, report)| report.pools);
        let counted = merge::counted(std::iter::once(own).chain(counted));
        let summary = CacheSummary {
            cluster_id: desk.cluster.cluster_id().to_owned(),
            node_id: desk.cluster.node_id(),
            region: region.clone(),
            pools: desk.summary(&counted),
        };
        let (_, silent) = others(&desk.cluster, outside, |channel| {
            let summary = summary.clone();
            async move { client(channel).summarize(summary).await }
        })
        .await;
        for node in silent {
            tracing::debug!(
                node = node.name,
                why = node.why,
                "was not told of this region's caches"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_region_stays_with_its_age() {
        let regions = Regions::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let pool = |name: &str, holders| CachePool {
            pool: name.to_owned(),
            holders,
            ..CachePool::default()
        };
        let there_are: BTreeSet<String> = ["us".to_owned(), "asia".to_owned()].into();
        assert!(regions.all(&there_are, "", at(0)).is_empty());
        regions.said("us", "router-1", vec![pool("chat", 1)], at(0));
        regions.said(
            "us",
            "router-2",
            vec![pool("chat", 2), pool("code", 3)],
            at(10),
        );
        regions.said("gone", "router-9", vec![], at(10));
        let all = regions.all(&there_are, "", at(35));
        assert_eq!(all.len(), 1);
        assert_eq!(
            (all[0].region.as_str(), all[0].node.as_str()),
            ("us", "router-2")
        );
        assert_eq!(all[0].age.as_ref().map(|age| age.seconds), Some(25));
        assert_eq!(all[0].pools.len(), 2);
        let chat = regions.all(&there_are, "chat", at(35));
        assert_eq!(chat[0].pools, [pool("chat", 2)]);
        assert!(!regions.0.lock().contains_key("gone"));
        regions.said("us", "router-2", vec![CachePool::default(); 2_000], at(40));
        assert_eq!(
            regions.all(&there_are, "", at(40))[0].pools.len(),
            MAX_POOLS
        );
    }
}
