//! The step scheduler: which tokens the next step computes, who is thrown out when blocks run short.

use super::latency::{StepCosts, StepWork};
use super::tiers::Load;
use super::{Engine, Event, FinishReason, Nanos};

/// Tokens of one sequence inside a step.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    slot: u32,
    order: u64,
    tokens: u32,
}

/// A step that runs.
pub(super) struct Step {
    end: Nanos,
    chunks: Vec<Chunk>,
}

impl<T> Engine<T> {
    pub(super) fn advance_batch(
        &mut self,
        costs: StepCosts,
        now: Nanos,
        sink: &mut impl FnMut(&T, Event),
    ) -> Option<Nanos> {
        loop {
            if let Some(step) = self.step.take() {
                if step.end > now {
                    let end = step.end;
                    self.step = Some(step);
                    return Some(end);
                }
                self.clock = step.end;
                self.finish_step(step, sink);
            }
            let mut start = self.clock;
            if now.saturating_sub(start) > self.config.max_catch_up {
                start = now;
            }
            if self.running.is_empty() {
                let arrival = self
                    .waiting
                    .front()
                    .and_then(|slot| self.at(*slot))
                    .map(|seq| seq.times.arrival);
                let next = arrival.into_iter().chain(self.next_load()).min();
                start = start.max(next?);
                if start > now {
                    return Some(start);
                }
            }
            self.clock = start;
            self.step = self.schedule(costs, start, sink);
            if self.step.is_none() && self.running.is_empty() {
                match self.next_load() {
                    // Whoever waits needs the blocks of those that are being loaded.
                    Some(ready) if ready > now => return Some(ready),
                    Some(ready) => self.clock = self.clock.max(ready),
                    None if self.waiting.is_empty() => return None,
                    None => {}
                }
            }
        }
    }

    fn finish_step(&mut self, mut step: Step, sink: &mut impl FnMut(&T, Event)) {
        self.counters.steps += 1;
        for chunk in step.chunks.drain(..) {
            // A sequence aborted while the step ran is gone, and its slot may have a new owner.
            let Some(seq) = self.at(chunk.slot).filter(|seq| seq.order == chunk.order) else {
                continue;
            };
            let (computed, known) = (seq.computed + chunk.tokens, seq.known());
            self.set_computed(chunk.slot, computed);
            if computed >= known {
                self.emit(chunk.slot, step.end, sink);
            }
        }
        self.spare = step.chunks;
    }

    /// Builds the step that starts at `start`. `None` when every sequence at hand ended without one.
    fn schedule(
        &mut self,
        costs: StepCosts,
        start: Nanos,
        sink: &mut impl FnMut(&T, Event),
    ) -> Option<Step> {
        let mut chunks = std::mem::take(&mut self.spare);
        let mut work = StepWork::default();
        let mut budget = self.config.max_num_batched_tokens;
        let mut lora_load = 0;

        self.land(start);
        let preempted = self.schedule_running(&mut budget, &mut chunks, &mut work);
        if !preempted {
            lora_load = self.schedule_waiting(start, &mut budget, &mut chunks, &mut work, sink);
        }
        if chunks.is_empty() {
            self.spare = chunks;
            return None;
        }
        Some(Step {
            end: start + costs.step(&work) + lora_load,
            chunks,
        })
    }

    /// True when a sequence had to be preempted.
    fn schedule_running(
        &mut self,
        budget: &mut u32,
        chunks: &mut Vec<Chunk>,
        work: &mut StepWork,
    ) -> bool {
        let mut preempted = false;
        let mut next = 0;
        while *budget > 0 && next < self.running.len() {
            let slot = self.running[next];
            let Some(seq) = self.at(slot) else { break };
            let (order, computed, decoding) = (seq.order, seq.computed, seq.emitted > 0);
            let tokens = (seq.known() - computed).min(*budget);
            while !self.grow(slot, computed + tokens) {
                preempted = true;
                // The newest sequence goes, this one too if it is the newest.
                let Some(victim) = self.running.pop() else {
                    break;
                };
                self.preempt(victim);
                if victim == slot {
                    return true;
                }
            }
            *budget -= tokens;
            if decoding && tokens == 1 {
                work.decode_seqs += 1;
                work.context_tokens += u64::from(computed + 1);
            } else {
                work.prefill_tokens += u64::from(tokens);
            }
            chunks.push(Chunk {
                slot,
                order,
                tokens,
            });
            next += 1;
        }
        preempted
    }

    fn preempt(&mut self, slot: u32) {
        self.release_blocks(slot);
        self.counters.preemptions += 1;
        self.waiting.push_front(slot);
    }

    /// Returns the time that bringing adapters in takes.
    fn schedule_waiting(
        &mut self,
        start: Nanos,
        budget: &mut u32,
        chunks: &mut Vec<Chunk>,
        work: &mut StepWork,
        sink: &mut impl FnMut(&T, Event),
    ) -> Nanos {
        let mut lora_load = 0;
        let mut next = 0;
        while *budget > 0 && self.running.len() + self.loading.len() < self.config.max_num_seqs {
            let Some(&slot) = self.waiting.get(next) else {
                break;
            };
            let Some(seq) = self.at(slot) else { break };
            if seq.times.arrival > start {
                break;
            }
            let (order, lora, known) = (seq.order, seq.lora, seq.known());
            if !self.adapter_fits(lora) {
                // No slot for its adapter: those behind it may still go.
                next += 1;
                continue;
            }
            let found = self.find(seq);
            let hit_tokens = found.gpu.len() as u32 * self.config.block_size;
            let loaded = found.below.len() as u32 * self.config.block_size;
            // What is loaded comes first; the rest is computed when it is there.
            let tokens = match loaded {
                0 => (known - hit_tokens).min(*budget),
                _ => 0,
            };
            let end = hit_tokens + loaded + tokens;
            let missing = self.blocks_for(end as usize) - found.gpu.len();
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
            if let Some(seq) = self.seqs.get_mut(slot as usize).and_then(Option::as_mut) {
                seq.sealed = found.gpu.len();
                seq.computed = hit_tokens;
                seq.blocks = found.gpu;
            }
            self.grow(slot, end);
            lora_load += self.touch_lora(lora);
            if loaded > 0 {
                self.loading.push(Load {
                    slot,
                    ready,
                    computed: end,
                });
                continue;
            }
            self.running.push(slot);
            *budget -= tokens;
            work.prefill_tokens += u64::from(tokens);
            chunks.push(Chunk {
                slot,
                order,
                tokens,
            });
        }
        lora_load
    }
}
