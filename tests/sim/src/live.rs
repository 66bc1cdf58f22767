//! One incarnation of a server: its engine, the task that drives it, and what requests hold of it.
//!
//! All requests share one engine behind one short lock. Whoever adds a sequence wakes the driver; the driver moves virtual
//! time, publishes progress through atomics and wakes the waiting requests. Nobody awaits while holding the lock.

use crate::config::SimConfig;
use crate::engine::latency::{FixedLatency, Latency};
use crate::engine::record::BlockChange;
use crate::engine::sequence::{NewSequence, Prompt};
use crate::engine::tiers::{LoadFrom, TierCount};
use crate::engine::{AddError, Engine, EngineConfig, Event, FinishReason, Nanos, SeqId};
use crate::lora::Adapters;
use crate::metrics::{Metrics, Snapshot};
use crate::shared::Shared;
use crate::text::{self, Plan};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// A driver that wakes up this much too late catches up; beyond it the time is lost, as on a stalled machine.
const CATCH_UP: Duration = Duration::from_millis(50);

/// Seconds since 1970.
pub fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

struct Core {
    engine: Engine<Arc<Progress>>,
    metrics: Metrics,
    changes: Option<mpsc::UnboundedSender<Vec<BlockChange>>>,
}

impl Core {
    /// Hands on what changed in the KV cache. Under the lock, so that it stays in order.
    fn tell_changes(&mut self) {
        if let Some(changes) = &self.changes {
            let batch = self.engine.take_changes();
            if !batch.is_empty() {
                // Nobody publishes while the server comes down.
                let _ = changes.send(batch);
            }
        }
    }
}

/// One incarnation of a server, from its start to its crash or stop.
pub struct Live {
    /// What survives a crash.
    pub shared: Arc<Shared>,
    /// LoRA adapters loaded now.
    pub adapters: Mutex<Adapters>,
    /// Asleep (`/sleep`).
    pub asleep: AtomicBool,
    /// Set when this incarnation crashes: its connections are then reset.
    pub crashed: AtomicBool,
    core: Mutex<Core>,
    kick: Notify,
    started: Instant,
}

impl Live {
    /// A fresh engine, metrics at zero.
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        let config = &shared.config;
        let catch_up = CATCH_UP.as_nanos() as f64 / config.time_scale;
        let mut engine = EngineConfig {
            max_catch_up: catch_up as Nanos,
            seed: config.seed,
            record_changes: shared.events.is_some(),
            ..config.engine.clone()
        };
        if let (Latency::Fixed(latency), Some(changed)) =
            (&mut engine.latency, shared.settings.lock().latency.clone())
        {
            *latency = changed;
        }
        Arc::new(Live {
            adapters: Mutex::new(Adapters::new(&config.loras)),
            asleep: AtomicBool::new(false),
            crashed: AtomicBool::new(false),
            core: Mutex::new(Core {
                engine: Engine::new(engine),
                metrics: Metrics::new(config.dialect, config.max_model_len, unix_now()),
                changes: None,
            }),
            kick: Notify::new(),
            started: Instant::now(),
            shared,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &SimConfig {
        &self.shared.config
    }

    /// Where changes of the KV cache come out from now on.
    pub fn follow_changes(&self) -> mpsc::UnboundedReceiver<Vec<BlockChange>> {
        let (tell, changes) = mpsc::unbounded_channel();
        self.core.lock().changes = Some(tell);
        changes
    }

    /// Moves the engine for ever.
    pub async fn drive(self: Arc<Self>) {
        loop {
            match self.advance() {
                Some(at) => {
                    tokio::select! {
                        () = self.kick.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.kick.notified().await,
            }
        }
    }

    fn advance(&self) -> Option<Instant> {
        if self.shared.lying.load(Ordering::Relaxed) {
            return None;
        }
        let scale = self.config().time_scale;
        let now = self.now();
        let next = {
            let mut core = self.core.lock();
            let Core {
                engine, metrics, ..
            } = &mut *core;
            let next = engine.advance(now, &mut |progress, event| {
                metrics.record(&event, scale);
                progress.record(&event);
            });
            core.tell_changes();
            next
        };
        next.map(|at| self.started + Duration::from_nanos((at as f64 * scale) as u64))
    }

    /// Virtual time.
    fn now(&self) -> Nanos {
        (self.started.elapsed().as_nanos() as f64 / self.config().time_scale) as Nanos
    }

    /// Lets the driver look again.
    pub fn kick(&self) {
        self.kick.notify_one();
    }

    /// Adds sequences, all or none. `each_token` wakes the request for every token rather than at the end.
    pub fn submit(
        self: &Arc<Self>,
        new: Vec<(NewSequence, Arc<Plan>)>,
        each_token: bool,
        max_tokens: Option<u32>,
        n: u32,
    ) -> Result<Vec<SeqHandle>, AddError> {
        let now = self.now();
        let mut handles = Vec::with_capacity(new.len());
        let mut core = self.core.lock();
        if core.engine.room() < new.len() {
            return Err(AddError::QueueFull);
        }
        core.metrics.accept(max_tokens, n);
        let mut failed = None;
        for (sequence, plan) in new {
            let progress = Arc::new(Progress {
                each_token,
                ..Progress::default()
            });
            match core.engine.add(progress.clone(), sequence, now) {
                Ok(id) => handles.push(SeqHandle {
                    live: self.clone(),
                    id,
                    progress,
                    plan,
                }),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let wants = core.engine.wants_advance();
        drop(core);
        if let Some(error) = failed {
            // Dropping the handles takes the lock to abort what was already added.
            return Err(error);
        }
        if wants {
            self.kick();
        }
        Ok(handles)
    }

    fn abort(&self, id: SeqId) -> bool {
        let mut core = self.core.lock();
        let aborted = core.engine.abort(id);
        if aborted {
            core.metrics.abort();
        }
        let waiting = core.engine.waiting() > 0;
        drop(core);
        if waiting {
            self.kick();
        }
        aborted
    }

    /// Changes the figures of the fixed time model.
    pub fn set_fixed_latency(&self, fixed: FixedLatency) {
        self.core.lock().engine.set_fixed_latency(fixed);
    }

    /// Blocks at the start of a prompt that are on the GPU, and further ones below it.
    pub fn cached_blocks(&self, prompt: &Prompt, from: LoadFrom) -> (usize, usize) {
        let core = self.core.lock();
        core.engine
            .cached_blocks(&prompt.hashes, prompt.tokens, from)
    }

    /// Blocks at the start of a prompt that other engines may fetch.
    pub fn offered_blocks(&self, prompt: &Prompt) -> usize {
        self.core.lock().engine.offered_blocks(&prompt.hashes)
    }

    /// Forgets cached prefixes, those below the GPU only if `below`.
    pub fn reset_prefix_cache(&self, below: bool) {
        let mut core = self.core.lock();
        core.engine.reset_prefix_cache(below);
        core.tell_changes();
    }

    /// The text of some tokens, and where the text of each ends.
    pub fn spell(&self, tokens: &[u32]) -> (String, Vec<u32>) {
        match &self.config().tokenizer {
            Some(model) => model.spell(tokens),
            None => text::spell_lossy(tokens),
        }
    }

    /// Whether the model is still being loaded.
    pub fn starting(&self) -> bool {
        let startup = self.config().startup;
        !startup.is_zero() && self.started.elapsed() < startup
    }

    /// Running, waiting, cached blocks.
    pub fn load(&self) -> Load {
        let core = self.core.lock();
        Load {
            running: core.engine.running(),
            waiting: core.engine.waiting(),
            cached_blocks: core.engine.pool().cached(),
            used_blocks: core.engine.pool().total() - core.engine.pool().free(),
            kv_usage: core.engine.kv_usage(),
            preemptions: core.engine.counters().preemptions,
            prefix_queries: core.engine.counters().prefix_queries,
            prefix_hits: core.engine.counters().prefix_hits,
            loaded_hits: core.engine.counters().loaded_hits,
            tiers: core.engine.tiers(),
            prompt_tokens: core.metrics.prompted(),
            generation_tokens: core.metrics.generated(),
        }
    }

    /// The metrics page.
    pub fn metrics_page(&self) -> String {
        let config = self.config();
        let (mut snapshot, running, waiting) = {
            let core = self.core.lock();
            let (running, waiting) = core.engine.loras();
            let snapshot = Snapshot {
                model: config.display_name().to_owned(),
                rank: config.rank,
                running: core.engine.running() as f64,
                waiting: core.engine.waiting() as f64,
                kv_usage: core.engine.kv_usage(),
                counters: core.engine.counters(),
                metrics: core.metrics.clone(),
                block_size: config.engine.block_size,
                num_blocks: config.engine.num_blocks,
                cached_blocks: core.engine.pool().cached(),
                prefix_caching: config.engine.prefix_caching,
                max_num_seqs: config.engine.max_num_seqs,
                loras: Vec::new(),
                max_loras: config.engine.max_loras,
                tiers: core.engine.tiers(),
                block_bytes: u64::from(config.engine.block_size) * config.kv_bytes_per_token,
                oracle: self.shared.oracle.read(),
            };
            (snapshot, running, waiting)
        };
        {
            let adapters = self.adapters.lock();
            if adapters.ever_used() {
                snapshot.loras.push((
                    adapters.names(&running),
                    adapters.names(&waiting),
                    unix_now(),
                ));
            }
        }
        if let Some(fake) = &self.shared.settings.lock().fake_metrics {
            let refresh = config.fake_metrics_refresh.as_nanos().max(1);
            let ticks = self.started.elapsed().as_nanos() / refresh;
            let elapsed = Duration::from_nanos((ticks * refresh) as u64);
            let blank = Metrics::new(config.dialect, config.max_model_len, unix_now());
            fake.apply(&mut snapshot, blank, elapsed);
        }
        snapshot.render(config.dialect)
    }
}

/// What an engine is doing.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// KV blocks with findable contents.
    pub cached_blocks: usize,
    /// KV blocks in use.
    pub used_blocks: usize,
    /// Share of blocks in use.
    pub kv_usage: f64,
    /// Sequences thrown out of the batch.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Of these, found on the GPU.
    pub prefix_hits: u64,
    /// Of the others, loaded from below it.
    pub loaded_hits: u64,
    /// The tiers below the GPU.
    pub tiers: Vec<TierCount>,
    /// Prompt tokens of sequences that got a first token.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
}

/// How far a sequence is; written by the driver, read by its request.
#[derive(Default)]
pub struct Progress {
    emitted: AtomicU32,
    cached: AtomicU32,
    loaded: AtomicU32,
    /// 0 while it runs, else a finish reason.
    finish: AtomicU8,
    each_token: bool,
    waker: AtomicWaker,
}

const REASONS: [FinishReason; 4] = [
    FinishReason::Stop,
    FinishReason::Length,
    FinishReason::Abort,
    FinishReason::CacheThreshold,
];

impl Progress {
    fn record(&self, event: &Event) {
        match event {
            Event::Token {
                index,
                cached,
                loaded,
                ..
            } => {
                self.cached.store(*cached, Ordering::Relaxed);
                self.loaded.store(*loaded, Ordering::Relaxed);
                self.emitted.store(index + 1, Ordering::Release);
                if self.each_token {
                    self.waker.wake();
                }
            }
            Event::Finished { reason, .. } => {
                let code = REASONS
                    .iter()
                    .position(|known| known == reason)
                    .unwrap_or(0)
                    + 1;
                self.finish.store(code as u8, Ordering::Release);
                self.waker.wake();
            }
        }
    }

    /// Tokens out so far.
    pub fn emitted(&self) -> u32 {
        self.emitted.load(Ordering::Acquire)
    }

    /// Prompt tokens that came from the cache.
    pub fn cached(&self) -> u32 {
        self.cached.load(Ordering::Relaxed)
    }

    /// Of these, from below the GPU.
    pub fn loaded(&self) -> u32 {
        self.loaded.load(Ordering::Relaxed)
    }

    /// Why it ended, once it has. Read before [`Progress::emitted`], which is then final.
    pub fn finish(&self) -> Option<FinishReason> {
        let code = self.finish.load(Ordering::Acquire);
        REASONS.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// A sequence in the engine. Dropping it before its end aborts it and frees its blocks.
pub struct SeqHandle {
    live: Arc<Live>,
    id: SeqId,
    progress: Arc<Progress>,
    /// What it says.
    pub plan: Arc<Plan>,
}

impl SeqHandle {
    /// How far it is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Wakes the task of `cx` at the next change.
    pub fn register(&self, cx: &Context<'_>) {
        self.progress.waker.register(cx.waker());
    }
}

impl Drop for SeqHandle {
    fn drop(&mut self) {
        if self.progress.finish().is_none() && self.live.abort(self.id) {
            self.live
                .shared
                .stats
                .aborted
                .fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Waits until all sequences have ended.
pub async fn finished(handles: &[SeqHandle]) {
    std::future::poll_fn(|cx| {
        let done = |handle: &SeqHandle| handle.progress.finish().is_some();
        if handles.iter().all(done) {
            return Poll::Ready(());
        }
        handles.iter().for_each(|handle| handle.register(cx));
        if handles.iter().all(done) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}
