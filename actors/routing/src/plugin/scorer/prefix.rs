//! `prefix-cache-scorer`: w * min(1, matchedTokens / scale)^2 + (1 - w) * matchedBlocks / totalBlocks, a block on a farther tier counting as
//! much of a block as its tier weighs.
//! `mm-embeddings-cache-scorer`: the share of the multimodal items that the endpoint has encoded already.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{ColumnId, Context, Row, Scorer, Tools};

/// `prefix-cache-scorer`. 0 where nothing is known.
#[derive(Debug)]
pub struct PrefixCache {
    /// Where the matches are.
    pub column: ColumnId,
    /// w.
    pub length_weight: f64,
    /// Tokens.
    pub length_scale: f64,
}

impl Scorer for PrefixCache {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let Some(column) = context.attributes.prefix(self.column) else {
            return;
        };
        if column.total_blocks == 0 {
            return;
        }
        for (row, score) in rows.iter().zip(scores) {
            let length =
                (column.worth(*row) * f64::from(column.block_tokens) / self.length_scale).min(1.0);
            *score = self.length_weight * length * length
                + (1.0 - self.length_weight) * column.ratio(*row);
        }
    }
}

/// `mm-embeddings-cache-scorer`.
#[derive(Debug)]
pub struct EncodedItems {
    /// Where the shares are.
    pub column: ColumnId,
}

impl Scorer for EncodedItems {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        for (row, score) in rows.iter().zip(scores) {
            *score = context.attributes.number(self.column, *row);
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    Built::scorer(PrefixCache {
        length_weight: fields.number("matchLengthWeight", 0.0, 0.0..=1.0),
        length_scale: fields.whole("matchLengthScaleTokens", 8192, 1..=u64::MAX) as f64,
        column: build.column(fields, "prefixMatchInfoProducerName", Produces::Prefix),
    })
}

/// The scorer of the old plugin that was producer and scorer in one, for whoever brings the producer.
pub fn of_own_column(build: &Build<'_>) -> PrefixCache {
    PrefixCache {
        length_weight: 0.0,
        length_scale: 8192.0,
        column: build.own(Produces::Prefix),
    }
}

/// The old plugin where nobody brings its producer.
pub(crate) fn build_precise(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let path = fields.path().to_owned();
    fields.findings().warn(
        path,
        "precise prefix matches are not available: scores are 0",
    );
    for key in [
        "tokenProcessorConfig",
        "indexerConfig",
        "kvEventsConfig",
        "speculativeIndexing",
        "speculativeTTL",
    ] {
        fields.raw(key);
    }
    Built::scorer(of_own_column(build))
}

pub(crate) fn build_multimodal(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    Built::scorer(EncodedItems {
        column: build.column(fields, "producerName", Produces::Multimodal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::{Fixture, assert_near};

    #[test]
    fn ratio_and_length() {
        let mut f = Fixture::new(4).prefix(8, &[8, 4, 0, 20]);
        let plain = PrefixCache {
            column: 0,
            length_weight: 0.0,
            length_scale: 8192.0,
        };
        assert_near(&f.score(&plain), &[1.0, 0.5, 0.0, 1.0]);
        // 64 of 128 tokens: 0.25 * 0.5^2 + 0.75 * 0.5.
        let length = PrefixCache {
            column: 0,
            length_weight: 0.25,
            length_scale: 128.0,
        };
        assert_near(&f.score(&length), &[1.0, 0.4375, 0.0, 1.0]);
    }

    #[test]
    fn nothing_known_is_no_hit() {
        let mut f = Fixture::new(2);
        let plain = PrefixCache {
            column: 0,
            length_weight: 0.5,
            length_scale: 8192.0,
        };
        assert_near(&f.score(&plain), &[0.0, 0.0]);
        let elsewhere = PrefixCache {
            column: 9,
            length_weight: 0.5,
            length_scale: 8192.0,
        };
        assert_near(&f.score(&elsewhere), &[0.0, 0.0]);
        f.attributes.set_number(0, 1, 0.4);
        assert_near(&f.score(&EncodedItems { column: 0 }), &[0.0, 0.4]);
    }
}
