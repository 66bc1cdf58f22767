//! The table of plugin types.

use super::{Build, Built, Fields, Make, PluginType, Produces, Stability};
use crate::plugin::{admitter, decider, filter, handler, picker, producer, reporter, scorer};
use Make::{Here, Not, There, ThereOr, Without};
use Stability::{Deprecated, Experimental, Stable};

type MakeHere = fn(&mut Fields<'_>, &mut Build<'_>) -> Built;

const fn row(name: &'static str, stability: Stability, make: Make) -> PluginType {
    PluginType {
        name,
        stability,
        produces: &[],
        late: false,
        make,
    }
}

const fn stable(name: &'static str, make: MakeHere) -> PluginType {
    row(name, Stable, Here(make))
}

const fn experimental(name: &'static str, make: MakeHere) -> PluginType {
    row(name, Experimental, Here(make))
}

const fn late(of: PluginType) -> PluginType {
    PluginType { late: true, ..of }
}

const fn producing(of: PluginType, produces: &'static [Produces]) -> PluginType {
    PluginType {
        produces,
        late: true,
        ..of
    }
}

const PROBES: &str = "endpoints are probed and their metrics read as their pool says";
const DISCOVERY: &str = "endpoints are resources here: see `quorate apply`";
const PARSERS: &str = "every API is understood by its path";
const ALWAYS: &str = "this is always done here";

/// By what they are, in the order of the documentation.
pub(in crate::config) static TABLE: &[PluginType] = &[
    // Scorers.
    stable("queue-scorer", scorer::relative::build_queue),
    stable(
        "running-requests-size-scorer",
        scorer::relative::build_running,
    ),
    stable("kv-cache-utilization-scorer", scorer::utilization::build_kv),
    stable("load-aware-scorer", scorer::utilization::build_load_aware),
    stable("active-request-scorer", scorer::in_flight::build_active),
    stable("token-load-scorer", scorer::in_flight::build_tokens),
    stable("lora-affinity-scorer", scorer::lora_affinity::build),
    stable("no-hit-lru-scorer", scorer::no_hit_lru::build),
    stable("prefix-cache-scorer", scorer::prefix::build),
    producing(
        row(
            "precise-prefix-cache-scorer",
            Deprecated("precise-prefix-cache-producer with prefix-cache-scorer"),
            ThereOr(scorer::prefix::build_precise),
        ),
        &[Produces::Prefix],
    ),
    stable(
        "mm-embeddings-cache-scorer",
        scorer::prefix::build_multimodal,
    ),
    stable("expected-prefill-cost-scorer", scorer::prefill_cost::build),
    stable("context-length-aware", scorer::context_length::build),
    stable("latency-scorer", scorer::latency::build),
    experimental("session-affinity-scorer", scorer::session::build),
    experimental("topology-affinity-scorer", scorer::topology_affinity::build),
    experimental(
        "header-label-affinity-scorer",
        scorer::header_label_affinity::build,
    ),
    experimental(
        "endpoint-attribute-scorer",
        scorer::endpoint_attribute::build,
    ),
    row("multicluster-queue-scorer", Experimental, Not),
    row(
        "multicluster-kv-cache-utilization-scorer",
        Experimental,
        Not,
    ),
    row("multicluster-prefix-cache-scorer", Experimental, Not),
    // Filters.
    stable("label-selector-filter", filter::label::build_selector),
    row(
        "by-label-selector",
        Deprecated("label-selector-filter"),
        Here(filter::label::build_selector),
    ),
    row(
        "by-label",
        Deprecated("label-selector-filter"),
        Here(filter::label::build_by_label),
    ),
    stable("decode-filter", filter::role::build_decode),
    stable("prefill-filter", filter::role::build_prefill),
    stable("encode-filter", filter::role::build_encode),
    stable(
        "prefix-cache-affinity-filter",
        filter::prefix_affinity::build,
    ),
    stable("slo-headroom-tier-filter", filter::slo_headroom::build),
    stable(
        "utilization-detector",
        filter::saturation::build_utilization,
    ),
    stable(
        "concurrency-detector",
        filter::saturation::build_concurrency,
    ),
    stable("header-based-testing-filter", filter::test_header::build),
    experimental("session-affinity-filter", filter::session::build),
    experimental("topology-affinity-filter", filter::topology_affinity::build),
    experimental("utilization-filter", filter::utilization::build),
    experimental(
        "endpoint-attribute-filter",
        filter::endpoint_attribute::build,
    ),
    row("multicluster-session-affinity-filter", Experimental, Not),
    // Pickers.
    stable("max-score-picker", picker::max_score::build),
    stable("random-picker", picker::random::build),
    stable("weighted-random-picker", picker::weighted_random::build),
    // Profile handlers and deciders.
    late(stable("single-profile-handler", handler::single::build)),
    late(stable("disagg-profile-handler", handler::disagg::build)),
    late(stable(
        "data-parallel-profile-handler",
        handler::data_parallel::build,
    )),
    late(experimental(
        "header-profile-handler",
        handler::header_profile::build,
    )),
    late(row(
        "pd-profile-handler",
        Deprecated("disagg-profile-handler"),
        Here(handler::disagg::build_pd),
    )),
    row(
        "disagg-headers-handler",
        Deprecated("disagg-profile-handler"),
        Without("the profile handler writes the headers"),
    ),
    row(
        "prefill-header-handler",
        Deprecated("disagg-profile-handler"),
        Without("the profile handler writes the header"),
    ),
    stable("prefix-based-pd-decider", decider::prefix_based::build),
    stable("always-disagg-pd-decider", decider::always::build_always),
    stable(
        "always-disagg-multimodal-decider",
        decider::always::build_multimodal,
    ),
    // Producers.
    producing(
        stable(
            "approx-prefix-cache-producer",
            producer::approx_prefix::build,
        ),
        &[Produces::Prefix],
    ),
    producing(
        stable("inflight-load-producer", producer::inflight_load::build),
        &[Produces::Uncached],
    ),
    producing(
        stable("session-id-producer", producer::session_id::build),
        &[Produces::Session],
    ),
    producing(row("token-producer", Stable, There), &[]),
    producing(row("tokenizer", Deprecated("token-producer"), There), &[]),
    producing(
        row("precise-prefix-cache-producer", Stable, There),
        &[Produces::Prefix],
    ),
    producing(
        row("predicted-latency-producer", Stable, There),
        &[Produces::Prediction],
    ),
    producing(
        stable(
            "mm-embeddings-cache-producer",
            producer::encoded_items::build,
        ),
        &[Produces::Multimodal],
    ),
    producing(
        experimental("burst-prefix-cache-producer", producer::burst_prefix::build),
        &[Produces::Placement],
    ),
    late(experimental(
        "p2p-source-producer",
        producer::p2p_source::build,
    )),
    row(
        "multicluster-approx-prefix-cache-producer",
        Experimental,
        Not,
    ),
    // Admitters, screeners, request and response plugins.
    stable("latency-slo-admitter", admitter::latency_slo::build),
    stable("probabilistic-admitter", admitter::probabilistic::build),
    row("disaggregatedset-rollout-screener", Experimental, Not),
    experimental(
        "agent-identity",
        super::super::compile::policies::agent_identity,
    ),
    stable("request-attribute-reporter", reporter::build),
    row(
        "destination-endpoint-served-verifier",
        Stable,
        Without(ALWAYS),
    ),
    // Flow control.
    stable(
        "global-strict-fairness-policy",
        super::super::compile::policies::global_strict,
    ),
    stable(
        "round-robin-fairness-policy",
        super::super::compile::policies::round_robin,
    ),
    experimental(
        "program-aware-fairness",
        super::super::compile::policies::program_aware,
    ),
    stable(
        "fcfs-ordering-policy",
        super::super::compile::policies::fcfs,
    ),
    stable("edf-ordering-policy", super::super::compile::policies::edf),
    stable(
        "slo-deadline-ordering-policy",
        super::super::compile::policies::slo_deadline,
    ),
    stable(
        "static-usage-limit-policy",
        super::super::compile::policies::static_limit,
    ),
    experimental(
        "priority-holdback-policy",
        super::super::compile::policies::holdback,
    ),
    experimental(
        "soft-reflective-ceiling-policy",
        super::super::compile::policies::reflective,
    ),
    row("sheddable-eviction-filter", Experimental, Without(ALWAYS)),
    row(
        "priority-then-time-eviction-order-policy",
        Experimental,
        Without(ALWAYS),
    ),
    // Parsers.
    row("openai-parser", Stable, Without(PARSERS)),
    row("anthropic-parser", Stable, Without(PARSERS)),
    row("vllmhttp-parser", Stable, Without(PARSERS)),
    row("sglanghttp-parser", Stable, Without(PARSERS)),
    row("vllmgrpc-parser", Stable, Without(PARSERS)),
    row("passthrough-parser", Stable, Without(PARSERS)),
    row("vertexai-parser", Stable, Not),
    // Discovery, sources, extractors.
    row("file-discovery", Stable, Without(DISCOVERY)),
    row(
        "multicluster-file-discovery",
        Experimental,
        Without(DISCOVERY),
    ),
    row("metrics-data-source", Stable, Without(PROBES)),
    row("core-metrics-extractor", Stable, Without(PROBES)),
    row("models-data-source", Stable, Without(PROBES)),
    row("models-data-extractor", Stable, Without(PROBES)),
    row("dcgm-data-source", Experimental, Without(PROBES)),
    row("dcgm-extractor", Experimental, Without(PROBES)),
    row(
        "topology-extractor",
        Experimental,
        Without("places are read from the endpoints' topology labels"),
    ),
    row("k8s-notification-source", Stable, Without(DISCOVERY)),
    row("endpoint-notification-source", Stable, Without(DISCOVERY)),
    row(
        "multicluster-metrics-data-source",
        Experimental,
        Without(PROBES),
    ),
    row(
        "multicluster-metrics-extractor",
        Experimental,
        Without(PROBES),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_type_twice() {
        for (i, a) in TABLE.iter().enumerate() {
            assert!(
                TABLE.iter().skip(i + 1).all(|b| a.name != b.name),
                "{}",
                a.name
            );
        }
    }
}
