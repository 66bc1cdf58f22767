//! Histories of batches and expectations, applied to two replicas and the model.

use super::model::{Forest, Known, Model, key};
use proptest::prelude::*;
use quorate_cache::Tier;
use quorate_cache::index::{CacheIndex, DeltaBatch, Digest, Expected, Outcome, Refusal, Section};
use std::sync::Arc;

pub(crate) type Pick = prop::sample::Index;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Part of a chain is stored, with its parent or without.
    Store {
        holder: u64,
        tier: Tier,
        chain: Pick,
        from: Option<Pick>,
        to: Pick,
        parent: bool,
    },
    /// Part of a chain is removed, back to front, every so many blocks.
    Remove {
        holder: u64,
        tier: Tier,
        chain: Pick,
        from: Pick,
        to: Pick,
        every: usize,
    },
    Clear {
        holder: u64,
        tier: Option<Tier>,
    },
    /// A new engine process.
    Restart {
        holder: u64,
    },
    /// The endpoint goes.
    Forget {
        holder: u64,
    },
    /// A section that does not fit.
    Misfit {
        holder: u64,
        kind: u8,
    },
    Expect {
        holder: u64,
        chain: Pick,
        to: Pick,
    },
    Tick,
    Expire {
        back: u64,
    },
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let holder = || 0u64..4;
    let tier = || prop::sample::select(&Tier::ALL[..]);
    let index = || any::<Pick>();
    let step = prop_oneof![
        8 => (holder(), tier(), index(), index(), index(), any::<bool>())
            .prop_map(|(holder, tier, chain, from, to, parent)| Step::Store { holder, tier, chain, from: Some(from), to, parent }),
        4 => (holder(), index(), index(), any::<bool>())
            .prop_map(|(holder, chain, to, parent)| Step::Store { holder, tier: Tier::Gpu, chain, from: None, to, parent }),
        6 => (holder(), tier(), index(), index(), index(), 1usize..4)
            .prop_map(|(holder, tier, chain, from, to, every)| Step::Remove { holder, tier, chain, from, to, every }),
        1 => (holder(), prop::option::of(tier())).prop_map(|(holder, tier)| Step::Clear { holder, tier }),
        1 => holder().prop_map(|holder| Step::Restart { holder }),
        1 => holder().prop_map(|holder| Step::Forget { holder }),
        1 => (holder(), 0u8..4).prop_map(|(holder, kind)| Step::Misfit { holder, kind }),
        5 => (holder(), index(), index()).prop_map(|(holder, chain, to)| Step::Expect { holder, chain, to }),
        2 => Just(Step::Tick),
        2 => (0u64..4).prop_map(|back| Step::Expire { back }),
    ];
    prop::collection::vec(step, 1..60)
}

/// The index, another that sees the batches only, and the model.
pub(crate) struct Replicas {
    pub(crate) index: Arc<CacheIndex>,
    pub(crate) other: CacheIndex,
    pub(crate) model: Model,
    pub(crate) incarnations: u64,
    pub(crate) clock: u64,
}

impl Replicas {
    pub(crate) fn apply(&mut self, section: Section) -> Result<Outcome, TestCaseError> {
        let batch = DeltaBatch {
            sections: vec![section],
        };
        let outcome = self.index.apply(&batch).outcomes[0].1;
        let mut bytes = Vec::new();
        batch.encode(&mut bytes);
        let again = self
            .other
            .apply(&DeltaBatch::decode(&bytes).expect("a batch"))
            .outcomes[0]
            .1;
        prop_assert_eq!(outcome, again);
        prop_assert_eq!(self.index.digests(), self.other.digests());
        Ok(outcome)
    }

    /// A section that continues the holder, which is made known if it is not.
    pub(crate) fn next(&mut self, holder: u64) -> Result<Section, TestCaseError> {
        if !self.model.holders.contains_key(&holder) {
            self.restart(holder)?;
        }
        let known = self.model.holders.get_mut(&holder).expect("known by now");
        known.sequence += 2;
        Ok(Section::new(
            key(holder),
            known.incarnation,
            known.epoch,
            known.sequence - 2,
            known.sequence,
        ))
    }

    pub(crate) fn restart(&mut self, holder: u64) -> Result<(), TestCaseError> {
        self.incarnations += 1;
        let fresh = Known {
            incarnation: self.incarnations,
            epoch: self.incarnations,
            sequence: 1,
            ..Known::default()
        };
        let mut section = Section::new(key(holder), fresh.incarnation, fresh.epoch, 0, 1);
        section.replace = true;
        section.digest = Some(Digest::default());
        let had = self
            .model
            .holders
            .insert(holder, fresh)
            .map_or(0, |k| k.blocks.len() as u64);
        prop_assert_eq!(
            self.apply(section)?,
            Outcome::Applied {
                added: 0,
                removed: had,
                refused: 0
            }
        );
        Ok(())
    }

    /// Applies a section with the digest that the model has after it.
    pub(crate) fn change(
        &mut self,
        holder: u64,
        mut section: Section,
        after: Known,
    ) -> Result<(), TestCaseError> {
        let before = &self.model.holders[&holder].blocks;
        let (added, removed) = (
            after.blocks.difference(before).count() as u64,
            before.difference(&after.blocks).count() as u64,
        );
        section.digest = Some(Model::digest(holder, &after));
        self.model.holders.insert(holder, after);
        prop_assert_eq!(
            self.apply(section)?,
            Outcome::Applied {
                added,
                removed,
                refused: 0
            }
        );
        Ok(())
    }

    pub(crate) fn step(&mut self, forest: &Forest, step: Step) -> Result<(), TestCaseError> {
        let range = |chain: &[u64], from: Pick, to: Pick| {
            let (a, b) = (from.index(chain.len()), to.index(chain.len()));
            (a.min(b), a.max(b) + 1)
        };
        match step {
            Step::Store {
                holder,
                tier,
                chain,
                from,
                to,
                parent,
            } => {
                let chain = chain.get(&forest.chains);
                let (from, to) = from.map_or((0, to.index(chain.len()) + 1), |from| {
                    range(chain, from, to)
                });
                let mut section = self.next(holder)?;
                section.stored(
                    tier,
                    (parent && from > 0).then(|| chain[from - 1]),
                    &chain[from..to],
                );
                let mut after = self.model.holders[&holder].clone();
                for hash in &chain[from..to] {
                    after.blocks.insert((*hash, tier));
                    after.expected.remove(hash);
                }
                self.change(holder, section, after)?;
            }
            Step::Remove {
                holder,
                tier,
                chain,
                from,
                to,
                every,
            } => {
                let chain = chain.get(&forest.chains);
                let (from, to) = range(chain, from, to);
                let mut section = self.next(holder)?;
                let mut after = self.model.holders[&holder].clone();
                for hash in chain[from..to].iter().rev().step_by(every) {
                    section.removed(tier, &[*hash]);
                    after.blocks.remove(&(*hash, tier));
                }
                self.change(holder, section, after)?;
            }
            Step::Clear { holder, tier } => {
                let mut section = self.next(holder)?;
                section.cleared(tier);
                let mut after = self.model.holders[&holder].clone();
                after.blocks.retain(|b| tier.is_some_and(|t| t != b.1));
                if tier.is_none() {
                    after.expected.clear();
                }
                self.change(holder, section, after)?;
            }
            Step::Restart { holder } => self.restart(holder)?,
            Step::Forget { holder } => {
                let known = self.model.holders.remove(&holder);
                let fence = self.model.fences.get(&holder).filter(|_| known.is_none());
                if let Some(epoch) = fence.copied() {
                    let late = self.apply(Section::removal(key(holder), epoch))?;
                    prop_assert_eq!(late, Outcome::Refused(Refusal::OldEpoch { epoch }));
                    let mut late = Section::new(key(holder), 1, epoch, 0, 1);
                    late.replace = true;
                    late.stored(Tier::Gpu, None, &[1]);
                    let late = self.apply(late)?;
                    prop_assert_eq!(late, Outcome::Refused(Refusal::OldEpoch { epoch }));
                    return Ok(());
                }
                let known = known.unwrap_or_default();
                self.model.fences.insert(holder, known.epoch);
                let outcome = self.apply(Section::removal(key(holder), known.epoch))?;
                prop_assert_eq!(
                    outcome,
                    Outcome::Applied {
                        added: 0,
                        removed: known.blocks.len() as u64,
                        refused: 0
                    }
                );
            }
            Step::Misfit { holder, kind } => {
                let Some(known) = self.model.holders.get(&holder).cloned() else {
                    let mut section = Section::new(key(holder), 1, 1, 0, 1);
                    section.stored(Tier::Gpu, None, &[1]);
                    let fence = self.model.fences.get(&holder).filter(|fence| **fence >= 1);
                    let wanted = fence.map_or(Refusal::UnknownHolder, |epoch| Refusal::OldEpoch {
                        epoch: *epoch,
                    });
                    prop_assert_eq!(self.apply(section)?, Outcome::Refused(wanted));
                    return Ok(());
                };
                let (i, e, s) = (known.incarnation, known.epoch, known.sequence);
                let (mut section, wanted) = match kind {
                    0 => (
                        Section::new(key(holder), i, e - 1, s, s + 1),
                        Outcome::Refused(Refusal::OldEpoch { epoch: e }),
                    ),
                    1 => (
                        Section::new(key(holder), i + 1, e, s, s + 1),
                        Outcome::Refused(Refusal::OtherIncarnation { incarnation: i }),
                    ),
                    2 => (
                        Section::new(key(holder), i, e, s + 1, s + 2),
                        Outcome::Refused(Refusal::Gap {
                            known: s,
                            from: s + 1,
                        }),
                    ),
                    _ => (
                        Section::new(key(holder), i, e, s.saturating_sub(2), s),
                        Outcome::Repeated,
                    ),
                };
                section.stored(Tier::Gpu, None, &forest.chains[0]);
                section.cleared(None);
                prop_assert_eq!(self.apply(section)?, wanted);
            }
            Step::Expect { holder, chain, to } => {
                let chain = chain.get(&forest.chains);
                let chain = &chain[..=to.index(chain.len())];
                let Some(known) = self.model.holders.get_mut(&holder) else {
                    prop_assert_eq!(
                        self.index.expect(key(holder), 1, chain, self.clock),
                        Expected::NotThere
                    );
                    return Ok(());
                };
                let mut fresh = 0;
                for hash in chain {
                    if !Tier::ALL
                        .into_iter()
                        .any(|t| known.blocks.contains(&(*hash, t)))
                    {
                        fresh += u64::from(known.expected.insert(*hash, self.clock).is_none());
                    }
                }
                let (incarnation, clock) = (known.incarnation, self.clock);
                prop_assert_eq!(
                    self.index
                        .expect(key(holder), incarnation + 1, chain, clock),
                    Expected::NotThere
                );
                prop_assert_eq!(
                    self.index.expect(key(holder), incarnation, chain, clock),
                    Expected::Added(fresh)
                );
            }
            Step::Tick => self.clock += 1,
            Step::Expire { back } => {
                let until = self.clock.saturating_sub(back);
                let mut gone = 0;
                for known in self.model.holders.values_mut() {
                    let before = known.expected.len();
                    known.expected.retain(|_, generation| *generation > until);
                    gone += (before - known.expected.len()) as u64;
                }
                prop_assert_eq!(self.index.expire(until), gone);
            }
        }
        Ok(())
    }
}
