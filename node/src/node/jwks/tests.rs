//! The key set over a real socket: keys change, and the page fails in every way that a page can.
#![allow(clippy::unwrap_used)]

use super::*;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use quorate_routing::identity::{Denied, IdentityTable, JwtError, TenantRule};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const SOON: Duration = Duration::from_secs(20);
const NOW_MS: u64 = 1_800_000_000_000;
/// Fast enough for a test; the time for one look is what a slow page runs into.
const PACE: Pace = Pace {
    refresh: Duration::from_millis(20),
    retry: Duration::from_millis(20),
    timeout: Duration::from_millis(300),
};

/// An issuer's key.
struct Signer {
    id: &'static str,
    pair: Ed25519KeyPair,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        Self {
            id,
            pair: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap(),
        }
    }

    fn token(&self) -> String {
        let header = json!({"alg": "EdDSA", "kid": self.id});
        let claims = json!({"tenant": "t", "exp": NOW_MS / 1000 + 600});
        let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.pair.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn set(signers: &[&Signer]) -> String {
    let key = |signer: &&Signer| {
        let public = URL_SAFE_NO_PAD.encode(signer.pair.public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": signer.id, "x": public})
    };
    json!({"keys": signers.iter().map(key).collect::<Vec<_>>()}).to_string()
}

/// What the page does with a request.
#[derive(Clone)]
enum Answer {
    Page(u16, String),
    /// Bytes that are no HTTP, and the end.
    Garbage,
    /// The head, and then a byte now and then.
    Slow,
    /// The connection is closed.
    Nothing,
}

/// The issuer's web server.
struct Site {
    address: std::net::SocketAddr,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Site {
    async fn start(address: &str, answer: Answer) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, requests) = (Arc::new(Mutex::new(answer)), Arc::<AtomicUsize>::default());
        let (answers, counted) = (Arc::clone(&answer), Arc::clone(&requests));
        let server = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (answers, counted) = (Arc::clone(&answers), Arc::clone(&counted));
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    while socket.read(&mut head).await.is_ok_and(|n| n > 0) {
                        counted.fetch_add(1, SeqCst);
                        let answer = answers.lock().clone();
                        match answer {
                            Answer::Page(status, body) => {
                                let length = body.len();
                                let text = format!(
                                    "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
                                );
                                if socket.write_all(text.as_bytes()).await.is_err() {
                                    return;
                                }
                            }
                            Answer::Garbage => {
                                let _ = socket.write_all(b"\x16\x03\x01 no HTTP\r\n\r\n").await;
                                return;
                            }
                            Answer::Slow => {
                                let _ = socket
                                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
                                    .await;
                                while socket.write_all(b" ").await.is_ok() {
                                    tokio::time::sleep(Duration::from_millis(20)).await;
                                }
                                return;
                            }
                            Answer::Nothing => return,
                        }
                    }
                });
            }
        });
        Self {
            address,
            answer,
            requests,
            server,
        }
    }

    /// Answers so from now on, and waits until that has been read several times.
    async fn answers(&self, answer: Answer) {
        *self.answer.lock() = answer;
        let seen = self.requests.load(SeqCst);
        until("the page to be asked again", || {
            self.requests.load(SeqCst) >= seen + 3
        })
        .await;
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn door() -> Arc<Authenticator> {
    let door = Authenticator::default();
    let tenant = TenantRule {
        name: "t".into(),
        ..TenantRule::default()
    };
    let table = IdentityTable::build(&[tenant], &[], &IdentityTable::default(), 1);
    door.set_table(Arc::new(table));
    Arc::new(door)
}

fn shown(door: &Authenticator, token: &str) -> Result<(), Denied> {
    door.identify(Some(token), NOW_MS).map(|_| ())
}

fn config(address: std::net::SocketAddr) -> JwtConfig {
    let text = format!("jwks = \"http://{address}/keys\"");
    toml::from_str(&text).unwrap()
}

#[tokio::test]
async fn keys_rotate_and_stay_while_the_page_is_of_no_use() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let (old_token, new_token) = (old.token(), new.token());
    let site = Site::start("127.0.0.1:0", Answer::Page(503, "later".into())).await;
    let (door, stop) = (door(), CancellationToken::new());
    follow_at(PACE, &config(site.address), Arc::clone(&door), stop.clone()).unwrap();
    // Nothing to verify with yet, and the page is asked until there is.
    assert_eq!(shown(&door, &old_token), Err(Denied::Unknown));
    site.answers(Answer::Page(503, "later".into())).await;
    assert_eq!(shown(&door, &old_token), Err(Denied::Unknown));
    site.answers(Answer::Page(200, set(&[&old]))).await;
    until("the first set", || shown(&door, &old_token).is_ok()).await;
    let unknown = Err(JwtError::UnknownKey.into());
    assert_eq!(shown(&door, &new_token), unknown);

    // Whatever the page does, the keys that were good stay good.
    for answer in [
        Answer::Page(500, set(&[&new])),
        Answer::Page(404, String::new()),
        Answer::Page(200, "<html>".into()),
        Answer::Page(200, "{\"keys\": []}".into()),
        Answer::Page(200, "x".repeat(MAX_BYTES + 1)),
        Answer::Garbage,
        Answer::Nothing,
        Answer::Slow,
    ] {
        site.answers(answer).await;
        assert_eq!(shown(&door, &old_token), Ok(()));
        assert_eq!(shown(&door, &new_token), unknown);
    }

    // The usual rotation: both, then the new one alone; a token that was verified before counts no more then.
    site.answers(Answer::Page(200, set(&[&old, &new]))).await;
    until("both keys", || shown(&door, &new_token).is_ok()).await;
    assert_eq!(shown(&door, &old_token), Ok(()));
    site.answers(Answer::Page(200, set(&[&new]))).await;
    until("the new key alone", || shown(&door, &old_token) == unknown).await;
    assert_eq!(shown(&door, &new_token), Ok(()));

    // The issuer is away, and comes back at the same address with another key.
    let address = site.address.to_string();
    site.server.abort();
    // Kept connections end as well.
    *site.answer.lock() = Answer::Nothing;
    drop(site);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(shown(&door, &new_token), Ok(()));
    let last = Signer::new("last");
    let _site = Site::start(&address, Answer::Page(200, set(&[&last]))).await;
    until("the last key", || shown(&door, &last.token()).is_ok()).await;

    stop.cancel();
}
