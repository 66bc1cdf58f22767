//! Requests of vLLM's gRPC engine service (`vllm.grpc.engine.VllmEngine`), read from the wire format in place. Field numbers are
//! those of vLLM's `vllm_engine.proto`.

use super::edit::Places;
use super::protobuf::{Field, WireError, fields, first_message};
use super::{Api, Prompt, PromptKind, RequestInfo, Span};
use std::ops::Range;

/// `GenerateRequest`: request_id 1, tokenized 2 or text 3, sampling_params 4, stream 5.
pub(super) fn generate(body: &[u8]) -> Result<RequestInfo<'_>, WireError> {
    let mut info = empty(Api::VllmGrpcGenerate, body);
    for field in fields(body, first_message(body)?) {
        match field? {
            Field::Bytes(2, tokenized) => info.prompt = self::tokenized(body, tokenized)?,
            Field::Bytes(3, text) => info.prompt = Prompt::new(PromptKind::Text, span(text)),
            Field::Bytes(4, params) => {
                // SamplingParams: max_tokens 8.
                for field in fields(body, params) {
                    if let Field::Varint(8, max_tokens) = field? {
                        info.max_tokens = Some(max_tokens);
                    }
                }
            }
            Field::Varint(5, stream) => info.stream = stream != 0,
            _ => {}
        }
    }
    Ok(info)
}

/// `EmbedRequest`: request_id 1, tokenized 2.
pub(super) fn embed(body: &[u8]) -> Result<RequestInfo<'_>, WireError> {
    let mut info = empty(Api::VllmGrpcEmbed, body);
    for field in fields(body, first_message(body)?) {
        if let Field::Bytes(2, tokenized) = field? {
            info.prompt = self::tokenized(body, tokenized)?;
        }
    }
    Ok(info)
}

/// `TokenizedInput`: original_text 1, input_ids 2 (packed; what is written one by one is not looked at).
fn tokenized(body: &[u8], at: Range<usize>) -> Result<Prompt, WireError> {
    let mut prompt = Prompt::default();
    for field in fields(body, at) {
        match field? {
            Field::Bytes(2, ids) => prompt = Prompt::new(PromptKind::PackedTokenIds, span(ids)),
            Field::Bytes(1, text) if prompt.kind == PromptKind::None => {
                prompt = Prompt::new(PromptKind::Text, span(text));
            }
            _ => {}
        }
    }
    Ok(prompt)
}

fn span(range: Range<usize>) -> Span {
    Span {
        start: range.start,
        end: range.end,
    }
}

fn empty(api: Api, body: &[u8]) -> RequestInfo<'_> {
    RequestInfo {
        api,
        body_bytes: body.len(),
        places: Places::default(),
        ..RequestInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ParseError;
    use crate::request::protobuf::write;
    use proptest::prelude::*;

    fn request(ids: &[u64], stream: bool) -> Vec<u8> {
        let mut packed = Vec::new();
        ids.iter().for_each(|id| write::varint(&mut packed, *id));
        let mut tokenized = Vec::new();
        write::bytes(&mut tokenized, 1, b"the text");
        write::bytes(&mut tokenized, 2, &packed);
        let mut params = Vec::new();
        write::number(&mut params, 3, 40);
        write::number(&mut params, 8, 77);
        let mut message = Vec::new();
        write::bytes(&mut message, 1, b"id-1");
        write::bytes(&mut message, 2, &tokenized);
        write::bytes(&mut message, 4, &params);
        write::number(&mut message, 5, u64::from(stream));
        write::frame(&message)
    }

    #[test]
    fn generate_and_embed() {
        let body = request(&[1, 300, 70_000], true);
        let info = RequestInfo::parse(Api::VllmGrpcGenerate, &body).unwrap();
        assert!(info.stream && info.model.is_empty());
        assert_eq!(info.max_tokens, Some(77));
        assert_eq!(info.prompt.estimated_tokens(&body), 3);
        let embed = RequestInfo::parse(Api::VllmGrpcEmbed, &body).unwrap();
        assert_eq!(embed.prompt.kind, PromptKind::PackedTokenIds);
        let mut text = Vec::new();
        write::bytes(&mut text, 3, b"plain text");
        let body = write::frame(&text);
        let info = RequestInfo::parse(Api::VllmGrpcGenerate, &body).unwrap();
        assert_eq!(
            info.prompt.pieces(&body).collect::<Vec<_>>(),
            [b"plain text"]
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let mut compressed = request(&[1], false);
        compressed[0] = 1;
        for (body, error) in [
            (compressed, WireError::Compressed),
            (b"{}".to_vec(), WireError::Cut),
            (write::frame(b"\xff\xff"), WireError::Malformed),
        ] {
            let got = RequestInfo::parse(Api::VllmGrpcGenerate, &body);
            assert_eq!(got, Err(ParseError::Grpc(error)));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for api in [Api::VllmGrpcGenerate, Api::VllmGrpcEmbed] {
                let _ = RequestInfo::parse(api, &bytes);
                let framed = write::frame(&bytes);
                if let Ok(info) = RequestInfo::parse(api, &framed) {
                    info.prompt.estimated_tokens(&framed);
                }
            }
        }
    }
}
