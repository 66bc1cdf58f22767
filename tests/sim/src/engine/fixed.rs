//! The per-request time model: every sequence has its own due times, whatever the others do.

use super::latency::Latency;
use super::{Engine, Event, FinishReason, Nanos};
use std::cmp::Ordering;

/// When the next token of a sequence is out. Ordered so that a max-heap yields the earliest, ties in arrival order.
#[derive(PartialEq, Eq)]
pub(super) struct Due {
    at: Nanos,
    order: u64,
    slot: u32,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Engine<T> {
    pub(super) fn advance_fixed(
        &mut self,
        now: Nanos,
        sink: &mut impl FnMut(&T, Event),
    ) -> Option<Nanos> {
        self.admit(now, sink);
        while self.due.peek().is_some_and(|due| due.at <= now) {
            let Some(Due { at, order, slot }) = self.due.pop() else {
                break;
            };
            if self.at(slot).is_none_or(|seq| seq.order != order) {
                continue;
            }
            self.emit(slot, at, sink);
            // The token just emitted has no KV of its own until the next one is computed.
            let alive = self.at(slot).filter(|seq| seq.order == order);
            if let Some(computed) = alive.map(|seq| seq.known() - 1) {
                self.set_computed(slot, computed);
                let next = at.saturating_add(self.fixed_time(None));
                self.due.push(Due {
                    at: next,
                    order,
                    slot,
                });
            } else {
                self.admit(at, sink);
            }
        }
        self.due.peek().map(|due| due.at)
    }

    /// Time to the first token with so many uncached prompt tokens, or to the next token.
    fn fixed_time(&mut self, uncached: Option<u32>) -> Nanos {
        let Latency::Fixed(fixed) = &self.config.latency else {
            return 0;
        };
        let load = fixed.load(self.running.len(), self.config.max_num_seqs);
        match uncached {
            Some(tokens) => fixed.prefill(tokens, load, &mut self.rng),
            None => fixed.decode(load, &mut self.rng),
        }
    }

    /// Starts waiting sequences while there are places and blocks. Blocks for the whole output are taken at once: this
    /// model knows no preemption.
    fn admit(&mut self, now: Nanos, sink: &mut impl FnMut(&T, Event)) {
        let mut next = 0;
        while self.running.len() < self.config.max_num_seqs {
            let Some(&slot) = self.waiting.get(next) else {
                break;
            };
            let Some(seq) = self.at(slot) else { break };
            let (order, lora) = (seq.order, seq.lora);
            if !self.adapter_fits(lora) {
                next += 1;
                continue;
            }
            let start = now.max(seq.times.arrival);
            let total = seq.prompt_tokens + seq.output.len() as u32;
            let found = self.find(seq);
            let hit_tokens = found.gpu.len() as u32 * self.config.block_size;
            let loaded = found.below.len() as u32 * self.config.block_size;
            let uncached = seq.prompt_tokens - hit_tokens - loaded;
            let missing = self.blocks_for(total as usize) - found.gpu.len();
            let revived = found
                .gpu
                .iter()
                .filter(|block| self.pool.is_free(**block))
                .count();
            if missing + revived > self.pool.free() {
                break;
            }
            self.waiting.remove(next);
            if !self.account_prefix(slot, hit_tokens, loaded, start) {
                self.finish(slot, FinishReason::CacheThreshold, sink);
                continue;
            }
            for block in &found.gpu {
                self.pool.share(*block);
            }
            let ready = self.start_load(slot, &found, start);
            let prompt_tokens = hit_tokens + loaded + uncached;
            if let Some(seq) = self.seqs.get_mut(slot as usize).and_then(Option::as_mut) {
                seq.sealed = found.gpu.len();
                seq.blocks = found.gpu;
            }
            self.grow(slot, total);
            self.set_computed(slot, prompt_tokens);
            self.running.push(slot);
            let load = self.touch_lora(lora);
            let at = ready
                .saturating_add(load)
                .saturating_add(self.fixed_time(Some(uncached)));
            self.due.push(Due { at, order, slot });
        }
    }
}
