//! `expected-prefill-cost-scorer`: how long until an endpoint could have the prompt's cache ready, in seconds instead of weights.
//!
//! seconds = (uncached tokens + prompt tokens in flight there) / prefill rate + sum over tiers of min(tokens / load rate,
//! tokens / prefill rate). The rates are what the endpoint was seen to do ([`Rates`]), and until
//! then defaults: a load rate is then a tier's bandwidth / bytes of a token. Score = (least + indifference) / (seconds + indifference): 1 for the cheapest; differences far below the
//! indifference hardly count.
//!
//! With `engineHints`, engines are told not to load from a tier where computing is quicker (`kv_load_tiers`). One request in
//! [`UNTOLD`] is not told, so that a tier that has become quicker is found out.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::endpoint::{FarTier, Rates};
use crate::pipeline::{
    ColumnId, Context, Extras, OnPicked, Row, Scorer, Stages, TierBlocks, Tools,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Of so many requests that could be told what not to load, one is not.
const UNTOLD: u32 = 64;

/// See the module's documentation.
#[derive(Debug)]
pub struct PrefillCost {
    /// Where the matches are.
    pub column: ColumnId,
    /// Tokens a second of an endpoint whose rate is not known.
    pub default_rate: f64,
    /// Bytes of cache that a token takes.
    pub token_bytes: f64,
    /// Bytes a second that can be loaded, until it is learnt.
    pub bandwidth: Bandwidth,
    /// Seconds.
    pub indifference: f64,
    /// What is in flight at an endpoint counts as well.
    pub in_flight: bool,
}

/// Bytes a second from each tier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// The host's memory.
    pub cpu: f64,
    /// The host's disk.
    pub disk: f64,
    /// Shared storage.
    pub storage: f64,
}

impl Bandwidth {
    fn of(&self, tier: FarTier) -> f64 {
        match tier {
            FarTier::Cpu => self.cpu,
            FarTier::Disk => self.disk,
            FarTier::Storage => self.storage,
        }
    }
}

impl PrefillCost {
    /// Seconds to compute a token.
    fn compute(&self, rates: Option<&Rates>) -> f64 {
        let learnt = rates.and_then(|r| r.prefill().get());
        1.0 / learnt.unwrap_or(self.default_rate).max(1e-3)
    }

    /// Seconds to load a token from a tier.
    fn load(&self, rates: Option<&Rates>, tier: FarTier) -> f64 {
        let learnt = rates.and_then(|r| r.tier(tier).get());
        learnt.map_or_else(
            || self.token_bytes / self.bandwidth.of(tier),
            |rate| 1.0 / rate.max(1e-3),
        )
    }

    /// Seconds until the endpoint of a row has the prompt computed.
    fn seconds(&self, context: &Context<'_>, row: Row) -> f64 {
        let rates = context.endpoint(row).map(|e| e.rates());
        let compute = self.compute(rates);
        let all = context.request.estimated_prompt_tokens() as f64;
        let (cached, load) = match context.attributes.prefix(self.column) {
            Some(column) if column.total_blocks > 0 => {
                let tokens = f64::from(column.block_tokens);
                let load = column
                    .tiers(row)
                    .map_or(0.0, |tiers| self.load_all(rates, tiers, tokens, compute));
                // A tier that nobody knows gives nothing.
                let unknown = column.tiers(row).map_or(0, |tiers| tiers.unknown);
                let blocks = column.matched(row).saturating_sub(unknown);
                (f64::from(blocks) * tokens, load)
            }
            _ => (0.0, 0.0),
        };
        let before = match self.in_flight {
            true => context.loads.tokens(row) as f64,
            false => 0.0,
        };
        ((all - cached).max(0.0) + before) * compute + load
    }

    /// Seconds to have the blocks of the farther tiers: loaded or computed again, whichever is quicker.
    fn load_all(
        &self,
        rates: Option<&Rates>,
        tiers: TierBlocks,
        block_tokens: f64,
        compute: f64,
    ) -> f64 {
        FarTier::ALL
            .into_iter()
            .filter(|tier| tiers.far(*tier) > 0)
            .map(|tier| {
                let each = self.load(rates, tier).min(compute);
                f64::from(tiers.far(tier)) * block_tokens * each
            })
            .sum()
    }
}

impl Scorer for PrefillCost {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let mut least = f64::INFINITY;
        for (row, score) in rows.iter().zip(scores.iter_mut()) {
            *score = self.seconds(context, *row);
            least = least.min(*score);
        }
        for score in scores {
            *score = (least + self.indifference) / (*score + self.indifference);
        }
    }
}

/// Tells the picked engine which tiers are worth reading.
struct LoadTiers {
    cost: Arc<PrefillCost>,
    /// Requests that could have been told.
    seen: AtomicU32,
}

impl LoadTiers {
    fn new(cost: &Arc<PrefillCost>) -> Self {
        Self {
            cost: Arc::clone(cost),
            seen: AtomicU32::new(0),
        }
    }
}

impl OnPicked for LoadTiers {
    fn on_picked(&self, context: &Context<'_>, _: &Stages, primary: Row, extras: &mut Extras) {
        let cost = &self.cost;
        let tiers = context
            .attributes
            .prefix(cost.column)
            .and_then(|column| column.tiers(primary));
        let Some(tiers) = tiers else { return };
        if tiers.cpu + tiers.disk + tiers.storage == 0 {
            return;
        }
        let rates = context.endpoint(primary).map(|e| e.rates());
        let compute = cost.compute(rates);
        let worth = FarTier::ALL.map(|tier| {
            let cheaper = cost.load(rates, tier) <= compute;
            cheaper.then_some(match tier {
                FarTier::Cpu => r#"{"medium":"CPU"}"#,
                FarTier::Disk => r#"{"medium":"STORAGE","locality":"LOCAL"}"#,
                FarTier::Storage => r#"{"medium":"STORAGE","locality":"REMOTE"}"#,
            })
        });
        if worth.iter().any(Option::is_none)
            && self.seen.fetch_add(1, Relaxed) % UNTOLD != UNTOLD - 1
        {
            let list: Vec<&str> = worth.into_iter().flatten().collect();
            let hint = format!("\"kv_load_tiers\":[{}]", list.join(","));
            extras.kv_hints.push(hint);
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let range = 1.0..=1e15;
    let cost = Arc::new(PrefillCost {
        default_rate: fields.number("defaultPrefillThroughput", 15_928.0, range.clone()),
        token_bytes: fields.number("kvBytesPerToken", 131_072.0, range.clone()),
        bandwidth: fields.object("tierBandwidth", |fields| Bandwidth {
            cpu: fields.number("cpu", 20e9, range.clone()),
            disk: fields.number("disk", 3e9, range.clone()),
            storage: fields.number("storage", 1e9, range.clone()),
        }),
        indifference: fields.number("indifferenceSeconds", 0.05, 1e-6..=1e6),
        in_flight: fields.flag("includeInFlightTokens", true),
        column: build.column(fields, "prefixMatchInfoProducerName", Produces::Prefix),
    });
    let hints = fields.flag("engineHints", false);
    Built {
        on_picked: hints.then(|| Arc::new(LoadTiers::new(&cost)) as Arc<_>),
        scorer: Some(cost),
        ..Built::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::{Fixture, assert_near};

    fn cost() -> PrefillCost {
        PrefillCost {
            column: 0,
            default_rate: 1_000.0,
            token_bytes: 1e5,
            bandwidth: Bandwidth {
                cpu: 1e9,
                disk: 2e8,
                storage: 1e7,
            },
            indifference: 0.1,
            in_flight: true,
        }
    }

    const REQUEST: fn() -> SchedulingRequest<'static> = || SchedulingRequest {
        prompt_tokens: Some(1_600),
        ..Default::default()
    };

    fn tiers(gpu: u32, cpu: u32, storage: u32) -> TierBlocks {
        TierBlocks {
            gpu,
            cpu,
            storage,
            ..TierBlocks::default()
        }
    }

    /// 100 blocks of 16 tokens: all to compute, all on the GPU, all in memory, all on a storage that is slower than computing.
    fn fixture() -> Fixture {
        let mut f = Fixture::new(4).prefix(100, &[]);
        let column = f.attributes.prefix_mut(0).unwrap();
        column.with_tiers();
        column.set_tiers(1, 100, 100.0, tiers(100, 0, 0));
        column.set_tiers(2, 100, 80.0, tiers(0, 100, 0));
        column.set_tiers(3, 100, 30.0, tiers(0, 0, 100));
        f
    }

    #[test]
    fn seconds_by_hand() {
        let mut f = fixture();
        f.endpoints[1].set_remote_tokens(400);
        let got = f.with(&REQUEST(), |context, _| {
            [0, 1, 2, 3].map(|row| cost().seconds(context, row))
        });
        // 1,600 tokens at 1,000 a second; 400 in flight; 1,600 tokens of 0.1 ms each; computing again.
        assert_near(&got, &[1.6, 0.4, 0.16, 1.6]);
        let scores = f.score_for(&cost(), &REQUEST());
        assert_near(&scores, &[0.26 / 1.7, 0.26 / 0.5, 1.0, 0.26 / 1.7]);
        let alone = PrefillCost {
            in_flight: false,
            ..cost()
        };
        assert_eq!(f.score_for(&alone, &REQUEST())[1], 1.0);
    }

    #[test]
    fn a_learnt_rate_counts_more_than_the_default() {
        let mut f = fixture();
        f.endpoints[0].rates().prefill().set(16_000.0);
        f.endpoints[2].rates().tier(FarTier::Cpu).set(4_000.0);
        f.endpoints[3].rates().tier(FarTier::Storage).set(3_200.0);
        let got = f.with(&REQUEST(), |context, _| {
            [0, 2, 3].map(|row| cost().seconds(context, row))
        });
        // Computed; loaded from memory; loaded after all, as the storage is quicker than it was thought to be.
        for (got, expected) in got.into_iter().zip([0.1, 0.4, 0.5]) {
            assert!((got - expected).abs() < 1e-5, "{got} is not {expected}");
        }
    }

    #[test]
    fn nothing_known_of_the_prompt_leaves_the_load() {
        let mut f = Fixture::new(2);
        f.endpoints[0].set_remote_tokens(900);
        assert_near(&f.score_for(&cost(), &REQUEST()), &[1.7 / 2.6, 1.0]);
    }

    #[test]
    fn engines_are_told_what_is_not_worth_reading() {
        let mut f = fixture();
        let hooks = LoadTiers::new(&Arc::new(cost()));
        let mut hint = |row| {
            f.with(&REQUEST(), |context, _| {
                let mut extras = Extras::default();
                hooks.on_picked(context, &Stages::default(), row, &mut extras);
                extras.kv_hints
            })
        };
        assert!(hint(0).is_empty() && hint(1).is_empty());
        let expected =
            r#""kv_load_tiers":[{"medium":"CPU"},{"medium":"STORAGE","locality":"LOCAL"}]"#;
        // Row 0 and 1 could not be told anything: they do not count.
        for _ in 1..UNTOLD {
            assert_eq!(hint(2), [expected]);
        }
        assert!(hint(2).is_empty(), "now and then it is tried");
        assert_eq!(hint(2), [expected]);
    }
}
