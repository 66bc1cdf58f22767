//! What is changed in an answer on its way back: the model's name, where the request had been sent under another, and the usage of a
//! stream that only the gateway had asked for.

mod restore;
mod strip;

use bytes::{Bytes, BytesMut};
use restore::Restore;
use std::sync::Arc;
use strip::Strip;

/// The model's two names, and whether the client must not see the chunk with the usage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// The name that the client used, and the one that the engine was asked for.
    pub names: Option<(Arc<str>, Arc<str>)>,
    /// The gateway asked for usage and the client did not.
    pub strip_usage: bool,
}

/// Changes one answer as it passes, whatever the pieces it comes in.
pub(crate) struct Changer {
    strip: Option<Strip>,
    restore: Option<Restore>,
}

impl Changer {
    /// For an answer of server-sent events (`events`) or one of JSON; `None` if such an answer stays as it is.
    pub fn new(changes: &Changes, events: bool) -> Option<Box<Self>> {
        let strip = (changes.strip_usage && events).then(Strip::default);
        let restore = changes
            .names
            .as_ref()
            .map(|(client, engine)| Restore::new(client, engine, events));
        (strip.is_some() || restore.is_some()).then(|| Box::new(Self { strip, restore }))
    }

    /// What goes to the client of the next piece; may be empty. `usage`: the piece may hold a chunk with the usage.
    pub fn push(&mut self, piece: Bytes, usage: bool) -> Bytes {
        let piece = match &mut self.strip {
            Some(strip) => strip.push(piece, usage),
            None => piece,
        };
        match &mut self.restore {
            Some(restore) => restore.push(piece),
            None => piece,
        }
    }

    /// What was held back when the answer ended.
    pub fn finish(&mut self) -> Bytes {
        let held = self.strip.as_mut().map(Strip::finish).unwrap_or_default();
        let Some(restore) = &mut self.restore else {
            return held;
        };
        let mut rest = BytesMut::from(restore.push(held));
        rest.extend_from_slice(&restore.finish());
        rest.freeze()
    }

    /// Whether everything that has been handed on is whole events; `None` if it is what came.
    pub fn between_events(&self) -> Option<bool> {
        self.strip.as_ref().map(Strip::between_events)
    }
}
