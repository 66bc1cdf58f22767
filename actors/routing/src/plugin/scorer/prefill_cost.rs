//! `expected-prefill-cost-scorer`: how long until an endpoint could have the prompt's cache ready, in seconds instead of weights.
//!
//! seconds = (uncached tokens + prompt tokens in flight there) / prefill rate + sum over tiers of min(bytes to load / bandwidth,
//! tokens / prefill rate). The prefill rate is what the endpoint was seen to do ([`PrefillRate`](crate::endpoint::PrefillRate)), and until
//! then a default. Score = (least + indifference) / (seconds + indifference): 1 for the cheapest; differences far below the
//! indifference hardly count.
//!
//! With `engineHints`, engines are told not to load from a tier where computing is quicker (`kv_load_tiers`).

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{
    ColumnId, Context, Extras, OnPicked, Row, Scorer, Stages, TierBlocks, Tools,
};
use std::sync::Arc;

/// See the module's documentation.
#[derive(Debug)]
pub struct PrefillCost {
    /// Where the matches are.
    pub column: ColumnId,
    /// Tokens a second of an endpoint whose rate is not known.
    pub default_rate: f64,
    /// Bytes of cache that a token takes.
    pub token_bytes: f64,
    /// Bytes a second that can be loaded.
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

impl PrefillCost {
    fn rate(&self, context: &Context<'_>, row: Row) -> f64 {
        let learnt = context.endpoint(row).and_then(|e| e.prefill_rate().get());
        learnt.unwrap_or(self.default_rate).max(1e-3)
    }

    /// Seconds to load a token from a tier of this bandwidth, and to compute one.
    fn cheaper_to_load(&self, bandwidth: f64, rate: f64) -> bool {
        self.token_bytes / bandwidth <= 1.0 / rate
    }

    /// Seconds until the endpoint of a row has the prompt computed.
    fn seconds(&self, context: &Context<'_>, row: Row) -> f64 {
        let rate = self.rate(context, row);
        let all = context.request.estimated_prompt_tokens() as f64;
        let (cached, load) = match context.attributes.prefix(self.column) {
            Some(column) if column.total_blocks > 0 => {
                let tokens = f64::from(column.block_tokens);
                let load = column
                    .tiers(row)
                    .map_or(0.0, |tiers| self.load(tiers, tokens, rate));
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
        ((all - cached).max(0.0) + before) / rate + load
    }

    /// Seconds to have the blocks of the farther tiers: loaded or computed again, whichever is quicker.
    fn load(&self, tiers: TierBlocks, block_tokens: f64, rate: f64) -> f64 {
        let bandwidth = self.bandwidth;
        [
            (tiers.cpu, bandwidth.cpu),
            (tiers.disk, bandwidth.disk),
            (tiers.storage, bandwidth.storage),
        ]
        .into_iter()
        .map(|(blocks, bandwidth)| {
            let each = (self.token_bytes / bandwidth).min(1.0 / rate);
            f64::from(blocks) * block_tokens * each
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
struct LoadTiers(Arc<PrefillCost>);

impl OnPicked for LoadTiers {
    fn on_picked(&self, context: &Context<'_>, _: &Stages, primary: Row, extras: &mut Extras) {
        let cost = &self.0;
        let tiers = context
            .attributes
            .prefix(cost.column)
            .and_then(|column| column.tiers(primary));
        let Some(tiers) = tiers else { return };
        if tiers.cpu + tiers.disk + tiers.storage == 0 {
            return;
        }
        let rate = cost.rate(context, primary);
        let known = [
            (cost.bandwidth.cpu, r#"{"medium":"CPU"}"#),
            (
                cost.bandwidth.disk,
                r#"{"medium":"STORAGE","locality":"LOCAL"}"#,
            ),
            (
                cost.bandwidth.storage,
                r#"{"medium":"STORAGE","locality":"REMOTE"}"#,
            ),
        ];
        let worth = known.map(|(bandwidth, tier)| {
            let cheaper = cost.cheaper_to_load(bandwidth, rate);
            cheaper.then_some(tier)
        });
        if worth.iter().any(Option::is_none) {
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
        on_picked: hints.then(|| Arc::new(LoadTiers(Arc::clone(&cost))) as Arc<_>),
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
        f.endpoints[0].prefill_rate().set(16_000.0);
        let got = f.with(&REQUEST(), |context, _| cost().seconds(context, 0));
        assert!((got - 0.1).abs() < 1e-5, "{got}");
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
        let hooks = LoadTiers(Arc::new(cost()));
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
        assert_eq!(hint(2), [expected]);
    }
}
