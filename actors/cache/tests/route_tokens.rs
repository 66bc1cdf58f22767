//! `token-producer` in a scheduling configuration: who tokenizes, and what happens when nobody can.
#![allow(clippy::unwrap_used)]

use quorate_cache::route::registry_to_check_with;
use quorate_routing::config::{CompiledPolicy, EndpointPickerConfig};
use quorate_routing::request::{Api, RequestInfo};
use quorate_routing::tokens::{Origin, PromptTokens, TokenRequest};
use quorate_routing::{BreakerPolicy, Endpoint, EndpointSpec, Health, Target};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn compile(parameters: &str, precise: bool) -> Result<CompiledPolicy, String> {
    let precise = match precise {
        true => "- type: precise-prefix-cache-producer\n",
        false => "",
    };
    let text = format!(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorer\n{precise}\
         - type: token-producer\n  parameters: {parameters}\n"
    );
    let parsed = EndpointPickerConfig::parse(&text).map_err(|e| e.to_string())?;
    let compiled = parsed.config.compile_with(&registry_to_check_with());
    compiled.map_err(|e| e.to_string())
}

const PROMPT: &str = r#"{"model":"m","prompt":"hello there"}"#;

async fn tokens(
    policy: &CompiledPolicy,
    body: &str,
    endpoints: &[Arc<Endpoint>],
) -> Option<PromptTokens> {
    let info = RequestInfo::parse(Api::Completions, body.as_bytes()).unwrap();
    let request = TokenRequest {
        info: &info,
        body: body.as_bytes(),
        lora: None,
    };
    policy
        .tokens
        .as_ref()
        .unwrap()
        .tokens(request, endpoints)
        .await
}

/// An engine's tokenizer that answers with its own number after a while, and counts.
struct Tokenizer {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Tokenizer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tokenizer(id: u32, delay: Duration) -> Tokenizer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, asked) = (
        listener.local_addr().unwrap(),
        Arc::new(AtomicUsize::new(0)),
    );
    let count = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut read = vec![0; 4096];
                // Small requests come in one piece or two; each ends with the closing brace.
                let mut seen = Vec::new();
                while let Ok(n @ 1..) = socket.read(&mut read).await {
                    seen.extend_from_slice(&read[..n]);
                    if !seen.ends_with(b"}") {
                        continue;
                    }
                    seen.clear();
                    count.fetch_add(1, Relaxed);
                    tokio::time::sleep(delay).await;
                    let body = format!(r#"[{{"token_ids":[{id},{id}]}}]"#);
                    let length = body.len();
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
                    );
                    if socket.write_all((head + &body).as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Tokenizer { addr, asked, task }
}

fn endpoint(i: u64, addr: SocketAddr) -> Arc<Endpoint> {
    let spec = EndpointSpec {
        name: format!("e{i}").into(),
        incarnation: i,
        pool: "p".into(),
        target: Target::parse(&format!("http://{addr}")).unwrap(),
        h2c: false,
        region: "r".into(),
        rank: None,
        labels: Default::default(),
        breaker: BreakerPolicy::default(),
        slow_start: Duration::ZERO,
        stall_timeout: Duration::from_secs(60),
    };
    let endpoint = Endpoint::new(spec, None);
    endpoint.set_health(Health::Ready, 1);
    Arc::new(endpoint)
}

#[test]
fn pools_without_a_use_for_tokens_make_none() {
    for parameters in ["{}", "{estimate: {image: {mode: static}}}"] {
        assert!(compile(parameters, false).unwrap().tokens.is_none());
    }
    let with = compile("{estimate: {}}", true).unwrap();
    let warned = |text: &str| with.warnings.iter().any(|w| w.to_string().contains(text));
    assert!(warned("estimates never equal"), "{:?}", with.warnings);
}

#[test]
fn what_is_wrong_is_said() {
    for (parameters, what) in [
        ("{vllm: {url: 'https://a:1'}}", "must begin with http://"),
        ("{vllm: {url: 'a:1'}}", "does not begin with"),
        ("{vllm: {}, endpoints: {}}", "excludes `vllm`"),
        ("{local: {}}", "is required"),
        ("{local: {url: 'https://a/b'}}", "must begin with http://"),
        ("{local: {url: 'http://a/{host}'}}", "is not plain"),
        ("{local: {url: 'http://x{host}/'}}", "place of the host"),
        ("{local: {url: 'http://a', directory: /b}}", "excludes"),
        ("{endpoints: {timeout: 0s}}", "more than 0"),
        ("{locall: {directory: a}}", "is not known"),
    ] {
        let error = compile(parameters, false).err().unwrap();
        assert!(error.contains(what), "{parameters}: {error}");
    }
}

#[tokio::test]
async fn an_engine_at_a_url() {
    let engine = tokenizer(7, Duration::ZERO).await;
    let policy = compile(
        &format!("{{vllm: {{url: 'http://{}'}}}}", engine.addr),
        false,
    )
    .unwrap();
    let made = tokens(&policy, PROMPT, &[]).await.unwrap();
    assert_eq!((&*made.ids, made.origin), (&[7, 7][..], Origin::Engine));
    // Ids that are there already cost nobody anything.
    let given = tokens(&policy, r#"{"model":"m","prompt":[1,2,3]}"#, &[]).await;
    let given = given.unwrap();
    assert_eq!((&*given.ids, given.origin), (&[1, 2, 3][..], Origin::Given));
    assert_eq!(engine.asked.load(Relaxed), 1);
}

#[tokio::test]
async fn the_pools_endpoints_in_turn_where_something_needs_tokens() {
    let engines = [
        tokenizer(1, Duration::ZERO).await,
        tokenizer(2, Duration::ZERO).await,
    ];
    let policy = compile("{}", true).unwrap();
    let mut places: Vec<_> = (1..)
        .zip(&engines)
        .map(|(i, e)| endpoint(i, e.addr))
        .collect();
    for _ in 0..4 {
        assert!(tokens(&policy, PROMPT, &places).await.is_some());
    }
    assert_eq!(engines.each_ref().map(|e| e.asked.load(Relaxed)), [2, 2]);
    // One that does not answer is passed over.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    places.push(endpoint(3, gone.local_addr().unwrap()));
    drop(gone);
    for _ in 0..6 {
        assert!(tokens(&policy, PROMPT, &places).await.is_some());
    }
    assert!(tokens(&policy, PROMPT, &[]).await.is_none());
}

#[tokio::test]
async fn who_takes_too_long_is_left_alone_for_a_while() {
    let slow = tokenizer(1, Duration::from_secs(30)).await;
    let parameters = format!("{{vllm: {{url: 'http://{}', timeout: 60ms}}}}", slow.addr);
    let policy = compile(&parameters, false).unwrap();
    for _ in 0..8 {
        assert!(tokens(&policy, PROMPT, &[]).await.is_none());
    }
    // A busy machine may take longer than the pause for some of them.
    let asked = slow.asked.load(Relaxed);
    assert!((3..8).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_model_of_a_local_directory() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokens/chatml");
    let parameters = format!("{{local: {{directory: '{}'}}}}", directory.display());
    let policy = compile(&parameters, false).unwrap();
    // Until it is loaded there are none, and nobody waits for it.
    let made = loop {
        if let Some(made) = tokens(&policy, PROMPT, &[]).await {
            break made;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(made.exact && made.origin == Origin::Local && !made.ids.is_empty());
    let engine = tokenizer(9, Duration::ZERO).await;
    let parameters = format!(
        "{{local: {{directory: /nowhere/at/all}}, vllm: {{url: 'http://{}'}}}}",
        engine.addr
    );
    let policy = compile(&parameters, false).unwrap();
    let made = tokens(&policy, PROMPT, &[]).await.unwrap();
    assert_eq!(&*made.ids, [9, 9]);
}
