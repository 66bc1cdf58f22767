//! Endpoints with different loads, for what measures a pick over many of them.

use quorate_routing::{
    BreakerPolicy, Endpoint, EndpointSpec, Health, LoadFigures, PoolSpec, RoutingView, Target,
};
use std::sync::Arc;
use std::time::Duration;

/// A view with one pool, which takes every model.
pub fn view(endpoints: u16) -> RoutingView {
    let pool = PoolSpec {
        name: "pool".into(),
        fallback: true,
        ..Default::default()
    };
    RoutingView::build([(pool, (0..endpoints).map(endpoint).collect())])
}

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
        running: Some(u32::from(i % 37)),
        waiting: Some(u32::from(i % 5)),
        kv_cache_usage: Some(f32::from(i % 83) / 100.0),
    };
    endpoint.set_load(load, 1);
    Arc::new(endpoint)
}
