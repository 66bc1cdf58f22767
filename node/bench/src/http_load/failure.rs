//! How a request can fail, in classes that are counted apart.

use std::error::Error;

/// Why a request did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// No connection.
    Connect,
    /// The connection was lost before the answer's head.
    Reset,
    /// Not over within `--timeout`.
    Timeout,
    /// An answer with this status, not 2xx.
    Status(u16),
    /// The connection was lost, or the framing broke, within the body.
    Truncated,
    /// Not HTTP.
    Protocol,
    /// A stream was asked for and what came is none.
    BadSse,
    /// The stream carried an error object.
    StreamError,
    /// The stream ended properly, but without `[DONE]`.
    Unfinished,
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Class::Connect => "connect",
            Class::Reset => "reset",
            Class::Timeout => "timeout",
            Class::Status(code) => return write!(f, "status_{code}"),
            Class::Truncated => "truncated",
            Class::Protocol => "protocol",
            Class::BadSse => "bad_sse",
            Class::StreamError => "stream_error",
            Class::Unfinished => "unfinished_stream",
        })
    }
}

/// A failed request: its class and what exactly was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) class: Class,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(class: Class, text: impl Into<String>) -> Self {
        Failure {
            class,
            text: text.into(),
        }
    }

    /// An error before the answer's head.
    pub(crate) fn before_head(error: &hyper::Error) -> Self {
        let class = if error.is_parse() {
            Class::Protocol
        } else {
            Class::Reset
        };
        Failure::new(class, chain(error))
    }

    /// An error within the answer's body.
    pub(crate) fn in_body(error: &hyper::Error) -> Self {
        Failure::new(Class::Truncated, chain(error))
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
