//! What is known of KV caches, as messages.

use quorate_cache::Tier;
use quorate_cache::feed::{FeederStatus, ReplicaTotals};
use quorate_cache::hash::Algorithm;
use quorate_cache::index::{Digest, HolderStatus, IndexStats, SHARDS, TIERS};
use quorate_cache::keys::{KeySpace, Scheme};
use quorate_cache::route::HotPool;
use quorate_proto::v1::{
    CacheLink, CacheMember, CacheReplica, CacheTiers, CacheTopPool, CacheUsage, HotPrefix,
};
use quorate_raft::{Role, VolatileStatus};
use quorate_routing::endpoint::CacheTotals;
use std::time::Duration;
use tokio::time::Instant;

/// A duration; one that is too long for the message is left out.
pub fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

/// A block's key as people see it.
pub fn key(key: u64) -> String {
    format!("{key:016x}")
}

/// Numbers by tier.
pub fn tiers(by_tier: &[u64; TIERS]) -> CacheTiers {
    let on = |tier: Tier| by_tier[tier as usize];
    CacheTiers {
        gpu: on(Tier::Gpu),
        cpu: on(Tier::Cpu),
        disk: on(Tier::Disk),
        storage: on(Tier::Storage),
        unknown: on(Tier::Unknown),
        expected: 0,
    }
}

/// Adds numbers by tier.
pub const fn add_tiers(sum: &mut CacheTiers, more: &CacheTiers) {
    sum.gpu += more.gpu;
    sum.cpu += more.cpu;
    sum.disk += more.disk;
    sum.storage += more.storage;
    sum.unknown += more.unknown;
    sum.expected += more.expected;
}

fn scheme(space: &KeySpace) -> &'static str {
    match space.scheme() {
        Scheme::Own => "own",
        Scheme::Sglang => "sglang",
        Scheme::Vllm { algorithm, .. } => match algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha256Cbor => "sha256_cbor",
            Algorithm::Xxhash => "xxhash",
            Algorithm::XxhashCbor => "xxhash_cbor",
        },
    }
}

/// How a holder is fed. `held` is what the map has of it.
pub fn link(status: &FeederStatus, held: Option<&HolderStatus>, now: Instant) -> CacheLink {
    let (counters, events, totals) = (&status.counters, &status.events, &status.totals);
    let trimmed = held.is_some_and(|held| held.trimmed);
    let unknown_tier = status.blocks[Tier::Unknown as usize] > 0;
    let conditions = [
        (unknown_tier, "UnknownTier"),
        (trimmed, "MapFull"),
        (status.agrees == Some(false), "DigestDiffers"),
    ];
    let space = status.space.as_ref();
    CacheLink {
        state: status.link.to_owned(),
        last_batch: status.last,
        heard: status
            .heard
            .and_then(|heard| duration(now.duration_since(heard))),
        batches: counters.delivered,
        gaps: counters.gaps,
        losses: counters.losses,
        replays: counters.replays,
        replay_failures: counters.replay_failures,
        duplicates: counters.duplicates,
        dropped: counters.overflowed,
        malformed: status.malformed + totals.unreadable,
        resets: totals.resets,
        keys: match status.exact {
            Some(true) => "exact".to_owned(),
            Some(false) => "learnt".to_owned(),
            None => String::new(),
        },
        scheme: space.map_or_else(String::new, |space| scheme(space).to_owned()),
        model: space.map_or_else(String::new, |space| space.model().to_owned()),
        block_tokens: space.map_or(0, KeySpace::block_tokens),
        conditions: conditions
            .into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, name)| name.to_owned())
            .chain(status.conditions.iter().map(ToString::to_string))
            .collect(),
        blocks: Some(tiers(&status.blocks)),
        proposed: totals.sections,
        full_sets: totals.full_sets,
        waiting_bytes: status.waiting as u64,
        digest: match status.agrees {
            Some(true) => "agrees",
            Some(false) => "differs",
            None => "not-compared",
        }
        .to_owned(),
        digest_mismatches: totals.mismatches,
        unplaced: events.unknown + events.other_group + events.unusable + events.too_many,
    }
}

/// A node's copy of the map.
pub fn replica(
    (node_id, node): (u64, &str),
    region: &str,
    group: &VolatileStatus,
    stats: &IndexStats,
    totals: ReplicaTotals,
    digest: Digest,
) -> CacheReplica {
    let name_of = |id: u64| {
        let mut members = group.members.iter();
        members
            .find(|member| member.raft_id == id)
            .map_or_else(String::new, |member| member.name.clone())
    };
    let is_voter = |id: u64| {
        let mut members = group.members.iter();
        members.any(|member| member.raft_id == id && member.role == Role::Voter)
    };
    let role = match group.leader {
        _ if group.epoch == 0 => "",
        Some(leader) if leader == group.raft_id => "leader",
        _ if is_voter(group.raft_id) => "follower",
        _ => "learner",
    };
    CacheReplica {
        node_id,
        node: node.to_owned(),
        region: region.to_owned(),
        epoch: group.epoch,
        role: role.to_owned(),
        leader: group.leader.map_or_else(String::new, name_of),
        quorate: group.quorate,
        warm: group.warm,
        applied_index: group.applied_index,
        commit_index: group.commit_index,
        members: group
            .members
            .iter()
            .map(|member| CacheMember {
                node: member.name.clone(),
                voter: member.role == Role::Voter,
                lag: member.lag,
            })
            .collect(),
        blocks: stats.pairs,
        max_blocks: stats.max_pairs,
        bytes: stats.bytes as u64,
        shards: SHARDS as u32,
        holders: u32::try_from(stats.holders).unwrap_or(u32::MAX),
        expected_blocks: stats.expected_now,
        digest: format!("{:032x}", digest.0),
        mismatches: totals.mismatches,
        begun_anew: totals.begun_anew,
        sections_refused: stats.sections_refused,
        section_mismatches: stats.digest_mismatches,
    }
}

/// What a node counted of a pool.
pub fn counted(pool: &str, usage: (CacheTotals, Duration), hot: &HotPool) -> CacheTopPool {
    let (used, window) = usage;
    let prefixes = hot.prefixes.iter().map(|prefix| {
        let of = &prefix.counted;
        HotPrefix {
            key: key(prefix.key),
            tokens: of.tokens,
            requests: of.count,
            hits: of.hits,
            missed: of.missed,
            holders: 0,
            parent: if of.parent == 0 {
                String::new()
            } else {
                key(of.parent)
            },
        }
    });
    CacheTopPool {
        pool: pool.to_owned(),
        usage: Some(CacheUsage {
            picks: used.picks,
            prompt_tokens: used.prompt_tokens,
            predicted_tokens: used.predicted_tokens,
            answers: used.answers,
            answered_tokens: used.answered_tokens,
            found_tokens: used.found_tokens,
            window: duration(window),
        }),
        picks: hot.picks,
        counted: hot.counted,
        window: duration(Duration::from_millis(hot.window_ms)),
        prefixes: prefixes.collect(),
    }
}
