//! What Envoy sends, read: heads of requests and responses, subset hints, and which endpoint served.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use quorate_proto::envoy::config::core::v3::{self as core, Metadata};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Header, and key of metadata, that names the endpoint.
pub(crate) const DESTINATION: &str = "x-gateway-destination-endpoint";
/// Key of metadata that has the scores.
pub(crate) const SCORES: &str = "x-gateway-destination-endpoint-scores";
/// Namespace of metadata for the load balancer.
pub(crate) const LB: &str = "envoy.lb";
const SERVED: &str = "x-gateway-destination-endpoint-served";
const SUBSET_NAMESPACE: &str = "envoy.lb.subset_hint";
const SUBSET: &str = "x-gateway-destination-endpoint-subset";
/// Envoy's attribute for the address that the upstream connection went to.
const UPSTREAM: &str = "upstream.address";

/// Headers that belong to the routing between proxy, picker and engine: a client's own never reach an engine.
const SYSTEM_OWNED: &[&str] = &[
    SUBSET,
    SERVED,
    SCORES,
    "x-gateway-inference-objective",
    "x-gateway-inference-fairness-id",
    "x-gateway-model-name-rewrite",
    "x-llm-d-inference-objective",
    "x-llm-d-inference-fairness-id",
    "x-llm-d-model-name-rewrite",
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
];

/// The head of a request.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub method: Method,
    /// Without the query.
    pub path: String,
    /// Without pseudo headers.
    pub headers: HeaderMap,
}

/// Why a head cannot be worked with; the text goes into the status of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadHead(&'static str);

impl RequestHead {
    /// Reads it.
    ///
    /// # Errors
    /// [`BadHead`]: no method or no path.
    pub fn read(map: Option<core::HeaderMap>) -> Result<Self, BadHead> {
        let (mut method, mut path) = (None, None);
        let headers = headers(map, |name, value| match name {
            ":method" => method = Method::from_bytes(value).ok(),
            ":path" => path = std::str::from_utf8(value).ok().map(without_query),
            _ => {}
        });
        Ok(Self {
            method: method.ok_or(BadHead("the request has no valid :method"))?,
            path: path.ok_or(BadHead("the request has no valid :path"))?,
            headers,
        })
    }

    /// Names of the headers with credentials that the client sent.
    pub fn credentials(&self) -> Vec<&'static str> {
        let sent = |name: &&str| self.headers.contains_key(*name);
        ["authorization", "x-api-key"]
            .into_iter()
            .filter(sent)
            .collect()
    }

    /// Names of headers that the client sent and must not reach an engine.
    pub fn system_owned(&self) -> impl Iterator<Item = &'static str> {
        SYSTEM_OWNED
            .iter()
            .copied()
            .filter(|name| self.headers.contains_key(*name))
    }
}

/// Status and content headers of a response, which are all that is looked at. A status that cannot be read counts as 200: the
/// response passes either way.
pub(crate) fn response_head(mut map: Option<core::HeaderMap>) -> (StatusCode, HeaderMap) {
    let mut status = StatusCode::OK;
    if let Some(map) = &mut map {
        let wanted =
            |key: &str| key.starts_with(':') || key.starts_with("content-") || key == "grpc-status";
        map.headers.retain(|header| wanted(&header.key));
    }
    let headers = headers(map, |name, value| {
        if name == ":status"
            && let Ok(read) = StatusCode::from_bytes(value)
        {
            status = read;
        }
    });
    (status, headers)
}

/// Trailers in the usual form.
pub(crate) fn all_headers(map: Option<core::HeaderMap>) -> HeaderMap {
    headers(map, |_, _| {})
}

/// Headers in the usual form; pseudo headers go to `pseudo`, and what is no valid header is left out.
fn headers(map: Option<core::HeaderMap>, mut pseudo: impl FnMut(&str, &[u8])) -> HeaderMap {
    let list = map.map(|map| map.headers).unwrap_or_default();
    let mut headers = HeaderMap::with_capacity(list.len());
    for header in list {
        let core::HeaderValue {
            key,
            value,
            raw_value,
        } = header;
        // Envoy sets the raw one; others may set the text.
        let value = if raw_value.is_empty() {
            value.into()
        } else {
            raw_value
        };
        if key.starts_with(':') {
            pseudo(&key, &value);
        } else if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(key.as_bytes()),
            HeaderValue::from_maybe_shared(value),
        ) {
            headers.append(name, value);
        }
    }
    headers
}

fn without_query(path: &str) -> String {
    path.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// Endpoints that the proxy wants the pick to be among.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subset(Vec<Place>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// One endpoint.
    Port(SocketAddr),
    /// Every endpoint at this address.
    Host(IpAddr),
}

impl Subset {
    /// The hint in the metadata of a request; `None` if there is none. What is no address matches nothing.
    pub fn read(metadata: Option<&Metadata>) -> Option<Self> {
        let hint = entry(metadata?.filter_metadata.get(SUBSET_NAMESPACE)?, SUBSET)?;
        let mut places = Vec::new();
        match hint.kind.as_ref() {
            Some(Kind::ListValue(list)) => {
                for value in &list.values {
                    places.extend(text(value).into_iter().flat_map(parse));
                }
            }
            Some(Kind::StringValue(list)) => places.extend(parse(list)),
            _ => {}
        }
        Some(Self(places))
    }

    /// Whether an endpoint at this address may be picked.
    pub fn contains(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|place| match place {
            Place::Port(there) => *there == address,
            Place::Host(there) => *there == address.ip(),
        })
    }
}

/// Places in a list separated by commas.
fn parse(list: &str) -> impl Iterator<Item = Place> {
    list.split(',').map(str::trim).filter_map(|one| {
        if let Ok(address) = one.parse::<SocketAddr>() {
            let ip = address.ip().to_canonical();
            return Some(Place::Port(SocketAddr::new(ip, address.port())));
        }
        let bare = one.strip_prefix('[').and_then(|one| one.strip_suffix(']'));
        let ip: IpAddr = bare.unwrap_or(one).parse().ok()?;
        Some(Place::Host(ip.to_canonical()))
    })
}

/// Where the proxy says that it sent the request: metadata of the load balancer, else Envoy's own attribute.
pub(crate) fn served(
    metadata: Option<&Metadata>,
    attributes: &HashMap<String, Struct>,
) -> Option<SocketAddr> {
    let said = metadata
        .and_then(|m| entry(m.filter_metadata.get(LB)?, SERVED))
        .or_else(|| attributes.values().find_map(|s| entry(s, UPSTREAM)))?;
    let address: SocketAddr = text(said)?.trim().parse().ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn entry<'a>(of: &'a Struct, key: &str) -> Option<&'a Value> {
    of.fields.get(key)
}

fn text(value: &Value) -> Option<&str> {
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::ListValue;

    fn map(headers: &[(&str, &str)]) -> Option<core::HeaderMap> {
        let headers = headers.iter().map(|(key, value)| core::HeaderValue {
            key: (*key).to_owned(),
            raw_value: value.as_bytes().to_vec().into(),
            ..Default::default()
        });
        Some(core::HeaderMap {
            headers: headers.collect(),
        })
    }

    fn string(text: &str) -> Value {
        Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        }
    }

    fn metadata(namespace: &str, key: &str, value: Value) -> Metadata {
        let inner = Struct {
            fields: [(key.to_owned(), value)].into(),
        };
        Metadata {
            filter_metadata: [(namespace.to_owned(), inner)].into(),
        }
    }

    fn hint(values: &[&str]) -> Option<Subset> {
        let list = ListValue {
            values: values.iter().map(|v| string(v)).collect(),
        };
        let value = Value {
            kind: Some(Kind::ListValue(list)),
        };
        Subset::read(Some(&metadata(SUBSET_NAMESPACE, SUBSET, value)))
    }

    #[test]
    fn heads_are_read_and_bad_ones_refused() {
        let head = RequestHead::read(map(&[
            (":method", "POST"),
            (":path", "/v1/chat/completions?x=1"),
            ("X-Gateway-Model-Name-Rewrite", "m"),
            ("bad name", "x"),
            ("accept", "a"),
            ("accept", "b"),
        ]))
        .unwrap();
        assert_eq!(
            (head.method.clone(), head.path.as_str()),
            (Method::POST, "/v1/chat/completions")
        );
        assert_eq!(head.headers.get_all("accept").iter().count(), 2);
        assert_eq!(
            head.system_owned().collect::<Vec<_>>(),
            ["x-gateway-model-name-rewrite"]
        );
        for bad in [
            map(&[(":method", "GET")]),
            map(&[(":path", "/")]),
            map(&[(":method", "no method"), (":path", "/")]),
            None,
        ] {
            RequestHead::read(bad).unwrap_err();
        }
        let (status, headers) = response_head(map(&[
            (":status", "503"),
            ("a", "b"),
            ("content-type", "text/plain"),
        ]));
        assert_eq!((status.as_u16(), headers.len()), (503, 1));
        assert_eq!(response_head(None).0, 200);
    }

    #[test]
    fn subset_hints_compare_port_and_address() {
        let of = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(Subset::read(None), None);
        assert_eq!(Subset::read(Some(&Metadata::default())), None);
        let some = hint(&["10.0.0.1:8000", "[fd00::1]:80", "10.0.0.9", "nonsense"]).unwrap();
        assert!(some.contains(of("10.0.0.1:8000")) && !some.contains(of("10.0.0.1:8001")));
        assert!(some.contains(of("[fd00::1]:80")) && some.contains(of("10.0.0.9:7")));
        assert!(
            hint(&["::ffff:10.0.0.1"])
                .unwrap()
                .contains(of("10.0.0.1:1"))
        );
        // Present but empty is not the same as absent: nothing may be picked.
        assert!(!hint(&[]).unwrap().contains(of("10.0.0.1:8000")));
        let joined = metadata(SUBSET_NAMESPACE, SUBSET, string("10.0.0.1:1, 10.0.0.2:2"));
        assert!(
            Subset::read(Some(&joined))
                .unwrap()
                .contains(of("10.0.0.2:2"))
        );
    }

    #[test]
    fn the_endpoint_that_served_is_told_by_metadata_or_attribute() {
        let said = metadata(LB, SERVED, string("10.0.0.2:8000"));
        let attribute = Struct {
            fields: [(UPSTREAM.to_owned(), string("10.0.0.3:8000"))].into(),
        };
        let attributes = HashMap::from([("envoy.filters.http.ext_proc".to_owned(), attribute)]);
        assert_eq!(
            served(Some(&said), &attributes),
            "10.0.0.2:8000".parse().ok()
        );
        assert_eq!(served(None, &attributes), "10.0.0.3:8000".parse().ok());
        assert_eq!(served(None, &HashMap::new()), None);
    }
}
