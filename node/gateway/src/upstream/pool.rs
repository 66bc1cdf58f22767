//! The idle connections of one worker, by endpoint.

use super::exchange::{Channel, Link, RequestBody};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use hyper::client::conn::http2;
use metrics::Counter;
use parking_lot::Mutex;
use quorate_routing::{Endpoint, RoutingView};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All endpoints that the worker has talked to. The locks are only ever taken on the worker's own thread.
pub(crate) struct Upstreams {
    /// By the endpoint's address in memory: a new incarnation is a new [`Endpoint`], and an entry keeps its own alive, so that
    /// an address is not used twice.
    entries: Mutex<HashMap<usize, Arc<Entry>>>,
    max_idle: usize,
    idle_timeout: Duration,
}

/// One endpoint's connections.
pub(crate) struct Entry {
    endpoint: Arc<Endpoint>,
    host: HeaderValue,
    authority: Option<Authority>,
    /// Least recently used first.
    #[expect(
        clippy::vec_box,
        reason = "a link is large and goes in and out with every request: only its box moves"
    )]
    idle: Mutex<Vec<Box<Link>>>,
    http2: Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// How often it was picked, by the model asked for.
    picks: Mutex<Vec<(Arc<str>, Counter)>>,
    max_idle: usize,
    idle_timeout: Duration,
}

impl Upstreams {
    pub fn new(max_idle: usize, idle_timeout: Duration) -> Self {
        Self {
            entries: Mutex::default(),
            max_idle,
            idle_timeout,
        }
    }

    /// The connections of an endpoint.
    pub fn entry(&self, endpoint: &Arc<Endpoint>) -> Arc<Entry> {
        let mut entries = self.entries.lock();
        let entry = entries
            .entry(Arc::as_ptr(endpoint).addr())
            .or_insert_with(|| {
                let authority = &endpoint.spec().target.authority;
                Arc::new(Entry {
                    endpoint: Arc::clone(endpoint),
                    host: HeaderValue::from_str(authority).unwrap_or(HeaderValue::from_static("")),
                    authority: authority.parse().ok(),
                    idle: Mutex::default(),
                    http2: Mutex::default(),
                    picks: Mutex::default(),
                    max_idle: self.max_idle,
                    idle_timeout: self.idle_timeout,
                })
            });
        Arc::clone(entry)
    }

    /// Closes what has been idle for too long or was closed by the endpoint, and forgets endpoints that are not in the view.
    pub fn sweep(&self, view: &RoutingView) {
        let live: HashSet<usize> = view
            .pools()
            .iter()
            .flat_map(|pool| &pool.endpoints)
            .map(|e| Arc::as_ptr(e).addr())
            .collect();
        let mut entries = self.entries.lock();
        entries.retain(|address, _| live.contains(address));
        entries.values().for_each(|entry| entry.sweep());
    }
}

impl Entry {
    /// It was picked for a request that asks for `model`.
    pub fn count_pick(&self, model: &Arc<str>) {
        let mut picks = self.picks.lock();
        if let Some((_, counter)) = picks.iter().find(|(of, _)| of == model) {
            counter.increment(1);
            return;
        }
        let counter = crate::metrics::picked(&self.endpoint, model);
        counter.increment(1);
        picks.push((Arc::clone(model), counter));
    }

    /// The `Host` header.
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// `uri` with the endpoint's scheme and authority, as HTTP/2 wants it.
    pub fn absolute(&self, uri: &Uri) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if self.endpoint.spec().target.tls {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        });
        parts.authority = self.authority.clone();
        parts.path_and_query = Some(
            uri.path_and_query()
                .cloned()
                .unwrap_or(PathAndQuery::from_static("/")),
        );
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// An open connection: the shared one, or the most recently used idle one.
    pub(super) fn take(&self) -> Option<Channel> {
        if self.endpoint.spec().h2c {
            let shared = self.http2.lock();
            return shared
                .as_ref()
                .filter(|s| !s.is_closed())
                .cloned()
                .map(Channel::Http2);
        }
        loop {
            let mut link = self.idle.lock().pop()?;
            if link.idle_since.elapsed() < self.idle_timeout && link.is_reusable() {
                return Some(Channel::Http1(link));
            }
        }
    }

    /// Keeps a connection for the next request.
    pub fn give_back(&self, mut link: Box<Link>) {
        link.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        if idle.len() < self.max_idle {
            idle.push(link);
        }
    }

    /// Lets other requests use a new connection, too, if it can carry several.
    pub(super) fn share(&self, channel: &Channel) {
        if let Channel::Http2(sender) = channel {
            *self.http2.lock() = Some(sender.clone());
        }
    }

    /// The HTTP/2 connection is broken.
    pub fn forget_http2(&self) {
        *self.http2.lock() = None;
    }

    fn sweep(&self) {
        self.idle
            .lock()
            .retain_mut(|link| link.idle_since.elapsed() < self.idle_timeout && link.is_reusable());
    }
}
