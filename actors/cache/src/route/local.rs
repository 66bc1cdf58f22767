//! A pool's model in this process: its files are read from a directory or fetched from the hosts of its engines, beside the request path, and until
//! they are there nobody waits for them.

use crate::tokens::{FileServer, Local, ModelFiles, Models, Reading, TokenError};
use arc_swap::ArcSwapOption;
use metrics::counter;
use quorate_routing::{Endpoint, Target, now_ms};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Files that could not be had are looked for again after so long (ms).
const AGAIN_MS: u64 = 30_000;
/// With those of an earlier time in use there is less hurry.
const REPLACE_AGAIN_MS: u64 = 600_000;
/// As long as there is no endpoint to ask.
const SOON_MS: u64 = 200;
/// Hosts that are asked one after another.
const TRIES: usize = 3;

/// Where a model's files are.
#[derive(Clone, Debug)]
pub(super) enum Files {
    Directory(PathBuf),
    Served(FileServer),
}

/// A host that may have them, with the engine there.
type Host = (String, Target);

/// See the module's documentation.
pub(super) struct LocalModel {
    files: Files,
    models: Arc<Models>,
    ready: ArcSwapOption<Local>,
    /// They are what is there now, as far as this process knows.
    current: AtomicBool,
    busy: AtomicBool,
    /// When they may be looked for again (ms).
    again_at: AtomicU64,
}

impl LocalModel {
    pub fn new(files: Files, models: Arc<Models>) -> Arc<Self> {
        Arc::new(Self {
            files,
            models,
            ready: ArcSwapOption::empty(),
            current: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            again_at: AtomicU64::new(0),
        })
    }

    /// The model, if it is there by now. Files may be fetched from the hosts of `endpoints`. Called within a Tokio runtime.
    pub fn get(self: &Arc<Self>, endpoints: &[Arc<Endpoint>]) -> Option<Arc<Local>> {
        if !self.current.load(Relaxed)
            && now_ms() >= self.again_at.load(Relaxed)
            && !self.busy.swap(true, Relaxed)
        {
            let (this, hosts) = (Arc::clone(self), hosts(endpoints));
            let reading = self.models.reading();
            tokio::spawn(async move {
                this.look(hosts, reading).await;
                this.busy.store(false, Relaxed);
            });
        }
        self.ready.load_full()
    }

    async fn look(self: &Arc<Self>, hosts: Vec<Host>, reading: Reading) {
        let found = match &self.files {
            Files::Directory(directory) => {
                let (models, directory) = (Arc::clone(&self.models), directory.clone());
                aside(move || models.load(&directory)).await
            }
            Files::Served(server) => {
                if self.ready.load().is_none() {
                    let (models, server) = (Arc::clone(&self.models), server.clone());
                    let kept = aside(move || Ok(models.kept(&server))).await;
                    if let Ok(Some(files)) = kept {
                        self.use_them(files, "kept");
                    }
                }
                // A node that starts does not wait for other hosts.
                drop(reading);
                if server.is_of_endpoints() && hosts.is_empty() {
                    // Called before there was a request: the next one brings its endpoints.
                    self.again_at.store(now_ms() + SOON_MS, Relaxed);
                    return;
                }
                self.fetch(server, hosts).await
            }
        };
        match found {
            Ok(files) => {
                let result = match &self.files {
                    Files::Directory(_) => "read",
                    Files::Served(_) => "fetched",
                };
                self.use_them(files, result);
                self.current.store(true, Relaxed);
            }
            Err(error) => {
                counter!("quorate_tokenizer_files_total", "result" => "failed").increment(1);
                let wait = match self.ready.load().is_some() {
                    true => {
                        tracing::warn!(%error, "the tokenizer's files cannot be fetched: those of an earlier time stay in use");
                        REPLACE_AGAIN_MS
                    }
                    false => {
                        tracing::error!(%error, "the tokenizer's files cannot be used: prompts are not tokenized here");
                        AGAIN_MS
                    }
                };
                self.again_at.store(now_ms() + wait, Relaxed);
            }
        }
    }

    async fn fetch(
        &self,
        server: &FileServer,
        hosts: Vec<Host>,
    ) -> Result<Arc<ModelFiles>, TokenError> {
        let mut last = TokenError::Unsupported("no endpoint whose host could be asked");
        let tries = match server.is_of_endpoints() {
            true => hosts.iter().take(TRIES).map(Some).collect(),
            false => vec![hosts.first()],
        };
        for at in tries {
            let host = at.map(|(host, _)| host.as_str());
            let engine = at.map(|(_, engine)| engine);
            let raw = match self.models.fetch(server, host, engine).await {
                Ok(raw) => raw,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            let (models, server) = (Arc::clone(&self.models), server.clone());
            match aside(move || models.take(&server, &raw)).await {
                Ok(files) => return Ok(files),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn use_them(&self, files: Arc<ModelFiles>, result: &'static str) {
        counter!("quorate_tokenizer_files_total", "result" => result).increment(1);
        match &self.files {
            Files::Directory(directory) => {
                tracing::info!(directory = %directory.display(), "tokenizer loaded");
            }
            Files::Served(server) => tracing::info!(url = server.url(), result, "tokenizer loaded"),
        }
        self.ready.store(Some(Arc::new(Local::new(files))));
    }
}

/// Hosts of endpoints, each once, those that answer first.
fn hosts(endpoints: &[Arc<Endpoint>]) -> Vec<Host> {
    let now = now_ms();
    let mut by_tier: Vec<_> = endpoints.iter().collect();
    by_tier.sort_by_key(|endpoint| endpoint.tier(now).unwrap_or(u8::MAX));
    let mut hosts: Vec<Host> = Vec::new();
    for endpoint in by_tier {
        let target = &endpoint.spec().target;
        if hosts.len() < TRIES && !hosts.iter().any(|(host, _)| *host == target.host) {
            hosts.push((target.host.clone(), target.clone()));
        }
    }
    hosts
}

async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, TokenError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(TokenError::Tokenizer(error.to_string())))
}
