//! `p2p-source-producer`: from which other engine the computing one may take the prompt's cache.
//!
//! Candidates have the longest cached prefix of all, or one block less; where tiers are known only what lies in a host's memory
//! counts, because that is what engines give away. One of them is drawn by the request's id, with weight 1 / (1 + its queue), and named
//! in `x-kv-cache-source-host-port` if it has at least `minCachedTokenDelta` tokens more than the endpoint that computes the prompt.
//! With `engineHints` the engine is told in the body as well (`remote_kv_source`).

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{ColumnId, Context, Extras, OnPicked, PrefixColumn, Row, Stages};
use crate::random::Random;
use http::{HeaderName, HeaderValue};
use std::sync::Arc;

const HEADER: HeaderName = HeaderName::from_static("x-kv-cache-source-host-port");

/// See the module's documentation.
#[derive(Debug)]
pub struct P2pSource {
    /// Where the matches are.
    pub column: ColumnId,
    /// Tokens.
    pub min_delta: u64,
    /// The profile whose pick computes the prompt, if it has run.
    pub prefill: Option<usize>,
    /// Where engines give their cache away (plus the rank), if they are told in the body.
    pub port: Option<u16>,
}

/// Cached blocks that another engine could get.
fn to_give(column: &PrefixColumn, row: Row) -> u32 {
    match column.tiers(row) {
        Some(tiers) => tiers.cpu_prefix,
        None => column.matched(row),
    }
}

/// FNV-1a, 64 bits.
fn fnv(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

impl P2pSource {
    fn source(&self, context: &Context<'_>, computing: Row) -> Option<Row> {
        let column = context.attributes.prefix(self.column)?;
        let rows = 0..context.endpoints.len();
        let best = rows.clone().map(|row| to_give(column, row)).max()?;
        if best == 0 {
            return None;
        }
        let weight = |row: &Row| {
            let near = *row != computing && to_give(column, *row) + 1 >= best;
            let gives = near && to_give(column, *row) > 0;
            let usable = || {
                let endpoint = context.endpoint(*row);
                endpoint.is_some_and(|e| e.tier(context.now).is_some())
            };
            match gives && usable() {
                true => 1.0 / (1.0 + context.loads.queue(*row)),
                false => 0.0,
            }
        };
        let total: f64 = rows.clone().map(|row| weight(&row)).sum();
        // Hashes of similar ids differ in their low bits only: the generator spreads them.
        let mut left = Random::new(fnv(context.request.request_id)).unit() * total;
        let mut drawn = None;
        for row in rows {
            let weight = weight(&row);
            if weight > 0.0 {
                drawn = Some(row);
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        let drawn = drawn?;
        let tokens = u64::from(to_give(column, drawn)) * u64::from(column.block_tokens);
        (tokens >= column.matched_tokens(computing) + self.min_delta).then_some(drawn)
    }
}

impl OnPicked for P2pSource {
    fn on_picked(&self, context: &Context<'_>, stages: &Stages, primary: Row, extras: &mut Extras) {
        let prefill = self.prefill.and_then(|profile| stages.best_of(profile));
        let source = self
            .source(context, prefill.unwrap_or(primary))
            .and_then(|row| context.endpoint(row));
        let Some(source) = source.map(|endpoint| endpoint.spec()) else {
            return;
        };
        let Ok(value) = HeaderValue::from_str(&source.target.authority) else {
            return;
        };
        extras.request_headers.push((HEADER, value));
        if let Some(port) = self.port {
            let rank = u16::try_from(source.rank.unwrap_or(0)).unwrap_or(0);
            let hint = serde_json::json!({
                "kv_request_id": format!("{}-src", context.request.request_id),
                "remote_host": source.target.host,
                "remote_port": port.saturating_add(rank),
            });
            extras.kv_hints.push(format!("\"remote_kv_source\":{hint}"));
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let named = fields.text("prefillProfileName");
    let prefill = build.profile(named.as_deref().unwrap_or("prefill"));
    if let (Some(name), None) = (&named, prefill) {
        fields.error(
            "prefillProfileName",
            format!("there is no profile `{name}`"),
        );
    }
    let port = fields.whole("p2pPort", 7777, 1..=65_535);
    let hints = fields.flag("engineHints", false);
    let plugin = P2pSource {
        min_delta: fields.whole("minCachedTokenDelta", 1, 0..=1 << 40),
        prefill,
        port: u16::try_from(port).ok().filter(|_| hints),
        column: build.column(fields, "prefixMatchInfoProducerName", Produces::Prefix),
    };
    Built {
        on_picked: Some(Arc::new(plugin)),
        ..Built::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::Fixture;
    use crate::pipeline::{SchedulingRequest, TierBlocks};

    fn plugin() -> P2pSource {
        P2pSource {
            column: 0,
            min_delta: 1,
            prefill: Some(1),
            port: None,
        }
    }

    fn sources(f: &mut Fixture, plugin: &P2pSource, computing: Row) -> Vec<usize> {
        let mut counts = vec![0; f.endpoints.len() + 1];
        for i in 0..600 {
            let id = format!("request-{i}");
            let request = SchedulingRequest {
                request_id: &id,
                ..Default::default()
            };
            let drawn = f.with(&request, |context, _| plugin.source(context, computing));
            counts[drawn.unwrap_or(f.endpoints.len())] += 1;
        }
        counts
    }

    #[test]
    fn the_longest_or_one_block_less_and_never_itself() {
        let mut f = Fixture::new(4).prefix(20, &[0, 10, 9, 8]);
        let counts = sources(&mut f, &plugin(), 0);
        assert_eq!((counts[0], counts[3], counts[4]), (0, 0, 0));
        assert!(counts[1] > 200 && counts[2] > 200, "{counts:?}");
        // The best computes itself: the other one has no more than it.
        assert_eq!(sources(&mut f, &plugin(), 1)[4], 600);
        let picky = P2pSource {
            min_delta: 161,
            ..plugin()
        };
        assert_eq!(sources(&mut f, &picky, 0)[4], 600);
        let mut cold = Fixture::new(2).prefix(20, &[0, 0]);
        assert_eq!(sources(&mut cold, &plugin(), 0)[2], 600);
    }

    #[test]
    fn a_queue_makes_it_less_likely() {
        let mut f = Fixture::new(3)
            .prefix(20, &[0, 10, 10])
            .load(1, 0, 0, 0.0)
            .load(2, 0, 9, 0.0);
        let counts = sources(&mut f, &plugin(), 0);
        assert!(counts[2] > 20 && counts[2] < 110, "{counts:?}");
    }

    #[test]
    fn where_tiers_are_known_the_host_memory_counts() {
        let mut f = Fixture::new(3).prefix(20, &[]);
        let column = f.attributes.prefix_mut(0).unwrap();
        column.with_tiers();
        let on = |gpu, cpu_prefix| TierBlocks {
            gpu,
            cpu_prefix,
            ..TierBlocks::default()
        };
        column.set_tiers(1, 20, 20.0, on(20, 0));
        column.set_tiers(2, 6, 6.0, on(0, 6));
        assert_eq!(sources(&mut f, &plugin(), 0)[2], 600);
    }

    #[test]
    fn the_computing_endpoint_is_the_prefill_pick_and_is_told() {
        let mut f = Fixture::new(3).prefix(20, &[0, 10, 0]);
        let mut stages = Stages::default();
        stages.run(0, |picked| picked.push(0));
        stages.run(1, |picked| picked.push(2));
        let told = P2pSource {
            port: Some(7777),
            ..plugin()
        };
        let request = SchedulingRequest {
            request_id: "r-1\"",
            ..Default::default()
        };
        let mut extras = Extras::default();
        f.with(&request, |context, _| {
            told.on_picked(context, &stages, 0, &mut extras);
        });
        assert_eq!(extras.request_headers[0].1, "10.0.0.1:8000");
        let hint = r#""remote_kv_source":{"kv_request_id":"r-1\"-src","remote_host":"10.0.0.1","remote_port":7777}"#;
        assert_eq!(extras.kv_hints, [hint]);
        // Where the prefill pick has it already there is nothing to fetch.
        let mut stages = Stages::default();
        stages.run(1, |picked| picked.push(1));
        let mut extras = Extras::default();
        f.with(&request, |context, _| {
            told.on_picked(context, &stages, 0, &mut extras);
        });
        assert!(extras.request_headers.is_empty() && extras.kv_hints.is_empty());
    }

    #[test]
    fn fnv_of_the_reference() {
        assert_eq!(fnv(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
