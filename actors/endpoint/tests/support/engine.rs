//! An engine as probes see it: health, metrics, models, sleep state and one-token requests, each settable.

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Answers by path. A path that is not there is 404; status 0 hangs until there is another one.
#[derive(Clone, Default)]
pub struct Pages {
    pub by_path: BTreeMap<String, (u16, String)>,
    /// Requests seen so far by path.
    pub asked: BTreeMap<String, u32>,
    /// Connections taken so far.
    pub connections: u32,
}

pub struct Engine {
    pub pages: Arc<Mutex<Pages>>,
    pub address: SocketAddr,
    running: Option<watch::Sender<bool>>,
}

pub const VLLM: &str = "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3.0\n\
                        vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 1.0\n\
                        vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.5\n";

impl Engine {
    /// A healthy vLLM that serves model "m".
    pub async fn vllm() -> Self {
        let engine = Self::empty("127.0.0.1:0").await;
        engine.set("/health", 200, "");
        engine.set("/metrics", 200, VLLM);
        engine.set("/v1/models", 200, r#"{"data":[{"id":"m","parent":null}]}"#);
        engine.set("/v1/completions", 200, r#"{"choices":[{"text":"a"}]}"#);
        engine
    }

    /// One that answers nothing yet.
    pub async fn empty(address: &str) -> Self {
        let mut engine = Self {
            pages: Arc::default(),
            address: address.parse().unwrap(),
            running: None,
        };
        engine.start().await;
        engine
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, path: &str, status: u16, body: &str) {
        self.pages
            .lock()
            .unwrap()
            .by_path
            .insert(path.into(), (status, body.into()));
    }

    pub fn asked(&self, path: &str) -> u32 {
        self.pages
            .lock()
            .unwrap()
            .asked
            .get(path)
            .copied()
            .unwrap_or(0)
    }

    /// Listens (again, on the same port).
    pub async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let (alive, mut dead) = watch::channel(true);
        self.running = Some(alive);
        let pages = Arc::clone(&self.pages);
        tokio::spawn(async move {
            // Dropped with the task: every connection breaks at once.
            let mut connections = JoinSet::new();
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    _ = dead.changed() => return,
                };
                pages.lock().unwrap().connections += 1;
                let pages = Arc::clone(&pages);
                connections.spawn(async move {
                    let serve = service_fn(|request| answer(Arc::clone(&pages), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), serve)
                        .await;
                });
            }
        });
    }

    /// Dies: nobody listens and every connection is closed. Returns when that is so.
    pub async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        running.send(false).unwrap();
        running.closed().await;
    }
}

async fn answer(
    pages: Arc<Mutex<Pages>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    request.into_body().collect().await?;
    *pages.lock().unwrap().asked.entry(path.clone()).or_default() += 1;
    let (status, body) = loop {
        let answer = pages.lock().unwrap().by_path.get(&path).cloned();
        match answer.unwrap_or((404, "not found".into())) {
            (0, _) => tokio::time::sleep(Duration::from_millis(5)).await,
            answer => break answer,
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status.try_into().unwrap();
    Ok(response)
}
