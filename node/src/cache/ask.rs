//! How engines are asked for what concerns their caches: over HTTP, or HTTPS with the authorities that requests to engines trust.

use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use quorate_cache::feed::actor::Target;
use quorate_cache::feed::{Asking, Engines};
use quorate_endpoint::{FetchError, Page, PageClient, PageLimits};
use quorate_routing::SharedView;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Time and bytes of a page.
const PAGE_WITHIN: Duration = Duration::from_secs(3);
const MAX_PAGE: usize = 1 << 20;
/// Bytes of an answer to a poll: events of many long prompts.
const MAX_POLL: usize = 64 << 20;
/// Kept connections.
const MOST_CLIENTS: usize = 4096;

/// Clients of the engines.
pub(super) struct OverHttp {
    view: SharedView,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// By endpoint and path, for what is asked again and again.
    kept: Mutex<HashMap<(u64, String), (quorate_routing::Target, PageClient)>>,
}

impl OverHttp {
    pub(super) fn new(view: SharedView, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self {
            view,
            tls,
            kept: Mutex::default(),
        }
    }

    /// A client without a connection.
    fn client(&self, endpoint: &Target) -> PageClient {
        let view = self.view.load();
        let mut all = view.pools().iter().flat_map(|pool| &pool.endpoints);
        let h2c = all
            .find(|e| e.spec().incarnation == endpoint.endpoint)
            .is_some_and(|e| e.spec().h2c);
        PageClient::new(endpoint.target.clone(), h2c, self.tls.clone())
    }

    /// The client that asked for this before, on its connection.
    fn kept(&self, endpoint: &Target, path: &str) -> PageClient {
        let key = (endpoint.endpoint, path.to_owned());
        if let Some((target, client)) = self.kept.lock().get(&key)
            && *target == endpoint.target
        {
            return client.clone();
        }
        let client = self.client(endpoint);
        let mut kept = self.kept.lock();
        if kept.len() >= MOST_CLIENTS {
            kept.clear();
        }
        kept.insert(key, (endpoint.target.clone(), client.clone()));
        client
    }
}

fn body(path: &str, answer: Result<Page, FetchError>) -> Result<Option<Bytes>, String> {
    let page = answer.map_err(|error| format!("{path}: {error}"))?;
    match page.status {
        status if status.is_success() => Ok(Some(page.body)),
        StatusCode::NOT_FOUND => Ok(None),
        status => Err(format!("{path}: status {status}")),
    }
}

impl Engines for OverHttp {
    fn get<'a>(&'a self, endpoint: &'a Target, path: &'a str) -> Asking<'a> {
        Box::pin(async move {
            let limits = PageLimits {
                timeout: PAGE_WITHIN,
                body: MAX_PAGE,
            };
            body(path, self.client(endpoint).get(path, limits).await)
        })
    }

    fn post<'a>(
        &'a self,
        endpoint: &'a Target,
        path: &'a str,
        json: Bytes,
        within: Duration,
    ) -> Asking<'a> {
        Box::pin(async move {
            let limits = PageLimits {
                timeout: within,
                body: MAX_POLL,
            };
            body(
                path,
                self.kept(endpoint, path).post(path, json, limits).await,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_cache::link::vllm_event_sources;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn provider() -> Arc<rustls::crypto::CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }

    /// An engine behind TLS that answers every request with this page. Gives its port and its certificate.
    async fn engine(page: &'static str) -> (u16, rustls::pki_types::CertificateDer<'static>) {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = signed.cert.der().clone();
        let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0
                {
                }
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}",
                    page.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (port, certificate)
    }

    fn trusting(
        certificate: Option<rustls::pki_types::CertificateDer<'static>>,
    ) -> Arc<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificate);
        Arc::new(
            rustls::ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth(),
        )
    }

    #[tokio::test]
    async fn an_engine_behind_https_says_where_its_events_are() {
        let page = r#"{"0":{"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":null,"topic":"kv"}}"#;
        let (port, certificate) = engine(page).await;
        let target = Target {
            endpoint: 1,
            name: "e".into(),
            target: quorate_routing::Target::new(true, "localhost", port),
            model: "m".into(),
            rank: None,
            needs: Arc::default(),
        };
        let ask = |tls| {
            let engines = OverHttp::new(Arc::default(), tls);
            let target = target.clone();
            async move { engines.get(&target, "/kv_event_sources").await }
        };
        let body = ask(Some(trusting(Some(certificate)))).await.unwrap();
        let sources = vllm_event_sources(&body.unwrap(), "localhost").unwrap();
        let events: Vec<String> = sources.iter().map(|s| s.events.to_string()).collect();
        assert_eq!(events, ["tcp://localhost:5557"]);
        // Nobody else may say it.
        for stranger in [Some(trusting(None)), None] {
            let refused = ask(stranger).await.unwrap_err();
            assert!(refused.contains("/kv_event_sources"), "{refused}");
        }
    }
}
