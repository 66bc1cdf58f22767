//! Batches of all holders of this node: when one is due, what goes into it, and what its answer means.
//!
//! At most two are under way, and never two with sections of the same holder: those may overtake each other. What waits meanwhile is
//! merged in the sets, so that a slow group makes batches larger up to [`LARGEST`], and no queue grows.

use super::holder::{Holder, Verdict};
use crate::index::{DeltaBatch, HolderKey, HolderStatus, Outcome, Refusal, Section};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Batches under way.
const UNDER_WAY: usize = 2;
/// So many bytes do not wait for the next tick.
const ENOUGH: usize = 32 << 10;
/// About the largest batch.
const LARGEST: usize = 256 << 10;

/// What the group said to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What came of each section.
    Outcomes(Vec<(HolderKey, Outcome)>),
    /// It is not known whether it is or will be applied, or certain that it was not: it is proposed again, which does no harm.
    Unknown,
}

#[derive(Debug)]
struct UnderWay {
    bytes: Bytes,
    holders: Vec<HolderKey>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Proposals {
    /// The holders that this node owns.
    pub holders: BTreeMap<HolderKey, Holder>,
    removals: Vec<Section>,
    under_way: BTreeMap<u64, UnderWay>,
    last_id: u64,
    /// Where the next batch begins, so that each holder has its turn.
    turn: Option<HolderKey>,
}

impl Proposals {
    /// The holder's endpoint is no more. It is no longer owned here.
    pub fn remove(&mut self, key: HolderKey, epoch: u64) {
        self.holders.remove(&key);
        self.removals.push(Section::removal(key, epoch));
    }

    /// Batches under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// The next batch with its number, if one may go. Without a `tick` only when enough has gathered.
    pub fn next(&mut self, tick: bool) -> Option<(u64, Bytes)> {
        if self.under_way.len() >= UNDER_WAY {
            return None;
        }
        let free = self.holders.values().filter(|h| !h.is_under_way());
        let waiting: usize = free.map(Holder::waiting).sum();
        if self.removals.is_empty() && (waiting == 0 || !tick && waiting < ENOUGH) {
            return None;
        }
        let mut sections = std::mem::take(&mut self.removals);
        let mut left = LARGEST;
        let mut order: Vec<HolderKey> = self.holders.keys().copied().collect();
        if let Some(turn) = self.turn {
            let at = order.partition_point(|key| *key <= turn);
            order.rotate_left(at);
        }
        for key in order {
            if left == 0 {
                break;
            }
            let Some(section) = self.holders.get_mut(&key).and_then(|h| h.section(left)) else {
                continue;
            };
            left = left.saturating_sub(section.blocks() * 8 + 64);
            self.turn = Some(key);
            sections.push(section);
        }
        if sections.is_empty() {
            return None;
        }
        let holders = sections.iter().map(|s| s.holder).collect();
        let mut bytes = Vec::new();
        DeltaBatch { sections }.encode(&mut bytes);
        let bytes = Bytes::from(bytes);
        self.last_id += 1;
        let copy = bytes.clone();
        self.under_way.insert(
            self.last_id,
            UnderWay {
                bytes: copy,
                holders,
            },
        );
        Some((self.last_id, bytes))
    }

    /// Takes the answer to a batch. What it means for holders that are still owned here, and, if the answer is not known, the same batch
    /// to propose again.
    pub fn answered(
        &mut self,
        id: u64,
        answer: Answer,
    ) -> (Vec<(HolderKey, Verdict)>, Option<Bytes>) {
        let Some(batch) = self.under_way.get(&id) else {
            return (Vec::new(), None);
        };
        let outcomes = match answer {
            Answer::Unknown => return (Vec::new(), Some(batch.bytes.clone())),
            Answer::Outcomes(outcomes) => outcomes,
        };
        let holders = self.under_way.remove(&id).map(|b| b.holders);
        let mut verdicts = Vec::new();
        for (at, key) in holders.into_iter().flatten().enumerate() {
            let outcome = outcomes.get(at).filter(|(of, _)| *of == key);
            let Some(holder) = self.holders.get_mut(&key).filter(|h| h.is_under_way()) else {
                continue;
            };
            // An answer that lacks the holder is none: what was sent may or may not be there.
            let outcome = outcome
                .map_or(Outcome::Refused(Refusal::UnknownHolder), |(_, outcome)| {
                    *outcome
                });
            verdicts.push((key, holder.answered(outcome)));
        }
        (verdicts, None)
    }

    /// Compares what the log has told this node with what it should have told: what differs twice in a row, while nothing was under way, is
    /// told again. That is how a lost log, or a section of a former owner that came late, is noticed when nothing else is to be said.
    /// Answers how many holders that concerns.
    pub fn audit(&mut self, told: &[HolderStatus]) -> usize {
        let mut again = 0;
        for holder in self.holders.values_mut() {
            if holder.is_under_way() || holder.waiting() > 0 {
                continue;
            }
            let told = told
                .binary_search_by_key(&holder.key(), |status| status.holder)
                .ok()
                .and_then(|at| told.get(at));
            if holder.differs(told) {
                holder.untell();
                again += 1;
            }
        }
        again
    }
}
