//! The interval lists against sets of places.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Cover(u16, u8, usize, usize),
    Uncover(u16, u8, usize, usize),
    Expect(u16, usize, usize, u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stretch = (0usize..40, 1usize..20).prop_map(|(start, len)| (start, start + len));
    let step = prop_oneof![
        3 => (0u16..3, 0u8..3, stretch.clone()).prop_map(|(h, l, (a, b))| Step::Cover(h, l, a, b)),
        3 => (0u16..3, prop_oneof![0u8..3, Just(EXPECTED)], stretch.clone()).prop_map(|(h, l, (a, b))| Step::Uncover(h, l, a, b)),
        2 => (0u16..3, stretch, 0u16..5).prop_map(|(h, (a, b), g)| Step::Expect(h, a, b, g)),
    ];
    prop::collection::vec(step, 0..40)
}

/// (holder, lane, place) -> generation.
type Model = BTreeMap<(u16, u8, usize), u16>;

fn count(stretches: &Stretches) -> usize {
    stretches.iter().map(|(a, b)| b - a).sum()
}

proptest! {
    #[test]
    fn lists_equal_sets(steps in steps(), from in 0usize..50) {
        let mut list = Vec::new();
        let mut model = Model::new();
        for step in steps {
            let mut changed = Stretches::new();
            let before = model.len();
            match step {
                Step::Cover(h, l, a, b) => {
                    cover(&mut list, h, l, a, b, &mut changed);
                    for p in a..b { model.insert((h, l, p), 0); }
                    prop_assert_eq!(count(&changed), model.len() - before);
                }
                Step::Uncover(h, l, a, b) => {
                    uncover(&mut list, h, l, a, b, &mut changed);
                    for p in a..b { model.remove(&(h, l, p)); }
                    prop_assert_eq!(count(&changed), before - model.len());
                }
                Step::Expect(h, a, b, g) => {
                    expect(&mut list, h, a, b, g, &mut changed);
                    for p in a..b {
                        if !(0..EXPECTED).any(|l| model.contains_key(&(h, l, p))) { model.insert((h, EXPECTED, p), g); }
                    }
                    prop_assert_eq!(count(&changed), model.len() - before);
                }
            }
            prop_assert!(list.windows(2).all(|w| w[0] < w[1]));
            for w in list.windows(2) {
                if (w[0].holder(), w[0].lane()) == (w[1].holder(), w[1].lane()) {
                    let apart = w[0].end() < w[1].start() || (w[0].lane() == EXPECTED && w[0].end() == w[1].start());
                    prop_assert!(apart, "{w:?}");
                }
            }
            let mut flat = Model::new();
            for i in &list {
                for p in i.start()..i.end() { flat.insert((i.holder(), i.lane(), p), i.generation()); }
            }
            prop_assert_eq!(&flat, &model);
        }
        let places = Places::of(&list);
        for p in 0..64 {
            prop_assert_eq!(places.has(p), model.keys().any(|k| k.2 == p));
        }
        for h in 0..3u16 {
            let own = list[span_of_holder(&list, h)].iter().copied();
            let mut lanes = [0; TIERS + 1];
            let len = sweep(own, from, 60, &mut lanes);
            let mut wanted = [0; TIERS + 1];
            let mut at = from;
            while at < 60 && let Some(l) = (0..=EXPECTED).find(|l| model.contains_key(&(h, *l, at))) {
                wanted[usize::from(l)] += 1;
                at += 1;
            }
            prop_assert_eq!(len, at - from);
            prop_assert_eq!(lanes, wanted);
        }
    }
}

#[test]
fn an_interval_keeps_its_parts() {
    let i = Interval::new(u16::MAX, 7, 1023, 1024, u16::MAX);
    assert_eq!(
        (i.holder(), i.lane(), i.start(), i.end(), i.generation()),
        (u16::MAX, 7, 1023, 1024, u16::MAX)
    );
    assert!(i.0 < 1 << 63);
    assert_eq!(
        Interval::new(3, 1, 10, 20, 4).within(15, 30),
        Some(Interval::new(3, 1, 0, 5, 4))
    );
    assert_eq!(Interval::new(3, 1, 10, 20, 4).within(20, 30), None);
    let mut places = Places::none();
    places.set(63, 129);
    assert!(
        !places.has(62) && places.has(63) && places.has(64) && places.has(128) && !places.has(129)
    );
}

#[test]
fn stretches_of_places() {
    let all = |places: &Places| {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some((start, end)) = places.stretch(at) {
            found.push((start, end));
            at = end;
        }
        found
    };
    let mut places = Places::none();
    assert_eq!(all(&places), []);
    let wanted = [(0, 1), (63, 65), (128, 256), (700, 1024)];
    for (start, end) in wanted {
        places.set(start, end);
    }
    assert_eq!(all(&places), wanted);
    assert_eq!(places.stretch(130), Some((130, 256)));
    assert_eq!(places.stretch(SEGMENT), None);
    places.set(0, SEGMENT);
    assert_eq!(all(&places), [(0, SEGMENT)]);
}
