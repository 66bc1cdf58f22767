//! `token-producer` with files that an engine's host serves: fetched once, kept by content, never from elsewhere, and nothing is changed by bad ones.
#![allow(clippy::unwrap_used)]

use quorate_cache::index::{CacheIndex, IndexConfig};
use quorate_cache::route::CachePlugins;
use quorate_routing::config::{CompiledPolicy, EndpointPickerConfig, Registry};
use quorate_routing::request::{Api, RequestInfo};
use quorate_routing::tokens::{Origin, PromptTokens, TokenRequest};
use quorate_routing::{BreakerPolicy, Endpoint, EndpointSpec, Health, Target};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers by path, and the paths that were asked for.
type Files = Arc<Mutex<BTreeMap<String, (u16, Vec<u8>)>>>;

struct Host {
    addr: SocketAddr,
    files: Files,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Host {
    async fn new(family: &str, under: &str, names: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/tokens")
            .join(family);
        let of = |name: &&str| {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            (format!("{under}/{name}"), (200, bytes))
        };
        let files: Files = Arc::new(Mutex::new(names.iter().map(of).collect()));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (serves, notes) = (Arc::clone(&files), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = socket.read_u8().await else {
                        break;
                    };
                    head.push(byte);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let found = serves.lock().unwrap().get(&path).cloned();
                notes.lock().unwrap().push(path);
                let (status, body) = found.unwrap_or((404, Vec::new()));
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nlocation: http://{addr}/elsewhere\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.write_all(&body).await;
            }
        });
        Host {
            addr,
            files,
            asked,
            task,
        }
    }

    fn put(&self, path: &str, status: u16, body: &[u8]) {
        let mut files = self.files.lock().unwrap();
        files.insert(path.to_owned(), (status, body.to_vec()));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

const ALL: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// A router's plugins, as after a start.
fn start(keep: Option<&Path>, url: &str) -> CompiledPolicy {
    start_with_plugins(keep, url).0
}

fn start_with_plugins(keep: Option<&Path>, url: &str) -> (CompiledPolicy, CachePlugins) {
    let index = Arc::new(CacheIndex::new(IndexConfig { max_bytes: 1 << 20 }));
    let plugins = CachePlugins::new(index);
    if let Some(keep) = keep {
        plugins.keep_tokenizers_in(keep.to_owned());
    }
    let text = format!(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorer\n\
         - type: token-producer\n  parameters: {{local: {{url: '{url}'}}}}\n"
    );
    let parsed = EndpointPickerConfig::parse(&text).unwrap();
    let registry = plugins.register(Registry::default());
    (parsed.config.compile_with(&registry).unwrap(), plugins)
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

async fn chat(policy: &CompiledPolicy, endpoints: &[Arc<Endpoint>]) -> Option<PromptTokens> {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hello there"}]}"#;
    let info = RequestInfo::parse(Api::Chat, body.as_bytes()).unwrap();
    let request = TokenRequest {
        info: &info,
        body: body.as_bytes(),
        lora: None,
    };
    let source = policy.tokens.as_ref().unwrap();
    source.tokens(request, endpoints).await
}

async fn soon(policy: &CompiledPolicy, endpoints: &[Arc<Endpoint>]) -> PromptTokens {
    for _ in 0..2000 {
        if let Some(made) = chat(policy, endpoints).await {
            assert!(made.exact && made.origin == Origin::Local);
            return made;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no tokens within 20 s");
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..2000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not come");
}

#[tokio::test]
async fn fetched_kept_and_there_again_when_the_host_is_gone() {
    let keep = tempfile::tempdir().unwrap();
    let host = Host::new("chatml", "/models/m", &ALL).await;
    let url = format!("http://{}/models/m/", host.addr);
    let first = soon(&start(Some(keep.path()), &url), &[]).await;
    let mut asked = host.asked();
    asked.sort();
    assert_eq!(asked.len(), 6, "each file once: {asked:?}");
    assert!(asked.iter().all(|path| path.starts_with("/models/m/")));
    let from_directory = {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokens/chatml");
        let models = quorate_cache::tokens::Models::new(0, Default::default());
        quorate_cache::tokens::Local::new(models.load(&folder).unwrap())
    };
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hello there"}]}"#;
    let info = RequestInfo::parse(Api::Chat, body.as_bytes()).unwrap();
    let request = TokenRequest {
        info: &info,
        body: body.as_bytes(),
        lora: None,
    };
    assert_eq!(first.ids, from_directory.tokens_now(&request).unwrap().ids);
    // The host is gone, the router starts anew.
    drop(host);
    let again = soon(&start(Some(keep.path()), &url), &[]).await;
    assert_eq!(again.ids, first.ids);
    // As a node does before it says that it is ready: then its first request has tokens.
    let (policy, plugins) = start_with_plugins(Some(keep.path()), &url);
    policy.tokens.as_ref().unwrap().prepare();
    plugins.tokenizers_read().await;
    let at_once = chat(&policy, &[]).await.unwrap();
    assert_eq!(at_once.ids, first.ids);
    // Nothing was kept of another URL, or for a router that keeps no files.
    assert!(
        chat(&start(Some(keep.path()), "http://127.0.0.1:9/x"), &[])
            .await
            .is_none()
    );
    assert!(chat(&start(None, &url), &[]).await.is_none());
}

#[tokio::test]
async fn other_files_replace_those_that_were_kept_and_bad_ones_do_not() {
    let keep = tempfile::tempdir().unwrap();
    let host = Host::new("chatml", "/m", &ALL).await;
    let url = format!("http://{}/m", host.addr);
    let first = soon(&start(Some(keep.path()), &url), &[]).await;
    host.asked();
    // A vocabulary that is none: what was kept stays in use.
    host.put("/m/tokenizer.json", 200, b"{\"version\": \"1.0\"");
    let policy = start(Some(keep.path()), &url);
    assert_eq!(soon(&policy, &[]).await.ids, first.ids);
    until(|| host.asked.lock().unwrap().len() >= 6).await;
    assert_eq!(soon(&policy, &[]).await.ids, first.ids);
    host.asked();
    // Others, of a template that says something else.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokens/chatml");
    let right = std::fs::read(folder.join("tokenizer.json")).unwrap();
    host.put("/m/tokenizer.json", 200, &right);
    host.put("/m/chat_template.jinja", 200, b"{{ messages[0].content }}!");
    let policy = start(Some(keep.path()), &url);
    for _ in 0..2000 {
        if soon(&policy, &[]).await.ids != first.ids {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let other = soon(&policy, &[]).await;
    assert_ne!(other.ids, first.ids);
    drop(host);
    let again = soon(&start(Some(keep.path()), &url), &[]).await;
    assert_eq!(again.ids, other.ids);
}

#[tokio::test]
async fn redirects_are_not_followed_and_no_vocabulary_is_an_error() {
    let host = Host::new("chatml", "/elsewhere", &ALL).await;
    host.put("/m/tokenizer.json", 302, b"");
    for path in ["m", "nothing/there"] {
        let policy = start(None, &format!("http://{}/{path}", host.addr));
        assert!(chat(&policy, &[]).await.is_none());
        until(|| !host.asked.lock().unwrap().is_empty()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(chat(&policy, &[]).await.is_none());
        let asked = host.asked();
        assert_eq!(asked, [format!("/{path}/tokenizer.json")]);
    }
}

#[tokio::test]
async fn the_hosts_of_a_pools_endpoints_are_asked_and_the_engine_for_what_is_missing() {
    let host = Host::new("chatml", "", &["tokenizer.json"]).await;
    let template = "{{ bos_token }}|{{ messages[0].content }}";
    let info = serde_json::json!({"bos_token": "<|im_start|>", "chat_template": template});
    host.put("/tokenizer_info", 200, info.to_string().as_bytes());
    // The engine and the server of its files are the same here.
    let url = format!("http://{{host}}:{}", host.addr.port());
    let policy = start(None, &url);
    // Nobody to ask.
    assert!(chat(&policy, &[]).await.is_none());
    let elsewhere: SocketAddr = format!("127.0.0.2:{}", host.addr.port()).parse().unwrap();
    let endpoints = [endpoint(1, elsewhere), endpoint(2, host.addr)];
    let made = soon(&policy, &endpoints).await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokens/chatml");
    let models = quorate_cache::tokens::Models::new(0, Default::default());
    let tokenizer = models.load(&folder).unwrap();
    let wanted = tokenizer
        .tokenizer
        .encode("<|im_start|>|hello there", false);
    assert_eq!(made.ids[..], wanted.unwrap());
    assert!(host.asked().contains(&"/tokenizer_info".to_owned()));
}
