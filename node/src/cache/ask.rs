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
