//! The requests that most tests send.

/// A chat request.
pub const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
pub const CHAT_STREAM: &str =
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
/// A stream that the gateway does not change: the client asks for usage itself.
pub const CHAT_STREAM_USAGE: &str =
    r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}"#;
pub const CHAT_PATH: &str = "/v1/chat/completions";
