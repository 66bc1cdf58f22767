//! `precise-prefix-cache-producer`: how much of a prompt each endpoint has cached and on which tier, from the map that the engines' own
//! events fill.
//!
//! The prompt's tokens were made before the pick. Its blocks get the names that the engines give them, once for each way of
//! naming among the candidates (usually one), and the index says for all holders at once how many of them they have. An endpoint with
//! several data-parallel ranks counts as its best one. What is picked is expected to have the prompt's blocks soon: at once here, and in a
//! moment on the other routers of the region, until the engine's event confirms it or its time has passed.

use super::expected::Untold;
use super::generation;
use super::heat::{Heat, PoolHeat};
use super::keys::KeyCache;
use super::naming::{Naming, Namings};
use super::rows::{RouteRows, Routes, Space};
use crate::Tier;
use crate::index::{CacheIndex, Columns, Expected, HolderKey, Match, SPECULATIVE, TierWeights};
use metrics::{Counter, counter};
use quorate_routing::Endpoint;
use quorate_routing::learnt::{Learner, Learnt, NotLearnt};
use quorate_routing::pipeline::{
    Attributes, ColumnId, Context, DataProducer, Extras, OnPicked, PrefixColumn, ProducerInput,
    Row, Stages, TierBlocks,
};
use quorate_routing::tokens::{Origin, PromptTokens};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Blocks of a prompt that are looked at: a million tokens in blocks of 16.
const MOST_BLOCKS: usize = 1 << 16;
/// Prompts whose keys are remembered.
const KEY_CACHE: usize = 32 << 20;

/// What one pick works on, and what its end wants to know.
#[derive(Default)]
struct Scratch {
    routes: Routes,
    columns: Columns,
    /// Keys by all namings one after another.
    keys: Vec<u64>,
    spans: Vec<Span>,
    /// The ways in which blocks of this prompt are named, and where in `keys` each one's lie, in the same order.
    namings: Namings,
    /// By row.
    found: Vec<Found>,
}

/// The keys of one space.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    from: usize,
    to: usize,
    block_tokens: u32,
}

/// The best rank of an endpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    key: Option<HolderKey>,
    /// Place of its naming.
    naming: usize,
    worth: f32,
    /// Tokens that it has, whatever the tier.
    tokens: u64,
    /// Blocks that it said it has.
    announced: u32,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Counts {
    found: Counter,
    nothing: Counter,
    no_tokens: Counter,
    estimate: Counter,
    no_holder: Counter,
    not_computable: Counter,
    unknown_tier: Counter,
}

impl Counts {
    fn new() -> Self {
        let of =
            |result: &'static str| counter!("quorate_precise_prefix_total", "result" => result);
        Self {
            found: of("found"),
            nothing: of("nothing"),
            no_tokens: of("no-tokens"),
            estimate: of("estimate"),
            no_holder: of("no-holder"),
            not_computable: of("not-computable"),
            unknown_tier: counter!("quorate_precise_prefix_unknown_tier_total"),
        }
    }
}

/// See the module's documentation.
pub(super) struct Precise {
    pub(super) index: Arc<CacheIndex>,
    column: ColumnId,
    prefill: Option<usize>,
    pub(super) weights: TierWeights,
    /// How long what was picked is expected, in milliseconds; 0: nothing is.
    expected_for: u64,
    cache: KeyCache,
    untold: Untold,
    heat: Arc<Heat>,
    /// Its pool's; there from the first pick on.
    pool: OnceLock<Arc<PoolHeat>>,
    counts: Counts,
    said_unknown_tier: AtomicBool,
}

impl Precise {
    pub fn new(
        index: Arc<CacheIndex>,
        column: ColumnId,
        prefill: Option<usize>,
        weights: TierWeights,
        expected_for: Option<Duration>,
        heat: Arc<Heat>,
    ) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            index,
            column,
            prefill,
            weights,
            expected_for: expected_for.map_or(0, ms),
            cache: KeyCache::new(KEY_CACHE),
            untold: Untold::default(),
            heat,
            pool: OnceLock::new(),
            counts: Counts::new(),
            said_unknown_tier: AtomicBool::new(false),
        }
    }

    /// Appends the keys of the prompt's whole blocks but the one that its last token lies in: an engine always computes that.
    pub(super) fn keys_of(
        &self,
        space: &Space,
        lora_path: Option<&str>,
        tokens: &PromptTokens,
        keys: &mut Vec<u64>,
    ) -> bool {
        let block = space.space.block_tokens().max(1) as usize;
        let most = tokens.ids.len().saturating_sub(1) / block;
        let of = (&space.space, space.hash);
        self.cache
            .keys(of, tokens, lora_path, most.min(MOST_BLOCKS), keys)
    }

    fn look_up(
        &self,
        tokens: &PromptTokens,
        scratch: &mut Scratch,
        input: &ProducerInput<'_>,
        column: &mut PrefixColumn,
    ) {
        let Scratch {
            routes,
            columns,
            keys,
            spans,
            namings,
            found,
        } = scratch;
        let rows = routes.of(input.endpoints, &self.index);
        keys.clear();
        spans.clear();
        found.clear();
        if rows.spaces.is_empty() {
            self.counts.no_holder.increment(1);
            return;
        }
        found.resize(input.endpoints.len(), Found::default());
        namings.find(&rows.spaces, tokens.lora.as_deref(), input.endpoints);
        let mut computable = false;
        for (place, naming) in namings.iter().enumerate() {
            let from = keys.len();
            let Some(space) = rows.spaces.get(naming.space) else {
                spans.push(Span::default());
                continue;
            };
            computable |= self.keys_of(space, naming.lora_path, tokens, keys);
            let block_tokens = space.space.block_tokens();
            spans.push(Span {
                from,
                to: keys.len(),
                block_tokens,
            });
            let own = keys.get(from..).unwrap_or_default();
            if own.is_empty() {
                continue;
            }
            self.index.lookup(own, columns);
            if column.total_blocks == 0 {
                column.block_tokens = block_tokens;
                column.total_blocks = u32::try_from(own.len()).unwrap_or(u32::MAX);
                column.with_tiers();
            }
            let of = (place, naming, block_tokens);
            self.fill(rows, of, columns, found, column);
        }
        match (computable, column.any_hit()) {
            (false, _) => self.counts.not_computable.increment(1),
            (true, false) => self.counts.nothing.increment(1),
            (true, true) => self.counts.found.increment(1),
        }
    }

    /// Writes what the holders of one naming have into the rows of their endpoints.
    fn fill(
        &self,
        rows: &RouteRows,
        (place, naming, block_tokens): (usize, Naming<'_>, u32),
        columns: &Columns,
        found: &mut [Found],
        column: &mut PrefixColumn,
    ) {
        // Of a space with blocks of another size than the column's.
        let column_tokens = column.block_tokens.max(1);
        let scale = |blocks: u32| {
            let tokens = u64::from(blocks) * u64::from(block_tokens);
            u32::try_from(tokens / u64::from(column_tokens)).unwrap_or(u32::MAX)
        };
        let same = block_tokens == column_tokens;
        for (key, of) in columns.iter() {
            let Some(row) = rows.row(key).filter(|row| naming.is_of(*row)) else {
                continue;
            };
            let Some(best) = found.get_mut(row) else {
                continue;
            };
            if of.on(Tier::Unknown) > 0 {
                self.unknown_tier(key, of.on(Tier::Unknown));
            }
            let mut worth = of.weight(&self.weights);
            let mut tiers = tiers_of(&of);
            let mut blocks = of.blocks;
            if !same {
                worth *= block_tokens as f32 / column_tokens as f32;
                tiers = TierBlocks {
                    gpu: scale(tiers.gpu),
                    cpu: scale(tiers.cpu),
                    disk: scale(tiers.disk),
                    storage: scale(tiers.storage),
                    unknown: scale(tiers.unknown),
                    expected: scale(tiers.expected),
                    cpu_prefix: scale(tiers.cpu_prefix),
                };
                blocks = scale(blocks);
            }
            let tokens = u64::from(of.blocks) * u64::from(block_tokens);
            if best.key.is_some() && (best.worth, best.tokens) >= (worth, tokens) {
                continue;
            }
            *best = Found {
                key: Some(key),
                naming: place,
                worth,
                tokens,
                announced: of.announced(),
            };
            column.set_tiers(row, blocks, worth, tiers);
        }
    }

    /// A tier that nobody knows weighs nothing, and somebody should know of it.
    fn unknown_tier(&self, key: HolderKey, blocks: u32) {
        self.counts.unknown_tier.increment(u64::from(blocks));
        if !self.said_unknown_tier.swap(true, Relaxed) {
            tracing::warn!(
                endpoint_incarnation = key.endpoint,
                rank = key.rank,
                "an engine names a cache tier that is not known here: what lies there counts as not cached"
            );
        }
    }

    /// A rank of the row's endpoint, the best one if any has something, with the place of its space.
    fn holder(
        &self,
        context: &Context<'_>,
        row: Row,
        scratch: &mut Scratch,
    ) -> Option<(HolderKey, usize)> {
        let endpoint = context.endpoint(row)?;
        let found = scratch.found.get(row).copied().unwrap_or_default();
        let holder = match found.key {
            Some(key) => Some((key, found.naming)),
            None => {
                let first = scratch.routes.of(context.endpoints, &self.index).first(row);
                first.and_then(|(key, space)| Some((key, scratch.namings.place(space, row)?)))
            }
        };
        holder.filter(|(key, _)| key.endpoint == endpoint.spec().incarnation)
    }

    /// The picked endpoint of a row will soon have the prompt.
    fn expect(&self, holder: (HolderKey, usize), row: Row, now: u64, scratch: &Scratch) {
        let (key, naming) = holder;
        let found = scratch.found.get(row).copied().unwrap_or_default();
        let span = scratch.spans.get(naming).copied().unwrap_or_default();
        let keys = scratch.keys.get(span.from..span.to).unwrap_or_default();
        if found.announced as usize >= keys.len() {
            return;
        }
        let Some(incarnation) = scratch.columns.incarnation(key) else {
            return;
        };
        let until = generation(now + self.expected_for);
        let expected = self.index.expect(key, incarnation, keys, until);
        if matches!(expected, Expected::Added(1..)) {
            self.untold.add(key.endpoint, key.rank, incarnation, keys);
        }
    }

    /// Counts what the picked endpoint was believed to have.
    fn count(
        &self,
        context: &Context<'_>,
        row: Row,
        holder: Option<(HolderKey, usize)>,
        scratch: &Scratch,
    ) {
        let tokens = context.request.tokens;
        let (Some(endpoint), Some(tokens)) = (context.endpoint(row), tokens) else {
            return;
        };
        if tokens.origin == Origin::Estimate {
            return;
        }
        let found = scratch.found.get(row).copied().unwrap_or_default();
        let prompt = tokens.ids.len() as u64;
        endpoint
            .cache_use()
            .picked(prompt, found.tokens.min(prompt));
        let Some(span) = holder.and_then(|(_, space)| scratch.spans.get(space)) else {
            return;
        };
        let keys = scratch.keys.get(span.from..span.to).unwrap_or_default();
        let cached = found.tokens / u64::from(span.block_tokens.max(1));
        let cached = u32::try_from(cached).unwrap_or(u32::MAX);
        let pool = || self.heat.of(&endpoint.spec().pool, context.now);
        let pool = self.pool.get_or_init(pool);
        pool.picked(keys, span.block_tokens, cached);
    }
}

pub(super) fn tiers_of(of: &Match) -> TierBlocks {
    let on = |tier: Tier| of.by_tier[tier as usize];
    TierBlocks {
        gpu: on(Tier::Gpu),
        cpu: on(Tier::Cpu),
        disk: on(Tier::Disk),
        storage: on(Tier::Storage),
        unknown: on(Tier::Unknown),
        expected: of.by_tier[SPECULATIVE],
        cpu_prefix: of.prefix[Tier::Cpu as usize],
    }
}

impl DataProducer for Precise {
    fn produce(&self, input: &ProducerInput<'_>, attributes: &mut Attributes) {
        let Some(column) = attributes.prefix_mut(self.column) else {
            return;
        };
        SCRATCH.with_borrow_mut(|scratch| {
            // What an earlier pick left must not be taken for this one's.
            scratch.found.clear();
            scratch.spans.clear();
            scratch.namings.clear();
            match input.request.tokens {
                None => self.counts.no_tokens.increment(1),
                Some(tokens) if tokens.origin == Origin::Estimate => {
                    self.counts.estimate.increment(1);
                }
                Some(tokens) => self.look_up(tokens, scratch, input, column),
            }
        });
    }
}

impl OnPicked for Precise {
    fn on_picked(&self, context: &Context<'_>, stages: &Stages, primary: Row, _: &mut Extras) {
        let prefill = self
            .prefill
            .and_then(|profile| stages.best_of(profile))
            .filter(|row| *row != primary);
        SCRATCH.with_borrow_mut(|scratch| {
            let holder = self.holder(context, primary, scratch);
            self.count(context, primary, holder, scratch);
            if self.expected_for == 0 {
                return;
            }
            if let Some(holder) = holder {
                self.expect(holder, primary, context.now, scratch);
            }
            if let Some(row) = prefill
                && let Some(holder) = self.holder(context, row, scratch)
            {
                self.expect(holder, row, context.now, scratch);
            }
        });
    }
}

impl Learner for Precise {
    fn take(
        &self,
        endpoints: &[Arc<Endpoint>],
        budget: &mut usize,
        _: u64,
    ) -> Vec<(Arc<Endpoint>, Learnt)> {
        self.untold.take(endpoints, budget)
    }

    fn lost(&self) -> u64 {
        self.untold.lost()
    }

    /// What is expected does not live long enough to be copied.
    fn copy(&self, _: &Arc<Endpoint>, _: usize, _: u64) -> Option<Learnt> {
        None
    }

    fn learn(&self, endpoint: &Arc<Endpoint>, learnt: &Learnt, now: u64) -> Result<(), NotLearnt> {
        let Learnt::Expected {
            rank,
            incarnation,
            keys,
        } = learnt
        else {
            return Err(NotLearnt::Kind);
        };
        let key = HolderKey {
            endpoint: endpoint.spec().incarnation,
            rank: *rank,
        };
        let until = generation(now + self.expected_for);
        // A holder that is not known here yet: the map is behind for a moment, and what is told is gone before long.
        let _ = self.index.expect(key, *incarnation, keys, until);
        Ok(())
    }
}
