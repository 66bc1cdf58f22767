//! The continuous-batching engine: pure, deterministic, driven by virtual time.
//!
//! A driver calls [`Engine::add`], [`Engine::abort`] and [`Engine::advance`]; the last returns when it wants to be called
//! again. Scheduling follows vLLM's V1 scheduler: running sequences first, then waiting ones in arrival order, all
//! drawing on one token budget, so a long prompt is prefilled in chunks beside the decodes and slows them down.

mod batch;
pub mod blocks;
mod fixed;
pub mod latency;
pub mod naming;
pub mod record;
pub mod sequence;
#[cfg(test)]
mod tests;
pub mod tiers;
#[cfg(test)]
mod tiers_tests;

#[cfg(test)]
use blocks::BlockId;
use blocks::BlockPool;
use latency::Latency;
use naming::Naming;
use sequence::{NewSequence, Sequence, Times};
use std::collections::{BinaryHeap, VecDeque};
use tiers::{Load, TierConfig, Tiers};

/// Virtual time in nanoseconds.
pub type Nanos = u64;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End of sequence, or a stop string.
    Stop,
    /// Token limit reached.
    Length,
    /// Aborted by the client.
    Abort,
    /// Too little of the prompt was cached for the request's threshold.
    CacheThreshold,
}

impl FinishReason {
    /// As it stands in OpenAI's `finish_reason` and in vLLM's `finished_reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => "abort",
            FinishReason::CacheThreshold => "cache_threshold",
        }
    }
}

/// Sizes and rules of one engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that may run at the same time.
    pub max_num_seqs: usize,
    /// Tokens that one step may compute.
    pub max_num_batched_tokens: u32,
    /// Tokens in a KV block.
    pub block_size: u32,
    /// KV blocks.
    pub num_blocks: u32,
    /// Sequences that may wait; more are refused.
    pub max_waiting: usize,
    /// Whether finished prefixes are found again.
    pub prefix_caching: bool,
    /// Tiers below the GPU, fastest first.
    pub tiers: Vec<TierConfig>,
    /// Whether blocks of generated tokens go to the tiers too.
    pub offload_generated: bool,
    /// Time to load one block from another engine.
    pub peer_load_block: Nanos,
    /// Whether changes of the cache are recorded.
    pub record_changes: bool,
    /// Different LoRA adapters in one batch.
    pub max_loras: usize,
    /// Adapters kept in host memory; bringing in another one costs `lora_load`.
    pub max_cpu_loras: usize,
    /// Time to bring an adapter in that is not in host memory.
    pub lora_load: Nanos,
    /// Time model.
    pub latency: Latency,
    /// Seed of the latency noise.
    pub seed: u64,
    /// A driver that wakes up this late or less catches up; a later one has lost the time.
    pub max_catch_up: Nanos,
}

/// Name of a sequence inside its engine. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId {
    slot: u32,
    order: u64,
}

/// Why a sequence was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// The waiting queue is full.
    #[error("the waiting queue is full")]
    QueueFull,
    /// It could never run, even alone.
    #[error("the sequence needs {needed} KV blocks and the engine has {total}")]
    TooLong {
        /// Blocks for prompt and output.
        needed: usize,
        /// Blocks that exist.
        total: usize,
    },
    /// There is nothing to generate.
    #[error("a sequence must generate at least one token")]
    NoOutput,
}

/// What happened to a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// One more token is out.
    Token {
        /// Its place in the output, from 0.
        index: u32,
        /// When.
        at: Nanos,
        /// Time since the token before; `None` for the first.
        gap: Option<Nanos>,
        /// Prompt tokens that came from the cache.
        cached: u32,
        /// Of these, loaded from below the GPU.
        loaded: u32,
        /// Tokens in the prompt.
        prompt_tokens: u32,
        /// When it arrived, was scheduled and so on.
        times: Times,
    },
    /// The sequence is gone and its blocks are free.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens in the prompt.
        prompt_tokens: u32,
        /// Tokens generated.
        generated: u32,
        /// When it arrived, was scheduled and so on.
        times: Times,
    },
}

/// Running totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sequences thrown out of the batch because blocks ran out.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Of these, found on the GPU.
    pub prefix_hits: u64,
    /// Of the others, loaded from below it.
    pub loaded_hits: u64,
    /// Engine steps.
    pub steps: u64,
}

/// The engine. `T` travels with each sequence and comes back with its events.
pub struct Engine<T> {
    config: EngineConfig,
    seqs: Vec<Option<Sequence<T>>>,
    vacant: Vec<u32>,
    next_order: u64,
    waiting: VecDeque<u32>,
    running: Vec<u32>,
    pool: BlockPool,
    tiers: Tiers,
    loading: Vec<Load>,
    resident_loras: VecDeque<u32>,
    counters: Counters,
    /// End of the latest step.
    clock: Nanos,
    step: Option<batch::Step>,
    spare: Vec<batch::Chunk>,
    due: BinaryHeap<fixed::Due>,
    rng: fastrand::Rng,
}

impl<T> Engine<T> {
    /// An idle engine at virtual time zero.
    pub fn new(config: EngineConfig) -> Self {
        Engine {
            pool: BlockPool::new(config.num_blocks).recording(config.record_changes),
            tiers: Tiers::new(&config.tiers, config.peer_load_block, config.record_changes),
            loading: Vec::new(),
            rng: fastrand::Rng::with_seed(config.seed),
            config,
            seqs: Vec::new(),
            vacant: Vec::new(),
            next_order: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            resident_loras: VecDeque::new(),
            counters: Counters::default(),
            clock: 0,
            step: None,
            spare: Vec::new(),
            due: BinaryHeap::new(),
        }
    }

    /// Puts a sequence at the end of the waiting queue at time `now`.
    pub fn add(&mut self, payload: T, new: NewSequence, now: Nanos) -> Result<SeqId, AddError> {
        if new.output.is_empty() {
            return Err(AddError::NoOutput);
        }
        let needed = self.blocks_for(new.prompt.tokens as usize + new.output.len());
        if needed > self.pool.total() {
            return Err(AddError::TooLong {
                needed,
                total: self.pool.total(),
            });
        }
        if self.room() == 0 {
            return Err(AddError::QueueFull);
        }
        let order = self.next_order;
        self.next_order += 1;
        let seq = Some(Sequence::new(payload, new, order, now));
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.seqs[slot as usize] = seq;
                slot
            }
            None => {
                self.seqs.push(seq);
                self.seqs.len() as u32 - 1
            }
        };
        self.waiting.push_back(slot);
        Ok(SeqId { slot, order })
    }

    /// Sequences that [`Engine::add`] would still take. Those that find a free place in the batch at the next step do not
    /// count against the waiting limit.
    pub fn room(&self) -> usize {
        let taken = self.running.len() + self.loading.len();
        let places = self.config.max_num_seqs.saturating_sub(taken);
        (self.config.max_waiting.saturating_add(places)).saturating_sub(self.waiting.len())
    }

    /// Ends a sequence and frees its blocks. False when it had already ended.
    pub fn abort(&mut self, id: SeqId) -> bool {
        if self.seq(id).is_none() {
            return false;
        }
        self.waiting.retain(|slot| *slot != id.slot);
        self.remove(id.slot);
        true
    }

    /// Moves virtual time forward to `now`: finishes the steps that end by then and starts the next ones. Returns when the
    /// next token is due, or `None` when there is nothing to do before the next [`Engine::add`].
    pub fn advance(&mut self, now: Nanos, sink: &mut impl FnMut(&T, Event)) -> Option<Nanos> {
        match self.config.latency {
            Latency::Batched(costs) => self.advance_batch(costs, now, sink),
            Latency::Fixed(_) => self.advance_fixed(now, sink),
        }
    }

    /// Whether a newly added sequence needs a call of [`Engine::advance`] now, rather than at the end of the step that
    /// runs.
    pub fn wants_advance(&self) -> bool {
        self.step.is_none()
    }

    /// Changes the time model for what is scheduled from now on. Only the figures may change, not the kind of model.
    pub fn set_fixed_latency(&mut self, fixed: latency::FixedLatency) {
        if let Latency::Fixed(current) = &mut self.config.latency {
            *current = fixed;
        }
    }

    /// Sequences in the waiting queue, those included whose blocks are being loaded.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.loading.len()
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Share of the KV blocks in use, from 0 to 1.
    pub fn kv_usage(&self) -> f64 {
        if self.pool.total() == 0 {
            return 0.0;
        }
        1.0 - self.pool.free() as f64 / self.pool.total() as f64
    }

    /// The block pool, to look at.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Totals since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Forgets every cached prefix that is not in use, below the GPU only if `below`.
    pub fn reset_prefix_cache(&mut self, below: bool) {
        self.pool.reset_cache();
        if below {
            self.tiers.reset();
        }
    }

    /// Adapters of the running and of the waiting sequences, each once, in order of first use.
    pub fn loras(&self) -> (Vec<u32>, Vec<u32>) {
        let distinct = |slots: &mut dyn Iterator<Item = &u32>| {
            let mut seen = Vec::new();
            for lora in slots.filter_map(|slot| self.at(*slot)?.lora) {
                if !seen.contains(&lora) {
                    seen.push(lora);
                }
            }
            seen
        };
        (
            distinct(
                &mut self
                    .running
                    .iter()
                    .chain(self.loading.iter().map(|load| &load.slot)),
            ),
            distinct(&mut self.waiting.iter()),
        )
    }

    fn at(&self, slot: u32) -> Option<&Sequence<T>> {
        self.seqs.get(slot as usize)?.as_ref()
    }

    fn seq(&self, id: SeqId) -> Option<&Sequence<T>> {
        self.at(id.slot).filter(|seq| seq.order == id.order)
    }

    fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.config.block_size as usize)
    }

    /// Gives the sequence enough blocks for `tokens` tokens, or changes nothing.
    fn grow(&mut self, slot: u32, tokens: u32) -> bool {
        let needed = self.blocks_for(tokens as usize);
        let Some(seq) = self.seqs.get_mut(slot as usize).and_then(Option::as_mut) else {
            return false;
        };
        let missing = needed.saturating_sub(seq.blocks.len());
        if missing > self.pool.free() {
            return false;
        }
        for _ in 0..missing {
            seq.blocks.extend(self.pool.allocate());
        }
        true
    }

    /// Tokens up to `computed` are in the blocks: full ones become findable.
    fn set_computed(&mut self, slot: u32, computed: u32) {
        let Some(seq) = self.seqs.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        seq.computed = computed;
        if self.config.prefix_caching {
            self.seal_full(slot, computed);
        }
    }

    /// Gives all blocks back, last one first, so that the end of a prefix is evicted before its beginning.
    fn release_blocks(&mut self, slot: u32) {
        let Some(seq) = self.seqs.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        for block in seq.blocks.drain(..).rev() {
            self.pool.release(block);
        }
        seq.sealed = 0;
        seq.computed = 0;
    }

    fn remove(&mut self, slot: u32) {
        self.release_blocks(slot);
        self.running.retain(|other| *other != slot);
        self.loading.retain(|load| load.slot != slot);
        if self
            .seqs
            .get_mut(slot as usize)
            .and_then(Option::take)
            .is_some()
        {
            self.vacant.push(slot);
        }
    }

    /// Counts the look-up of a sequence that is scheduled for the first time. False when its cache threshold is not met.
    fn account_prefix(&mut self, slot: u32, hit_tokens: u32, loaded: u32, now: Nanos) -> bool {
        let Some(seq) = self.seqs.get_mut(slot as usize).and_then(Option::as_mut) else {
            return true;
        };
        if seq.times.scheduled.is_some() {
            return true;
        }
        seq.times.scheduled = Some(now);
        seq.cached = hit_tokens + loaded;
        seq.loaded = loaded;
        self.counters.prefix_queries += u64::from(seq.prompt_tokens);
        self.counters.prefix_hits += u64::from(hit_tokens);
        self.counters.loaded_hits += u64::from(loaded);
        seq.cache_hit_threshold.is_none_or(|threshold| {
            f64::from(hit_tokens + loaded) >= threshold * f64::from(seq.prompt_tokens)
        })
    }

    /// Whether a sequence with this adapter may join the batch.
    fn adapter_fits(&self, lora: Option<u32>) -> bool {
        let Some(lora) = lora else { return true };
        let active = self.loras().0;
        active.contains(&lora) || active.len() < self.config.max_loras
    }

    /// Time to bring the adapter in, zero when it is in host memory.
    fn touch_lora(&mut self, lora: Option<u32>) -> Nanos {
        let Some(lora) = lora else { return 0 };
        let known = self.resident_loras.iter().position(|other| *other == lora);
        if let Some(at) = known {
            self.resident_loras.remove(at);
        }
        self.resident_loras.push_back(lora);
        while self.resident_loras.len() > self.config.max_cpu_loras.max(1) {
            self.resident_loras.pop_front();
        }
        if known.is_some() {
            0
        } else {
            self.config.lora_load
        }
    }

    /// One more token of the sequence is out; the last one ends it.
    fn emit(&mut self, slot: u32, at: Nanos, sink: &mut impl FnMut(&T, Event)) {
        let block_size = self.config.block_size;
        let Some(seq) = self.seqs.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let gap = seq.times.last_token.map(|before| at.saturating_sub(before));
        seq.times.first_token.get_or_insert(at);
        seq.times.last_token = Some(at);
        let index = seq.emitted;
        seq.append(block_size);
        let (cached, loaded) = (seq.cached, seq.loaded);
        let (prompt_tokens, times) = (seq.prompt_tokens, seq.times);
        sink(
            &seq.payload,
            Event::Token {
                index,
                at,
                gap,
                cached,
                loaded,
                prompt_tokens,
                times,
            },
        );
        if seq.done() {
            let reason = seq.finish;
            self.finish(slot, reason, sink);
        }
    }

    fn finish(&mut self, slot: u32, reason: FinishReason, sink: &mut impl FnMut(&T, Event)) {
        if let Some(seq) = self.at(slot) {
            let (prompt_tokens, generated, times) = (seq.prompt_tokens, seq.emitted, seq.times);
            sink(
                &seq.payload,
                Event::Finished {
                    reason,
                    prompt_tokens,
                    generated,
                    times,
                },
            );
        }
        self.remove(slot);
    }
}
