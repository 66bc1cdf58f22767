//! Prometheus figures of pools and endpoints. Set by sampling, so that the hot path pays nothing for them.

use crate::shared::Shared;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use quorate_routing::{Endpoint, FarTier, Health, RoutingView, now_ms};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Time between two samples.
const EVERY: Duration = Duration::from_secs(1);
/// Engine figures older than this (ms) are left out of averages.
const FRESH_MS: u64 = 10_000;

/// Bucket bounds of this crate's histograms, for the exporter.
pub const BUCKETS: &[(&str, &[f64])] = &[(
    "quorate_endpoint_probe_seconds",
    &[
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    ],
)];

const POOL_GAUGES: [(&str, &str); 8] = [
    (
        "llm_d_epp_ready_endpoints",
        "Endpoints of the pool that are ready.",
    ),
    (
        "llm_d_epp_average_queue_size",
        "Average number of requests waiting in the engines of the pool.",
    ),
    (
        "llm_d_epp_std_dev_queue_size",
        "Standard deviation of the requests waiting.",
    ),
    (
        "llm_d_epp_average_running_requests",
        "Average number of requests running in the engines of the pool.",
    ),
    (
        "llm_d_epp_std_dev_running_requests",
        "Standard deviation of the requests running.",
    ),
    (
        "llm_d_epp_average_kv_cache_utilization",
        "Average share of KV-cache blocks in use.",
    ),
    (
        "llm_d_epp_std_dev_kv_cache_utilization",
        "Standard deviation of the share of KV-cache blocks in use.",
    ),
    (
        "quorate_pool_in_flight",
        "Requests of all nodes of the region in flight on the pool.",
    ),
];

/// Describes all figures of this crate.
pub fn describe() {
    for (name, help) in POOL_GAUGES {
        describe_gauge!(name, help);
    }
    describe_gauge!(
        "llm_d_epp_per_endpoint_queue_size",
        "Requests waiting in one engine."
    );
    describe_gauge!(
        "quorate_endpoint_state",
        "1 ready, 2 unknown, 3 unhealthy, 4 draining; 0 gone."
    );
    describe_gauge!(
        "quorate_endpoint_prompt_tokens_per_second",
        "Prompt tokens that the endpoint was seen to make ready in a second, by how: computed (prefill), or loaded from a tier (cpu, disk, storage)."
    );
    describe_gauge!("quorate_endpoint_owned", "Endpoints that this node probes.");
    describe_gauge!(
        "quorate_nodes_live",
        "Nodes that this node believes alive, itself included."
    );
    describe_gauge!(
        "quorate_actor_mailbox_depth",
        "Messages that wait in mailboxes, by kind of actor."
    );
    describe_counter!(
        "quorate_actor_restarts_total",
        "Actors that ended unasked, by kind."
    );
    describe_counter!(
        "quorate_endpoint_owner_moves_total",
        "Endpoints that moved from one node to another."
    );
    describe_counter!(
        "quorate_endpoint_scrape_errors_total",
        "Reads of metrics pages that failed."
    );
    describe_counter!(
        "llm_d_epp_datalayer_poll_errors_total",
        "Reads of endpoints' figures that failed, by the kind of source."
    );
    describe_counter!(
        "quorate_endpoint_breaker_opened_total",
        "Circuit breakers that opened on this node."
    );
    describe_counter!(
        "quorate_endpoint_signals_dropped_total",
        "Signals of the request path that found the list full."
    );
    describe_counter!(
        "quorate_learnt_told_total",
        "Blocks, sessions and cold uses that this router learnt and told the others of its region."
    );
    describe_counter!(
        "quorate_learnt_heard_total",
        "Blocks, sessions and cold uses that other routers told this one."
    );
    describe_counter!(
        "quorate_learnt_dropped_total",
        "What was learnt and not told, or told and of no use here, by reason."
    );
    describe_counter!(
        "quorate_discovery_errors_total",
        "Looks at a discovery source that failed."
    );
    describe_histogram!(
        "quorate_endpoint_probe_seconds",
        Unit::Seconds,
        "Time of a health probe."
    );
}

/// Samples for ever.
pub async fn run(shared: Arc<Shared>) {
    let mut shown = Shown::default();
    loop {
        sample(&shared.view.load(), &mut shown);
        let node = shared.node_id();
        let catalog = shared.catalog.load_full();
        let owned = catalog
            .entries
            .values()
            .filter(|e| e.owner() == node)
            .count();
        gauge!("quorate_endpoint_owned").set(owned as f64);
        gauge!("quorate_nodes_live").set(shared.live.borrow().len() as f64);
        tokio::time::sleep(EVERY).await;
    }
}

/// Series that have a value other than 0: when their subject goes, they are set to 0 once.
#[derive(Default)]
struct Shown {
    pools: BTreeSet<Arc<str>>,
    endpoints: BTreeSet<(Arc<str>, Arc<str>)>,
    rates: BTreeSet<(Arc<str>, Arc<str>, &'static str)>,
}

fn sample(view: &RoutingView, shown: &mut Shown) {
    let now = now_ms();
    let mut next = Shown::default();
    for pool in view.pools() {
        let name = &pool.spec.name;
        let values = pool_values(&pool.endpoints, now);
        set_pool(name, &values);
        next.pools.insert(Arc::clone(name));
        for endpoint in &pool.endpoints {
            let waiting = fresh(endpoint, now).and_then(|l| l.waiting);
            set_endpoint(
                name,
                &endpoint.spec().name,
                f64::from(waiting.unwrap_or(0)),
                state(endpoint),
            );
            for (how, rate) in rates(endpoint) {
                set_rate(name, &endpoint.spec().name, how, rate);
                next.rates
                    .insert((Arc::clone(name), Arc::clone(&endpoint.spec().name), how));
            }
            next.endpoints
                .insert((Arc::clone(name), Arc::clone(&endpoint.spec().name)));
        }
    }
    for pool in shown.pools.difference(&next.pools) {
        set_pool(pool, &[0.0; POOL_GAUGES.len()]);
    }
    for (pool, endpoint) in shown.endpoints.difference(&next.endpoints) {
        set_endpoint(pool, endpoint, 0.0, 0);
    }
    for (pool, endpoint, how) in shown.rates.difference(&next.rates) {
        set_rate(pool, endpoint, how, 0.0);
    }
    *shown = next;
}

fn set_pool(pool: &Arc<str>, values: &[f64; POOL_GAUGES.len()]) {
    for ((name, _), value) in POOL_GAUGES.into_iter().zip(values) {
        gauge!(name, "name" => Arc::clone(pool)).set(*value);
    }
}

fn set_endpoint(pool: &Arc<str>, endpoint: &Arc<str>, waiting: f64, state: u8) {
    let labels = || {
        [
            ("name", Arc::clone(pool)),
            ("model_server_endpoint", Arc::clone(endpoint)),
        ]
    };
    gauge!("llm_d_epp_per_endpoint_queue_size", &labels()).set(waiting);
    gauge!("quorate_endpoint_state", &labels()).set(f64::from(state));
}

/// What was learnt of it, in tokens a second.
fn rates(endpoint: &Endpoint) -> impl Iterator<Item = (&'static str, f64)> + '_ {
    let rates = endpoint.rates();
    let tier = |tier: FarTier| Some((tier.name(), rates.tier(tier).get()?));
    let prefill = rates.prefill().get().map(|rate| ("prefill", rate));
    prefill
        .into_iter()
        .chain(FarTier::ALL.into_iter().filter_map(tier))
}

fn set_rate(pool: &Arc<str>, endpoint: &Arc<str>, how: &'static str, rate: f64) {
    let labels = [
        ("name", Arc::clone(pool)),
        ("model_server_endpoint", Arc::clone(endpoint)),
        ("how", Arc::from(how)),
    ];
    gauge!("quorate_endpoint_prompt_tokens_per_second", &labels).set(rate);
}

fn state(endpoint: &Endpoint) -> u8 {
    match (endpoint.is_draining(), endpoint.health()) {
        (true, _) => 4,
        (_, Health::Ready) => 1,
        (_, Health::Unknown) => 2,
        (_, Health::Unhealthy) => 3,
    }
}

fn fresh(endpoint: &Endpoint, now: u64) -> Option<quorate_routing::LoadFigures> {
    endpoint
        .load(now)
        .filter(|(_, age)| *age <= FRESH_MS)
        .map(|(load, _)| load)
}

/// In the order of [`POOL_GAUGES`].
fn pool_values(endpoints: &[Arc<Endpoint>], now: u64) -> [f64; POOL_GAUGES.len()] {
    let loads: Vec<_> = endpoints.iter().filter_map(|e| fresh(e, now)).collect();
    let ready = endpoints.iter().filter(|e| state(e) == 1).count() as f64;
    let in_flight: f64 = endpoints
        .iter()
        .map(|e| f64::from(e.total_in_flight()))
        .sum();
    let (queue, queue_dev) = spread(loads.iter().filter_map(|l| l.waiting).map(f64::from));
    let (running, running_dev) = spread(loads.iter().filter_map(|l| l.running).map(f64::from));
    let (kv, kv_dev) = spread(loads.iter().filter_map(|l| l.kv_cache_usage).map(f64::from));
    [
        ready,
        queue,
        queue_dev,
        running,
        running_dev,
        kv,
        kv_dev,
        in_flight,
    ]
}

/// Mean and (population) standard deviation; zeros if there are no values.
fn spread(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        n += 1.0;
        let delta = value - mean;
        mean += delta / n;
        squares += delta * (value - mean);
    }
    if n == 0.0 {
        (0.0, 0.0)
    } else {
        (mean, f64::sqrt(squares / n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::{endpoint as declared, pool};
    use quorate_proto::v1;

    fn endpoint(name: &str, waiting: u32) -> Arc<Endpoint> {
        let placed = crate::catalog::place(&crate::Declared {
            pools: vec![pool("p", v1::PoolSpec::default())],
            endpoints: vec![declared(name, "p", "http://h:1")],
            ..Default::default()
        });
        let endpoint = Endpoint::new(placed.endpoints[name].endpoint.clone(), None);
        endpoint.set_health(Health::Ready, now_ms());
        let load = quorate_routing::LoadFigures {
            waiting: Some(waiting),
            ..Default::default()
        };
        endpoint.set_load(load, now_ms());
        Arc::new(endpoint)
    }

    fn view(endpoints: Vec<Arc<Endpoint>>) -> RoutingView {
        let spec = quorate_routing::PoolSpec {
            name: "p".into(),
            ..Default::default()
        };
        RoutingView::build([(spec, endpoints)])
    }

    #[test]
    fn figures_are_exported_and_those_of_what_is_gone_are_zeroed() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let page = recorder.handle();
        let mut shown = Shown::default();
        metrics::with_local_recorder(&recorder, || {
            let b = endpoint("b", 6);
            b.rates().tier(FarTier::Disk).set(20_000.0);
            sample(&view(vec![endpoint("a", 2), b]), &mut shown);
        });
        let text = page.render();
        let has =
            |text: &str, line: &str| assert!(text.lines().any(|l| l == line), "{line} in {text}");
        has(&text, "llm_d_epp_ready_endpoints{name=\"p\"} 2");
        has(&text, "llm_d_epp_average_queue_size{name=\"p\"} 4");
        has(&text, "llm_d_epp_std_dev_queue_size{name=\"p\"} 2");
        has(
            &text,
            "llm_d_epp_per_endpoint_queue_size{name=\"p\",model_server_endpoint=\"b\"} 6",
        );
        has(
            &text,
            "quorate_endpoint_state{name=\"p\",model_server_endpoint=\"b\"} 1",
        );
        let learnt = text
            .lines()
            .filter(|l| l.starts_with("quorate_endpoint_prompt_tokens_per_second{"));
        let of_b = "quorate_endpoint_prompt_tokens_per_second{name=\"p\",model_server_endpoint=\"b\",how=\"disk\"} ";
        let figures: Vec<f64> = learnt
            .filter_map(|l| l.strip_prefix(of_b)?.parse().ok())
            .collect();
        assert!(
            matches!(figures[..], [rate] if (rate - 20_000.0).abs() < 1.0),
            "{text}"
        );
        metrics::with_local_recorder(&recorder, || {
            sample(&view(vec![endpoint("a", 2)]), &mut shown);
        });
        let text = page.render();
        has(&text, "llm_d_epp_ready_endpoints{name=\"p\"} 1");
        has(
            &text,
            "llm_d_epp_per_endpoint_queue_size{name=\"p\",model_server_endpoint=\"b\"} 0",
        );
        has(
            &text,
            "quorate_endpoint_state{name=\"p\",model_server_endpoint=\"b\"} 0",
        );
        has(&text, &format!("{of_b}0"));
        metrics::with_local_recorder(&recorder, || sample(&RoutingView::default(), &mut shown));
        let text = page.render();
        has(&text, "llm_d_epp_ready_endpoints{name=\"p\"} 0");
        has(&text, "llm_d_epp_average_queue_size{name=\"p\"} 0");
        assert!(shown.pools.is_empty() && shown.endpoints.is_empty());
    }

    #[test]
    fn mean_and_deviation() {
        assert_eq!(spread([].into_iter()), (0.0, 0.0));
        assert_eq!(spread([4.0].into_iter()), (4.0, 0.0));
        let (mean, dev) = spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0].into_iter());
        assert!((mean - 5.0).abs() < 1e-12 && (dev - 2.0).abs() < 1e-12);
    }
}
