//! The batch that the owner of an endpoint proposes: what has changed at each of its holders since the batch before, in a compact form.
//!
//! Layout (integers marked v are LEB128, the others little-endian):
//! ```text
//! batch    schema u8 = 1 | sections v | section...
//! section  endpoint u64 | rank v | incarnation v | epoch v | from v | to v | mark u64 | flags u8 | [digest u128] | [space's length v | space] | operations v | operation...
//! flags    bit 0 replace (the holder's set starts empty) | bit 1 a digest follows | bit 2 the holder is removed | bit 3 a key space follows (with replace only)
//! operation  kind u8 (bits 0-1: 0 stored, 1 removed, 2 cleared; bits 2-4 tier, 7 all tiers; bit 5 a parent follows)
//!            stored: [parent u64] | blocks v | hash u64...    removed: blocks v | hash u64...    cleared: nothing
//! ```

use super::digest::Digest;
use super::holder::HolderKey;
use super::weights::tier_of;
use super::wire::{Malformed, Reader, put_varint};
use crate::Tier;
use crate::keys::KeySpace;

const SCHEMA: u8 = 1;
const REPLACE: u8 = 1;
const DIGEST: u8 = 2;
const REMOVE: u8 = 4;
const SPACE: u8 = 8;
const ALL_TIERS: u8 = 7;
const PARENT: u8 = 1 << 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stored,
    Removed,
    Cleared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    kind: Kind,
    tier: Option<Tier>,
    parent: Option<u64>,
    len: u32,
}

/// One change of a holder's set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Blocks that follow one another in a chain are on a tier now.
    Stored {
        /// The tier.
        tier: Tier,
        /// The block before the first one, if there is one and it is known.
        parent: Option<u64>,
        /// Their hashes, each of which stands for the whole chain up to its block.
        hashes: &'a [u64],
    },
    /// Blocks are not on a tier any more.
    Removed {
        /// The tier.
        tier: Tier,
        /// Their hashes.
        hashes: &'a [u64],
    },
    /// Nothing is left on a tier, or on any.
    Cleared(Option<Tier>),
}

/// What has changed at one holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The holder.
    pub holder: HolderKey,
    /// The engine process whose cache this is. Another number means that the cache began empty.
    pub incarnation: u64,
    /// The epoch of the owner that says so; an older owner is refused.
    pub epoch: u64,
    /// The number that the section before ended with.
    pub from: u64,
    /// The number that this section ends with.
    pub to: u64,
    /// Hash of the engine's last message that the section covers, so that another owner can prove that it goes on from there; 0: none.
    pub mark: u64,
    /// The section begins with an empty set: it, and those that continue it, are the full set.
    pub replace: bool,
    /// The holder is no more; the section has no operations.
    pub remove: bool,
    /// The digest of the holder's set after this section, as its owner has it.
    pub digest: Option<Digest>,
    /// How the holder's keys are made; kept from a section with `replace`, ignored in others.
    pub space: Option<KeySpace>,
    heads: Vec<Head>,
    hashes: Vec<u64>,
}

impl Section {
    /// A section without operations that continues what is known.
    #[must_use]
    pub const fn new(holder: HolderKey, incarnation: u64, epoch: u64, from: u64, to: u64) -> Self {
        Self {
            holder,
            incarnation,
            epoch,
            from,
            to,
            mark: 0,
            replace: false,
            remove: false,
            digest: None,
            space: None,
            heads: Vec::new(),
            hashes: Vec::new(),
        }
    }

    /// A section that removes the holder.
    #[must_use]
    pub const fn removal(holder: HolderKey, epoch: u64) -> Self {
        let mut section = Self::new(holder, 0, epoch, 0, 0);
        section.remove = true;
        section
    }

    /// Adds stored blocks.
    pub fn stored(&mut self, tier: Tier, parent: Option<u64>, hashes: &[u64]) {
        self.push(
            Head {
                kind: Kind::Stored,
                tier: Some(tier),
                parent,
                len: hashes.len() as u32,
            },
            hashes,
        );
    }

    /// Adds removed blocks; they join the operation before if that removes from the same tier.
    pub fn removed(&mut self, tier: Tier, hashes: &[u64]) {
        if let Some(Head {
            kind: Kind::Removed,
            tier: Some(last),
            len,
            ..
        }) = self.heads.last_mut()
            && *last == tier
        {
            *len += hashes.len() as u32;
            self.hashes.extend_from_slice(hashes);
            return;
        }
        self.push(
            Head {
                kind: Kind::Removed,
                tier: Some(tier),
                parent: None,
                len: hashes.len() as u32,
            },
            hashes,
        );
    }

    /// Adds the clearing of a tier, or of all.
    pub fn cleared(&mut self, tier: Option<Tier>) {
        self.push(
            Head {
                kind: Kind::Cleared,
                tier,
                parent: None,
                len: 0,
            },
            &[],
        );
    }

    /// The operations, in order.
    pub fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        let mut at = 0;
        self.heads.iter().map(move |head| {
            let hashes = &self.hashes[at..at + head.len as usize];
            at += hashes.len();
            match (head.kind, head.tier) {
                (Kind::Stored, Some(tier)) => Operation::Stored {
                    tier,
                    parent: head.parent,
                    hashes,
                },
                (Kind::Removed, Some(tier)) => Operation::Removed { tier, hashes },
                (_, tier) => Operation::Cleared(tier),
            }
        })
    }

    /// Blocks in all operations.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        self.hashes.len()
    }

    fn push(&mut self, head: Head, hashes: &[u64]) {
        self.heads.push(head);
        self.hashes.extend_from_slice(hashes);
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.holder.endpoint.to_le_bytes());
        for number in [
            u64::from(self.holder.rank),
            self.incarnation,
            self.epoch,
            self.from,
            self.to,
        ] {
            put_varint(out, number);
        }
        out.extend_from_slice(&self.mark.to_le_bytes());
        let space = self.space.as_ref().filter(|_| self.replace);
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.push(
            flag(self.replace, REPLACE)
                | flag(self.digest.is_some(), DIGEST)
                | flag(self.remove, REMOVE)
                | flag(space.is_some(), SPACE),
        );
        if let Some(digest) = self.digest {
            out.extend_from_slice(&digest.0.to_le_bytes());
        }
        if let Some(space) = space {
            put_varint(out, space.encoded().len() as u64);
            out.extend_from_slice(space.encoded());
        }
        put_varint(out, self.heads.len() as u64);
        for operation in self.operations() {
            let (kind, tier, parent, hashes) = match operation {
                Operation::Stored {
                    tier,
                    parent,
                    hashes,
                } => (0, tier as u8, parent, Some(hashes)),
                Operation::Removed { tier, hashes } => (1, tier as u8, None, Some(hashes)),
                Operation::Cleared(tier) => (2, tier.map_or(ALL_TIERS, |t| t as u8), None, None),
            };
            out.push(kind | tier << 2 | flag(parent.is_some(), PARENT));
            out.extend(parent.iter().flat_map(|p| p.to_le_bytes()));
            if let Some(hashes) = hashes {
                put_varint(out, hashes.len() as u64);
                out.extend(hashes.iter().flat_map(|h| h.to_le_bytes()));
            }
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let endpoint = reader.word()?;
        let rank = u32::try_from(reader.varint()?).map_err(|_| Malformed("a rank is too large"))?;
        let mut section = Self::new(
            HolderKey { endpoint, rank },
            reader.varint()?,
            reader.varint()?,
            reader.varint()?,
            reader.varint()?,
        );
        section.mark = reader.word()?;
        let flags = reader.byte()?;
        if flags & !(REPLACE | DIGEST | REMOVE | SPACE) != 0 {
            return Err(Malformed("a section has flags that are not known"));
        }
        (section.replace, section.remove) = (flags & REPLACE != 0, flags & REMOVE != 0);
        if flags & DIGEST != 0 {
            section.digest = Some(Digest(reader.double()?));
        }
        if flags & SPACE != 0 {
            let length = reader.count(1)?;
            section.space = Some(KeySpace::decode(reader.bytes(length)?)?);
            if !section.replace {
                return Err(Malformed("a key space comes without a full set"));
            }
        }
        // Each operation takes a byte at least.
        let operations = reader.count(1)?;
        if section.remove && operations > 0 {
            return Err(Malformed(
                "a section that removes its holder has operations",
            ));
        }
        section.heads.reserve(operations.min(1024));
        for _ in 0..operations {
            let byte = reader.byte()?;
            let tier = tier_of(byte >> 2 & 7);
            let parent = if byte & PARENT != 0 {
                Some(reader.word()?)
            } else {
                None
            };
            match (byte & 3, tier, parent, byte >> 6) {
                (0, Some(tier), parent, 0) => {
                    let from = section.hashes.len();
                    reader.words(&mut section.hashes)?;
                    let len = (section.hashes.len() - from) as u32;
                    section.heads.push(Head {
                        kind: Kind::Stored,
                        tier: Some(tier),
                        parent,
                        len,
                    });
                }
                (1, Some(tier), None, 0) => {
                    let from = section.hashes.len();
                    reader.words(&mut section.hashes)?;
                    let len = (section.hashes.len() - from) as u32;
                    section.heads.push(Head {
                        kind: Kind::Removed,
                        tier: Some(tier),
                        parent: None,
                        len,
                    });
                }
                (2, tier, None, 0) if tier.is_some() || byte >> 2 & 7 == ALL_TIERS => {
                    section.cleared(tier)
                }
                _ => return Err(Malformed("an operation is not known")),
            }
        }
        Ok(section)
    }
}

/// One entry of the replicated log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeltaBatch {
    /// What has changed, holder by holder. A holder may come more than once.
    pub sections: Vec<Section>,
}

impl DeltaBatch {
    /// Appends the encoded batch to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(SCHEMA);
        put_varint(out, self.sections.len() as u64);
        for section in &self.sections {
            section.write(out);
        }
    }

    /// Reads a batch that takes up the whole of `bytes`.
    ///
    /// # Errors
    /// What does not fit the layout. Never takes more memory than a small multiple of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.byte()? != SCHEMA {
            return Err(Malformed("the batch has a schema that is not known"));
        }
        // A section takes 15 bytes at least.
        let sections = reader.count(15)?;
        let sections = (0..sections)
            .map(|_| Section::read(&mut reader))
            .collect::<Result<_, _>>()?;
        if !reader.is_empty() {
            return Err(Malformed("bytes follow the batch"));
        }
        Ok(Self { sections })
    }
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
