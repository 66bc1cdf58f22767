//! Looks into the answers of vLLM's gRPC engine service as they pass: counts tokens and notices usage. Field numbers are those of
//! vLLM's `vllm_engine.proto`.

use crate::usage::Usage;
use quorate_routing::Api;
use quorate_routing::request::protobuf::{FRAME_HEADER, Field, WireError, fields, packed_len};

/// Longest message that is looked into; longer ones pass unseen.
const MAX_MESSAGE: usize = 1 << 20;

/// State between the pieces of one answer.
#[derive(Debug)]
pub(crate) struct GrpcScanner {
    api: Api,
    /// What came of the frame whose end has not come.
    held: Vec<u8>,
    /// Bytes to pass over: the rest of a frame that is too long or compressed.
    skip: usize,
    usage: Usage,
}

impl GrpcScanner {
    pub fn new(api: Api) -> Self {
        Self {
            api,
            held: Vec::new(),
            skip: 0,
            usage: Usage::default(),
        }
    }

    /// Looks at the next piece; returns how many tokens were generated in the messages that it completes.
    pub fn feed(&mut self, mut data: &[u8]) -> u32 {
        let mut tokens = 0u64;
        // First the rest of the header of a cut frame, then the rest of the frame.
        for _ in 0..2 {
            if self.held.is_empty() {
                break;
            }
            let needed = match frame_len(&self.held) {
                Some((length, true)) => length,
                _ => FRAME_HEADER,
            };
            let missing = needed.saturating_sub(self.held.len());
            let (part, rest) = data.split_at(data.len().min(missing));
            self.held.extend_from_slice(part);
            data = rest;
            if self.held.len() < needed {
                return 0;
            }
            let held = std::mem::take(&mut self.held);
            tokens += self.frames(&held);
        }
        tokens += self.frames(data);
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// What the engine said about usage.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Reads whole frames; what is left over is held.
    fn frames(&mut self, mut data: &[u8]) -> u64 {
        let mut tokens = 0;
        loop {
            let skipped = self.skip.min(data.len());
            self.skip -= skipped;
            data = data.get(skipped..).unwrap_or_default();
            if data.is_empty() {
                return tokens;
            }
            match frame_len(data) {
                Some((length, false)) => self.skip = length,
                Some((length, true)) if length <= data.len() => {
                    let (frame, rest) = data.split_at(length);
                    // What cannot be read is the client's to complain about.
                    tokens += self.message(frame).unwrap_or(0);
                    data = rest;
                }
                _ => {
                    self.held.extend_from_slice(data);
                    return tokens;
                }
            }
        }
    }

    fn message(&mut self, frame: &[u8]) -> Result<u64, WireError> {
        let mut tokens = 0;
        for field in fields(frame, FRAME_HEADER..frame.len()) {
            match (self.api, field?) {
                // EmbedResponse: prompt_tokens 2.
                (Api::VllmGrpcEmbed, Field::Varint(2, prompt)) => self.usage.input = Some(prompt),
                // GenerateResponse: chunk 1 (token_ids 1, prompt, completion and cached tokens 2 to 4), complete 2 (output_ids
                // 1, finish_reason 2, the same three 3 to 5).
                (Api::VllmGrpcGenerate, Field::Bytes(kind @ (1 | 2), at)) => {
                    let first = kind + 1;
                    for field in fields(frame, at) {
                        match field? {
                            Field::Bytes(1, ids) if kind == 1 => {
                                tokens += packed_len(frame.get(ids).unwrap_or_default());
                            }
                            Field::Varint(n, value) if n == first => self.usage.input = Some(value),
                            Field::Varint(n, value) if n == first + 1 => {
                                self.usage.output = Some(value);
                            }
                            Field::Varint(n, value) if n == first + 2 => {
                                self.usage.cached = Some(value);
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(tokens)
    }
}

/// Length of the frame that begins here, and whether it is looked into; `None` if its header is not whole.
fn frame_len(data: &[u8]) -> Option<(usize, bool)> {
    let [flag, length @ ..] = *data.first_chunk::<FRAME_HEADER>()?;
    let length = u32::from_be_bytes(length) as usize;
    Some((FRAME_HEADER + length, flag == 0 && length <= MAX_MESSAGE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quorate_routing::request::protobuf::write;

    fn chunk(ids: &[u64], counts: [u64; 3]) -> Vec<u8> {
        let mut packed = Vec::new();
        ids.iter().for_each(|id| write::varint(&mut packed, *id));
        let mut chunk = Vec::new();
        write::bytes(&mut chunk, 1, &packed);
        for (i, count) in counts.into_iter().enumerate() {
            write::number(&mut chunk, i as u32 + 2, count);
        }
        let mut message = Vec::new();
        write::bytes(&mut message, 1, &chunk);
        write::frame(&message)
    }

    fn complete() -> Vec<u8> {
        let mut complete = Vec::new();
        write::bytes(&mut complete, 1, &[1, 2, 3]);
        write::bytes(&mut complete, 2, b"stop");
        for (number, count) in [(3, 11), (4, 3), (5, 8)] {
            write::number(&mut complete, number, count);
        }
        let mut message = Vec::new();
        write::bytes(&mut message, 2, &complete);
        write::frame(&message)
    }

    fn usage() -> Usage {
        Usage {
            input: Some(11),
            output: Some(3),
            cached: Some(8),
        }
    }

    #[test]
    fn tokens_and_usage_over_every_split() {
        let mut stream = chunk(&[5], [11, 1, 8]);
        let mut compressed = write::frame(&[9; 20]);
        compressed[0] = 1;
        stream.extend(compressed);
        stream.extend(chunk(&[70_000, 6], [11, 3, 8]));
        stream.extend(complete());
        let scan = |pieces: &[&[u8]]| {
            let mut scanner = GrpcScanner::new(Api::VllmGrpcGenerate);
            let tokens: u32 = pieces.iter().map(|piece| scanner.feed(piece)).sum();
            (tokens, scanner.usage())
        };
        assert_eq!(scan(&[&stream]), (3, usage()));
        for a in 0..=stream.len() {
            for b in a..=stream.len() {
                let pieces = [&stream[..a], &stream[a..b], &stream[b..]];
                assert_eq!(scan(&pieces), (3, usage()), "{a} {b}");
            }
        }
        let bytes: Vec<_> = stream.chunks(1).collect();
        assert_eq!(scan(&bytes), (3, usage()));
    }

    #[test]
    fn embeddings_have_only_input() {
        let mut message = Vec::new();
        write::bytes(&mut message, 1, &[0; 64]);
        write::number(&mut message, 2, 9);
        let mut scanner = GrpcScanner::new(Api::VllmGrpcEmbed);
        assert_eq!(scanner.feed(&write::frame(&message)), 0);
        assert_eq!(scanner.usage().input, Some(9));
    }

    proptest! {
        #[test]
        fn any_bytes_any_pieces(data in prop::collection::vec(any::<u8>(), 0..300), size in 1usize..40) {
            let mut whole = GrpcScanner::new(Api::VllmGrpcGenerate);
            let tokens = whole.feed(&data);
            let mut pieces = GrpcScanner::new(Api::VllmGrpcGenerate);
            let sum: u32 = data.chunks(size).map(|piece| pieces.feed(piece)).sum();
            prop_assert_eq!((tokens, whole.usage()), (sum, pieces.usage()));
        }
    }
}
