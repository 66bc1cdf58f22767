//! Policies of flow control as plugins: read here, carried out by the queueing engine.

use crate::config::registry::{Build, Built};
use crate::config::{
    FairnessPolicy, Fields, HoldbackDomain, OrderingPolicy, ProgramAware, UsageLimitPolicy,
};
use crate::objective::AgentIdentity;
use http::HeaderName;
use std::time::Duration;

fn fairness(policy: FairnessPolicy) -> Built {
    Built {
        fairness: Some(policy),
        ..Built::default()
    }
}

fn ordering(policy: OrderingPolicy) -> Built {
    Built {
        ordering: Some(policy),
        ..Built::default()
    }
}

fn usage_limit(policy: UsageLimitPolicy) -> Built {
    Built {
        usage_limit: Some(policy),
        ..Built::default()
    }
}

/// `agent-identity`: fairness ids out of the headers in which agents name their sessions.
pub(crate) fn agent_identity(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let mut headers = Vec::new();
    for name in fields.texts("additionalSessionHeaders") {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(header) => headers.push(header),
            Err(_) => fields.error(
                "additionalSessionHeaders",
                format!("`{name}` is no name of a header"),
            ),
        }
    }
    Built {
        agent_identity: Some(AgentIdentity::new(headers)),
        ..Built::default()
    }
}

pub(crate) fn global_strict(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    fairness(FairnessPolicy::GlobalStrict)
}

pub(crate) fn round_robin(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    fairness(FairnessPolicy::RoundRobin)
}

pub(crate) fn program_aware(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let default = ProgramAware::default();
    fields.one_of("strategy", &[("las", ())], ());
    let seconds = |fields: &mut Fields<'_>, key, default: Duration| {
        let range = 0.001..=1e9;
        Duration::from_secs_f64(fields.number(key, default.as_secs_f64(), range))
    };
    fairness(FairnessPolicy::ProgramAware(ProgramAware {
        weight_service: fields.number("lasWeightService", default.weight_service, 0.0..=1e6),
        weight_head_wait: fields.number("lasWeightHeadWait", default.weight_head_wait, 0.0..=1e6),
        half_life: seconds(fields, "lasHalfLifeSeconds", default.half_life),
        eviction_ttl: seconds(fields, "evictionTtlSeconds", default.eviction_ttl),
        eviction_sweep: seconds(fields, "evictionSweepSeconds", default.eviction_sweep),
    }))
}

pub(crate) fn fcfs(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    ordering(OrderingPolicy::Fcfs)
}

pub(crate) fn edf(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    ordering(OrderingPolicy::Edf)
}

pub(crate) fn slo_deadline(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    ordering(OrderingPolicy::SloDeadline)
}

pub(crate) fn static_limit(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    usage_limit(UsageLimitPolicy::Static {
        threshold: fields.number("threshold", 1.0, 0.0..=1e6),
    })
}

pub(crate) fn holdback(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    if !fields.has("minCeiling") {
        fields.error("minCeiling", "is required");
    }
    let min_ceiling = fields.number("minCeiling", 1.0, 0.0..=1e6);
    let max_ceiling = fields.number("maxCeiling", 1.0, 0.0..=1e6);
    if min_ceiling > max_ceiling {
        fields.error("minCeiling", "must not be more than `maxCeiling`");
    }
    fields.one_of("shape", &[("linear", ())], ());
    usage_limit(UsageLimitPolicy::PriorityHoldback {
        min_ceiling,
        max_ceiling,
        domain: fields.one_of(
            "domain",
            &[
                ("rank", HoldbackDomain::Rank),
                ("value", HoldbackDomain::Value),
            ],
            HoldbackDomain::Rank,
        ),
    })
}

pub(crate) fn reflective(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    usage_limit(UsageLimitPolicy::SoftReflective)
}
