//! What came of a batch, as the answer that a replica gives to who proposed it.
//!
//! Layout (v is LEB128): `count v | (endpoint u64 | rank v | kind u8 | numbers v...)...`. Kinds: 0 applied (added, removed, refused), 1 repeated, 2 unknown
//! holder, 3 gap (known, from), 4 old epoch (epoch), 5 other incarnation (incarnation), 6 too many holders, 7 digest differs.

use crate::index::wire::{Reader, put_varint};
use crate::index::{HolderKey, Malformed, Outcome, Refusal};

/// Appends the outcomes to `out`.
pub fn encode_outcomes(outcomes: &[(HolderKey, Outcome)], out: &mut Vec<u8>) {
    put_varint(out, outcomes.len() as u64);
    for (key, outcome) in outcomes {
        out.extend_from_slice(&key.endpoint.to_le_bytes());
        put_varint(out, u64::from(key.rank));
        let (kind, numbers): (u8, &[u64]) = match outcome {
            Outcome::Applied {
                added,
                removed,
                refused,
            } => (0, &[*added, *removed, *refused]),
            Outcome::Repeated => (1, &[]),
            Outcome::Refused(refusal) => match refusal {
                Refusal::UnknownHolder => (2, &[]),
                Refusal::Gap { known, from } => (3, &[*known, *from]),
                Refusal::OldEpoch { epoch } => (4, &[*epoch]),
                Refusal::OtherIncarnation { incarnation } => (5, &[*incarnation]),
                Refusal::TooManyHolders => (6, &[]),
                Refusal::DigestDiffers => (7, &[]),
            },
        };
        out.push(kind);
        numbers.iter().for_each(|number| put_varint(out, *number));
    }
}

/// Reads outcomes that take up the whole of `bytes`.
///
/// # Errors
/// What does not fit the layout.
pub fn decode_outcomes(bytes: &[u8]) -> Result<Vec<(HolderKey, Outcome)>, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = reader.count(10)?;
    let mut outcomes = Vec::with_capacity(count);
    for _ in 0..count {
        let endpoint = reader.word()?;
        let rank =
            u32::try_from(reader.varint()?).map_err(|_| Malformed::of("a rank is too large"))?;
        let outcome = match reader.byte()? {
            0 => Outcome::Applied {
                added: reader.varint()?,
                removed: reader.varint()?,
                refused: reader.varint()?,
            },
            1 => Outcome::Repeated,
            2 => Outcome::Refused(Refusal::UnknownHolder),
            3 => Outcome::Refused(Refusal::Gap {
                known: reader.varint()?,
                from: reader.varint()?,
            }),
            4 => Outcome::Refused(Refusal::OldEpoch {
                epoch: reader.varint()?,
            }),
            5 => Outcome::Refused(Refusal::OtherIncarnation {
                incarnation: reader.varint()?,
            }),
            6 => Outcome::Refused(Refusal::TooManyHolders),
            7 => Outcome::Refused(Refusal::DigestDiffers),
            _ => return Err(Malformed::of("an outcome is not known")),
        };
        outcomes.push((HolderKey { endpoint, rank }, outcome));
    }
    if !reader.is_empty() {
        return Err(Malformed::of("bytes follow the outcomes"));
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn outcomes_come_back(list in prop::collection::vec((any::<u64>(), any::<u32>(), 0..8, any::<[u64; 3]>()), 0..9), garbage in prop::collection::vec(any::<u8>(), 0..60)) {
            let list: Vec<_> = list.into_iter().map(|(endpoint, rank, kind, [a, b, c])| {
                let outcome = match kind {
                    0 => Outcome::Applied { added: a, removed: b, refused: c },
                    1 => Outcome::Repeated,
                    2 => Outcome::Refused(Refusal::UnknownHolder),
                    3 => Outcome::Refused(Refusal::Gap { known: a, from: b }),
                    4 => Outcome::Refused(Refusal::OldEpoch { epoch: a }),
                    5 => Outcome::Refused(Refusal::OtherIncarnation { incarnation: a }),
                    6 => Outcome::Refused(Refusal::TooManyHolders),
                    _ => Outcome::Refused(Refusal::DigestDiffers),
                };
                (HolderKey { endpoint, rank }, outcome)
            }).collect();
            let mut bytes = Vec::new();
            encode_outcomes(&list, &mut bytes);
            prop_assert_eq!(decode_outcomes(&bytes), Ok(list));
            prop_assert!(decode_outcomes(&bytes[..bytes.len() - 1]).is_err());
            let _ = decode_outcomes(&garbage);
        }
    }
}
