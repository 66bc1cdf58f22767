//! One holder's cache as its engine tells of it: events in, keys out.
//!
//! What cannot be placed exactly is left out and counted, so that the set may be smaller than the cache and never has what the
//! cache has not.

use super::check::{agrees, explain, salt_of};
use super::names::Names;
use super::set::OwnedSet;
use crate::Tier;
use crate::events::{Batch, Event, ExtraKey, Removed, Stored};
use crate::hash::Hasher;
use crate::index::{HolderCopy, HolderKey};
use crate::keys::{KeySpace, Scheme};
use std::sync::Arc;

/// Chains of an engine whose hashes are computed and compared.
const CHECKS: u32 = 8;

/// What is known beforehand of how the engine names its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// The base model.
    pub model: Arc<str>,
    /// Tokens in a block, where the engine does not say it.
    pub block_tokens: Option<u32>,
    /// How it hashes, until its events prove otherwise.
    pub scheme: Scheme,
}

/// What became of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Blocks told as stored and taken.
    pub stored: u64,
    /// Blocks told as removed.
    pub removed: u64,
    /// Times that everything was cleared.
    pub cleared: u64,
    /// Blocks left out: what comes before them, or the hash of a placeholder, is not known.
    pub unknown: u64,
    /// Blocks left out: of another attention group.
    pub other_group: u64,
    /// Blocks left out: partial ones, or what their hash does not cover.
    pub unusable: u64,
    /// Blocks left out: there are too many.
    pub too_many: u64,
    /// Events and fields that the decoder passed over.
    pub skipped: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Mirror {
    naming: Naming,
    space: Option<KeySpace>,
    names: Names,
    /// The attention group that counts; learnt from the first blocks with tokens.
    group: Option<u32>,
    checks: u32,
    pub(super) set: OwnedSet,
    /// The log has to be told with a full set.
    pub(super) replace: bool,
    counts: Counts,
    /// How the engine should hash, while it is found not to.
    distrusted: Option<(Scheme, Arc<str>)>,
}

impl Mirror {
    /// Of an engine of which nothing is known; the log has to be told so.
    #[must_use]
    pub fn new(holder: HolderKey, naming: Naming) -> Self {
        let mut mirror = Self {
            naming,
            space: None,
            names: Names::default(),
            group: None,
            checks: CHECKS,
            set: OwnedSet::new(holder),
            replace: true,
            counts: Counts::default(),
            distrusted: None,
        };
        let block_tokens = mirror.naming.block_tokens;
        mirror.space = block_tokens.and_then(|block| mirror.space_of(block));
        mirror
    }

    /// Goes on from what the log has, if the engine's hashes can be computed: then nothing else needs to be known.
    pub fn adopt(&mut self, copy: &HolderCopy) -> bool {
        let Some(space) = copy.space.as_ref().filter(|space| {
            space.hasher().is_some()
                && *space.scheme() == self.naming.scheme
                && space.model() == self.naming.model.as_ref()
        }) else {
            return false;
        };
        self.set.adopt(&copy.runs);
        (self.space, self.replace) = (Some(space.clone()), false);
        true
    }

    /// How the keys are made, once that is known.
    #[must_use]
    pub const fn space(&self) -> Option<&KeySpace> {
        self.space.as_ref()
    }

    /// What became of events.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The engine's hashes were not what its settings make them.
    #[must_use]
    pub const fn mismatch(&self) -> bool {
        self.distrusted.is_some()
    }

    /// What it does instead, in a sentence.
    #[must_use]
    pub fn finding(&self) -> Option<Arc<str>> {
        let (_, finding) = self.distrusted.as_ref()?;
        Some(Arc::clone(finding))
    }

    /// Tokens in a block by the settings, and by the engine's events where that is something else.
    #[must_use]
    pub fn block_sizes(&self) -> Option<(u32, u32)> {
        let (set, found) = (
            self.naming.block_tokens?,
            self.space.as_ref()?.block_tokens(),
        );
        (set != found).then_some((set, found))
    }

    /// Something that the engine holds is known.
    #[must_use]
    pub fn has_heard(&self) -> bool {
        self.set.pairs().iter().any(|blocks| *blocks > 0)
    }

    /// The next chains are compared again.
    pub fn recheck(&mut self) {
        self.checks = CHECKS;
    }

    /// The engine was found not to hash as its settings say: from now on its blocks are learnt.
    pub fn distrust(&mut self, finding: Arc<str>) {
        let settings = std::mem::replace(&mut self.naming.scheme, Scheme::Own);
        self.distrusted.get_or_insert((settings, finding));
        let block_tokens = self.space.as_ref().map(KeySpace::block_tokens);
        self.reset();
        self.space = block_tokens.and_then(|block| self.space_of(block));
    }

    /// Another process of the engine: it may hash as its settings say, whatever the one before did.
    pub fn renew(&mut self) {
        self.reset();
        if let Some((settings, _)) = self.distrusted.take() {
            self.naming.scheme = settings;
            let block_tokens = self.space.as_ref().map(KeySpace::block_tokens);
            self.space = block_tokens.and_then(|block| self.space_of(block));
        }
    }

    fn space_of(&self, block_tokens: u32) -> Option<KeySpace> {
        KeySpace::new(&self.naming.model, block_tokens, self.naming.scheme.clone()).ok()
    }

    /// The blocks.
    #[must_use]
    pub const fn set(&self) -> &OwnedSet {
        &self.set
    }

    /// Everything that the engine said is void.
    pub fn reset(&mut self) {
        self.set.clear();
        self.names.clear();
        self.replace = true;
        self.checks = CHECKS;
    }

    /// The log lost what it was told.
    pub(super) fn untell(&mut self) {
        self.set.untell();
        self.replace = true;
    }

    /// Takes a batch of events. True if the engine should tell everything again: what came so far was taken for something else.
    pub fn apply(&mut self, batch: &Batch) -> bool {
        let before = self.mismatch();
        let skipped = batch.skipped;
        self.counts.skipped += u64::from(skipped.unknown_events)
            + u64::from(skipped.unknown_fields)
            + u64::from(skipped.malformed_events);
        for event in batch.events() {
            match event {
                Event::Stored(stored) => self.stored(&stored),
                Event::Removed(removed) => self.removed(&removed),
                Event::Cleared => {
                    self.counts.cleared += 1;
                    self.set.clear();
                    self.names.clear();
                    self.replace = true;
                }
            }
        }
        self.mismatch() != before
    }

    fn stored(&mut self, stored: &Stored<'_>) {
        let blocks = stored.hashes.len() as u64;
        // A window or a state does not hold the prefix, whatever its hash is.
        let other = self.group.is_some_and(|group| group != stored.group);
        if other || !stored.kind.holds_prefix() {
            self.counts.other_group += blocks;
            return;
        }
        if stored.tokens.is_empty() {
            self.placeholder(stored);
            return;
        }
        let size = stored.block_size as usize;
        if size == 0 || stored.hashes.len().checked_mul(size) != Some(stored.tokens.len()) {
            self.counts.unusable += blocks;
            return;
        }
        self.group = Some(stored.group);
        if !self.fits(stored.block_size) {
            self.counts.unusable += blocks;
            return;
        }
        let salt = salt_of(stored);
        self.check(stored, salt);
        let Some(space) = self.space.clone() else {
            return;
        };
        match space.hasher() {
            Some(Hasher::Sglang) if stored.lora_id.is_some() || !stored.lora.is_empty() => {
                // The hash is the same for every adapter.
                self.counts.unusable += blocks;
            }
            Some(_) => {
                let mut parent = stored.parent.map(|hash| space.key_of_hash(hash));
                for hash in stored.hashes {
                    let key = space.key_of_hash(*hash);
                    self.put(stored.tier, parent, key);
                    parent = Some(key);
                }
            }
            None => self.learn(&space, stored, salt),
        }
    }

    fn put(&mut self, tier: Tier, parent: Option<u64>, key: u64) {
        if self.set.add(tier, parent, key) {
            self.counts.stored += 1;
        } else {
            self.counts.too_many += 1;
        }
    }

    /// Blocks of a lower tier, by their hashes alone.
    fn placeholder(&mut self, stored: &Stored<'_>) {
        let exact = self
            .space
            .as_ref()
            .filter(|s| s.hasher().is_some())
            .cloned();
        for hash in stored.hashes {
            let key = match &exact {
                // Before the group is known, a hash may be that of a recurrent state.
                Some(space) if self.group.is_some() => Some(space.key_of_hash(*hash)),
                Some(_) => None,
                None => self.names.certain(*hash),
            };
            match key {
                Some(key) => self.put(stored.tier, None, key),
                None => self.counts.unknown += 1,
            }
        }
    }

    /// Whether blocks of this size are whole ones. The engine's first blocks decide, and larger ones after them.
    fn fits(&mut self, block_tokens: u32) -> bool {
        let known = self.space.as_ref().map(KeySpace::block_tokens);
        let first = self.counts.stored == 0 && self.set.pairs().iter().all(|n| *n == 0);
        match known {
            Some(known) if known == block_tokens => return true,
            Some(known) if known > block_tokens && !first => return false,
            _ => {}
        }
        let Some(space) = self.space_of(block_tokens) else {
            return false;
        };
        self.reset();
        self.space = Some(space);
        true
    }

    /// Compares the engine's hashes with what its settings make of the tokens.
    fn check(&mut self, stored: &Stored<'_>, salt: &str) {
        if self.checks == 0 || stored.parent.is_some() {
            return;
        }
        let Some(space) = &self.space else {
            return;
        };
        let Some(hasher) = space.hasher() else {
            return;
        };
        let Some(right) = agrees(hasher, space.scheme(), stored, salt) else {
            return;
        };
        self.checks -= 1;
        if right {
            return;
        }
        let finding = explain(&self.naming.scheme, stored, salt);
        self.distrust(finding.into());
    }

    /// Keys of our own, from the tokens.
    fn learn(&mut self, space: &KeySpace, stored: &Stored<'_>, salt: &str) {
        let number;
        let lora = match (stored.lora, stored.lora_id) {
            ("", Some(id)) => {
                number = format!("#{id}");
                number.as_str()
            }
            (name, _) => name,
        };
        let (mut before, mut parent) = match stored.parent {
            None => (space.own_root(lora, salt), None),
            Some(hash) => match self.names.certain(hash) {
                Some(key) => (key, Some(key)),
                None => {
                    self.counts.unknown += stored.hashes.len() as u64;
                    return;
                }
            },
        };
        let extras: Vec<(u32, ExtraKey<'_>)> = stored.extra_keys().collect();
        let blocks = stored
            .tokens
            .chunks_exact(stored.block_size.max(1) as usize);
        for (at, (hash, tokens)) in stored.hashes.iter().zip(blocks).enumerate() {
            let here = extras.iter().filter(|(block, _)| *block as usize == at);
            let items = here.filter_map(|(_, extra)| match extra {
                ExtraKey::Item { identifier, offset } => Some((*identifier, *offset)),
                // The adapter and the salt are in the root of the chain.
                ExtraKey::Text(text) if *text == stored.lora || *text == salt => None,
                ExtraKey::Text(text) => Some((*text, i64::MIN)),
                // No prompt that a router sees has embeddings: any key does that is not a prompt's.
                ExtraKey::Digest(_) => Some(("", i64::MIN)),
            });
            let key = space.own_key(before, tokens, items);
            if !self.names.learn(*hash, key) {
                self.counts.unknown += (stored.hashes.len() - at) as u64;
                return;
            }
            self.put(stored.tier, parent, key);
            (before, parent) = (key, Some(key));
        }
    }

    fn removed(&mut self, removed: &Removed<'_>) {
        // Where the group is not known yet, everything is believed: less is held then than could be.
        if self.group.is_some_and(|group| group != removed.group) {
            self.counts.other_group += removed.hashes.len() as u64;
            return;
        }
        self.counts.removed += removed.hashes.len() as u64;
        let exact = self.space.as_ref().filter(|s| s.hasher().is_some());
        for hash in removed.hashes {
            match exact {
                Some(space) => {
                    self.set.remove(removed.tier, space.key_of_hash(*hash));
                }
                None => {
                    if let Some(key) = self.names.get(*hash)
                        && self.set.remove(removed.tier, key)
                    {
                        self.names.forget(*hash);
                    }
                }
            }
        }
    }
}
