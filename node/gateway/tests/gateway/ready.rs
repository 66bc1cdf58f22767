//! Endpoints that are ready.

use crate::support::Engine;
use quorate_routing::{
    BreakerPolicy, Endpoint, EndpointObserver, EndpointSpec, Health, ServedModel, Target,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// An endpoint of model "m".
pub fn endpoint(name: &str, url: &str, h2c: bool) -> Arc<Endpoint> {
    observed(name, url, h2c, None)
}

/// An endpoint that somebody watches.
pub fn observed(
    name: &str,
    url: &str,
    h2c: bool,
    observer: Option<Arc<dyn EndpointObserver>>,
) -> Arc<Endpoint> {
    let endpoint = Endpoint::new(
        EndpointSpec {
            name: name.into(),
            incarnation: 1,
            pool: "p".into(),
            target: Target::parse(url).unwrap(),
            h2c,
            region: "r".into(),
            rank: None,
            labels: BTreeMap::new(),
            // Tests of retries must not be tests of the breaker.
            breaker: BreakerPolicy {
                consecutive_failures: 1000,
                ..BreakerPolicy::default()
            },
            slow_start: Duration::ZERO,
            stall_timeout: Duration::from_secs(60),
        },
        observer,
    );
    endpoint.set_models(vec![ServedModel {
        id: "m".into(),
        max_model_len: Some(4096),
        ..ServedModel::default()
    }]);
    endpoint.set_health(Health::Ready, 1);
    Arc::new(endpoint)
}

/// An endpoint for each engine, over HTTP/1.1.
pub fn endpoints(engines: &[&Engine]) -> Vec<Arc<Endpoint>> {
    engines
        .iter()
        .enumerate()
        .map(|(i, engine)| endpoint(&format!("e{i}"), &format!("http://{}", engine.addr), false))
        .collect()
}
