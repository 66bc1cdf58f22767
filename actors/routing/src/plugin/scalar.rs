//! A number of an endpoint by name: a figure of its engine under any of the names that engines and llm-d give it, else a label.

use crate::pipeline::{Context, Row};

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// Requests in the engine's queue.
    Queue,
    /// Requests in the running batch.
    Running,
    /// Share of the KV cache in use.
    KvUsage,
    /// Requests that the routers have in flight.
    InFlight,
    /// Prompt tokens that the routers have in flight.
    Tokens,
    /// A label with a number in it.
    Label(String),
}

impl Scalar {
    /// What a name means.
    pub fn named(name: &str) -> Self {
        match name {
            "waiting-queue"
            | "waiting_queue"
            | "WaitingQueueSize"
            | "num_requests_waiting"
            | "vllm:num_requests_waiting" => Self::Queue,
            "running-requests"
            | "running_requests"
            | "RunningRequestsSize"
            | "num_requests_running"
            | "vllm:num_requests_running" => Self::Running,
            "kv-cache-utilization"
            | "kv_cache_utilization"
            | "KVCacheUsagePercent"
            | "kv_cache_usage_perc"
            | "vllm:kv_cache_usage_perc" => Self::KvUsage,
            "active-requests" | "InFlightLoad.Requests" => Self::InFlight,
            "active-tokens" | "InFlightLoad.Tokens" => Self::Tokens,
            label => Self::Label(label.to_owned()),
        }
    }

    /// The number, if the endpoint has it.
    pub fn of(&self, context: &Context<'_>, row: Row) -> Option<f64> {
        let told = |value: f64| context.loads.age_ms(row).map(|_| value);
        match self {
            Self::Queue => told(context.loads.queue(row)),
            Self::Running => told(context.loads.running(row)),
            Self::KvUsage => told(context.loads.kv_usage(row)),
            Self::InFlight => Some(f64::from(context.loads.in_flight(row))),
            Self::Tokens => Some(context.loads.tokens(row) as f64),
            Self::Label(key) => context
                .label(row, key)?
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite()),
        }
    }
}
