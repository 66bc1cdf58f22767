//! The answer of TensorRT-LLM's `POST /kv_cache_events` -> batches.
//!
//! The answer is a JSON list; reading it empties the engine's buffer, so there is exactly one reader and no replay. Events
//! carry consecutive ids for each data-parallel rank: a hole means that the buffer overflowed. Blocks that are not full,
//! and those of attention windows smaller than the largest, are no prefix that could be used and are left out.

use super::batch::{Batch, ExtraRecord, ExtraValue, Fields, Record, Span};
use super::decode::MAX_PAYLOAD;
use crate::Tier;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;

/// Ranks that one engine may have; events of further ones are left out.
const MAX_RANKS: usize = 4096;
/// Hashes of partial blocks that are remembered for each rank.
const MAX_PARTIAL: usize = 1 << 16;

/// Why an answer has no events.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    /// It is no JSON list.
    #[error("the answer is no JSON list of events: {0}")]
    NotAList(#[from] serde_json::Error),
    /// It is longer than [`MAX_PAYLOAD`].
    #[error("the answer has {0} bytes")]
    TooLong(usize),
}

/// How a rank's events of one poll stand against those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// They follow the ones before.
    Continuous,
    /// So many ids are missing: forget what the rank held, then apply.
    Lost(u64),
    /// The ids begin anew, the engine restarted: forget what the rank held, then apply.
    Restarted,
}

/// The events of one rank in one poll.
#[derive(Clone, Debug)]
pub struct RankEvents {
    /// Whether the batch continues what came before.
    pub continuity: Continuity,
    /// Id of the last event.
    pub last_id: u64,
    /// The events; `rank` is set when the engine says it.
    pub batch: Batch,
}

/// Reads one engine's answers, one after the other.
pub struct Poller {
    block_size: NonZeroU32,
    ranks: BTreeMap<Option<u32>, Rank>,
}

#[derive(Default)]
struct Rank {
    next_id: Option<u64>,
    largest_window: i64,
    partial: HashSet<u64>,
}

#[derive(Deserialize)]
struct Polled<'a> {
    event_id: u64,
    attention_dp_rank: Option<u32>,
    window_size: Option<i64>,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Data {
    Created,
    Stored {
        parent_hash: Option<Value>,
        blocks: Vec<Block>,
    },
    Removed {
        block_hashes: Vec<Value>,
    },
    Updated {
        block_hash: Value,
        cache_level: Option<Change>,
    },
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct Change {
    old_value: i64,
    new_value: i64,
}

#[derive(Deserialize)]
struct Block {
    block_hash: Value,
    tokens: Vec<Token>,
    #[serde(default)]
    cache_level: i64,
    #[serde(default)]
    mm_keys: Vec<Item>,
}

#[derive(Deserialize)]
struct Token {
    token_id: u32,
}

#[derive(Deserialize)]
struct Item {
    hash: String,
    #[serde(default)]
    start_offset: i64,
}

impl Poller {
    /// Of an engine with so many tokens in a block (`tokens_per_block`).
    pub fn new(block_size: NonZeroU32) -> Self {
        Poller {
            block_size,
            ranks: BTreeMap::new(),
        }
    }

    /// The events of one answer, by rank.
    pub fn decode(&mut self, body: &[u8]) -> Result<Vec<RankEvents>, PollError> {
        if body.len() > MAX_PAYLOAD {
            return Err(PollError::TooLong(body.len()));
        }
        let list: Vec<&RawValue> = serde_json::from_slice(body)?;
        let mut out: Vec<RankEvents> = Vec::new();
        let mut headless = 0;
        for raw in list {
            let Ok(polled) = serde_json::from_str::<Polled>(raw.get()) else {
                headless += 1;
                continue;
            };
            let key = polled.attention_dp_rank;
            if self.ranks.len() >= MAX_RANKS && !self.ranks.contains_key(&key) {
                headless += 1;
                continue;
            }
            let rank = self.ranks.entry(key).or_default();
            let continuity = rank.follow(polled.event_id);
            let known = out.iter().position(|events| events.batch.rank == key);
            let at = match known {
                // What came before a break in the same answer is void with everything else.
                Some(at) if continuity == Continuity::Continuous => at,
                _ => {
                    if let Some(at) = known {
                        out.remove(at);
                    }
                    out.push(RankEvents {
                        continuity,
                        last_id: polled.event_id,
                        batch: Batch {
                            rank: key,
                            ..Batch::default()
                        },
                    });
                    out.len() - 1
                }
            };
            if let Some(events) = out.get_mut(at) {
                events.last_id = polled.event_id;
                rank.apply(&polled, self.block_size.get(), &mut events.batch);
            }
        }
        if let Some(first) = out.first_mut() {
            first.batch.skipped.malformed_events += headless;
        }
        Ok(out)
    }
}

impl Rank {
    fn follow(&mut self, id: u64) -> Continuity {
        let continuity = match self.next_id {
            None if id == 0 => Continuity::Continuous,
            // Others read before us, or the buffer overflowed before we came.
            None => Continuity::Lost(id),
            Some(next) if id == next => Continuity::Continuous,
            Some(next) if id > next => Continuity::Lost(id - next),
            Some(_) => Continuity::Restarted,
        };
        if continuity != Continuity::Continuous {
            *self = Rank {
                largest_window: match continuity {
                    Continuity::Restarted => 0,
                    _ => self.largest_window,
                },
                ..Rank::default()
            };
        }
        self.next_id = Some(id.saturating_add(1));
        continuity
    }

    fn apply(&mut self, polled: &Polled<'_>, block_size: u32, batch: &mut Batch) {
        let window = polled.window_size.unwrap_or(self.largest_window);
        if window < self.largest_window {
            batch.skipped.filtered_events += 1;
            return;
        }
        if window > self.largest_window {
            if self.largest_window > 0 {
                // The blocks taken so far belong to a smaller window.
                batch.records.push(Record::Cleared);
            }
            self.largest_window = window;
        }
        let mark = batch.mark();
        let applied = match serde_json::from_str::<Data>(polled.data.get()) {
            Ok(Data::Created) => Some(()),
            Ok(Data::Stored {
                parent_hash,
                blocks,
            }) => self.stored(parent_hash.as_ref(), &blocks, block_size, batch),
            Ok(Data::Removed { block_hashes }) => self.removed(&block_hashes, batch),
            Ok(Data::Updated {
                block_hash,
                cache_level,
            }) => self.moved(&block_hash, cache_level.as_ref(), batch),
            Ok(Data::Unknown) => {
                batch.skipped.unknown_events += 1;
                Some(())
            }
            Err(_) => None,
        };
        if applied.is_none() {
            batch.rollback(mark);
            batch.skipped.malformed_events += 1;
        }
    }

    /// One record for each run of blocks on the same tier.
    fn stored(
        &mut self,
        parent: Option<&Value>,
        blocks: &[Block],
        block_size: u32,
        batch: &mut Batch,
    ) -> Option<()> {
        let mut parent = match parent {
            None | Some(Value::Null) => None,
            Some(value) => Some(hash(value)?),
        };
        let full = blocks
            .iter()
            .position(|block| block.tokens.len() != block_size as usize);
        let (full, partial) = blocks.split_at_checked(full.unwrap_or(blocks.len()))?;
        for run in full.chunk_by(|a, b| a.cache_level == b.cache_level) {
            let Some(first) = run.first() else { continue };
            let starts = (batch.hashes.len(), batch.tokens.len(), batch.extras.len());
            for (at, block) in run.iter().enumerate() {
                batch.hashes.push(hash(&block.block_hash)?);
                batch
                    .tokens
                    .extend(block.tokens.iter().map(|token| token.token_id));
                for item in &block.mm_keys {
                    let key = ExtraValue::Item {
                        identifier: batch.put_str(&item.hash),
                        offset: item.start_offset,
                    };
                    let block = u32::try_from(at).ok()?;
                    batch.extras.push(ExtraRecord { block, key });
                }
            }
            batch.records.push(Record::Stored(Fields {
                hashes: Span::new(starts.0, batch.hashes.len()),
                tokens: Span::new(starts.1, batch.tokens.len()),
                extras: Span::new(starts.2, batch.extras.len()),
                parent,
                block_size,
                tier: Some(tier(first.cache_level)),
                ..Fields::default()
            }));
            parent = batch.hashes.last().copied();
        }
        for block in partial {
            batch.skipped.filtered_events += 1;
            if self.partial.len() < MAX_PARTIAL {
                self.partial.insert(hash(&block.block_hash)?);
            }
        }
        Some(())
    }

    fn removed(&mut self, hashes: &[Value], batch: &mut Batch) -> Option<()> {
        let start = batch.hashes.len();
        for value in hashes {
            let hash = hash(value)?;
            if !self.partial.remove(&hash) {
                batch.hashes.push(hash);
            }
        }
        if batch.hashes.len() > start {
            batch.records.push(Record::Removed(Fields {
                hashes: Span::new(start, batch.hashes.len()),
                ..Fields::default()
            }));
        }
        Some(())
    }

    fn moved(&self, block: &Value, change: Option<&Change>, batch: &mut Batch) -> Option<()> {
        let block = hash(block)?;
        let Some(change) = change.filter(|_| !self.partial.contains(&block)) else {
            return Some(());
        };
        let start = batch.hashes.len();
        batch.hashes.push(block);
        let fields = Fields {
            hashes: Span::new(start, start + 1),
            ..Fields::default()
        };
        batch.records.push(Record::Removed(Fields {
            tier: Some(tier(change.old_value)),
            ..fields
        }));
        batch.records.push(Record::Stored(Fields {
            tier: Some(tier(change.new_value)),
            ..fields
        }));
        Some(())
    }
}

/// Level 0 is the accelerator, level 1 the host's memory.
fn tier(level: i64) -> Tier {
    match level {
        0 => Tier::Gpu,
        1 => Tier::Cpu,
        _ => Tier::Unknown,
    }
}

fn hash(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_i64().map(i64::cast_unsigned))
        .or_else(|| value.as_str().and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Event;

    fn poller() -> Poller {
        Poller::new(NonZeroU32::new(2).unwrap())
    }

    fn shape(batch: &Batch) -> Vec<String> {
        batch
            .events()
            .map(|event| match event {
                Event::Stored(s) => format!(
                    "+{:?} after {:?} {:?} {}",
                    s.hashes,
                    s.parent,
                    s.tokens,
                    s.tier.as_str()
                ),
                Event::Removed(r) => format!("-{:?} {:?}", r.hashes, r.tier),
                Event::Cleared => "clear".into(),
            })
            .collect()
    }

    #[test]
    fn stored_moved_and_removed() {
        let body = br#"[
          {"event_id":0,"data":{"type":"created","num_blocks_per_cache_level":[10,4]},"window_size":64},
          {"event_id":1,"data":{"type":"stored","parent_hash":null,"blocks":[
            {"type":"stored_block","block_hash":11,"tokens":[{"token_id":5,"token_extra_id":0},{"token_id":6,"token_extra_id":0}],"cache_level":0,"priority":35,"mm_keys":[{"type":"mm_key","hash":"ab","start_offset":1}]},
            {"block_hash":12,"tokens":[{"token_id":7},{"token_id":8}],"cache_level":1},
            {"block_hash":13,"tokens":[{"token_id":9}]}]},"window_size":64},
          {"event_id":2,"data":{"type":"updated","block_hash":11,"cache_level":{"type":"event_diff","new_value":1,"old_value":0}},"window_size":64},
          {"event_id":3,"data":{"type":"removed","block_hashes":[13,12]},"window_size":64},
          {"event_id":4,"data":{"type":"stored","parent_hash":null,"blocks":[]},"window_size":32},
          {"event_id":5,"data":{"type":"dreamt"},"window_size":64},
          {"event_id":6,"data":{"type":"removed","block_hashes":[true]},"window_size":64}]"#;
        let out = poller().decode(body).unwrap();
        assert_eq!(out.len(), 1);
        assert_eq!(
            (out[0].continuity, out[0].last_id),
            (Continuity::Continuous, 6)
        );
        assert_eq!(
            shape(&out[0].batch),
            [
                "+[11] after None [5, 6] gpu",
                "+[12] after Some(11) [7, 8] cpu",
                "-[11] Some(Gpu)",
                "+[11] after None [] cpu",
                "-[12] None"
            ]
        );
        let skipped = out[0].batch.skipped;
        assert_eq!(
            (
                skipped.unknown_events,
                skipped.malformed_events,
                skipped.filtered_events
            ),
            (1, 1, 2)
        );
        let Some(Event::Stored(first)) = out[0].batch.events().next() else {
            panic!("no stored event");
        };
        assert_eq!(first.extra_keys().count(), 1);
    }

    #[test]
    fn ids_tell_losses_and_restarts_for_each_rank() {
        let mut poller = poller();
        let event = |id: u64, rank: u32, hash: u64| {
            format!(
                r#"{{"event_id":{id},"attention_dp_rank":{rank},"data":{{"type":"removed","block_hashes":[{hash}]}}}}"#
            )
        };
        let mut poll = |events: &[String]| {
            let body = format!("[{}]", events.join(","));
            poller.decode(body.as_bytes()).unwrap()
        };
        let out = poll(&[event(0, 0, 1), event(0, 1, 1), event(1, 0, 2)]);
        assert_eq!(out.len(), 2);
        assert!(out.iter().all(|r| r.continuity == Continuity::Continuous));
        let out = poll(&[event(4, 0, 1), event(1, 1, 7)]);
        assert_eq!(out[0].continuity, Continuity::Lost(2));
        assert_eq!(out[1].continuity, Continuity::Continuous);
        let out = poll(&[event(5, 0, 1), event(0, 0, 9)]);
        assert_eq!(out[0].continuity, Continuity::Restarted);
        assert_eq!(shape(&out[0].batch), ["-[9] None"]);
        assert!(poll(&[]).is_empty());
        assert!(poller.decode(b"{}").is_err());
    }
}
