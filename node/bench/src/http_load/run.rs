//! What all requests of a run share, and one client's way of sending them.

use super::{
    body::Pieces,
    exchange::{End, Exchange, Scratch},
    failure::{Class, Failure},
    link::{self, Dial, Link},
    stats::Stats,
    workload::Workload,
};
use http::{HeaderMap, Method, Request, Uri};
use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The time in which requests are measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) start: Instant,
    pub(crate) from: Instant,
    /// `None`: until the last request is done.
    pub(crate) until: Option<Instant>,
}

impl Window {
    pub(crate) fn contains(&self, t: Instant) -> bool {
        t >= self.from && self.until.is_none_or(|until| t < until)
    }

    pub(crate) fn is_over(&self, t: Instant) -> bool {
        self.until.is_some_and(|until| t >= until)
    }
}

/// One server, ready to be called.
pub(crate) struct Server {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

/// The same for all threads.
pub(crate) struct Shared {
    pub(crate) servers: Vec<Server>,
    pub(crate) method: Method,
    pub(crate) workload: Workload,
    pub(crate) window: Window,
    pub(crate) threads: usize,
    pub(crate) connections: usize,
    pub(crate) max_in_flight: usize,
    /// Requests on one connection at a time.
    pub(crate) streams: usize,
    pub(crate) dial: Dial,
    pub(crate) timeout: Duration,
    pub(crate) slow_reader: Option<u64>,
    pub(crate) disconnect_after: Option<u64>,
    /// The next request of a closed loop.
    pub(crate) next_number: AtomicU64,
    /// Measured requests that may still begin.
    pub(crate) budget: Option<AtomicU64>,
    /// Set when the run is given up.
    pub(crate) stop: AtomicBool,
}

impl Shared {
    /// Takes one measured request from the budget; false if it is spent.
    pub(crate) fn take_one(&self) -> bool {
        let Some(budget) = &self.budget else {
            return true;
        };
        budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
    }

    /// No measured request may begin any more.
    pub(crate) fn is_spent(&self) -> bool {
        self.budget
            .as_ref()
            .is_some_and(|budget| budget.load(Ordering::Relaxed) == 0)
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One thread's share.
pub(crate) struct Thread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: usize,
    pub(crate) stats: RefCell<Stats>,
    /// HTTP/2 connections, which several clients use.
    homes: RefCell<Vec<Rc<Home>>>,
}

#[derive(Default)]
struct Home {
    connection: tokio::sync::Mutex<Option<Shareable>>,
}

type Shareable = hyper::client::conn::http2::SendRequest<Pieces>;

impl Thread {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> anyhow::Result<Self> {
        let stats = RefCell::new(Stats::new(shared.servers.len())?);
        Ok(Thread {
            shared,
            index,
            stats,
            homes: RefCell::default(),
        })
    }

    /// Requests that this thread may have in flight out of `total`.
    pub(crate) fn share_of(&self, total: usize) -> usize {
        let threads = self.shared.threads;
        total / threads + usize::from(self.index < total % threads)
    }

    fn home(&self, connection: usize) -> Rc<Home> {
        let mut homes = self.homes.borrow_mut();
        while homes.len() <= connection {
            homes.push(Rc::default());
        }
        homes[connection].clone()
    }
}

/// One client: sends one request at a time.
pub(crate) struct Client {
    thread: Rc<Thread>,
    url: usize,
    link: Option<Link>,
    /// Where an HTTP/2 connection is shared with others.
    home: Option<Rc<Home>>,
    scratch: Scratch,
}

/// When a request counts from, and whether it counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) intended: Instant,
    pub(crate) measured: bool,
}

impl Client {
    /// The `index`-th client of its thread.
    pub(crate) fn new(thread: Rc<Thread>, index: usize) -> Self {
        let shared = &thread.shared;
        let connection = index / shared.streams;
        let url = (thread.index + connection * shared.threads) % shared.servers.len();
        let home = shared.dial.http2.then(|| thread.home(connection));
        Client {
            url,
            link: None,
            home,
            scratch: Scratch::new(),
            thread,
        }
    }

    /// Makes sure of a connection that can take a request; one that the server has closed is replaced.
    pub(crate) async fn connect(&mut self) -> Result<(), Failure> {
        if let Some(link) = &mut self.link {
            if link.ready().await {
                return Ok(());
            }
            self.link = None;
        }
        let limit = self.thread.shared.timeout;
        let opened = tokio::time::timeout(limit, self.open()).await;
        let mut link = opened.unwrap_or_else(|_| Err(Failure::new(Class::Connect, "timed out")))?;
        if !link.ready().await {
            return Err(Failure::new(
                Class::Reset,
                "the server closed a new connection at once",
            ));
        }
        self.link = Some(link);
        Ok(())
    }

    async fn open(&self) -> Result<Link, Failure> {
        let shared = &self.thread.shared;
        let addresses = &shared.servers[self.url].addresses;
        let Some(home) = &self.home else {
            let link = link::connect(addresses, shared.dial).await?;
            self.thread.stats.borrow_mut().connections_opened += 1;
            return Ok(link);
        };
        // Held while connecting: the others on this connection wait for it.
        let mut held = home.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|c| !c.is_closed()) {
            return Ok(Link::Http2(connection.clone()));
        }
        let link = link::connect(addresses, shared.dial).await?;
        self.thread.stats.borrow_mut().connections_opened += 1;
        if let Link::Http2(connection) = &link {
            *held = Some(connection.clone());
        }
        Ok(link)
    }

    /// Sends request `number` on the connection and records how it went; false if it failed.
    pub(crate) async fn request(
        &mut self,
        prepared: super::workload::Prepared,
        start: Start,
    ) -> bool {
        let Some(link) = self.link.take() else {
            return false;
        };
        let thread = &*self.thread;
        let shared = &thread.shared;
        let server = &shared.servers[self.url];
        let mut request = Request::new(prepared.body);
        *request.method_mut() = shared.method.clone();
        *request.uri_mut() = server.uri.clone();
        *request.headers_mut() = server.headers.clone();
        if shared.dial.http2 {
            *request.version_mut() = http::Version::HTTP_2;
        }
        thread.stats.borrow_mut().enter();
        let sent = Instant::now();
        let exchange = Exchange {
            thread,
            url: self.url,
            stream: prepared.stream,
            measured: start.measured,
            intended: start.intended,
            scratch: &mut self.scratch,
        };
        // A request that is not over in time is dropped, and its connection with it.
        let outcome = tokio::time::timeout(shared.timeout, exchange.run(link, request)).await;
        let now = Instant::now();
        let (link, result) = outcome.unwrap_or_else(|_| {
            let text = format!("not over after {:?}", shared.timeout);
            (None, Err(Failure::new(Class::Timeout, text)))
        });
        self.link = link;
        let mut stats = thread.stats.borrow_mut();
        stats.in_flight -= 1;
        if result == Ok(End::Complete) && shared.window.contains(now) {
            stats.completed_in_window += 1;
        }
        if start.measured {
            match &result {
                Ok(end) => {
                    let url = &mut stats.urls[self.url];
                    if *end == End::Complete {
                        url.ok += 1;
                        url.latency
                            .record(now.saturating_duration_since(start.intended));
                        url.service.record(now - sent);
                    } else {
                        url.disconnected += 1;
                    }
                    stats.last_end = Some(now);
                }
                Err(failure) => stats.fail(self.url, failure, now),
            }
        }
        result.is_ok()
    }

    /// Counts a request that could not even be sent.
    pub(crate) fn count_failure(&self, failure: &Failure) {
        self.thread
            .stats
            .borrow_mut()
            .fail(self.url, failure, Instant::now());
    }
}
