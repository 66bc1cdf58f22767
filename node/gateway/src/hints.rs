//! What the pick wants the engine to do about its cache, put into the request's body.

use bytes::Bytes;
use memchr::memmem;
use quorate_routing::Api;

const KEY: &str = "\"kv_transfer_params\"";

/// The body with `members` as its `kv_transfer_params`; `None` where that cannot be: an API whose engines read none, or a client that
/// has its own.
pub(crate) fn with_hints(api: Api, body: &[u8], members: &str) -> Option<Bytes> {
    if !matches!(api, Api::Chat | Api::Completions) || memmem::find(body, KEY.as_bytes()).is_some()
    {
        return None;
    }
    let open = body.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let (before, rest) = body.split_at_checked(open + 1)?;
    if body.get(open) != Some(&b'{') {
        return None;
    }
    let empty = rest.trim_ascii_start().first() == Some(&b'}');
    let comma = if empty { "" } else { "," };
    let member = format!("{KEY}:{{{members}}}{comma}");
    Some([before, member.as_bytes(), rest].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_in_front_of_the_others() {
        let with = |api, body: &str| {
            let body = with_hints(api, body.as_bytes(), r#""a":1"#)?;
            String::from_utf8(body.to_vec()).ok()
        };
        let expected = r#" {"kv_transfer_params":{"a":1}, "model":"m"}"#;
        assert_eq!(
            with(Api::Chat, r#" { "model":"m"}"#).as_deref(),
            Some(expected)
        );
        let alone = r#"{"kv_transfer_params":{"a":1} }"#;
        assert_eq!(with(Api::Completions, "{ }").as_deref(), Some(alone));
        let own = r#"{"kv_transfer_params":{"do_remote_decode":true}}"#;
        assert_eq!(with(Api::Chat, own), None);
        assert_eq!(with(Api::Embeddings, "{}"), None);
        assert_eq!(with(Api::Chat, "[]"), None);
        assert_eq!(with(Api::Chat, ""), None);
    }
}
