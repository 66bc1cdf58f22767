//! What is read out of an answer as it passes: tokens, usage, and whether the engine said that it failed.

use crate::grpc::GrpcScanner;
use crate::sse::{Seen, SseScanner};
use crate::usage::{Key, Pieces, Usage};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use quorate_routing::Api;

/// See the module's documentation.
pub(crate) enum Inspect {
    /// Server-sent events.
    Events(Box<SseScanner>),
    /// One JSON object.
    Json(JsonUsage, &'static Key),
    /// Messages of vLLM's gRPC service.
    Grpc(Box<GrpcScanner>),
    /// Nothing: another type, or compressed.
    Nothing,
}

pub(crate) enum JsonUsage {
    /// Nothing has come.
    Empty,
    /// The first piece had no usage in it; more may come.
    Pieces(Pieces),
    /// The first piece had it.
    Found(Usage),
}

impl Inspect {
    /// What there is to see in an answer with these headers to a request of `api`.
    pub fn of(api: Api, headers: &HeaderMap) -> Self {
        if headers.contains_key(CONTENT_ENCODING) {
            return Self::Nothing;
        }
        match headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes) {
            Some(kind) if kind.starts_with(b"text/event-stream") => {
                Self::Events(Box::new(SseScanner::new(api)))
            }
            Some(kind) if kind.starts_with(b"application/json") => {
                Self::Json(JsonUsage::Empty, Key::of(api))
            }
            Some(kind) if api.is_grpc() && kind.starts_with(b"application/grpc") => {
                Self::Grpc(Box::new(GrpcScanner::new(api)))
            }
            _ => Self::Nothing,
        }
    }

    /// The next piece has come.
    pub fn feed(&mut self, data: &Bytes) -> Seen {
        match self {
            Self::Events(scanner) => scanner.feed(data),
            Self::Json(json, key) => {
                json.push(data, key);
                Seen::default()
            }
            Self::Grpc(scanner) => Seen {
                tokens: scanner.feed(data),
                ..Seen::default()
            },
            Self::Nothing => Seen::default(),
        }
    }

    /// What the engine has said about usage.
    pub fn usage(&self) -> Option<Usage> {
        match self {
            Self::Events(scanner) => Some(scanner.usage()),
            Self::Json(json, _) => json.usage(),
            Self::Grpc(scanner) => Some(scanner.usage()),
            Self::Nothing => None,
        }
    }

    /// The engine has sent an error as an event.
    pub fn has_failed(&self) -> bool {
        matches!(self, Self::Events(scanner) if scanner.has_failed())
    }
}

impl JsonUsage {
    fn push(&mut self, data: &Bytes, key: &Key) {
        *self = match std::mem::replace(self, Self::Empty) {
            // Nearly always the answer is one piece: look at it without a copy.
            Self::Empty => match Usage::find_last(data, key) {
                Some(usage) => Self::Found(usage),
                None => {
                    let mut pieces = Pieces::default();
                    pieces.push(data, key);
                    Self::Pieces(pieces)
                }
            },
            Self::Pieces(mut pieces) => {
                pieces.push(data, key);
                Self::Pieces(pieces)
            }
            found @ Self::Found(_) => found,
        };
    }

    const fn usage(&self) -> Option<Usage> {
        match self {
            Self::Empty => None,
            Self::Pieces(pieces) => pieces.usage(),
            Self::Found(usage) => Some(*usage),
        }
    }
}
