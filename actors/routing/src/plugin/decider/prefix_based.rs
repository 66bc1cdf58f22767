//! `prefix-based-pd-decider`: the prompt is computed elsewhere if it is long enough and enough of it is not cached on the endpoint that
//! decodes: tokens - cachedBlocks * blockSize >= nonCachedTokens and tokens >= promptTokens. nonCachedTokens 0: never.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{ColumnId, Context, Decider, Row};

/// See the module's documentation.
#[derive(Debug)]
pub struct PrefixBased {
    /// Where the matches are.
    pub column: ColumnId,
    /// Uncached tokens from which it is worth the transfer; 0: never.
    pub non_cached_tokens: u64,
    /// Length of the prompt from which it is considered.
    pub prompt_tokens: u64,
}

impl Decider for PrefixBased {
    fn wants(&self, context: &Context<'_>, decode: Option<Row>) -> bool {
        let (Some(row), Some(column)) = (decode, context.attributes.prefix(self.column)) else {
            return false;
        };
        // Nothing known of the prompt: not worth guessing.
        if self.non_cached_tokens == 0 || column.total_blocks == 0 {
            return false;
        }
        let tokens = context.request.estimated_prompt_tokens();
        let uncached = tokens.saturating_sub(column.matched_tokens(row));
        tokens >= self.prompt_tokens && uncached >= self.non_cached_tokens
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    Built::decider(PrefixBased {
        non_cached_tokens: fields.whole("nonCachedTokens", 0, 0..=u64::MAX),
        prompt_tokens: fields.whole("promptTokens", 0, 0..=u64::MAX),
        column: build.column(fields, "prefixMatchInfoProducerName", Produces::Prefix),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn enough_must_be_uncached() {
        // 10 blocks of 16 tokens.
        let mut f = Fixture::new(2).prefix(10, &[5, 0]);
        let request = SchedulingRequest {
            prompt_tokens: Some(160),
            ..Default::default()
        };
        let mut wants = |non_cached_tokens, prompt_tokens, row| {
            let decider = PrefixBased {
                column: 0,
                non_cached_tokens,
                prompt_tokens,
            };
            f.with(&request, |context, _| decider.wants(context, row))
        };
        assert!(wants(80, 0, Some(0)) && !wants(81, 0, Some(0)));
        assert!(wants(160, 0, Some(1)) && !wants(161, 0, Some(1)));
        assert!(wants(1, 160, Some(0)) && !wants(1, 161, Some(0)));
        assert!(!wants(0, 0, Some(1)) && !wants(1, 0, None));
        let mut unknown = Fixture::new(1);
        let decider = PrefixBased {
            column: 0,
            non_cached_tokens: 1,
            prompt_tokens: 0,
        };
        assert!(!unknown.with(&request, |context, _| decider.wants(context, Some(0))));
    }
}
