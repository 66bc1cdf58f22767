//! Payloads of every engine version against what they mean.

use super::vectors as v;
use super::*;
use crate::Tier;

const E1: u64 = 2233398808101521225;
const E2: u64 = 17911472383915781900;
const TOKENS: [u32; 4] = [1, 2, 300, 70000];

pub(super) fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn read(hex: &str) -> Batch {
    let mut batch = Batch::new();
    decode(&bytes(hex), &mut batch).unwrap();
    assert_eq!(batch.timestamp, 1700000000.5);
    batch
}

fn stored(batch: &Batch) -> Stored<'_> {
    match batch.events().next() {
        Some(Event::Stored(stored)) => stored,
        other => panic!("not a stored event: {other:?}"),
    }
}

/// Stored, removed, cleared, nothing skipped.
fn usual(batch: &Batch, tier: Tier) -> Stored<'_> {
    let events: Vec<Event<'_>> = batch.events().collect();
    let [
        Event::Stored(stored),
        Event::Removed(removed),
        Event::Cleared,
    ] = events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((stored.hashes, stored.tier), (&[E1][..], tier));
    assert_eq!((removed.hashes, removed.tier), (&[E1][..], Some(tier)));
    assert_eq!(stored.group, removed.group);
    assert_eq!(batch.skipped, Skipped::default());
    stored
}

#[test]
fn vllm_arrays() {
    let batch = read(v::A);
    let s = usual(&batch, Tier::Gpu);
    assert_eq!((s.tokens, s.block_size, s.parent), (&TOKENS[..], 4, None));
    assert_eq!(batch.rank, Some(0));
    for hex in [v::B1, v::B2] {
        let batch = read(hex);
        let s = usual(&batch, Tier::Gpu);
        assert_eq!((s.parent, s.medium), (Some(E2), "GPU"));
    }
    let batch = read(v::C);
    let s = usual(&batch, Tier::Gpu);
    assert_eq!((s.lora_id, s.lora), (Some(1), "my-lora"));
    let batch = read(v::D);
    let keys: Vec<_> = usual(&batch, Tier::Gpu).extra_keys().collect();
    assert_eq!(
        keys,
        [
            (0, ExtraKey::Text("my-lora")),
            (
                0,
                ExtraKey::Item {
                    identifier: "mmhash01",
                    offset: -2
                }
            ),
            (0, ExtraKey::Text("salt"))
        ]
    );
    let batch = read(v::E);
    assert_eq!(usual(&batch, Tier::Gpu).group, 0);
    let batch = read(v::F);
    let s = usual(&batch, Tier::Gpu);
    assert_eq!((s.group, s.kind), (1, SpecKind::SlidingWindow));
    assert_eq!(s.sliding_window, Some(1024));
    assert!(!s.kind.holds_prefix());
}

#[test]
fn vllm_maps() {
    let batch = read(v::G);
    let s = usual(&batch, Tier::Gpu);
    assert_eq!((s.tokens, s.kind), (&TOKENS[..], SpecKind::FullAttention));
    let batch = read(v::H);
    let s = usual(&batch, Tier::Storage);
    assert_eq!((s.tokens.len(), s.block_size), (0, 0));
    assert!(s.remote);
    let batch = read(v::I);
    let s = usual(&batch, Tier::Gpu);
    assert_eq!((s.session, s.lookahead, batch.rank), ("s-1", true, Some(3)));
    let batch = read(v::MAPBATCH);
    assert!(matches!(batch.events().next(), Some(Event::Cleared)));
    assert_eq!((batch.len(), batch.rank), (1, Some(0)));
    let batch = read(v::TWO);
    let s = stored(&batch);
    assert_eq!(s.hashes, [E1, E2]);
    assert_eq!(s.tokens, (0..32).collect::<Vec<u32>>());
}

#[test]
fn sglang() {
    let batch = read(v::SGL1);
    let s = stored(&batch);
    assert_eq!(s.hashes, [(-3550055125485641917_i64).cast_unsigned()]);
    assert_eq!((batch.rank, batch.len()), (None, 2));
    let batch = read(v::SGL2);
    let s = stored(&batch);
    assert_eq!((s.cache_salt, s.lora, s.tier), ("t1", "", Tier::Gpu));
    assert_eq!(s.hashes, [0x5d85718ec594b982]);
    let batch = read(v::SGL3);
    let s = stored(&batch);
    assert_eq!((s.cache_salt, s.tier), ("t1", Tier::Cpu));
    let Some(Event::Removed(r)) = batch.events().nth(1) else {
        panic!("no removal");
    };
    assert_eq!((r.hashes, r.tier), (&[u64::MAX - 1][..], Some(Tier::Gpu)));
    assert_eq!(batch.rank, Some(1));
}

#[test]
fn what_others_choke_on() {
    let batch = read(v::FS);
    let s = stored(&batch);
    assert_eq!((s.hashes, s.tier), (&[E1][..], Tier::Storage));
    assert_eq!((s.medium, batch.rank), ("SHARED_STORAGE", None));
    let batch = read(v::SHORT);
    let s = usual(&batch, Tier::Gpu);
    assert_eq!((s.tokens, s.block_size), (&[1, 2][..], 2));
    let batch = read(v::SMALLINT);
    let Some(Event::Removed(r)) = batch.events().next() else {
        panic!("no removal");
    };
    assert_eq!(r.hashes, [7, u64::MAX - 1, 300]);
    let batch = read(v::UNKNOWN);
    assert_eq!(batch.len(), 1);
    assert!(matches!(batch.events().next(), Some(Event::Removed(r)) if r.hashes == [E1]));
    assert_eq!(
        batch.skipped,
        Skipped {
            unknown_events: 1,
            unknown_fields: 1,
            ..Skipped::default()
        }
    );
}

#[test]
fn pairs_of_neighbours_keep_their_first() {
    // [1.0, [["BlockStored", [9], nil, [[1, 2], [2, 3]], 2]]]
    let mut payload = vec![0x92, 0xca, 0x3f, 0x80, 0, 0, 0x91, 0x95, 0xab];
    payload.extend(b"BlockStored");
    payload.extend([0x91, 9, 0xc0, 0x92, 0x92, 1, 2, 0x92, 2, 3, 2]);
    let mut batch = Batch::new();
    decode(&payload, &mut batch).unwrap();
    let s = stored(&batch);
    assert_eq!((s.tokens, s.bigrams, s.block_size), (&[1, 2][..], true, 2));
}

#[test]
fn a_wrong_value_costs_its_event_only() {
    let good = bytes(v::SMALLINT);
    // [ts, [BlockRemoved ["x"], BlockRemoved [[1]], the good one]]
    let mut payload = good[..10].to_vec();
    payload.push(0x93);
    for wrong in [&[0xa1, b'x'][..], &[0x91, 1][..]] {
        payload.extend([0x92, 0xac]);
        payload.extend(b"BlockRemoved");
        payload.push(0x91);
        payload.extend(wrong);
    }
    payload.extend(&good[11..]);
    let mut batch = Batch::new();
    decode(&payload, &mut batch).unwrap();
    assert_eq!((batch.len(), batch.skipped.malformed_events), (1, 2));
    assert!(matches!(batch.events().next(), Some(Event::Removed(r)) if r.hashes.len() == 3));
}
