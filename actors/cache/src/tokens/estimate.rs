//! Token ids that stand for bytes: enough to compare requests with each other.

use super::{Origin, PromptTokens, Request, made};
use quorate_routing::request::BYTES_PER_TOKEN;

/// Packs as many bytes of a prompt into an id as a token has on average. These ids never equal an engine's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Estimate;

impl Estimate {
    /// The packed prompt.
    pub fn tokens(&self, request: &Request<'_>) -> PromptTokens {
        let mut ids = Vec::with_capacity(request.info.prompt.bytes() / BYTES_PER_TOKEN + 3);
        for piece in request.info.prompt.pieces(request.body) {
            let chunks = piece.chunks(BYTES_PER_TOKEN);
            ids.extend(chunks.map(|chunk| {
                let mut bytes = [0; 4];
                let len = chunk.len().min(4);
                bytes[..len].copy_from_slice(&chunk[..len]);
                u32::from_le_bytes(bytes)
            }));
        }
        made(request, ids, Origin::Estimate)
    }
}
