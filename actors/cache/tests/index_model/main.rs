//! The cache index against a plain map of sets, for any interleaving of batches, expectations, expiry and snapshots.

mod history;
mod model;

use history::{Replicas, Step, steps};
use model::{Forest, Known, Model, forest, key};
use proptest::prelude::*;
use quorate_cache::hash::ExtraForm;
use quorate_cache::index::{
    CacheIndex, Columns, DeltaBatch, Digest, Digests, IndexConfig, Outcome, Refusal, Section,
    Snapshot, SnapshotError, SnapshotLoader,
};
use quorate_cache::keys::Scheme;
use quorate_cache::{KeySpace, Tier};
use std::sync::Arc;

const CONFIG: IndexConfig = IndexConfig {
    max_bytes: 64 << 20,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_history_equals_the_model(forest in forest(), steps in steps()) {
        let (index, other) = (Arc::new(CacheIndex::new(CONFIG)), CacheIndex::new(CONFIG));
        // Generations wrap around in the course of the history.
        let mut all = Replicas { index, other, model: Model::default(), incarnations: 5, clock: (1 << 16) - 3 };
        for step in steps {
            all.step(&forest, step)?;
            all.model.check(&all.index, &forest, true)?;
        }
        all.model.check(&all.other, &forest, false)?;
        for holder in 0..4 {
            all.step(&forest, Step::Forget { holder })?;
        }
        let stats = all.index.stats();
        prop_assert_eq!((stats.blocks, stats.pairs, stats.expected_now), (0, 0, 0));
        prop_assert_eq!(all.index.digests().whole(), Digest::default());
    }

    #[test]
    fn a_snapshot_is_the_moment_at_which_it_began(
        forest in forest(), before in steps(), after in steps(), acts in prop::collection::vec((0usize..30, 0u8..8), 60)
    ) {
        let (index, other) = (Arc::new(CacheIndex::new(CONFIG)), CacheIndex::new(CONFIG));
        let mut all = Replicas { index, other, model: Model::default(), incarnations: 5, clock: 7 };
        for step in before {
            all.step(&forest, step)?;
        }
        // Several are read in turns while the history goes on, and while the map that they are of is replaced.
        let mut taken = vec![Taken::of(&all)];
        for (step, (count, act)) in after.into_iter().zip(acts) {
            match act {
                0 | 1 if taken.len() < 4 => taken.push(Taken::of(&all)),
                2 => {
                    all.index.assume(Taken::of(&all).finish());
                    // What was expected ended with the old one.
                    all.model.holders.values_mut().for_each(|known| known.expected.clear());
                }
                _ => {}
            }
            let turns = taken.len();
            taken[count % turns].read(count / 4);
            all.step(&forest, step)?;
            all.model.check(&all.index, &forest, true)?;
        }
        for taken in taken {
            taken.check(&forest)?;
        }
        all.model.check(&all.index, &forest, true)?;
    }
}

/// A snapshot that is being read, and what it should be.
struct Taken {
    snapshot: Snapshot,
    loader: SnapshotLoader,
    then: Model,
    digests: Digests,
}

impl Taken {
    fn of(all: &Replicas) -> Self {
        Self {
            snapshot: all.index.snapshot(),
            loader: SnapshotLoader::new(CONFIG),
            then: all.model.clone(),
            digests: all.index.digests(),
        }
    }

    fn read(&mut self, chunks: usize) {
        for chunk in self.snapshot.by_ref().take(chunks) {
            self.loader.push(&chunk).expect("a whole chunk");
        }
    }

    fn finish(mut self) -> CacheIndex {
        self.read(usize::MAX);
        self.loader.finish().expect("all chunks")
    }

    fn check(self, forest: &Forest) -> Result<(), TestCaseError> {
        let (then, digests) = (self.then.clone(), self.digests.clone());
        let loaded = self.finish();
        prop_assert_eq!(loaded.digests(), digests);
        then.check(&loaded, forest, false)?;
        // What was loaded goes on like any other replica, and knows who is gone.
        let gone = then.fences.iter();
        for (holder, epoch) in gone.filter(|(holder, _)| !then.holders.contains_key(holder)) {
            let late = Section::removal(key(*holder), *epoch);
            let refused = Outcome::Refused(Refusal::OldEpoch { epoch: *epoch });
            prop_assert_eq!(outcome(&loaded, late), refused);
        }
        for (holder, known) in &then.holders {
            let Known {
                incarnation,
                epoch,
                sequence,
                ..
            } = *known;
            let mut next = Section::new(key(*holder), incarnation, epoch, sequence, sequence + 1);
            next.stored(Tier::Gpu, None, &forest.chains[0]);
            next.removed(Tier::Gpu, &forest.chains[0]);
            next.cleared(None);
            next.digest = Some(Digest::default());
            let outcome = outcome(&loaded, next);
            prop_assert!(matches!(outcome, Outcome::Applied { .. }), "{:?}", outcome);
        }
        prop_assert_eq!(loaded.stats().blocks, 0);
        Ok(())
    }
}

fn outcome(index: &CacheIndex, section: Section) -> Outcome {
    let sections = vec![section];
    index.apply(&DeltaBatch { sections }).outcomes[0].1
}

#[test]
fn a_snapshot_that_is_no_map_is_refused() {
    let index = CacheIndex::new(CONFIG);
    let mut section = Section::new(key(1), 1, 1, 0, 1);
    section.replace = true;
    section.stored(Tier::Gpu, None, &[1, 2, 3]);
    assert!(matches!(outcome(&index, section), Outcome::Applied { .. }));
    let chunks: Vec<Vec<u8>> = index.snapshot().collect();
    let load = |config: IndexConfig, chunks: &[Vec<u8>]| {
        let mut loader = SnapshotLoader::new(config);
        for chunk in chunks {
            loader.push(chunk)?;
        }
        loader.finish().map(|_| ())
    };
    assert_eq!(load(CONFIG, &chunks), Ok(()));
    assert_eq!(load(CONFIG, &chunks[..2]), Err(SnapshotError::Incomplete));
    let two = IndexConfig { max_bytes: 96 };
    assert_eq!(load(two, &chunks), Err(SnapshotError::TooLarge));
    // The body of the blocks: how many, three hashes, how many intervals, and one: holder, tier, first, blocks.
    let body = 14;
    for (place, byte) in [
        (body, 2),
        (body + 26, 1),
        (body + 27, 9),
        (body + 28, 1),
        (body + 29, 2),
        (body + 29, 4),
    ] {
        let mut broken = chunks.clone();
        broken[1][place] = byte;
        let end = broken[1].len() - 4;
        let sum = crc32fast::hash(&broken[1][..end]);
        broken[1][end..].copy_from_slice(&sum.to_le_bytes());
        let loaded = load(CONFIG, &broken);
        assert!(
            matches!(loaded, Err(SnapshotError::Malformed(_))),
            "{place} {byte}: {loaded:?}"
        );
    }
    let mut damaged = chunks.clone();
    damaged[1][body + 3] ^= 1;
    assert_eq!(load(CONFIG, &damaged), Err(SnapshotError::Damaged(1)));
    let twice = [&chunks[..2], &chunks[1..]].concat();
    assert!(matches!(
        load(CONFIG, &twice),
        Err(SnapshotError::OutOfOrder { .. })
    ));
}

#[test]
fn a_holders_keys_and_mark_reach_readers_and_snapshots() {
    let index = Arc::new(CacheIndex::new(CONFIG));
    let scheme = Scheme::of(Some("sha256_cbor"), None, ExtraForm::Untagged);
    let space = KeySpace::new("m", 16, scheme).unwrap();
    let mut section = Section::new(key(1), 4, 2, 0, 9);
    (section.replace, section.mark) = (true, 77);
    section.space = Some(space.clone());
    section.stored(Tier::Gpu, None, &[1, 2]);
    let mut onward = Section::new(key(1), 4, 2, 9, 10);
    onward.mark = 78;
    index.apply(&DeltaBatch {
        sections: vec![section, onward],
    });
    let mut loader = SnapshotLoader::new(CONFIG);
    for chunk in index.snapshot() {
        loader.push(&chunk).unwrap();
    }
    let loaded = Arc::new(loader.finish().unwrap());
    for index in [index, loaded] {
        let status = &index.holders()[0];
        assert_eq!((status.sequence, status.mark), (10, 78));
        assert_eq!(status.space.as_ref(), Some(&space));
        assert_eq!(index.space_of(key(1)), Some(space.clone()));
        assert_eq!(index.space_of(key(0)), None);
        let mut columns = Columns::new();
        index.lookup(&[1, 2, 3], &mut columns);
        assert_eq!(columns.space(key(1)), Some(&space));
    }
}
