//! What differs between engines: where their pages are and how to read them.

pub mod models;
pub mod scrape;

use quorate_proto::v1::Engine;

/// Path of the health probe unless the pool says another.
pub fn health_path(engine: Engine) -> &'static str {
    match engine {
        Engine::Triton => "/v2/health/ready",
        _ => "/health",
    }
}

/// Paths that may be the metrics page, the likely one first.
pub fn metrics_paths(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::Trtllm => &["/prometheus/metrics"],
        Engine::Unspecified => &["/metrics", "/prometheus/metrics"],
        _ => &["/metrics"],
    }
}
