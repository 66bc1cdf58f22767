//! The cache index against a plain map of sets, for any interleaving of batches, expectations, expiry and snapshots.

mod history;
mod model;

use history::{Replicas, Step, steps};
use model::{Model, forest, key};
use proptest::prelude::*;
use quorate_cache::hash::ExtraForm;
use quorate_cache::index::{
    CacheIndex, Columns, DeltaBatch, Digest, IndexConfig, Outcome, Refusal, Section, SnapshotLoader,
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
        forest in forest(), before in steps(), after in steps(), read in prop::collection::vec(0usize..30, 60)
    ) {
        let (index, other) = (Arc::new(CacheIndex::new(CONFIG)), CacheIndex::new(CONFIG));
        let mut all = Replicas { index, other, model: Model::default(), incarnations: 5, clock: 7 };
        for step in before {
            all.step(&forest, step)?;
        }
        let then = all.model.clone();
        let digests = all.index.digests();
        // The chunks are read while the history goes on.
        let index = Arc::clone(&all.index);
        let mut snapshot = index.snapshot().unwrap();
        prop_assert!(index.snapshot().is_err());
        let mut loader = SnapshotLoader::new(CONFIG);
        for (step, count) in after.into_iter().zip(read) {
            for chunk in snapshot.by_ref().take(count / 10) {
                loader.push(&chunk).unwrap();
            }
            all.step(&forest, step)?;
        }
        for chunk in snapshot {
            loader.push(&chunk).unwrap();
        }
        let loaded = loader.finish().unwrap();
        prop_assert_eq!(loaded.digests(), digests);
        then.check(&loaded, &forest, false)?;
        prop_assert!(index.snapshot().is_ok());
        all.model.check(&index, &forest, true)?;
        // What was loaded goes on like any other replica, and knows who is gone.
        for (holder, epoch) in then.fences.iter().filter(|(holder, _)| !then.holders.contains_key(holder)) {
            let batch = DeltaBatch { sections: vec![Section::removal(key(*holder), *epoch)] };
            prop_assert_eq!(loaded.apply(&batch).outcomes[0].1, Outcome::Refused(Refusal::OldEpoch { epoch: *epoch }));
        }
        for (holder, known) in &then.holders {
            let section = Section::new(key(*holder), known.incarnation, known.epoch, known.sequence, known.sequence + 1);
            let outcome = loaded.apply(&DeltaBatch { sections: vec![section] }).outcomes[0].1;
            prop_assert_eq!(outcome, Outcome::Applied { added: 0, removed: 0, refused: 0 });
        }
    }
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
    for chunk in Arc::clone(&index).shared_snapshot().unwrap() {
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
