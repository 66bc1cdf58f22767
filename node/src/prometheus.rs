//! The Prometheus recorder of the process, rendered by the admin listener.

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::time::Duration;

/// For durations in seconds that no crate has given buckets for.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// For counts of things in a batch.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Installs the recorder. Must come before any metric is touched: handles made earlier stay deaf.
///
/// # Errors
/// A recorder is installed already, or a bucket table is empty.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_batch_size".into()), COUNTS)?;
    for (name, buckets) in quorate_gateway::BUCKETS
        .iter()
        .chain(quorate_endpoint::BUCKETS)
        .chain(quorate_extproc::BUCKETS)
    {
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).into()), buckets)?;
    }
    let handle = builder
        .install_recorder()
        .context("cannot install the metrics recorder")?;
    quorate_gateway::describe();
    quorate_endpoint::describe_metrics();
    quorate_routing::flow::describe_metrics();
    quorate_extproc::describe();
    quorate_cache::route::describe_metrics();
    crate::cache::figures::describe();
    crate::explain::describe();
    metrics::describe_gauge!("llm_d_epp_info", "What this router was built from.");
    metrics::gauge!("llm_d_epp_info", "commit" => option_env!("QUORATE_COMMIT").unwrap_or("unknown"),
        "build_ref" => env!("CARGO_PKG_VERSION"))
    .set(1.0);
    metrics::gauge!("quorate_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// Folds the recorded samples of histograms regularly, so that memory stays flat when nobody scrapes.
pub async fn upkeep(handle: PrometheusHandle) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        handle.run_upkeep();
    }
}
