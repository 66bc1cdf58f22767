//! What the endpoint's actor asks an engine for. Each call is one child task's work; the answers are plain values.

use crate::catalog::ProbeSpec;
use crate::endpoint::health::Probe;
use crate::engine::{self, models, scrape};
use crate::http::{Client, FetchError, Limits};
use bytes::Bytes;
use http::StatusCode;
use metrics::{counter, histogram};
use quorate_proto::v1::Engine;
use quorate_routing::{EndpointSpec, ServedModel};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Longest metrics page.
const METRICS_LIMIT: usize = 8 << 20;
/// Longest list of models.
const MODELS_LIMIT: usize = 1 << 20;
/// Longest answer to a probe.
const PROBE_LIMIT: usize = 64 << 10;
/// Longest time for a request of the owner's own.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// Clients of one endpoint. Health has a connection of its own, so that it never waits behind a long page.
pub struct Io {
    health: Client,
    pages: Client,
    metrics: Client,
    health_path: String,
    metrics_paths: Vec<String>,
    /// Which of the paths answered last.
    metrics_at: AtomicUsize,
    /// The engine has no `/is_sleeping`.
    no_sleep: AtomicBool,
    timeout: Duration,
    rank: Option<u32>,
}

impl Io {
    /// Clients without connections yet.
    pub fn new(
        spec: &EndpointSpec,
        probe: &ProbeSpec,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Self {
        let client = || Client::new(spec.target.clone(), spec.h2c, tls.clone());
        let (metrics, metrics_paths) = match &probe.metrics {
            Some(page) => (
                Client::new(page.target.clone(), false, tls.clone()),
                vec![page.path.clone()],
            ),
            None => {
                let paths = engine::metrics_paths(probe.engine);
                (client(), paths.iter().map(|p| (*p).to_owned()).collect())
            }
        };
        Self {
            health: client(),
            pages: client(),
            metrics,
            health_path: probe
                .health
                .path
                .clone()
                .unwrap_or_else(|| engine::health_path(probe.engine).to_owned()),
            metrics_paths,
            metrics_at: AtomicUsize::new(0),
            no_sleep: AtomicBool::new(false),
            timeout: probe.health.timeout,
            rank: spec.rank,
        }
    }

    fn limits(&self, body: usize) -> Limits {
        Limits {
            timeout: self.timeout,
            body,
        }
    }

    /// A health probe. `engine` is what is known of the engine by now: vLLM may be asked whether it sleeps.
    pub async fn probe(&self, engine: Engine) -> Probe {
        let begun = Instant::now();
        let probe = match self
            .health
            .get(&self.health_path, self.limits(PROBE_LIMIT))
            .await
        {
            Ok(page) if page.status.is_success() => Probe::Good(self.sleeping(engine).await),
            Ok(page) => Probe::Failed(format!("{} answers {}", self.health_path, page.status)),
            Err(e @ FetchError::Refused(_)) => {
                self.no_sleep.store(false, Relaxed);
                Probe::Refused(e.to_string())
            }
            Err(e) => Probe::Failed(format!("{}: {e}", self.health_path)),
        };
        let result = if matches!(probe, Probe::Good(_)) {
            "good"
        } else {
            "failed"
        };
        histogram!("quorate_endpoint_probe_seconds", "result" => result).record(begun.elapsed());
        probe
    }

    async fn sleeping(&self, engine: Engine) -> Option<bool> {
        if engine != Engine::Vllm || self.no_sleep.load(Relaxed) {
            return None;
        }
        let page = self
            .health
            .get("/is_sleeping", self.limits(PROBE_LIMIT))
            .await
            .ok()?;
        if page.status.is_success() {
            return Some(models::is_sleeping(&page.body));
        }
        // Only engines in development mode have the page.
        self.no_sleep.store(true, Relaxed);
        None
    }

    /// Whether only the metrics page can say that the engine sleeps.
    pub fn sleep_from_metrics(&self) -> bool {
        self.no_sleep.load(Relaxed)
    }

    /// Reads the metrics page. Of several possible paths the one that worked is asked first from then on.
    pub async fn scrape(&self) -> Result<scrape::Scrape, String> {
        let read = self.scrape_any().await;
        if read.is_err() {
            counter!("quorate_endpoint_scrape_errors_total").increment(1);
            counter!("llm_d_epp_datalayer_poll_errors_total", "source_type" => "metrics-data-source").increment(1);
        }
        read
    }

    async fn scrape_any(&self) -> Result<scrape::Scrape, String> {
        let first = self.metrics_at.load(Relaxed);
        let count = self.metrics_paths.len();
        // The likeliest path's trouble is the one to show.
        let mut trouble = None;
        for i in (first..count).chain(0..first.min(count)) {
            let Some(path) = self.metrics_paths.get(i) else {
                continue;
            };
            match self.metrics.get(path, self.limits(METRICS_LIMIT)).await {
                Ok(page) if page.status.is_success() => {
                    let scrape = scrape::parse(&page.body, self.rank);
                    if scrape.engine != Engine::Unspecified {
                        self.metrics_at.store(i, Relaxed);
                        return Ok(scrape);
                    }
                    trouble.get_or_insert(format!("{path} has no figures of a known engine"));
                }
                Ok(page) => {
                    trouble.get_or_insert(format!("{path} answers {}", page.status));
                }
                // No other path of the same server will do better.
                Err(e) => return Err(format!("{path}: {e}")),
            }
        }
        Err(trouble.unwrap_or_default())
    }

    /// Reads the list of models.
    pub async fn models(&self) -> Result<Vec<ServedModel>, String> {
        match self
            .pages
            .get("/v1/models", self.limits(MODELS_LIMIT))
            .await
        {
            Ok(page) if page.status.is_success() => {
                models::parse(&page.body).map_err(|e| format!("/v1/models: {e}"))
            }
            Ok(page) => Err(format!("/v1/models answers {}", page.status)),
            Err(e) => Err(format!("/v1/models: {e}")),
        }
    }

    /// Makes the engine produce one token (or one embedding): shows that it works and not only answers. An engine that takes
    /// neither kind of request (or none without a key) is believed.
    pub async fn prove(&self, model: Option<String>) -> Result<(), String> {
        let mut unknown = 0;
        let requests = [
            (
                "/v1/completions",
                serde_json::json!({"prompt": "a", "max_tokens": 1}),
            ),
            ("/v1/embeddings", serde_json::json!({"input": "a"})),
        ];
        for (path, mut body) in requests {
            if let (Some(model), Some(fields)) = (&model, body.as_object_mut()) {
                fields.insert("model".into(), model.as_str().into());
            }
            let limits = Limits {
                timeout: PROOF_TIMEOUT.max(self.timeout),
                body: PROBE_LIMIT,
            };
            let page = self
                .pages
                .post(path, Bytes::from(body.to_string()), limits)
                .await
                .map_err(|e| format!("{path}: {e}"))?;
            match page.status {
                s if s.is_success() => return Ok(()),
                StatusCode::BAD_REQUEST
                | StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::UNPROCESSABLE_ENTITY
                | StatusCode::NOT_IMPLEMENTED => unknown += 1,
                s => return Err(format!("{path} answers {s}")),
            }
        }
        if unknown == 2 {
            Ok(())
        } else {
            Err("no answer".into())
        }
    }
}
