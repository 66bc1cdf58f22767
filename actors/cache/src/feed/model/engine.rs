//! The model engine: what it holds, and the events that it publishes of it.

use crate::hash::{Algorithm, ExtraForm, Hasher};
use crate::keys::{KeySpace, Scheme};
use bytes::Bytes;
use quorate_routing::tokens::{Origin, PromptTokens};
use std::collections::{BTreeSet, VecDeque};

const BLOCK: u32 = 2;

/// MessagePack of an old vLLM: events as arrays.
fn payload(stamp: u64, events: &[Vec<u8>]) -> Bytes {
    let mut out = vec![0x93, 0xcf];
    out.extend((stamp).to_be_bytes());
    out.push(0x90 | events.len() as u8);
    events.iter().for_each(|event| out.extend(event));
    out.push(0xc0);
    out.into()
}

fn word(out: &mut Vec<u8>, value: u64) {
    out.push(0xcf);
    out.extend(value.to_be_bytes());
}

fn stored(hash: u64, parent: Option<u64>, tokens: &[u32]) -> Vec<u8> {
    let mut out = vec![0x96, 0xab];
    out.extend(b"BlockStored");
    out.push(0x91);
    word(&mut out, hash);
    match parent {
        Some(parent) => word(&mut out, parent),
        None => out.push(0xc0),
    }
    out.push(0x90 | tokens.len() as u8);
    tokens
        .iter()
        .for_each(|token| word(&mut out, u64::from(*token)));
    out.push(tokens.len() as u8);
    out.push(0xc0);
    out
}

fn removed(hash: u64) -> Vec<u8> {
    let mut out = vec![0x92, 0xac];
    out.extend(b"BlockRemoved");
    out.push(0x91);
    word(&mut out, hash);
    out
}

pub(super) fn cleared() -> Vec<u8> {
    let mut out = vec![0x91, 0xb0];
    out.extend(b"AllBlocksCleared");
    out
}

/// Prompts of up to three blocks: two tokens a block, each of two kinds.
pub(super) type Chain = Vec<u8>;

pub(super) struct Engine {
    pub(super) scheme: Scheme,
    pub(super) process: u64,
    pub(super) next: u64,
    pub(super) held: BTreeSet<Chain>,
    pub(super) buffer: VecDeque<(u64, Bytes)>,
    pub(super) steps: usize,
}

impl Engine {
    fn tokens(chain: &[u8]) -> Vec<u32> {
        chain.iter().flat_map(|t| [u32::from(*t), 9]).collect()
    }

    fn hash(&self, chain: &[u8]) -> u64 {
        let hasher = match KeySpace::new("m", BLOCK, self.scheme.clone())
            .unwrap()
            .hasher()
        {
            Some(hasher) => hasher.clone(),
            // Random seed: another one in each process.
            None => Hasher::vllm(
                Algorithm::Sha256Cbor,
                ExtraForm::Tagged,
                Some(&self.process.to_string()),
            )
            .unwrap(),
        };
        let mut hashes = Vec::new();
        hasher
            .prompt(
                &Self::tokens(chain),
                BLOCK as usize,
                &Default::default(),
                &mut hashes,
            )
            .unwrap();
        *hashes.last().unwrap()
    }

    pub(super) fn publish(&mut self, events: &[Vec<u8>]) -> (u64, Bytes) {
        let message = (self.next, payload(self.process << 32 | self.next, events));
        self.next += 1;
        self.buffer.push_back(message.clone());
        while self.buffer.len() > self.steps {
            self.buffer.pop_front();
        }
        message
    }

    pub(super) fn store(&mut self, chain: &[u8]) -> (u64, Bytes) {
        let mut events = Vec::new();
        for end in 1..=chain.len() {
            let (block, before) = (&chain[..end], &chain[..end - 1]);
            if self.held.insert(block.to_vec()) {
                let parent = (!before.is_empty()).then(|| self.hash(before));
                let tokens = Self::tokens(&block[end - 1..]);
                events.push(stored(self.hash(block), parent, &tokens));
            }
        }
        self.publish(&events)
    }

    pub(super) fn drop_one(&mut self, pick: usize) -> (u64, Bytes) {
        let victim = self.held.iter().nth(pick % self.held.len().max(1)).cloned();
        let events: Vec<_> = victim
            .iter()
            .map(|chain| removed(self.hash(chain)))
            .collect();
        if let Some(victim) = victim {
            self.held.remove(&victim);
        }
        self.publish(&events)
    }

    pub(super) fn restart(&mut self) {
        self.process += 1;
        self.next = 0;
        self.held.clear();
        self.buffer.clear();
    }

    /// The keys that a router makes of the prompts whose last block is held.
    pub(super) fn truth(&self, space: &KeySpace) -> BTreeSet<u64> {
        let key = |chain: &Chain| {
            let prompt = PromptTokens {
                ids: Self::tokens(chain).into(),
                media: Vec::new(),
                lora: None,
                salt: None,
                origin: Origin::Local,
                exact: true,
            };
            let mut keys = Vec::new();
            space.keys(&prompt, None, usize::MAX, &mut keys).unwrap();
            *keys.last().unwrap()
        };
        self.held.iter().map(key).collect()
    }
}
