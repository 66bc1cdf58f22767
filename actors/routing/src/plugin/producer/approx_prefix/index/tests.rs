//! The index of one router, and of several that tell each other.

use super::*;
use crate::pipeline::testing::Fixture;
use proptest::prelude::*;
use std::collections::BTreeSet;

const ROUTERS: usize = 3;
const ENDPOINTS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Learn(usize, usize, u64, u64),
    /// From a router to the others that the mask has.
    Share(usize, usize, u8),
    Forget(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..ROUTERS, 0..ENDPOINTS, 0u64..40, 1u64..8)
            .prop_map(|(r, e, from, n)| Op::Learn(r, e, from, n)),
        3 => (0..ROUTERS, 0usize..12, any::<u8>()).prop_map(|(r, n, to)| Op::Share(r, n, to)),
        1 => (0..ROUTERS, 0..ENDPOINTS).prop_map(|(r, e)| Op::Forget(r, e)),
    ]
}

struct Router {
    fixture: Fixture,
    index: PrefixIndex,
}

impl Router {
    fn has(&self, endpoint: usize) -> BTreeSet<u64> {
        let all = self
            .index
            .copy(&self.fixture.endpoints[endpoint], usize::MAX);
        all.into_iter().collect()
    }
}

fn chain(hashes: &[u64], capacity: usize) -> Chain<'_> {
    Chain {
        hashes,
        block_tokens: 64,
        capacity,
    }
}

fn carry(routers: &[Router], from: usize, most: usize, to: u8, capacity: usize, now: u64) {
    for e in 0..ENDPOINTS {
        let taken = routers[from]
            .index
            .take(&routers[from].fixture.endpoints[e], most);
        let Some((_, hashes)) = taken else { continue };
        for (i, other) in routers.iter().enumerate() {
            if i != from && to & 1 << i != 0 {
                let endpoint = &other.fixture.endpoints[e];
                other.index.hear(endpoint, chain(&hashes, capacity), now);
            }
        }
    }
}

proptest! {
    /// However picks, messages, lost messages, restarted endpoints and full lists follow each other: no index has what
    /// nobody sent there, and with room and every message each has all of it.
    #[test]
    fn an_index_is_a_part_of_what_all_sent(
        ops in prop::collection::vec(op(), 1..80),
        capacity in prop_oneof![Just(10usize), Just(1000)],
        lossless: bool,
    ) {
        let mut routers: Vec<Router> = (0..ROUTERS)
            .map(|_| Router { fixture: Fixture::new(ENDPOINTS), index: PrefixIndex::default() })
            .collect();
        let mut sent = vec![BTreeSet::new(); ENDPOINTS];
        let mut forgot = false;
        for (now, op) in (1u64..).zip(&ops) {
            let now = now * 7_000;
            match *op {
                Op::Learn(r, e, from, n) => {
                    let hashes: Vec<u64> = (from..from + n).map(|h| h << 40 | h).collect();
                    sent[e].extend(hashes.iter().copied());
                    let router = &routers[r];
                    router.index.remember(&router.fixture.endpoints[e], chain(&hashes, capacity), now);
                }
                Op::Share(r, most, to) => {
                    let to = if lossless { u8::MAX } else { to };
                    carry(&routers, r, most, to, capacity, now);
                }
                Op::Forget(r, e) => {
                    // Another incarnation on this router: a new endpoint in the old one's place.
                    routers[r].fixture.endpoints[e] = Fixture::new(ENDPOINTS).endpoints.remove(e);
                    forgot = true;
                }
            }
            for router in &routers {
                for (e, sent) in sent.iter().enumerate() {
                    prop_assert!(router.has(e).is_subset(sent));
                    prop_assert!(router.has(e).len() <= capacity);
                }
            }
        }
        if lossless && !forgot && capacity > 100 {
            for from in 0..ROUTERS {
                carry(&routers, from, usize::MAX, u8::MAX, capacity, 1);
            }
            for router in &routers {
                for (e, sent) in sent.iter().enumerate() {
                    prop_assert_eq!(&router.has(e), sent);
                }
            }
        }
    }
}

#[test]
fn of_too_many_untold_blocks_the_newest_are_told() {
    let f = Fixture::new(1);
    let index = PrefixIndex::default();
    let all: Vec<u64> = (0..MOST_UNTOLD as u64 + 100).rev().collect();
    index.remember(&f.endpoints[0], chain(&all, 100_000), 1);
    let (size, some) = index.take(&f.endpoints[0], 10).unwrap();
    assert_eq!((size, some.len(), some.last()), (64, 10, all.first()));
    let (_, rest) = index.take(&f.endpoints[0], usize::MAX).unwrap();
    assert_eq!(rest.len(), MOST_UNTOLD - 10);
    assert_eq!((index.lost(), index.lost()), (100, 0));
    assert!(index.take(&f.endpoints[0], usize::MAX).is_none());
}

#[test]
fn a_block_in_use_is_told_again_after_a_minute() {
    let f = Fixture::new(1);
    let (e, index) = (&f.endpoints[0], PrefixIndex::default());
    let told = |now| {
        index.remember(e, chain(&[7], 10), now);
        index.take(e, 10).is_some()
    };
    assert!(told(1) && !told(2) && !told(30_000) && told(90_000) && !told(91_000));
    // Another router said so meanwhile.
    index.hear(e, chain(&[7], 10), 150_000);
    assert!(!told(160_000) && told(215_000));
}

/// Of two routers that share the load each sees half of the uses: without hearing of the others', it forgets what is used all the time.
#[test]
fn what_another_router_uses_stays_however_soon_a_list_is_full() {
    let f = Fixture::new(1);
    let e = &f.endpoints[0];
    let (one, other) = (PrefixIndex::default(), PrefixIndex::default());
    let capacity = 40;
    for second in 1..=60 {
        let now = second * 1_024;
        // Common to all prompts that this router sends, and two blocks of one's own each second at either: a list is full after ten.
        one.remember(
            e,
            chain(&[1, 2, 1_000 + second, 2_000 + second], capacity),
            now,
        );
        other.remember(e, chain(&[3_000 + second, 4_000 + second], capacity), now);
        for (from, to) in [(&one, &other), (&other, &one)] {
            if let Some((_, hashes)) = from.take(e, usize::MAX) {
                to.hear(e, chain(&hashes, capacity), now);
            }
        }
        let known = other.copy(e, usize::MAX);
        assert!(
            known.contains(&1) && known.contains(&2),
            "forgotten after {second} s"
        );
    }
}

#[test]
fn blocks_of_another_size_are_not_mixed() {
    let f = Fixture::new(1);
    let (e, index) = (&f.endpoints[0], PrefixIndex::default());
    index.remember(e, chain(&[1, 2], 10), 1);
    let larger = Chain {
        block_tokens: 128,
        ..chain(&[3], 10)
    };
    index.remember(e, larger, 2);
    assert_eq!(index.take(e, 10), Some((128, vec![3])));
}

#[test]
fn a_prompt_that_begins_like_one_of_just_now_is_whole() {
    let f = Fixture::new(1);
    let (e, index) = (&f.endpoints[0], PrefixIndex::default());
    // Of this chain another router told the end, and its beginning was lost on the way.
    index.hear(e, chain(&[3], 10), 5_000);
    index.remember(e, chain(&[1, 2, 3], 10), 5_001);
    index.remember(e, chain(&[1, 2, 3, 4], 10), 5_002);
    index.remember(e, chain(&[1, 2, 5], 10), 5_003);
    let mut all = index.copy(e, 10);
    all.sort_unstable();
    assert_eq!(all, [1, 2, 3, 4, 5]);
}
