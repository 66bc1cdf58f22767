//! What the engines have of a prompt, for people: the same names and the same index as in a pick, without one.

use super::heat::prefixes;
use super::naming::Namings;
use super::precise::{Precise, tiers_of};
use super::rows::Routes;
use crate::index::Columns;
use quorate_routing::Endpoint;
use quorate_routing::cache::{NotLookedUp, PrefixKey, PrefixLookup, PromptCache, RankCache};
use quorate_routing::tokens::{Origin, PromptTokens};
use std::sync::Arc;

impl PrefixLookup for Precise {
    fn look_up(
        &self,
        tokens: &PromptTokens,
        endpoints: &[Arc<Endpoint>],
    ) -> Result<PromptCache, NotLookedUp> {
        if tokens.origin == Origin::Estimate {
            return Err(NotLookedUp::Estimate);
        }
        let mut routes = Routes::default();
        let rows = routes.of(endpoints, &self.index);
        if rows.spaces.is_empty() {
            return Err(NotLookedUp::NoHolder);
        }
        let holders = self.index.holders_now();
        let (mut columns, mut keys) = (Columns::new(), Vec::new());
        let mut found = PromptCache::default();
        let mut computable = false;
        let mut namings = Namings::default();
        namings.find(&rows.spaces, tokens.lora.as_deref(), endpoints);
        for naming in namings.iter() {
            let Some(space) = rows.spaces.get(naming.space) else {
                continue;
            };
            keys.clear();
            if !self.keys_of(space, naming.lora_path, tokens, &mut keys) {
                continue;
            }
            computable = true;
            self.index.lookup(&keys, &mut columns);
            let block_tokens = space.space.block_tokens();
            found
                .prefixes
                .extend(prefixes(&keys).map(|(blocks, key)| PrefixKey {
                    tokens: blocks.saturating_mul(block_tokens),
                    key,
                }));
            for (key, of) in holders.iter() {
                let row = rows.row(key).filter(|row| naming.is_of(*row));
                let (Some(row), true) = (row, of == Some(&space.space)) else {
                    continue;
                };
                let of = columns.get(key);
                found.ranks.push(RankCache {
                    row,
                    rank: key.rank,
                    block_tokens,
                    blocks: u32::try_from(keys.len()).unwrap_or(u32::MAX),
                    cached: of.blocks,
                    tiers: tiers_of(&of),
                    worth: f64::from(of.weight(&self.weights)) * f64::from(block_tokens),
                });
            }
        }
        found.ranks.sort_by_key(|of| (of.row, of.rank));
        computable
            .then_some(found)
            .ok_or(NotLookedUp::NotComputable)
    }
}
