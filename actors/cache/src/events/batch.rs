//! The event model: one batch of events, its variable parts in a few vectors that the next batch uses again.

use crate::Tier;

/// What the cached state of a KV-cache group is, as vLLM names it (`kv_cache_spec_kind`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SpecKind {
    /// The engine does not say; models with one group do not need to.
    #[default]
    Unspecified,
    /// `full_attention`
    FullAttention,
    /// `mla_attention`
    MlaAttention,
    /// `sink_full_attention`
    SinkFullAttention,
    /// `sliding_window`
    SlidingWindow,
    /// `sliding_window_mla`
    SlidingWindowMla,
    /// `mamba`
    Mamba,
    /// `chunked_local_attention`
    ChunkedLocalAttention,
    /// `encoder_only_attention`
    EncoderOnlyAttention,
    /// `cross_attention`
    CrossAttention,
    /// A name that nobody here knows, or `unknown`.
    Unknown,
}

impl SpecKind {
    /// The kind with this name.
    pub fn of_name(name: &str) -> SpecKind {
        match name {
            "" => SpecKind::Unspecified,
            "full_attention" => SpecKind::FullAttention,
            "mla_attention" => SpecKind::MlaAttention,
            "sink_full_attention" => SpecKind::SinkFullAttention,
            "sliding_window" => SpecKind::SlidingWindow,
            "sliding_window_mla" => SpecKind::SlidingWindowMla,
            "mamba" => SpecKind::Mamba,
            "chunked_local_attention" => SpecKind::ChunkedLocalAttention,
            "encoder_only_attention" => SpecKind::EncoderOnlyAttention,
            "cross_attention" => SpecKind::CrossAttention,
            _ => SpecKind::Unknown,
        }
    }

    /// Whether a block of this kind holds the whole prefix up to its end, so that holding it means that the prefix can be
    /// used. A window or a recurrent state does not.
    pub fn holds_prefix(self) -> bool {
        matches!(
            self,
            SpecKind::Unspecified
                | SpecKind::FullAttention
                | SpecKind::MlaAttention
                | SpecKind::SinkFullAttention
        )
    }
}

/// What enters a block's hash besides its tokens, as published (without tags).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraKey<'a> {
    /// A bare string: an adapter's name, a cache salt, or (vLLM 0.18) the identifier of a multimodal item.
    Text(&'a str),
    /// A multimodal item and where it lies against the start of the block, in tokens.
    Item {
        /// Content hash or the client's own identifier.
        identifier: &'a str,
        /// Tokens; negative when it began in an earlier block.
        offset: i64,
    },
    /// Digest of prompt embeddings.
    Digest(&'a [u8]),
}

/// Blocks are now held.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Their hashes, low 64 bits, in the order of the prompt.
    pub hashes: &'a [u64],
    /// Hash of the block before the first one; `None` at the start of a prompt.
    pub parent: Option<u64>,
    /// Tokens of all blocks. Empty in the placeholder that an offload tier sends: look the hashes up.
    pub tokens: &'a [u32],
    /// Tokens in a block; 0 in a placeholder.
    pub block_size: u32,
    /// Where they lie.
    pub tier: Tier,
    /// The tier's name as published; empty when the engine named none.
    pub medium: &'a str,
    /// Held by another host's tier (`locality: REMOTE`).
    pub remote: bool,
    /// Id of the secondary tier that owns the blocks; empty when there is none.
    pub ownership: &'a str,
    /// KV-cache group; models with one kind of attention have group 0 only.
    pub group: u32,
    /// What the group holds.
    pub kind: SpecKind,
    /// Size of the window in tokens, for kinds that have one.
    pub sliding_window: Option<u32>,
    /// Number of the adapter in its engine: the order of loading, no identity.
    pub lora_id: Option<i64>,
    /// Name of the adapter; empty when there is none.
    pub lora: &'a str,
    /// Cache salt (SGLang names it, vLLM puts it into the extra keys); empty when there is none.
    pub cache_salt: &'a str,
    /// The session that the client named; empty when it named none.
    pub session: &'a str,
    /// The engine hashes the tokens after a block with it (speculative decoding), so equal tokens may have several hashes.
    pub lookahead: bool,
    /// Published as pairs of neighbours (SGLang with EAGLE); `tokens` has the first of each pair.
    pub bigrams: bool,
    extras: &'a [ExtraRecord],
    batch: &'a Batch,
}

impl<'a> Stored<'a> {
    /// The extra keys, each with the block (from 0) that it belongs to, in the order published.
    pub fn extra_keys(&self) -> impl Iterator<Item = (u32, ExtraKey<'a>)> + use<'a> {
        let batch = self.batch;
        self.extras.iter().map(move |record| {
            let key = match record.key {
                ExtraValue::Text(text) => ExtraKey::Text(batch.str(text)),
                ExtraValue::Item { identifier, offset } => ExtraKey::Item {
                    identifier: batch.str(identifier),
                    offset,
                },
                ExtraValue::Digest(span) => {
                    ExtraKey::Digest(batch.raw.get(span.range()).unwrap_or_default())
                }
            };
            (record.block, key)
        })
    }
}

/// Blocks are not held any more.
#[derive(Clone, Copy, Debug)]
pub struct Removed<'a> {
    /// Their hashes, low 64 bits.
    pub hashes: &'a [u64],
    /// Where they lay; `None` when the engine means every tier.
    pub tier: Option<Tier>,
    /// The tier's name as published.
    pub medium: &'a str,
    /// KV-cache group.
    pub group: u32,
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Blocks were stored. Storing again what is held changes nothing.
    Stored(Stored<'a>),
    /// Blocks were removed.
    Removed(Removed<'a>),
    /// Nothing is held any more, on any tier.
    Cleared,
}

/// What a decoder passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Events with an unknown tag, or of no shape that an event has.
    pub unknown_events: u32,
    /// Fields with an unknown name, or past the last known place.
    pub unknown_fields: u32,
    /// Events of a known kind with a value that cannot be.
    pub malformed_events: u32,
    /// Events left out on purpose: partial blocks, or a window that is not the largest (TensorRT-LLM).
    pub filtered_events: u32,
}

/// Memory that a batch keeps for the next message; one that needed more gives it back.
const MAX_KEPT: usize = 4 << 20;

/// One message's events. Reuse it: it keeps its memory.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// When the engine made it, seconds since 1970; 0 when it does not say.
    pub timestamp: f64,
    /// Data-parallel rank; `None` when the engine does not say.
    pub rank: Option<u32>,
    /// What was passed over.
    pub skipped: Skipped,
    pub(super) records: Vec<Record>,
    pub(super) hashes: Vec<u64>,
    pub(super) tokens: Vec<u32>,
    pub(super) text: String,
    pub(super) raw: Vec<u8>,
    pub(super) extras: Vec<ExtraRecord>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Forgets the content, keeps the memory.
    pub fn clear(&mut self) {
        self.timestamp = 0.0;
        self.rank = None;
        self.skipped = Skipped::default();
        if self.capacity_bytes() > MAX_KEPT {
            *self = Batch::default();
        } else {
            self.rollback(Mark::default());
        }
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The events, in order.
    pub fn events(&self) -> impl Iterator<Item = Event<'_>> {
        self.records.iter().map(|record| match record {
            Record::Cleared => Event::Cleared,
            Record::Removed(fields) => Event::Removed(Removed {
                hashes: self.hashes(fields.hashes),
                tier: fields.tier,
                medium: self.str(fields.medium),
                group: fields.group,
            }),
            Record::Stored(fields) => Event::Stored(Stored {
                hashes: self.hashes(fields.hashes),
                parent: fields.parent,
                tokens: self.tokens.get(fields.tokens.range()).unwrap_or_default(),
                block_size: fields.block_size,
                tier: fields.tier.unwrap_or(Tier::Gpu),
                medium: self.str(fields.medium),
                remote: fields.remote,
                ownership: self.str(fields.ownership),
                group: fields.group,
                kind: fields.kind,
                sliding_window: fields.sliding_window,
                lora_id: fields.lora_id,
                lora: self.str(fields.lora),
                cache_salt: self.str(fields.cache_salt),
                session: self.str(fields.session),
                lookahead: fields.lookahead,
                bigrams: fields.bigrams,
                extras: self.extras.get(fields.extras.range()).unwrap_or_default(),
                batch: self,
            }),
        })
    }

    /// Bytes of memory held, used or not.
    pub fn capacity_bytes(&self) -> usize {
        self.records.capacity() * size_of::<Record>()
            + self.hashes.capacity() * 8
            + self.tokens.capacity() * 4
            + self.text.capacity()
            + self.raw.capacity()
            + self.extras.capacity() * size_of::<ExtraRecord>()
    }

    fn hashes(&self, span: Span) -> &[u64] {
        self.hashes.get(span.range()).unwrap_or_default()
    }

    fn str(&self, span: Span) -> &str {
        self.text.get(span.range()).unwrap_or_default()
    }

    pub(super) fn put_str(&mut self, text: &str) -> Span {
        let start = self.text.len();
        self.text.push_str(text);
        Span::new(start, self.text.len())
    }

    pub(super) fn put_raw(&mut self, bytes: &[u8]) -> Span {
        let start = self.raw.len();
        self.raw.extend_from_slice(bytes);
        Span::new(start, self.raw.len())
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            records: self.records.len(),
            hashes: self.hashes.len(),
            tokens: self.tokens.len(),
            text: self.text.len(),
            raw: self.raw.len(),
            extras: self.extras.len(),
        }
    }

    /// Drops everything put in since the mark.
    pub(super) fn rollback(&mut self, mark: Mark) {
        self.records.truncate(mark.records);
        self.hashes.truncate(mark.hashes);
        self.tokens.truncate(mark.tokens);
        self.text.truncate(mark.text);
        self.raw.truncate(mark.raw);
        self.extras.truncate(mark.extras);
    }
}

/// How full a batch was at some moment.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    records: usize,
    hashes: usize,
    tokens: usize,
    text: usize,
    raw: usize,
    extras: usize,
}

/// A part of one of the batch's vectors. Payloads are bounded far below 4 GiB.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub fn new(start: usize, end: usize) -> Span {
        Span {
            start: u32::try_from(start).unwrap_or(u32::MAX),
            end: u32::try_from(end).unwrap_or(u32::MAX),
        }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ExtraRecord {
    pub block: u32,
    pub key: ExtraValue,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ExtraValue {
    Text(Span),
    Item { identifier: Span, offset: i64 },
    Digest(Span),
}

#[derive(Clone, Debug)]
pub(super) enum Record {
    Stored(Fields),
    Removed(Fields),
    Cleared,
}

/// The fields of a stored or removed event.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fields {
    pub hashes: Span,
    pub tokens: Span,
    pub extras: Span,
    pub medium: Span,
    pub ownership: Span,
    pub lora: Span,
    pub cache_salt: Span,
    pub session: Span,
    pub parent: Option<u64>,
    pub lora_id: Option<i64>,
    pub sliding_window: Option<u32>,
    pub block_size: u32,
    pub group: u32,
    /// `None` in a removal from every tier. Decoders of engines that name tiers always set it.
    pub tier: Option<Tier>,
    pub kind: SpecKind,
    pub remote: bool,
    pub lookahead: bool,
    pub bigrams: bool,
}
