//! What an Envoy says, and an endpoint to send it to: for the tests of one stream and those of the server.

use quorate_proto::envoy::config::core::v3::{HeaderMap, HeaderValue};
use quorate_proto::envoy::service::ext_proc::v3::processing_request::Request as Kinds;
use quorate_proto::envoy::service::ext_proc::v3::{HttpBody, HttpHeaders};
use quorate_routing::{Endpoint, EndpointSpec, Health, ServedModel, Target};
use std::sync::Arc;
use std::time::Duration;

/// A ready endpoint of the pool `p` on port 8000 that serves the model `m`.
pub fn endpoint(name: &str, host: &str) -> Arc<Endpoint> {
    let endpoint = Arc::new(Endpoint::new(
        EndpointSpec {
            name: name.into(),
            incarnation: 1,
            pool: "p".into(),
            target: Target::new(false, host, 8000),
            h2c: false,
            region: "r".into(),
            rank: None,
            labels: Default::default(),
            breaker: Default::default(),
            slow_start: Duration::ZERO,
            stall_timeout: Duration::from_secs(60),
        },
        None,
    ));
    endpoint.set_models(vec![ServedModel {
        id: "m".into(),
        ..Default::default()
    }]);
    endpoint.set_health(Health::Ready, 1);
    endpoint
}

pub fn header_map(headers: &[(&str, &str)]) -> Option<HeaderMap> {
    let headers = headers.iter().map(|(key, value)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: value.as_bytes().to_vec().into(),
        ..Default::default()
    });
    Some(HeaderMap {
        headers: headers.collect(),
    })
}

pub fn head(method: &str, path: &str, end_of_stream: bool, more: &[(&str, &str)]) -> Kinds {
    let all = [&[(":method", method), (":path", path)], more].concat();
    Kinds::RequestHeaders(HttpHeaders {
        headers: header_map(&all),
        end_of_stream,
    })
}

pub fn request_body(body: impl Into<Vec<u8>>, end_of_stream: bool) -> Kinds {
    Kinds::RequestBody(HttpBody {
        body: body.into().into(),
        end_of_stream,
    })
}

pub fn response_head(status: &str, kind: &str, end_of_stream: bool) -> Kinds {
    Kinds::ResponseHeaders(HttpHeaders {
        headers: header_map(&[(":status", status), ("content-type", kind)]),
        end_of_stream,
    })
}

pub fn response_body(body: impl Into<Vec<u8>>, end_of_stream: bool) -> Kinds {
    Kinds::ResponseBody(HttpBody {
        body: body.into().into(),
        end_of_stream,
    })
}
