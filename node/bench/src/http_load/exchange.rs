//! One request and its answer, read and timed as a client would.

use super::{
    failure::{Class, Failure},
    link::Link,
    run::Thread,
    sse::{Counts, Event, SseParser, excerpt, usage},
};
use http::{Request, header::CONTENT_TYPE};
use hyper::body::Incoming;
use std::time::{Duration, Instant};

/// Most bytes of an unstreamed answer that are kept to look for its usage.
const KEEP: usize = 64 * 1024;

/// What belongs to one request and its answer.
pub(crate) struct Exchange<'a> {
    pub(crate) thread: &'a Thread,
    pub(crate) url: usize,
    /// A stream was asked for.
    pub(crate) stream: bool,
    /// Started within the window.
    pub(crate) measured: bool,
    /// Where time to first token counts from.
    pub(crate) intended: Instant,
    pub(crate) scratch: &'a mut Scratch,
}

/// Buffers that requests of one connection use in turn.
pub(crate) struct Scratch {
    sse: SseParser,
    kept: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Scratch {
            sse: SseParser::new(),
            kept: Vec::new(),
        }
    }
}

/// How a request that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    /// This side hung up, as it was told to.
    Disconnected,
}

/// Token timing of one stream.
struct Tokens {
    seen: u64,
    last: Instant,
    done: bool,
    error: Option<Failure>,
}

impl Exchange<'_> {
    /// Runs it. The connection comes back if it can carry another request; dropping this future closes it.
    pub(crate) async fn run(
        mut self,
        mut link: Link,
        request: Request<super::body::Pieces>,
    ) -> (Option<Link>, Result<End, Failure>) {
        let response = match link.send(request).await {
            Ok(response) => response,
            Err(failure) => return (None, Err(failure)),
        };
        let (head, mut body) = response.into_parts();
        if self.measured {
            let mut stats = self.thread.stats.borrow_mut();
            *stats.urls[self.url]
                .statuses
                .entry(head.status.as_u16())
                .or_default() += 1;
        }
        let mut pace = Pace::new(self.thread.shared.slow_reader);
        let event_stream = head
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        if head.status.is_success() && self.stream && event_stream {
            return self.read_stream(link, &mut body, &mut pace).await;
        }
        if let Err(failure) = self.read_whole(&mut link, &mut body, &mut pace).await {
            return (None, Err(failure));
        }
        let kept = &self.scratch.kept;
        if !head.status.is_success() {
            let class = Class::Status(head.status.as_u16());
            return (Some(link), Err(Failure::new(class, excerpt(kept))));
        }
        if self.stream {
            let text = format!(
                "the answer is {:?}, not an event stream",
                head.headers.get(CONTENT_TYPE)
            );
            return (Some(link), Err(Failure::new(Class::BadSse, text)));
        }
        if let Some(counts) = usage(&self.scratch.kept) {
            self.note_tokens(counts.completion, Instant::now());
            if self.measured {
                note_usage(self.thread, counts);
            }
        }
        (Some(link), Ok(End::Complete))
    }

    async fn read_whole(
        &mut self,
        link: &mut Link,
        body: &mut Incoming,
        pace: &mut Pace,
    ) -> Result<(), Failure> {
        self.scratch.kept.clear();
        while let Some(data) = link.next_data(body).await? {
            self.note_bytes(data.len());
            let kept = &mut self.scratch.kept;
            kept.extend_from_slice(&data);
            if kept.len() > 2 * KEEP {
                // Usage comes last.
                kept.drain(..kept.len() - KEEP);
            }
            pace.took(data.len()).await;
        }
        Ok(())
    }

    async fn read_stream(
        mut self,
        mut link: Link,
        body: &mut Incoming,
        pace: &mut Pace,
    ) -> (Option<Link>, Result<End, Failure>) {
        self.scratch.sse.reset();
        let mut tokens = Tokens {
            seen: 0,
            last: self.intended,
            done: false,
            error: None,
        };
        loop {
            let data = match link.next_data(body).await {
                Ok(Some(data)) => data,
                Ok(None) => break,
                Err(failure) => return (None, Err(failure)),
            };
            if let Err(failure) = self.take(&data, &mut tokens) {
                return (None, Err(failure));
            }
            if self
                .thread
                .shared
                .disconnect_after
                .is_some_and(|n| tokens.seen >= n)
            {
                return (None, Ok(End::Disconnected));
            }
            pace.took(data.len()).await;
        }
        let result = match tokens.error {
            Some(failure) => Err(failure),
            None if tokens.done => Ok(End::Complete),
            None => {
                let text = format!(
                    "the stream ended after {} token events without [DONE]",
                    tokens.seen
                );
                Err(Failure::new(Class::Unfinished, text))
            }
        };
        (Some(link), result)
    }

    /// Parses what has just come and records when its tokens came.
    fn take(&mut self, data: &[u8], tokens: &mut Tokens) -> Result<(), Failure> {
        let now = Instant::now();
        self.note_bytes(data.len());
        let mut fresh = 0u32;
        let thread = self.thread;
        let measured = self.measured;
        let parsed = self.scratch.sse.push(data, |event| match event {
            Event::Token => fresh += 1,
            Event::Done => tokens.done = true,
            Event::Error(text) => {
                tokens
                    .error
                    .get_or_insert_with(|| Failure::new(Class::StreamError, excerpt(text)));
            }
            Event::Other(json) => {
                if measured && let Some(counts) = usage(json) {
                    note_usage(thread, counts);
                }
            }
        });
        if fresh > 0 {
            if self.measured {
                let mut stats = self.thread.stats.borrow_mut();
                let url = &mut stats.urls[self.url];
                if tokens.seen == 0 {
                    url.ttft
                        .record(now.saturating_duration_since(self.intended));
                } else {
                    url.itl.record(now.duration_since(tokens.last));
                }
                // What came in the same piece came with no gap.
                url.itl.record_n(Duration::ZERO, fresh - 1);
            }
            tokens.seen += u64::from(fresh);
            tokens.last = now;
            self.note_tokens(fresh.into(), now);
        }
        parsed.map_err(|e| Failure::new(Class::BadSse, e.0))
    }

    fn note_bytes(&self, bytes: usize) {
        if self.measured {
            self.thread.stats.borrow_mut().bytes_in += bytes as u64;
        }
    }

    fn note_tokens(&self, tokens: u64, now: Instant) {
        let mut stats = self.thread.stats.borrow_mut();
        if self.thread.shared.window.contains(now) {
            stats.tokens_in_window += tokens;
        }
        if self.measured {
            stats.urls[self.url].tokens += tokens;
        }
    }
}

fn note_usage(thread: &Thread, counts: Counts) {
    let sums = &mut thread.stats.borrow_mut().usage;
    sums.answers += 1;
    sums.prompt_tokens += counts.prompt;
    sums.cached_tokens += counts.cached;
    sums.completion_tokens += counts.completion;
}

/// Keeps a slow reader to its rate.
struct Pace {
    bytes_per_s: Option<u64>,
    begun: Option<tokio::time::Instant>,
    taken: u64,
}

impl Pace {
    fn new(bytes_per_s: Option<u64>) -> Self {
        Pace {
            bytes_per_s,
            begun: None,
            taken: 0,
        }
    }

    async fn took(&mut self, bytes: usize) {
        let Some(rate) = self.bytes_per_s else { return };
        let begun = *self.begun.get_or_insert_with(tokio::time::Instant::now);
        self.taken += bytes as u64;
        tokio::time::sleep_until(begun + Duration::from_secs_f64(self.taken as f64 / rate as f64))
            .await;
    }
}
