//! Clients that keep asking, each pinned to one router, and count what they see.

use crate::http::{Client, chat};
use anyhow::{Context, ensure};
use http::Method;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Pause of a client between two requests: the tests are about failures, not about a saturated machine.
const THINK: Duration = Duration::from_millis(10);

/// What to ask for.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// Gateways.
    pub targets: Vec<SocketAddr>,
    /// Connections to each gateway, half of them (rounded down) asking for streams.
    pub connections: usize,
    /// Whether any connection asks for streams.
    pub streams: bool,
    /// The model.
    pub model: String,
    /// Tokens in each answer.
    pub max_tokens: u32,
}

/// What the connections to one gateway saw.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Answers that were complete and right.
    pub ok: u64,
    /// Requests that were not answered, or answered with an error or with something wrong.
    pub failed: u64,
    /// Streams among them that began well and were cut.
    pub cut: u64,
    /// Connections that the router closed between two requests.
    pub closed: u64,
    /// The first few failures.
    pub errors: Vec<String>,
    /// Longest time of a good request.
    pub slowest: Duration,
}

/// Load that runs.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    ok: BTreeMap<SocketAddr, Arc<AtomicU64>>,
    counts: BTreeMap<SocketAddr, Arc<Mutex<Counts>>>,
    clients: JoinSet<()>,
}

/// What all saw, by gateway.
#[derive(Debug)]
pub struct LoadReport {
    counts: BTreeMap<SocketAddr, Counts>,
}

/// One connection's work.
struct Lane {
    target: SocketAddr,
    number: usize,
    stream: bool,
    model: String,
    max_tokens: u32,
    stop: Arc<AtomicBool>,
    ok: Arc<AtomicU64>,
    counts: Arc<Mutex<Counts>>,
}

impl Load {
    /// Starts the clients. The model servers must echo, because every answer is compared with its question.
    pub fn start(spec: &LoadSpec) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut ok, mut counts) = (BTreeMap::new(), BTreeMap::new());
        let mut clients = JoinSet::new();
        for target in &spec.targets {
            let oks = Arc::clone(ok.entry(*target).or_default());
            let seen = Arc::clone(counts.entry(*target).or_default());
            for number in 0..spec.connections {
                let lane = Lane {
                    target: *target,
                    number,
                    stream: spec.streams && number % 2 == 1,
                    model: spec.model.clone(),
                    max_tokens: spec.max_tokens,
                    stop: Arc::clone(&stop),
                    ok: Arc::clone(&oks),
                    counts: Arc::clone(&seen),
                };
                clients.spawn(lane.run());
            }
        }
        Self {
            stop,
            ok,
            counts,
            clients,
        }
    }

    /// Waits until every one of these gateways has answered `more` requests from now on.
    ///
    /// # Errors
    /// Not within `within`.
    pub async fn progress(
        &self,
        targets: &[SocketAddr],
        more: u64,
        within: Duration,
    ) -> anyhow::Result<()> {
        let mut goals = Vec::new();
        for target in targets {
            let ok = self
                .ok
                .get(target)
                .with_context(|| format!("no load on {target}"))?;
            goals.push((target, ok, ok.load(Relaxed) + more));
        }
        crate::until(
            &format!("{more} more answers of each gateway"),
            within,
            async || match goals.iter().find(|(_, ok, goal)| ok.load(Relaxed) < *goal) {
                None => Ok(()),
                Some((target, ok, goal)) => {
                    let errors = self.counts.get(target).map(|c| lock(c).errors.clone());
                    Err(format!(
                        "{target}: {} of {goal}; errors: {errors:?}",
                        ok.load(Relaxed)
                    ))
                }
            },
        )
        .await
    }

    /// Lets the requests under way end and says what was seen.
    ///
    /// # Errors
    /// A client does not end.
    pub async fn stop(mut self) -> anyhow::Result<LoadReport> {
        self.stop.store(true, Relaxed);
        let ended = async { while self.clients.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(40), ended)
            .await
            .context("a client hangs")?;
        let counts = self
            .counts
            .into_iter()
            .map(|(target, counts)| (target, lock(&counts).clone()))
            .collect();
        Ok(LoadReport { counts })
    }
}

impl LoadReport {
    /// What the connections to one gateway saw.
    pub fn of(&self, target: SocketAddr) -> Counts {
        self.counts.get(&target).cloned().unwrap_or_default()
    }

    /// Fails unless these gateways answered, and answered every request.
    ///
    /// # Errors
    /// As said, with the first failures.
    pub fn all_good(&self, targets: &[SocketAddr]) -> anyhow::Result<()> {
        for target in targets {
            let counts = self.of(*target);
            ensure!(counts.ok > 0, "{target} answered nothing: {counts:?}");
            ensure!(
                counts.failed == 0 && counts.closed == 0,
                "not all is well on {target}: {counts:#?}"
            );
        }
        Ok(())
    }

    /// Good answers in all.
    pub fn total_ok(&self) -> u64 {
        self.counts.values().map(|counts| counts.ok).sum()
    }
}

/// A failed client has counted what it saw before it failed.
fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    async fn run(self) {
        let mut client = None;
        let mut asked = 0_u64;
        while !self.stop.load(Relaxed) {
            let mut connected = match client.take() {
                Some(client) => client,
                None => match Client::connect(self.target).await {
                    Ok(client) => client,
                    Err(error) => {
                        self.failed(format!("connect: {error:#}"));
                        // The router is away: look again soon.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            asked += 1;
            let question = format!(
                "question {asked} of client {} to {}",
                self.number, self.target
            );
            let started = Instant::now();
            let answer = if self.stream {
                self.stream(&mut connected, &question).await
            } else {
                self.whole(&mut connected, &question).await
            };
            match answer {
                Ok(()) => {
                    self.ok.fetch_add(1, Relaxed);
                    let mut counts = lock(&self.counts);
                    counts.ok += 1;
                    counts.slowest = counts.slowest.max(started.elapsed());
                    if connected.is_closed() {
                        counts.closed += 1;
                    } else {
                        drop(counts);
                        client = Some(connected);
                    }
                }
                Err(error) => self.failed(format!("{error:#}")),
            }
            tokio::time::sleep(THINK).await;
        }
    }

    fn failed(&self, error: String) {
        let mut counts = lock(&self.counts);
        counts.failed += 1;
        if error.contains("the stream") {
            counts.cut += 1;
        }
        if counts.errors.len() < 5 {
            counts.errors.push(error);
        }
    }

    async fn whole(&self, client: &mut Client, question: &str) -> anyhow::Result<()> {
        let body = chat(&self.model, question, self.max_tokens, false).to_string();
        let reply = client
            .call(Method::POST, "/v1/chat/completions", body.into())
            .await?
            .ok()?;
        let answer: Value = reply.json()?;
        self.compare(
            question,
            answer["choices"][0]["message"]["content"]
                .as_str()
                .unwrap_or_default(),
        )
    }

    async fn stream(&self, client: &mut Client, question: &str) -> anyhow::Result<()> {
        let body = chat(&self.model, question, self.max_tokens, true);
        let mut events = client.stream("/v1/chat/completions", &body).await?;
        let (text, done) = events.rest().await?;
        ensure!(done, "the stream ended without [DONE]");
        self.compare(question, &text)
    }

    /// An echo may be cut at the token limit, but must not be another client's.
    fn compare(&self, question: &str, answer: &str) -> anyhow::Result<()> {
        let same = !answer.is_empty() && question.starts_with(answer.trim());
        ensure!(same, "asked {question:?} and got {answer:?}");
        Ok(())
    }
}
