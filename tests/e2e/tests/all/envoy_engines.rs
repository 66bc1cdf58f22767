//! A real Envoy in front of what is not plain HTTP with one name: a model that is called something else by its clients, and an
//! engine that speaks gRPC.

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use quorate_proto::v1;
use quorate_tests::http::{Client, chat, get, metric, post};
use quorate_tests::{Envoy, Fleet, ModelServers, endpoint, pool, raw_call, until};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

const SOON: Duration = Duration::from_secs(60);
const CHAT: &str = "/v1/chat/completions";
const EXT_PROC: &str = "[ext_proc]\nlisten = \"{host}:9002\"\n";

const ALIAS: &str = "\
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: {name: alias}
spec:
  poolRef: {name: pool}
  rules:
  - matches: [{model: {type: Exact, value: an-assistant-with-a-long-name}}]
    targets: [{modelRewrite: echo-model}]
";

/// The engine is asked by its own name and the client sees the one that it used, in one piece and streamed; the length that
/// Envoy announces is that of the changed body.
#[tokio::test]
async fn a_rewritten_model_goes_there_and_back() -> anyhow::Result<()> {
    const NAME: &str = "an-assistant-with-a-long-name";
    let fleet = Fleet::of(1, 1)
        .config(EXT_PROC)
        .sim_args(&["--itl", "2ms"])
        .start()
        .await?;
    let envoy = Envoy::start(&fleet, &[0], ModelServers::ByHeader).await?;
    let front = envoy.front();
    let unknown = post(front, CHAT, &chat(NAME, "hello", 8, false)).await?;
    ensure!(unknown.status == 404, "{}", unknown.text());
    let applied = fleet.cli_with(&[0], &["apply", "-f", "-"], ALIAS).await?;
    ensure!(applied.code == 0, "{applied:?}");
    until("the alias to be served", SOON, async || {
        post(front, CHAT, &chat(NAME, "hello", 8, false))
            .await?
            .ok()
    })
    .await?;

    let mut client = Client::connect(front).await?;
    // Short and much longer than a piece of a body may be.
    for length in [1, 20_000] {
        let text = "word ".repeat(length);
        let body = chat(NAME, &text, 8, false).to_string().into();
        let reply = client.call(Method::POST, CHAT, body).await?.ok()?.json()?;
        // The engine answers to one name only, so it was asked by that one.
        ensure!(reply["model"] == NAME, "{}", reply["model"]);
        let tokens = reply["usage"]["prompt_tokens"].as_u64();
        ensure!(tokens >= Some(length as u64), "{tokens:?}");
    }
    let mut client = Client::connect(front).await?;
    let said = "to be streamed by another name";
    let mut events = client.stream(CHAT, &chat(NAME, said, 64, true)).await?;
    let (mut text, mut pieces) = (String::new(), 0);
    while let Some(data) = events.next().await? {
        if data == "[DONE]" {
            break;
        }
        let event: serde_json::Value = serde_json::from_str(&data)?;
        ensure!(event["model"] == NAME, "{event}");
        text += event["choices"][0]["delta"]["content"]
            .as_str()
            .unwrap_or_default();
        pieces += 1;
    }
    ensure!(text == said && pieces > 3, "{pieces} pieces: {text:?}");
    let page = get(fleet.routers[0].admin(), "/metrics").await?.text();
    let labels = format!("model_name=\"{NAME}\",target_model_name=\"echo-model\"");
    let counted = metric(&page, "llm_d_epp_request_total", &labels);
    ensure!(counted >= Some(4.0), "{counted:?}");
    fleet.finish().await
}

/// A field of a protobuf message: bytes.
fn bytes(into: &mut Vec<u8>, field: u8, value: &[u8]) {
    into.extend([field << 3 | 2, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
    into.extend_from_slice(value);
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &length.to_be_bytes(), message].concat()
}

/// vLLM's `GenerateResponse` with a chunk: tokens 1, and how many there are of prompt, answer and cache (2, 3, 4).
fn chunk(tokens: &[u8]) -> Vec<u8> {
    let (mut chunk, mut message) = (Vec::new(), Vec::new());
    bytes(&mut chunk, 1, tokens);
    chunk.extend([
        2 << 3,
        21,
        3 << 3,
        u8::try_from(tokens.len()).unwrap_or(u8::MAX),
        4 << 3,
        9,
    ]);
    bytes(&mut message, 1, &chunk);
    frame(&message)
}

type Body = BoxBody<Bytes, Infallible>;

async fn engine(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if path != "/vllm.grpc.engine.VllmEngine/Generate" {
        let status = if path == "/health" { 200 } else { 404 };
        let mut response = Response::new(Full::new(Bytes::new()).boxed());
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
        return Ok(response);
    }
    let asked = request.into_body().collect().await;
    let asked = asked.map(|body| body.to_bytes()).unwrap_or_default();
    let mut trailers = HeaderMap::new();
    let status = if asked.ends_with(b"fail") { "13" } else { "0" };
    trailers.insert("grpc-status", http::HeaderValue::from_static(status));
    let frames = [
        Ok(Frame::data(chunk(&[1, 2, 3]).into())),
        Ok(Frame::data(chunk(&[4]).into())),
        Ok(Frame::trailers(trailers)),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let mut response = Response::new(BodyExt::boxed(body));
    let kind = http::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}

/// Serves until the test ends.
async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // A client that goes away is the test's own.
                let _ = server
                    .serve_connection(TokioIo::new(stream), service_fn(engine))
                    .await;
            });
        }
    });
    Ok(())
}

#[tokio::test]
async fn a_grpc_engine_answers_through_envoy() -> anyhow::Result<()> {
    const GENERATE: &str = "/vllm.grpc.engine.VllmEngine/Generate";
    let fleet = Fleet::of(1, 0).config(EXT_PROC).start().await?;
    let address = SocketAddr::from((fleet.subnet().host(150), 8000));
    serve(address).await?;
    let mut declared = pool("pool");
    declared.spec = Some(v1::resource::Spec::Pool(v1::PoolSpec {
        app_protocol: "kubernetes.io/h2c".into(),
        fallback: true,
        ..Default::default()
    }));
    let control = fleet.control(0)?;
    for resource in [declared, endpoint("grpc-1", "pool", address)] {
        control.apply(resource, "", None).await?;
    }
    let envoy = Envoy::start(&fleet, &[0], ModelServers::Grpc).await?;
    let front = envoy.front();
    let ask = async |text: &[u8]| {
        let mut message = Vec::new();
        bytes(&mut message, 1, b"request-1");
        bytes(&mut message, 3, text);
        raw_call(front, GENERATE, frame(&message)).await
    };
    until("the engine to be used", SOON, async || {
        let (status, _) = ask(b"a prompt").await?;
        ensure!(status == "0", "{status}");
        anyhow::Ok(())
    })
    .await?;
    let (status, body) = ask(b"another prompt").await?;
    let expected = [chunk(&[1, 2, 3]), chunk(&[4])].concat();
    ensure!(status == "0" && body == expected, "{status} {body:?}");
    let (status, body) = ask(b"fail").await?;
    ensure!(status == "13" && body == expected, "{status} {body:?}");
    // What the picker refuses, in gRPC's own way.
    let (status, _) = raw_call(front, GENERATE, frame(b"\xff\xff")).await?;
    ensure!(status == "3", "a malformed message: {status}");
    control.drain("grpc-1", true).await?;
    until("nobody to be left", SOON, async || {
        let (status, _) = ask(b"a prompt").await?;
        ensure!(status == "14", "{status}");
        anyhow::Ok(())
    })
    .await?;
    until("the calls to be counted", SOON, async || {
        let page = get(fleet.routers[0].admin(), "/metrics").await?.text();
        let cached = metric(&page, "llm_d_epp_request_cached_tokens_sum", "");
        ensure!(cached >= Some(18.0), "{cached:?}");
        anyhow::Ok(())
    })
    .await
    .context("usage in gRPC frames")?;
    fleet.finish().await
}
