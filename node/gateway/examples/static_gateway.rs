//! The gateway alone in front of a fixed list of endpoints, for profiling:
//! `static_gateway --listen 127.0.0.1:18080 --endpoints http://127.0.0.1:18001,http://127.0.0.1:18002 [--workers N]`.
//!
//! Endpoints count as ready and nothing probes them. Metrics go into a Prometheus recorder, as in a real node.

use arc_swap::ArcSwap;
use quorate_gateway::{BUCKETS, Gateway, GatewayConfig, GatewayShared};
use quorate_routing::{
    BreakerPolicy, Endpoint, EndpointSpec, Health, PoolSpec, RoutingView, Target,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = GatewayConfig::default();
    let mut endpoints = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--listen" => config.listen = vec![value.parse()?],
            "--workers" => config.workers = value.parse()?,
            "--endpoints" => {
                for (i, url) in value.split(',').enumerate() {
                    endpoints.push(endpoint(i, url)?);
                }
            }
            _ => return Err(format!("unknown argument {arg}").into()),
        }
    }
    let mut recorder = metrics_exporter_prometheus::PrometheusBuilder::new();
    for (name, bounds) in BUCKETS {
        let matcher = metrics_exporter_prometheus::Matcher::Full((*name).into());
        recorder = recorder.set_buckets_for_metric(matcher, bounds)?;
    }
    let recorder = recorder.install_recorder()?;
    quorate_gateway::describe();
    let pool = PoolSpec {
        name: "static".into(),
        fallback: true,
        ..PoolSpec::default()
    };
    let view = Arc::new(ArcSwap::from_pointee(RoutingView::build([(
        pool, endpoints,
    )])));
    let shared = GatewayShared::new(view, "static");
    shared.set_ready(true);
    let handle = Gateway::start(config, shared)?;
    println!("listening on {:?}", handle.local_addrs());
    loop {
        std::thread::sleep(Duration::from_secs(5));
        recorder.run_upkeep();
    }
}

fn endpoint(i: usize, url: &str) -> Result<Arc<Endpoint>, Box<dyn Error>> {
    let endpoint = Endpoint::new(
        EndpointSpec {
            name: format!("e{i}").into(),
            incarnation: 1,
            pool: "static".into(),
            target: Target::parse(url)?,
            h2c: false,
            region: "local".into(),
            rank: None,
            labels: BTreeMap::new(),
            breaker: BreakerPolicy::default(),
            slow_start: Duration::ZERO,
            stall_timeout: Duration::from_secs(60),
        },
        None,
    );
    endpoint.set_health(Health::Ready, quorate_routing::now_ms());
    Ok(Arc::new(endpoint))
}
