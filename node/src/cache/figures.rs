//! Figures of this node's copy of the map.

use metrics::{counter, describe_counter, describe_gauge, gauge};
use quorate_cache::Tier;
use quorate_cache::index::CacheIndex;

/// What the figures mean.
pub fn describe() {
    describe_gauge!(
        "quorate_cache_map_blocks",
        "Blocks in this node's copy of the region's map, by tier; a block of two engines counts twice"
    );
    describe_gauge!(
        "quorate_cache_map_max_blocks",
        "Most of them that the map may have"
    );
    describe_gauge!(
        "quorate_cache_map_holders",
        "Engines in the map, each rank for itself"
    );
    describe_gauge!("quorate_cache_map_bytes", "Memory that the map takes");
    describe_gauge!(
        "quorate_cache_map_expected_blocks",
        "Blocks that picks expect and engines have not announced yet"
    );
    describe_counter!(
        "quorate_cache_map_changes_total",
        "Blocks by what became of them: added, removed, refused because the map is full, evicted to make room, of a tier of unknown name"
    );
    describe_counter!(
        "quorate_cache_map_expectations_total",
        "Expected blocks by what became of them: confirmed by the engine, or dropped in time"
    );
    describe_gauge!(
        "quorate_cache_endpoint_condition",
        "1 while something is wrong with how an endpoint's cache is followed, by the condition's name, on the node that follows it"
    );
    describe_counter!(
        "quorate_cache_unattributed_total",
        "Messages of engines that dialled in and that no endpoint could be found for"
    );
    describe_counter!(
        "quorate_cache_map_sections_refused_total",
        "Changes that did not continue what the map had; their owners send the full set"
    );
}

/// Publishes them as they are now.
pub fn publish(index: &CacheIndex) {
    let stats = index.stats();
    for (tier, blocks) in Tier::ALL.into_iter().zip(stats.pairs_by_tier) {
        gauge!("quorate_cache_map_blocks", "tier" => tier.as_str()).set(blocks as f64);
    }
    gauge!("quorate_cache_map_max_blocks").set(stats.max_pairs as f64);
    gauge!("quorate_cache_map_holders").set(stats.holders as f64);
    gauge!("quorate_cache_map_bytes").set(stats.bytes as f64);
    gauge!("quorate_cache_map_expected_blocks").set(stats.expected_now as f64);
    for (what, blocks) in [
        ("added", stats.added),
        ("removed", stats.removed),
        ("refused", stats.refused),
        ("evicted", stats.evicted),
        ("unknown-tier", stats.unknown_tier),
    ] {
        counter!("quorate_cache_map_changes_total", "what" => what).absolute(blocks);
    }
    for (what, blocks) in [("confirmed", stats.confirmed), ("dropped", stats.dropped)] {
        counter!("quorate_cache_map_expectations_total", "what" => what).absolute(blocks);
    }
    counter!("quorate_cache_map_sections_refused_total").absolute(stats.sections_refused);
}
