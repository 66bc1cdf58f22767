//! Whatever bytes come: no panic, bounded memory, and a damaged message never yields what was not in it.

use super::golden::bytes;
use super::vectors as v;
use super::*;
use proptest::prelude::*;

const ALL: [&str; 18] = [
    v::A,
    v::B1,
    v::B2,
    v::C,
    v::D,
    v::E,
    v::F,
    v::G,
    v::H,
    v::I,
    v::MAPBATCH,
    v::SGL1,
    v::SGL2,
    v::SGL3,
    v::FS,
    v::SHORT,
    v::UNKNOWN,
    v::TWO,
];

fn check(payload: &[u8]) {
    let mut batch = Batch::new();
    let decoded = decode(payload, &mut batch);
    // The dearest byte is an empty extra key: 32 bytes of record, and a vector may have twice what it needs.
    assert!(batch.capacity_bytes() <= 256 * payload.len() + 4096);
    match decoded {
        Err(_) => assert!(batch.is_empty()),
        Ok(()) => {
            let mut values = 0;
            for event in batch.events() {
                values += match event {
                    Event::Stored(s) => s.hashes.len() + s.tokens.len() + s.extra_keys().count(),
                    Event::Removed(r) => r.hashes.len(),
                    Event::Cleared => 1,
                };
            }
            assert!(values <= payload.len());
        }
    }
    let _ = trtllm::Poller::new(std::num::NonZeroU32::MIN).decode(payload);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes(payload in proptest::collection::vec(any::<u8>(), 0..400)) {
        check(&payload);
    }

    #[test]
    fn damaged_messages(
        which in 0..ALL.len(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<proptest::sample::Index>(),
        tail in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut payload = bytes(ALL[which]);
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        check(&payload);
        payload.truncate(cut.index(payload.len()));
        payload.extend(tail);
        check(&payload);
    }

    #[test]
    fn a_batch_is_the_same_however_dirty_its_memory(first in 0..ALL.len(), second in 0..ALL.len()) {
        let mut used = Batch::new();
        decode(&bytes(ALL[first]), &mut used).unwrap();
        decode(&bytes(ALL[second]), &mut used).unwrap();
        let mut fresh = Batch::new();
        decode(&bytes(ALL[second]), &mut fresh).unwrap();
        prop_assert_eq!(format!("{used:?}"), format!("{fresh:?}"));
    }
}

#[test]
fn a_cut_anywhere_is_an_error() {
    for hex in ALL {
        let payload = bytes(hex);
        for cut in 0..payload.len() {
            let mut batch = Batch::new();
            assert!(decode(&payload[..cut], &mut batch).is_err());
            assert!(batch.is_empty());
        }
    }
}

#[test]
fn maps_in_maps_cost_no_stack() {
    let mut payload = vec![0x92, 0xc0, 0x91];
    payload.extend([0x82, 0xa4]);
    payload.extend(b"type");
    payload.push(0xac);
    payload.extend(b"BlockRemoved");
    for _ in 0..500_000 {
        payload.push(0xa9);
        payload.extend(b"lora_name");
        payload.push(0x81);
    }
    payload.extend([0xa1, b'x', 0xc0]);
    let mut batch = Batch::new();
    decode(&payload, &mut batch).unwrap();
    assert_eq!((batch.len(), batch.skipped.malformed_events), (0, 1));
}
