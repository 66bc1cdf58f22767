//! Batches come back as they were, and bytes that are no batch do no harm.

use super::*;
use crate::keys::Scheme;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Stored(Tier, Option<u64>, Vec<u64>),
    Removed(Tier, Vec<u64>),
    Cleared(Option<Tier>),
}

fn tier() -> impl Strategy<Value = Tier> {
    prop::sample::select(&Tier::ALL[..])
}

fn section() -> impl Strategy<Value = Section> {
    let hashes = || prop::collection::vec(any::<u64>(), 0..20);
    let op = prop_oneof![
        (tier(), any::<Option<u64>>(), hashes()).prop_map(|(t, p, h)| Op::Stored(t, p, h)),
        (tier(), hashes()).prop_map(|(t, h)| Op::Removed(t, h)),
        prop::option::of(tier()).prop_map(Op::Cleared),
    ];
    let key = (any::<u64>(), any::<u32>());
    (
        key,
        any::<[u64; 5]>(),
        any::<bool>(),
        any::<Option<u128>>(),
        any::<bool>(),
        prop::collection::vec(op, 0..8),
    )
        .prop_map(
            |(
                (endpoint, rank),
                [incarnation, epoch, from, to, mark],
                replace,
                digest,
                remove,
                ops,
            )| {
                let mut section =
                    Section::new(HolderKey { endpoint, rank }, incarnation, epoch, from, to);
                section.mark = mark;
                if replace && mark % 2 == 0 {
                    section.space = KeySpace::new("m", 16, Scheme::Own).ok();
                }
                (section.replace, section.digest, section.remove) =
                    (replace, digest.map(Digest), remove && ops.is_empty());
                for op in &ops {
                    match op {
                        Op::Stored(t, p, h) => section.stored(*t, *p, h),
                        Op::Removed(t, h) => section.removed(*t, h),
                        Op::Cleared(t) => section.cleared(*t),
                    }
                }
                section
            },
        )
}

proptest! {
    #[test]
    fn a_batch_comes_back(sections in prop::collection::vec(section(), 0..6), cut: prop::sample::Index, flip: (prop::sample::Index, u8)) {
        let batch = DeltaBatch { sections };
        let mut bytes = Vec::new();
        batch.encode(&mut bytes);
        prop_assert_eq!(DeltaBatch::decode(&bytes), Ok(batch));
        prop_assert!(DeltaBatch::decode(&bytes[..cut.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert!(DeltaBatch::decode(&bytes).is_err());
        bytes.pop();
        let at = flip.0.index(bytes.len());
        bytes[at] ^= flip.1;
        // Whatever it means now, it is read or refused.
        if let Ok(other) = DeltaBatch::decode(&bytes) {
            other.sections.iter().for_each(|s| { s.operations().for_each(drop); });
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = DeltaBatch::decode(&bytes);
        let mut with_schema = vec![1];
        with_schema.extend(bytes);
        let _ = DeltaBatch::decode(&with_schema);
    }
}

#[test]
fn a_small_batch_is_small() {
    let mut section = Section::new(
        HolderKey {
            endpoint: 1,
            rank: 0,
        },
        1,
        1,
        0,
        1,
    );
    section.removed(Tier::Gpu, &[1]);
    section.removed(Tier::Gpu, &[2]);
    section.stored(Tier::Cpu, Some(9), &[3]);
    assert_eq!(section.operations().count(), 2);
    let mut bytes = Vec::new();
    DeltaBatch {
        sections: vec![section],
    }
    .encode(&mut bytes);
    assert_eq!(
        bytes.len(),
        2 + 8 + 5 + 8 + 1 + 1 + (2 + 16) + (1 + 8 + 1 + 8)
    );
}
