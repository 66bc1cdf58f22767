//! A request body of a few pieces, some of them shared between requests: nothing is copied to send a long common prefix.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

/// Up to three pieces, sent one after the other under one `content-length`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pieces {
    pieces: [Bytes; 3],
    next: usize,
}

impl Pieces {
    pub(crate) fn new(pieces: [Bytes; 3]) -> Self {
        Pieces { pieces, next: 0 }
    }

    pub(crate) fn left(&self) -> u64 {
        self.pieces
            .iter()
            .skip(self.next)
            .map(|p| p.len() as u64)
            .sum()
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while self.next < self.pieces.len() {
            let next = self.next;
            self.next += 1;
            let piece = std::mem::take(&mut self.pieces[next]);
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left())
    }
}
