//! `burst-prefix-cache-producer`: prompts that come together are placed together. When many requests with one prompt come at the
//! same moment, no cache knows it yet, and the ordinary scores would spread them over all endpoints, each of which computes it.
//!
//! A request is held until the window that it came in closes ([`Windows`]); then all of the window are placed at once
//! ([`placing`]), and each is told a full match on its place and none elsewhere. What shares its beginning with nothing in the window
//! is told nothing. The window is of one router: what comes to others is not seen.

mod placing;
mod window;

use super::approx_prefix::hash_blocks;
use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{
    Attributes, BYTES_PER_TOKEN, ColumnId, DataProducer, ProducerInput, SchedulingRequest,
};
use placing::{Balance, Rules};
use std::sync::Arc;
use std::time::{Duration, Instant};
pub use window::{Seat, Together, Windows};

/// Blocks that are looked at where nothing is configured.
const DEFAULT_BLOCKS: usize = 2048;

/// Fills the column from the place that the window gave.
struct BurstPrefix {
    column: ColumnId,
    block_tokens: u32,
}

impl DataProducer for BurstPrefix {
    fn produce(&self, input: &ProducerInput<'_>, attributes: &mut Attributes) {
        let Some(together) = input.request.together else {
            return;
        };
        let Some(column) = attributes.prefix_mut(self.column) else {
            return;
        };
        column.block_tokens = self.block_tokens;
        column.total_blocks = together.blocks;
        let Some(place) = &together.endpoint else {
            return;
        };
        for row in input.rows {
            if input
                .endpoints
                .get(*row)
                .is_some_and(|e| Arc::ptr_eq(e, place))
            {
                column.set(*row, together.blocks);
            }
        }
    }
}

/// How requests become members of a window.
pub struct Burst {
    windows: Arc<Windows>,
    block_bytes: usize,
    max_blocks: usize,
    /// Begins every chain.
    secret: u64,
}

impl Burst {
    /// A seat in the window that is open at `now`; `None`: there is no prompt to compare, or the window is full, and the request
    /// goes on alone. `endpoints` are those that it could go to.
    pub fn join(
        &self,
        request: &SchedulingRequest<'_>,
        endpoints: &Arc<[Arc<crate::Endpoint>]>,
        now: Instant,
    ) -> Option<Seat> {
        let mut blocks = Vec::new();
        let (bytes, max) = (self.block_bytes, self.max_blocks);
        hash_blocks(request, self.secret, bytes, max, &mut blocks);
        if blocks.is_empty() {
            return None;
        }
        Windows::join(&self.windows, blocks, endpoints, now)
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let window = fields.whole("windowDurationMs", 100, 1..=10_000);
    let block_tokens = fields.whole("blockSizeTokens", 64, 1..=65_536);
    let max_tokens = fields.whole("maxPrefixTokensToMatch", 0, 0..=1 << 32);
    let min_colocate = fields.whole("minColocateBlocks", 0, 0..=1 << 32);
    // -1: without a limit.
    let limit = |fields: &mut Fields<'_>, key, default| match fields.integer(key).unwrap_or(default)
    {
        -1 => None,
        limit if limit >= 1 => usize::try_from(limit).ok(),
        _ => {
            fields.error(key, "must be -1 (without a limit) or at least 1");
            None
        }
    };
    let max_per_replica = limit(fields, "maxPerReplica", -1);
    let max_batch = limit(fields, "maxBatchSize", 1000);
    let balance = fields.one_of(
        "balanceBy",
        &[("requests", Balance::Requests), ("tokens", Balance::Blocks)],
        Balance::Requests,
    );
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let windows = Windows::new(
        Rules {
            max_per_replica: max_per_replica.unwrap_or(usize::MAX),
            min_colocate: size(min_colocate),
            balance,
        },
        Duration::from_millis(window),
        max_batch.unwrap_or(usize::MAX),
    );
    let burst = Burst {
        windows: Arc::new(windows),
        block_bytes: size(block_tokens).saturating_mul(BYTES_PER_TOKEN),
        max_blocks: match max_tokens {
            0 => DEFAULT_BLOCKS,
            tokens => size(tokens / block_tokens).max(1),
        },
        secret: crate::random::process_seed(),
    };
    Built {
        producer: Some(Arc::new(BurstPrefix {
            column: build.own(Produces::Placement),
            block_tokens: u32::try_from(block_tokens).unwrap_or(64),
        })),
        burst: Some(Arc::new(burst)),
        ..Built::default()
    }
}

#[cfg(test)]
mod tests;
