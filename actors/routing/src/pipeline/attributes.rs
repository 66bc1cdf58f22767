//! Columns that data producers fill and other plugins read. Which column belongs to whom is settled when a configuration is
//! compiled, so that a pick looks nothing up by name.

use super::{Row, SchedulingRequest};
use crate::endpoint::{FarTier, PromptWork};
use serde::{Deserialize, Serialize};

/// Number of a column of one kind.
pub type ColumnId = usize;

/// How much of the prompt each endpoint has cached.
#[derive(Debug, Default)]
pub struct PrefixColumn {
    /// Tokens of a block; 0: nothing is known of this request.
    pub block_tokens: u32,
    /// Blocks of the prompt.
    pub total_blocks: u32,
    /// Blocks from the beginning that the endpoint has, by row.
    matched: Vec<u32>,
    any_hit: bool,
    /// What the blocks are worth, by row, and where they lie; empty where the producer tells no tiers.
    worth: Vec<f32>,
    tiers: Vec<TierBlocks>,
    /// The prompt's chain of block hashes, for the producer's own use after the pick.
    pub hashes: Vec<u64>,
    /// The producer's own: rows by the endpoints' slots.
    pub(crate) rows_by_slot: Vec<u32>,
}

impl PrefixColumn {
    /// Cached blocks of a row.
    pub fn matched(&self, row: Row) -> u32 {
        self.matched
            .get(row)
            .copied()
            .unwrap_or(0)
            .min(self.total_blocks)
    }

    /// Sets the cached blocks of a row.
    pub fn set(&mut self, row: Row, blocks: u32) {
        if let Some(cell) = self.matched.get_mut(row) {
            *cell = blocks;
            self.any_hit |= blocks > 0;
        }
    }

    /// Says that the producer knows tiers: [`PrefixColumn::set_tiers`] may follow.
    pub fn with_tiers(&mut self) {
        self.worth.clear();
        self.worth.resize(self.matched.len(), 0.0);
        self.tiers.clear();
        self.tiers.resize(self.matched.len(), TierBlocks::default());
    }

    /// Sets the cached blocks of a row with what they are worth, each at most 1, and where they lie.
    pub fn set_tiers(&mut self, row: Row, blocks: u32, worth: f32, tiers: TierBlocks) {
        if let (Some(worth_at), Some(tiers_at)) = (self.worth.get_mut(row), self.tiers.get_mut(row))
        {
            *worth_at = worth;
            *tiers_at = tiers;
            self.set(row, blocks);
        }
    }

    /// Where a row's blocks lie, if the producer knows.
    pub fn tiers(&self, row: Row) -> Option<TierBlocks> {
        self.tiers.get(row).copied()
    }

    /// What a row's cached blocks are worth, in blocks of the nearest tier.
    pub fn worth(&self, row: Row) -> f64 {
        match self.worth.get(row) {
            Some(worth) => f64::from(*worth).min(f64::from(self.total_blocks)),
            None => f64::from(self.matched(row)),
        }
    }

    /// Whether any endpoint has any of it.
    pub fn any_hit(&self) -> bool {
        self.any_hit
    }

    /// Cached share of the prompt, 0 to 1, blocks of farther tiers counting less; 0 where nothing is known.
    pub fn ratio(&self, row: Row) -> f64 {
        if self.total_blocks == 0 {
            return 0.0;
        }
        self.worth(row) / f64::from(self.total_blocks)
    }

    /// Cached tokens of a row.
    pub fn matched_tokens(&self, row: Row) -> u64 {
        u64::from(self.matched(row)) * u64::from(self.block_tokens)
    }

    /// What the endpoint of a row has to do for the prompt; `None`: it loads from several tiers, or from one that nobody knows, and its time
    /// would say nothing of either.
    pub fn work(&self, row: Row, request: &SchedulingRequest<'_>) -> Option<PromptWork> {
        let tiers = self.tiers(row).unwrap_or_default();
        let mut loaded = FarTier::ALL
            .into_iter()
            .map(|tier| (tier, tiers.far(tier)))
            .filter(|(_, blocks)| *blocks > 0)
            .map(|(tier, blocks)| (tier, u64::from(blocks) * u64::from(self.block_tokens)));
        let work = PromptWork {
            computed: request
                .estimated_prompt_tokens()
                .saturating_sub(self.matched_tokens(row)),
            loaded: loaded.next(),
        };
        (tiers.unknown == 0 && loaded.next().is_none()).then_some(work)
    }
}

/// Cached blocks of a prompt at one endpoint by the best tier that each lies on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TierBlocks {
    /// In the accelerator.
    pub gpu: u32,
    /// In the host's memory.
    pub cpu: u32,
    /// On the host's disk.
    pub disk: u32,
    /// On storage that hosts share.
    pub storage: u32,
    /// On a tier that nobody here knows.
    pub unknown: u32,
    /// Expected soon, because a request that has them was sent there.
    pub expected: u32,
    /// From the first block on, all of them in the host's memory, whatever else they are in.
    pub cpu_prefix: u32,
}

impl TierBlocks {
    /// Blocks on a tier.
    pub fn far(&self, tier: FarTier) -> u32 {
        match tier {
            FarTier::Cpu => self.cpu,
            FarTier::Disk => self.disk,
            FarTier::Storage => self.storage,
        }
    }
}

/// What is expected of a request on an endpoint, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Time to the first token.
    pub ttft_ms: f64,
    /// Time for each further token.
    pub tpot_ms: f64,
    /// SLO minus prediction; at least 0: would be kept.
    pub ttft_headroom_ms: f64,
    /// The same for further tokens.
    pub tpot_headroom_ms: f64,
}

impl Prediction {
    /// Whether both SLOs would be kept.
    pub fn keeps_slo(&self) -> bool {
        self.ttft_headroom_ms >= 0.0 && self.tpot_headroom_ms >= 0.0
    }

    /// The same with numbers that JSON can hold: a headroom without end is a very long one.
    pub(super) fn bounded(self) -> Self {
        let bound = |ms: f64| ms.clamp(f64::MIN, f64::MAX);
        Self {
            ttft_headroom_ms: bound(self.ttft_headroom_ms),
            tpot_headroom_ms: bound(self.tpot_headroom_ms),
            ..self
        }
    }
}

/// How many columns of each kind a compiled configuration has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Prefix matches.
    pub prefix: usize,
    /// Predictions.
    pub predictions: usize,
    /// Numbers by endpoint (a share, an amount).
    pub numbers: usize,
    /// Texts of the request.
    pub texts: usize,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Attributes {
    prefix: Vec<PrefixColumn>,
    predictions: Vec<Vec<Option<Prediction>>>,
    numbers: Vec<Vec<f64>>,
    texts: Vec<Option<String>>,
    /// Texts' memory while they are absent.
    spare: Vec<String>,
}

impl Attributes {
    /// Empties all columns and makes them `rows` long. Keeps their memory.
    pub fn reset(&mut self, shape: Shape, rows: usize) {
        self.prefix.resize_with(shape.prefix, PrefixColumn::default);
        for column in &mut self.prefix {
            column.block_tokens = 0;
            column.total_blocks = 0;
            column.any_hit = false;
            column.hashes.clear();
            column.matched.clear();
            column.matched.resize(rows, 0);
            column.worth.clear();
            column.tiers.clear();
        }
        self.predictions.resize_with(shape.predictions, Vec::new);
        for column in &mut self.predictions {
            column.clear();
            column.resize(rows, None);
        }
        self.numbers.resize_with(shape.numbers, Vec::new);
        for column in &mut self.numbers {
            column.clear();
            column.resize(rows, 0.0);
        }
        for text in &mut self.texts {
            self.spare.extend(text.take());
        }
        self.texts.resize_with(shape.texts, || None);
    }

    /// A prefix column.
    pub fn prefix(&self, id: ColumnId) -> Option<&PrefixColumn> {
        self.prefix.get(id)
    }

    /// A prefix column to fill.
    pub fn prefix_mut(&mut self, id: ColumnId) -> Option<&mut PrefixColumn> {
        self.prefix.get_mut(id)
    }

    /// A prediction; `None`: none was made.
    pub fn prediction(&self, id: ColumnId, row: Row) -> Option<Prediction> {
        self.predictions.get(id)?.get(row).copied().flatten()
    }

    /// Sets a prediction. One that is not finite is none.
    pub fn set_prediction(&mut self, id: ColumnId, row: Row, prediction: Prediction) {
        let valid = prediction.ttft_ms.is_finite()
            && prediction.tpot_ms.is_finite()
            && !prediction.ttft_headroom_ms.is_nan()
            && !prediction.tpot_headroom_ms.is_nan();
        if let Some(cell) = self.predictions.get_mut(id).and_then(|c| c.get_mut(row)) {
            *cell = valid.then_some(prediction);
        }
    }

    /// A number; 0 if none was set.
    pub fn number(&self, id: ColumnId, row: Row) -> f64 {
        self.numbers
            .get(id)
            .and_then(|column| column.get(row))
            .copied()
            .unwrap_or(0.0)
    }

    /// Sets a number.
    pub fn set_number(&mut self, id: ColumnId, row: Row, value: f64) {
        if let Some(cell) = self.numbers.get_mut(id).and_then(|c| c.get_mut(row)) {
            *cell = value;
        }
    }

    /// A text of the request.
    pub fn text(&self, id: ColumnId) -> Option<&str> {
        self.texts.get(id)?.as_deref()
    }

    /// Sets a text of the request.
    pub fn set_text(&mut self, id: ColumnId, text: &str) {
        if let Some(cell) = self.texts.get_mut(id) {
            let mut owned = cell.take().or_else(|| self.spare.pop()).unwrap_or_default();
            owned.clear();
            owned.push_str(text);
            *cell = Some(owned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_empty_after_a_reset_and_stray_rows_do_nothing() {
        let shape = Shape {
            prefix: 1,
            predictions: 1,
            numbers: 1,
            texts: 1,
        };
        let mut a = Attributes::default();
        a.reset(shape, 2);
        let column = a.prefix_mut(0).unwrap();
        (column.block_tokens, column.total_blocks) = (16, 4);
        column.set(1, 9);
        column.set(5, 1);
        assert_eq!(
            (column.matched(1), column.ratio(1), column.matched_tokens(1)),
            (4, 1.0, 64)
        );
        let prediction = Prediction {
            ttft_ms: 1.0,
            tpot_ms: f64::NAN,
            ttft_headroom_ms: 0.0,
            tpot_headroom_ms: 0.0,
        };
        a.set_prediction(0, 0, prediction);
        assert_eq!(a.prediction(0, 0), None, "a prediction that is no number");
        a.set_prediction(
            0,
            0,
            Prediction {
                tpot_ms: 1.0,
                ..prediction
            },
        );
        a.set_number(0, 1, 3.0);
        a.set_number(4, 1, 3.0);
        a.set_text(0, "abc");
        assert!(a.prediction(0, 0).is_some_and(|p| p.keeps_slo()));
        assert_eq!((a.number(0, 1), a.text(0)), (3.0, Some("abc")));
        a.reset(shape, 3);
        assert_eq!(
            (a.number(0, 1), a.text(0), a.prediction(0, 0)),
            (0.0, None, None)
        );
        assert_eq!(a.prefix(0).unwrap().ratio(1), 0.0);
    }
}
