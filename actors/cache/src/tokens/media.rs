//! Items that are no text: what they are known by, how a model family writes them, and how many tokens they take.
//!
//! The number can be known where a family always takes the same, or where it follows from the size of a picture that came
//! with the request (PNG or JPEG in a data URL). Elsewhere it is guessed, and the tokens say that they are not exact.

use super::{MediaSpan, TextTokenizer, TokenError};
use minijinja::Value;
use quorate_routing::request::MediaKind;
use serde::Deserialize;

/// One item of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// What it is.
    pub kind: MediaKind,
    /// See [`MediaSpan::identifier`].
    pub identifier: String,
    /// The client named it. Else what its blocks are known by is the engine's own hash, which is not this digest.
    pub named: bool,
    /// Width and height of a picture, where the request has its data.
    pub size: Option<(u32, u32)>,
}

impl Media {
    /// The item in a content part.
    pub(super) fn of(part: &Value) -> Result<Self, TokenError> {
        let member = |name: &str| part.get_attr(name).unwrap_or_default();
        let found = [
            ("image_url", MediaKind::Image),
            ("video_url", MediaKind::Video),
            ("audio_url", MediaKind::Audio),
            ("input_audio", MediaKind::Audio),
        ];
        let found = found.into_iter().find_map(|(name, kind)| {
            let value = member(name);
            let value = [
                value.get_attr("url"),
                value.get_attr("data"),
                Ok(value.clone()),
            ]
            .into_iter()
            .flatten()
            .find_map(|value| value.as_str().map(str::to_owned));
            value.map(|value| (kind, value))
        });
        let (kind, reference) =
            found.ok_or(TokenError::Unsupported("a content part of this type"))?;
        let digest = || {
            let digest = ring::digest::digest(&ring::digest::SHA256, reference.as_bytes());
            digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
        };
        let uuid = member("uuid");
        Ok(Self {
            kind,
            identifier: uuid.as_str().map_or_else(digest, str::to_owned),
            named: uuid.as_str().is_some(),
            size: (kind == MediaKind::Image)
                .then(|| picture_size(&reference))
                .flatten(),
        })
    }
}

/// Bytes of a picture that are decoded to find its size.
const HEAD: usize = 64 << 10;

fn picture_size(url: &str) -> Option<(u32, u32)> {
    let (_, data) = url.strip_prefix("data:")?.split_once(";base64,")?;
    let head = decode_base64(data.as_bytes().get(..HEAD).unwrap_or(data.as_bytes()));
    png_size(&head).or_else(|| jpeg_size(&head))
}

fn decode_base64(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let rest = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    let number = |at: usize| Some(u32::from_be_bytes(rest.get(at..at + 4)?.try_into().ok()?));
    (rest.get(4..8)? == b"IHDR").then_some(())?;
    Some((number(8)?, number(12)?))
}

fn jpeg_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = bytes.strip_prefix(b"\xff\xd8")?;
    loop {
        let [0xff, marker, high, low, ..] = *rest else {
            return None;
        };
        // A frame header, but not the tables and restarts among the same numbers.
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            let number = |at: usize| {
                Some(u32::from(u16::from_be_bytes(
                    rest.get(at..at + 2)?.try_into().ok()?,
                )))
            };
            return Some((number(7)?, number(5)?));
        }
        rest = rest.get(2 + usize::from(u16::from_be_bytes([high, low]))..)?;
    }
}

/// How many tokens a picture takes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Count {
    /// Always the same.
    Fixed(usize),
    /// One for each square of `factor` pixels, after a resize into bounds.
    Squares { factor: u32, min: u64, max: u64 },
    /// Not known: a guess.
    Guess(usize),
}

/// Tokens of a picture where nothing better is known: a picture of 640 by 360 in squares of 28.
const GUESS: usize = 299;

/// Tokens that the items of one prompt may come to: a header of some bytes can claim a picture of any size, and thousands of them
/// fit into a body. More than any context holds.
const MOST: usize = 4 << 20;

/// How a model family writes items.
#[derive(Clone, Debug, Default)]
pub struct Placeholders {
    image: Option<(&'static str, Count)>,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    model_type: String,
}

#[derive(Default, Deserialize)]
struct Preprocessor {
    min_pixels: Option<u64>,
    max_pixels: Option<u64>,
    patch_size: Option<u32>,
    merge_size: Option<u32>,
}

impl Placeholders {
    /// From a model's `config.json` and `preprocessor_config.json`.
    pub(super) fn read(config: Option<&str>, preprocessor: Option<&str>) -> Self {
        let config: Config = config
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        let known: Option<Preprocessor> =
            preprocessor.and_then(|text| serde_json::from_str(text).ok());
        let squares = || match known {
            Some(Preprocessor {
                min_pixels: Some(min),
                max_pixels: Some(max),
                patch_size: Some(patch @ 1..=1024),
                merge_size: Some(merge @ 1..=64),
            }) => Count::Squares {
                factor: patch * merge,
                min,
                max,
            },
            _ => Count::Guess(GUESS),
        };
        let image = match config.model_type.as_str() {
            "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl" | "qwen3_vl_moe" => {
                Some(("<|image_pad|>", squares()))
            }
            "llava" => Some(("<image>", Count::Fixed(576))),
            "mllama" => Some(("<|image|>", Count::Fixed(1))),
            "llama4" => Some(("<|image|>", Count::Guess(GUESS))),
            "gemma3" => Some(("<start_of_image>", Count::Guess(260))),
            "llava_next" => Some(("<image>", Count::Guess(GUESS))),
            "pixtral" | "mistral3" => Some(("[IMG]", Count::Guess(GUESS))),
            _ => None,
        };
        Self { image }
    }

    /// What stands in the text for an item.
    pub fn marker(&self, kind: MediaKind) -> Option<&'static str> {
        match kind {
            MediaKind::Image => self.image.map(|(marker, _)| marker),
            MediaKind::Video | MediaKind::Audio => None,
        }
    }

    /// The ids with each item's marker repeated as often as it takes tokens, where the items are then, and whether all of that is
    /// exact.
    ///
    /// # Errors
    /// [`TokenError::Unsupported`]: the model's way to write an item is not known, the template did not write every item once, or
    /// the items come to more tokens than any context holds.
    pub(super) fn expand(
        &self,
        ids: Vec<u32>,
        media: Vec<Media>,
        tokenizer: &TextTokenizer,
    ) -> Result<(Vec<u32>, Vec<MediaSpan>, bool), TokenError> {
        if media.is_empty() {
            return Ok((ids, Vec::new(), true));
        }
        const UNKNOWN: TokenError = TokenError::Unsupported("media of this model");
        let (marker, count) = self.image.ok_or(UNKNOWN)?;
        let marker = tokenizer.token_id(marker).ok_or(UNKNOWN)?;
        let found = ids.iter().filter(|id| **id == marker).count();
        if found != media.len() || media.iter().any(|item| item.kind != MediaKind::Image) {
            return Err(TokenError::Unsupported(
                "media that the template does not write",
            ));
        }
        let (mut out, mut spans, mut exact) = (Vec::with_capacity(ids.len()), Vec::new(), true);
        let (mut media, mut total) = (media.into_iter(), 0);
        for id in ids {
            match media.as_slice().first() {
                Some(_) if id == marker => {
                    let Some(item) = media.next() else { continue };
                    let (len, known) = count.of(item.size);
                    if len > MOST - total {
                        return Err(TokenError::Unsupported("media of so many tokens"));
                    }
                    total += len;
                    exact &= known && item.named;
                    spans.push(MediaSpan {
                        kind: item.kind,
                        start: out.len(),
                        len,
                        identifier: item.identifier,
                    });
                    out.extend(std::iter::repeat_n(marker, len));
                }
                _ => out.push(id),
            }
        }
        Ok((out, spans, exact))
    }
}

impl Count {
    /// The tokens of a picture of this size, and whether that is certain.
    fn of(self, size: Option<(u32, u32)>) -> (usize, bool) {
        match (self, size) {
            (Self::Fixed(count), _) => (count, true),
            (Self::Squares { factor, min, max }, Some((width, height))) => {
                match squares(width, height, factor, min, max) {
                    Some(count) => (count, true),
                    None => (GUESS, false),
                }
            }
            (Self::Squares { .. }, None) => (GUESS, false),
            (Self::Guess(count), _) => (count, false),
        }
    }
}

/// Qwen's rule: both sides to multiples of `factor`, the area into bounds with the ratio kept.
fn squares(width: u32, height: u32, factor: u32, min: u64, max: u64) -> Option<usize> {
    let (long, short) = (width.max(height), width.min(height));
    if short == 0 || long / short >= 200 || max < u64::from(factor).pow(2) {
        return None;
    }
    let (w, h, f) = (f64::from(width), f64::from(height), f64::from(factor));
    let nearest = |side: f64| (side / f).round_ties_even() * f;
    let (mut bar_w, mut bar_h) = (nearest(w), nearest(h));
    if bar_w * bar_h > max as f64 {
        let beta = (w * h / max as f64).sqrt();
        bar_w = ((w / beta / f).floor() * f).max(f);
        bar_h = ((h / beta / f).floor() * f).max(f);
    } else if bar_w * bar_h < min as f64 {
        let beta = (min as f64 / (w * h)).sqrt();
        bar_w = (w * beta / f).ceil() * f;
        bar_h = (h * beta / f).ceil() * f;
    }
    Some(((bar_w / f) * (bar_h / f)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_pictures() {
        let png = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAoAAAAFoCAIAAAA=";
        assert_eq!(picture_size(png), Some((640, 360)));
        let jpeg = [
            0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 1, 0xff, 0xc0, 0, 17, 8, 1, 0x68, 2, 0x80, 3,
        ];
        assert_eq!(jpeg_size(&jpeg), Some((640, 360)));
        for bad in ["", "data:;base64,", "data:;base64,////", "http://x/y.png"] {
            assert_eq!(picture_size(bad), None);
        }
    }

    /// A tokenizer whose only special token is `marker` (id 7).
    fn tokenizer(marker: &str) -> TextTokenizer {
        let file = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 7, "content": marker, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "model": {"type": "BPE", "vocab": {"a": 0, marker: 7}, "merges": []},
        });
        TextTokenizer::new(file.to_string().as_bytes(), 0).unwrap()
    }

    fn picture(name: &str, size: Option<(u32, u32)>) -> Media {
        Media {
            kind: MediaKind::Image,
            identifier: name.into(),
            named: true,
            size,
        }
    }

    fn qwen() -> Placeholders {
        Placeholders::read(
            Some(r#"{"model_type":"qwen2_5_vl"}"#),
            Some(r#"{"min_pixels":3136,"max_pixels":12845056,"patch_size":14,"merge_size":2}"#),
        )
    }

    #[test]
    fn items_are_known_by_the_clients_name_or_a_digest() {
        let part = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        let url = r#""type":"image_url","image_url":{"url":"http://x/y.png"}"#;
        let named = Media::of(&part(&format!(r#"{{{url},"uuid":"mine"}}"#))).unwrap();
        assert_eq!((named.identifier.as_str(), named.named), ("mine", true));
        for uuid in ["", r#","uuid":null"#] {
            let item = Media::of(&part(&format!("{{{url}{uuid}}}"))).unwrap();
            assert_eq!(
                (item.identifier.len(), item.named, item.size),
                (64, false, None)
            );
        }
    }

    #[test]
    fn markers_become_as_many_tokens_as_an_item_takes() {
        let tokenizer = tokenizer("<|image_pad|>");
        // At the beginning, in the middle beside each other, at the end.
        let media = vec![
            picture("a", Some((28, 28))),
            picture("b", Some((56, 84))),
            picture("c", Some((28, 28))),
            picture("d", Some((28, 28))),
        ];
        let ids = vec![7, 1, 2, 7, 7, 3, 7];
        let (ids, spans, exact) = qwen().expand(ids, media, &tokenizer).unwrap();
        assert!(exact);
        let found: Vec<_> = spans
            .iter()
            .map(|span| (span.start, span.len, span.identifier.as_str()))
            .collect();
        assert_eq!(
            found,
            [(0, 4, "a"), (6, 6, "b"), (12, 4, "c"), (17, 4, "d")]
        );
        let others: Vec<u32> = ids.iter().copied().filter(|id| *id != 7).collect();
        assert_eq!((ids.len(), others), (21, vec![1, 2, 3]));
        for span in spans {
            assert!(
                ids[span.start..span.start + span.len]
                    .iter()
                    .all(|id| *id == 7)
            );
        }
    }

    #[test]
    fn an_item_whose_size_is_not_known_makes_tokens_inexact() {
        let tokenizer = tokenizer("<|image_pad|>");
        let media = vec![picture("a", Some((28, 28))), picture("far", None)];
        let (ids, spans, exact) = qwen()
            .expand(vec![1, 7, 2, 7, 3], media, &tokenizer)
            .unwrap();
        assert!(!exact);
        // What lies before it is still right.
        assert_eq!(ids[..7], [1, 7, 7, 7, 7, 2, 7]);
        assert_eq!((spans[1].start, spans[1].len), (6, GUESS));
        assert_eq!(ids.last(), Some(&3));
        // Known by a digest of ours and not by the client's name.
        let media = vec![Media {
            named: false,
            ..picture("digest", Some((28, 28)))
        }];
        let (ids, _, exact) = qwen().expand(vec![1, 7], media, &tokenizer).unwrap();
        assert_eq!((ids.len(), exact), (5, false));
        // No settings of the preprocessor: never exact.
        let bare = Placeholders::read(Some(r#"{"model_type":"qwen2_vl"}"#), Some("not JSON"));
        let media = vec![picture("a", Some((28, 28)))];
        assert!(!bare.expand(vec![7], media, &tokenizer).unwrap().2);
    }

    #[test]
    fn what_cannot_be_expanded_is_refused() {
        let tokenizer = tokenizer("<|image_pad|>");
        let one = || vec![picture("a", Some((28, 28)))];
        let unsupported = |placeholders: &Placeholders, ids: &[u32], media| {
            let done = placeholders.expand(ids.to_vec(), media, &tokenizer);
            assert!(matches!(done, Err(TokenError::Unsupported(_))), "{done:?}");
        };
        // The template wrote the item twice or not at all; a client wrote a marker as text.
        unsupported(&qwen(), &[7, 1, 7], one());
        unsupported(&qwen(), &[1], one());
        unsupported(&qwen(), &[7], [one(), one()].concat());
        for kind in [MediaKind::Video, MediaKind::Audio] {
            let item = Media {
                kind,
                ..picture("v", None)
            };
            unsupported(&qwen(), &[7], vec![item]);
        }
        // Another model, and one whose marker its tokenizer does not have.
        unsupported(&Placeholders::default(), &[7], one());
        let llava = Placeholders::read(Some(r#"{"model_type":"llava"}"#), None);
        unsupported(&llava, &[7], one());
        // Without items nothing is changed, whatever the ids are.
        let same = qwen().expand(vec![7, 1], vec![], &tokenizer).unwrap();
        assert_eq!(same, (vec![7, 1], vec![], true));
    }

    #[test]
    fn many_claimed_sizes_do_not_take_memory() {
        let media: Vec<Media> = (0..300).map(|_| picture("x", Some((9999, 9999)))).collect();
        let tokenizer = tokenizer("<|image_pad|>");
        let found = qwen().expand(vec![7; 300], media.clone(), &tokenizer);
        assert_eq!(
            found,
            Err(TokenError::Unsupported("media of so many tokens"))
        );
        // As many as a long context has room for are not too many.
        let found = qwen().expand(vec![7; 200], media[..200].to_vec(), &tokenizer);
        assert_eq!(found.map(|(ids, ..)| ids.len()), Ok(200 * 16_384));
    }

    #[test]
    fn qwens_rule() {
        let tokens = |w, h| squares(w, h, 28, 3136, 12_845_056);
        // What `smart_resize` of transformers 5.23 gives.
        for (width, height, count) in [
            (640, 360, 299),
            (28, 28, 4),
            (10_000, 10_000, 16_129),
            (1000, 30, 36),
            (1920, 1080, 2691),
            (4000, 3001, 15_301),
            (14, 14, 4),
            (42, 70, 4),
        ] {
            assert_eq!(tokens(width, height), Some(count), "{width} x {height}");
        }
        assert_eq!(tokens(1, 1000), None);
        assert_eq!(tokens(0, 5), None);
    }
}
