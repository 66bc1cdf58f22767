//! Which headers pass the gateway and which it sets.

use crate::client::Client;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use std::fmt::Write;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Headers that belong to one connection (RFC 9110 section 7.6.1) and to its framing.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    // Most names are none of these and differ from all in length or first letter.
    match name.as_str().as_bytes().first() {
        Some(b'c') => *name == CONNECTION,
        Some(b'k') => *name == KEEP_ALIVE,
        Some(b'p') => {
            *name == PROXY_AUTHENTICATE || *name == PROXY_AUTHORIZATION || *name == PROXY_CONNECTION
        }
        Some(b't') => *name == TE || *name == TRAILER || *name == TRANSFER_ENCODING,
        Some(b'u') => *name == UPGRADE,
        _ => false,
    }
}

/// Names that a `Connection` header lists besides the well-known ones.
fn listed(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| {
            !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"close")
        })
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect()
}

/// The head of the request to an endpoint: the client's headers without those of its own connection, the endpoint's `Host`, and
/// where the request came from. The length is set anew from the body, because the client may have sent it in chunks.
pub(crate) fn to_endpoint(
    from_client: &HeaderMap,
    body_len: usize,
    method_has_body: bool,
    host: &HeaderValue,
    client: &Client,
) -> HeaderMap {
    let listed = if from_client.contains_key(CONNECTION) {
        listed(from_client)
    } else {
        Vec::new()
    };
    let mut headers = HeaderMap::with_capacity(from_client.len() + 4);
    headers.insert(HOST, host.clone());
    let mut forwarded: Option<String> = None;
    let mut proto = false;
    for (name, value) in from_client {
        if is_hop_by_hop(name)
            || *name == HOST
            || *name == CONTENT_LENGTH
            || *name == EXPECT
            || (!listed.is_empty() && listed.contains(name))
        {
            continue;
        }
        if *name == FORWARDED_FOR {
            let chain = forwarded.get_or_insert_default();
            if let Ok(text) = value.to_str() {
                let _ = write!(chain, "{text}, ");
            }
            continue;
        }
        proto |= *name == FORWARDED_PROTO;
        headers.append(name.clone(), value.clone());
    }
    let forwarded_for = forwarded
        .and_then(|chain| HeaderValue::from_str(&format!("{chain}{}", client.ip)).ok())
        .unwrap_or_else(|| client.forwarded_for.clone());
    headers.insert(FORWARDED_FOR, forwarded_for);
    if !proto {
        headers.insert(
            FORWARDED_PROTO,
            HeaderValue::from_static(if client.tls { "https" } else { "http" }),
        );
    }
    if body_len > 0 || method_has_body {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body_len));
    }
    headers
}

/// Removes the headers of the endpoint's connection from its answer. `content-length` stays: it is the client's too.
pub(crate) fn to_client(headers: &mut HeaderMap) {
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    for name in listed(headers) {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        PROXY_CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    fn client() -> Client {
        Client::new(
            "[::ffff:10.1.2.3]:5".parse().unwrap(),
            false,
            true,
            Arc::new(AtomicUsize::new(0)),
        )
    }

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        headers
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn connection_headers_stay_here_and_the_rest_passes() {
        let from = map(&[
            ("host", "front"),
            ("connection", "Keep-Alive, x-secret-hop"),
            ("x-secret-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "99"),
            ("expect", "100-continue"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("authorization", "Bearer x"),
            ("accept", "a"),
            ("accept", "b"),
        ]);
        let to = to_endpoint(
            &from,
            7,
            true,
            &HeaderValue::from_static("engine:8000"),
            &client(),
        );
        let mut names: Vec<_> = to.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept",
                "authorization",
                "content-length",
                "host",
                "x-forwarded-for",
                "x-forwarded-proto"
            ]
        );
        assert_eq!(to["host"], "engine:8000");
        assert_eq!(to["content-length"], "7");
        assert_eq!(to.get_all("accept").iter().count(), 2);
    }

    #[test]
    fn the_chain_of_proxies_is_continued() {
        let from = map(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-forwarded-proto", "https"),
        ]);
        let to = to_endpoint(&from, 0, false, &HeaderValue::from_static("e"), &client());
        assert_eq!(to["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 10.1.2.3");
        assert_eq!(to["x-forwarded-proto"], "https");
        assert!(!to.contains_key("content-length"));
    }

    #[test]
    fn answers_lose_their_connection_headers() {
        let mut headers = map(&[
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("transfer-encoding", "chunked"),
            ("content-type", "text/event-stream"),
            ("server", "uvicorn"),
        ]);
        to_client(&mut headers);
        assert_eq!(
            headers,
            map(&[("content-type", "text/event-stream"), ("server", "uvicorn")])
        );
    }
}
