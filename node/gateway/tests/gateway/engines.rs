//! APIs of the engines themselves: vLLM's and SGLang's generate, and vLLM's gRPC service over HTTP/2.

use crate::support::*;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use quorate_gateway::GatewayConfig;
use quorate_routing::request::protobuf::write;
use quorate_routing::{PoolPolicy, PoolSpec, RoutingView};
use std::sync::Arc;
use tokio::net::TcpStream;

fn value(name: &str, labels: &str) -> Option<f64> {
    crate::metrics::recorder()
        .render()
        .lines()
        .find(|line| line.starts_with(name) && line.contains(labels))
        .and_then(|line| line.rsplit(' ').next()?.parse().ok())
}

#[tokio::test]
async fn token_ids_go_to_the_engines_own_paths() {
    let engine = Engine::start(|seen| async move {
        match seen.uri.path() {
            "/inference/v1/generate" => json(r#"{"choices":[{"token_ids":[1]}]}"#),
            "/generate" => {
                json(r#"{"output_ids":[1],"meta_info":{"prompt_tokens":2,"completion_tokens":1}}"#)
            }
            path => panic!("{path}"),
        }
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    for (path, body, status) in [
        ("/inference/v1/generate", r#"{"token_ids":[1,2]}"#, 200),
        (
            "/inference/v1/generate",
            r#"{"model":"m","token_ids":[1,2]}"#,
            200,
        ),
        ("/generate", r#"{"input_ids":[1,2]}"#, 200),
        ("/generate", "[", 400),
    ] {
        assert_eq!(front.post(path, body).await.status, status, "{path} {body}");
    }
    assert_eq!(engine.requests(), 3);
}

/// One gRPC call; status of HTTP, headers, body, trailers.
async fn call(front: &Front, method: &str, message: &[u8]) -> (u16, HeaderMap, Bytes, HeaderMap) {
    call_within(front, method, message, "1H").await
}

/// The same with a time limit.
async fn call_within(
    front: &Front,
    method: &str,
    message: &[u8],
    timeout: &str,
) -> (u16, HeaderMap, Bytes, HeaderMap) {
    let stream = TcpStream::connect(front.addr()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://front{method}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header("grpc-timeout", timeout)
        .body(Full::new(Bytes::from(write::frame(message))))
        .unwrap();
    let (head, body) = soon(sender.send_request(request))
        .await
        .unwrap()
        .into_parts();
    let body = soon(body.collect()).await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    (
        head.status.as_u16(),
        head.headers,
        body.to_bytes(),
        trailers,
    )
}

fn chunk(tokens: &[u8]) -> Vec<u8> {
    let mut chunk = Vec::new();
    write::bytes(&mut chunk, 1, tokens);
    for (field, count) in [(2, 21), (3, tokens.len() as u64), (4, 9)] {
        write::number(&mut chunk, field, count);
    }
    let mut message = Vec::new();
    write::bytes(&mut message, 1, &chunk);
    write::frame(&message)
}

#[tokio::test]
async fn grpc_goes_through_with_trailers_and_is_measured() {
    let engine = Engine::start(|seen| async move {
        assert_eq!(seen.headers[header::TE], "trailers");
        assert_eq!(seen.version, http::Version::HTTP_2);
        let failed = seen.body.ends_with(b"fail");
        let status = if failed { "13" } else { "0" };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        let frames = [
            Ok::<_, std::io::Error>(Frame::data(Bytes::from(chunk(&[1, 2, 3])))),
            Ok(Frame::trailers(trailers)),
        ];
        Response::builder()
            .header("content-type", "application/grpc")
            .body(StreamBody::new(futures_util::stream::iter(frames)).boxed())
            .unwrap()
    })
    .await;
    let url = format!("http://{}", engine.addr);
    let front = Front::of(config(), vec![endpoint("grpc-1", &url, true)]);
    let spec = PoolSpec {
        name: "grpc".into(),
        ..PoolSpec::default()
    };
    let policy = Arc::new(PoolPolicy::default());
    let view = RoutingView::with_policies([(spec, policy, front.endpoints.clone())]);
    front.view.store(Arc::new(view));

    let mut message = Vec::new();
    write::bytes(&mut message, 3, b"a prompt");
    write::number(&mut message, 5, 1);
    let method = "/vllm.grpc.engine.VllmEngine/Generate";
    let (status, headers, body, trailers) = call(&front, method, &message).await;
    assert_eq!((status, &body[..]), (200, &chunk(&[1, 2, 3])[..]));
    assert_eq!(headers["content-type"], "application/grpc");
    assert_eq!(trailers["grpc-status"], "0");
    eventually("it is recorded", || front.handle.in_flight() == 0).await;
    assert!(
        value(
            "llm_d_epp_request_cached_tokens_sum",
            "model_name=\"other\""
        ) >= Some(9.0)
    );

    let mut failing = Vec::new();
    write::bytes(&mut failing, 3, b"fail");
    let (_, _, _, trailers) = call(&front, method, &failing).await;
    assert_eq!(trailers["grpc-status"], "13");

    // Refusals are gRPC's own.
    let (status, headers, body, _) = call(&front, method, b"\xff\xff").await;
    assert_eq!((status, body.len()), (200, 0));
    assert_eq!(headers["grpc-status"], "3");
    front.endpoints[0].set_draining(true);
    let (_, headers, _, _) = call(&front, method, &message).await;
    assert_eq!(headers["grpc-status"], "14");
    assert_eq!(
        headers["x-llm-d-request-dropped-reason"],
        "rejected-no-endpoints"
    );
    assert_eq!(engine.requests(), 2);
}

#[tokio::test]
async fn the_time_limit_of_a_grpc_call_holds_whoever_sends_it() {
    let engine = Engine::start(|_| std::future::pending()).await;
    let url = format!("http://{}", engine.addr);
    for trust_headers in [Some(true), Some(false)] {
        let config = GatewayConfig {
            trust_headers,
            ..config()
        };
        let front = Front::of(config, vec![endpoint("grpc-2", &url, true)]);
        let mut message = Vec::new();
        write::bytes(&mut message, 3, b"a prompt");
        write::number(&mut message, 5, 1);
        let method = "/vllm.grpc.engine.VllmEngine/Generate";
        let (status, headers, _, _) = call_within(&front, method, &message, "50m").await;
        // DEADLINE_EXCEEDED
        assert_eq!(
            (status, &headers["grpc-status"]),
            (200, &"4".parse().unwrap())
        );
    }
}
