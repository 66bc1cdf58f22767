//! A pick allocates nothing in the steady state.

use quorate_routing::config::{EndpointPickerConfig, presets};
use quorate_routing::{
    BreakerPolicy, Endpoint, EndpointSpec, Health, LoadFigures, PoolSpec, RoutingView, Scheduler,
    SchedulingRequest, Target, Tried,
};
use std::sync::Arc;
use std::time::Duration;

fn endpoint(i: u16) -> Arc<Endpoint> {
    let endpoint = Endpoint::new(
        EndpointSpec {
            name: format!("endpoint-{i:04}").into(),
            incarnation: 1,
            pool: "pool".into(),
            target: Target::new(false, "10.0.0.1", 8000 + i),
            h2c: false,
            region: "r".into(),
            rank: None,
            labels: Default::default(),
            breaker: BreakerPolicy::default(),
            slow_start: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
        },
        None,
    );
    endpoint.set_health(Health::Ready, 1);
    let load = LoadFigures {
        running: Some(u32::from(i % 7)),
        waiting: Some(u32::from(i % 5)),
        kv_cache_usage: Some(f32::from(i) / 200.0),
    };
    endpoint.set_load(load, 1);
    Arc::new(endpoint)
}

#[test]
fn a_pick_over_100_endpoints_allocates_nothing() {
    let pool = PoolSpec {
        name: "pool".into(),
        fallback: true,
        ..Default::default()
    };
    let view = RoutingView::build([(pool, (0..100).map(endpoint).collect())]);
    let route = view.route("m").unwrap();
    let text = "All happy families are alike. ".repeat(100);
    let text = text.as_str();
    let tried = Tried::default();
    let builtin = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";
    let texts = [
        builtin,
        presets::get("optimized-baseline-v1").unwrap(),
        presets::get("optimized-baseline").unwrap(),
        presets::get("predicted-latency").unwrap(),
    ];
    for config in texts {
        let parsed = EndpointPickerConfig::parse(config).unwrap();
        let scheduler = parsed.config.compile().unwrap().scheduler;
        for prompt in [None, Some(&text)] {
            let request = SchedulingRequest {
                model: "m",
                prompt: prompt.map(|p| p as &dyn quorate_routing::Prompt),
                prompt_bytes: text.len(),
                ..Default::default()
            };
            let pick = |i: u64| {
                let picked = scheduler.schedule(&request, route, &tried, 2, i, None);
                assert!(picked.is_ok());
            };
            // Until every endpoint has had its turn, memory is still being laid out.
            (0..5000).for_each(pick);
            let counted = allocation_counter::measure(|| (5000..5100).for_each(pick));
            assert_eq!(counted.count_total, 0, "{config}");
        }
    }
}
