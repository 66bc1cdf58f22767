//! Finds a router node that answers, and repeats a call on the next one where that is safe.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use quorate_proto::v1::{
    cache_client, cluster_client, decisions_client, endpoints_client, pools_client,
    resources_client,
};
use tokio::time::Instant;
use tonic::{
    Code, Request, Response, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt as _;

use crate::{
    exit::{Exit, Failure, is_broken_connection, root_cause},
    manifest::duration,
};

/// Largest answer that is read: a page of a listing is a few MiB.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Longest wait for one node to accept a connection; then the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait before a round of calls is repeated, unless the server names another.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// The shortest wait, whatever a server says.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(20);

/// A connection on which each call says how long the caller waits.
pub type Timed = InterceptedService<Channel, Deadline>;
/// Client of `quorate.v1.Resources`.
pub type Resources = resources_client::ResourcesClient<Timed>;
/// Client of `quorate.v1.Endpoints`.
pub type Endpoints = endpoints_client::EndpointsClient<Timed>;
/// Client of `quorate.v1.Pools`.
pub type Pools = pools_client::PoolsClient<Timed>;
/// Client of `quorate.v1.Decisions`.
pub type Decisions = decisions_client::DecisionsClient<Timed>;
/// Client of `quorate.v1.Cache`.
pub type Cache = cache_client::CacheClient<Timed>;
/// Client of `quorate.v1.Cluster`.
pub type Cluster = cluster_client::ClusterClient<Timed>;

/// Tells the server until when an answer is of use, so that it can say why there is none instead of being cut off.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Interceptor for Deadline {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        // A little later than our own clock ends the call: that one knows which node it was and what was tried.
        let left = self.0.saturating_duration_since(Instant::now());
        request.set_timeout(left + Duration::from_millis(50));
        Ok(request)
    }
}

/// Which nodes to talk to and how.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct ClientArgs {
    /// Control address of a router node; repeat it or separate with commas, the next one is tried when one does not answer
    #[arg(
        long = "server",
        value_name = "HOST:PORT",
        env = "QUORATE_SERVER",
        value_delimiter = ',',
        default_value = "127.0.0.1:7070",
        global = true
    )]
    pub servers: Vec<String>,
    /// Certificate of the CA that signed the nodes' certificates; turns on TLS
    #[arg(long, value_name = "FILE", env = "QUORATE_CA", global = true)]
    pub ca: Option<PathBuf>,
    /// Client certificate
    #[arg(
        long,
        value_name = "FILE",
        env = "QUORATE_CERT",
        requires = "ca",
        global = true
    )]
    pub cert: Option<PathBuf>,
    /// Private key of the client certificate
    #[arg(
        long,
        value_name = "FILE",
        env = "QUORATE_KEY",
        requires = "ca",
        global = true
    )]
    pub key: Option<PathBuf>,
    /// How long to keep trying, for example 10s or 1m30s
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration::parse_std, global = true)]
    pub timeout: Duration,
}

#[derive(Debug)]
struct Node {
    address: String,
    endpoint: Endpoint,
    channel: Mutex<Option<Channel>>,
}

/// A connection to the cluster through any of its nodes. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Client {
    nodes: Arc<[Node]>,
    /// The node that answered last.
    current: Arc<AtomicUsize>,
    timeout: Duration,
    tls: Option<ClientTlsConfig>,
    /// Whether it shows a client certificate.
    has_identity: bool,
}

/// A connection to one node.
#[derive(Clone, Debug)]
pub struct Link {
    channel: Channel,
    deadline: Instant,
}

impl Link {
    fn timed(&self) -> Timed {
        InterceptedService::new(self.channel.clone(), Deadline(self.deadline))
    }

    /// Declared state.
    pub fn resources(&self) -> Resources {
        Resources::new(self.timed()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Declared state, for a watch, which has no end.
    pub fn watches(&self) -> resources_client::ResourcesClient<Channel> {
        resources_client::ResourcesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Live state of endpoints.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints::new(self.timed()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// How pools schedule.
    pub fn pools(&self) -> Pools {
        Pools::new(self.timed()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Records of requests.
    pub fn decisions(&self) -> Decisions {
        Decisions::new(self.timed()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// KV caches.
    pub fn cache(&self) -> Cache {
        Cache::new(self.timed()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Membership.
    pub fn cluster(&self) -> Cluster {
        Cluster::new(self.timed()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

/// What one round over all nodes came to.
enum Round<T> {
    Done(T),
    /// Nobody could take the call now; nothing of it took effect, or it carries an idempotency key.
    Again {
        failure: Failure,
        /// None: no node could even be reached.
        delay: Option<Duration>,
    },
}

impl Client {
    /// Checks the arguments and reads the certificates. Connects when the first call is made.
    ///
    /// # Errors
    /// A bad address (exit 2), or a file that cannot be read or used.
    pub fn new(args: &ClientArgs) -> Result<Self, Failure> {
        let tls = tls(args)?;
        let nodes = args
            .servers
            .iter()
            .map(|server| server.trim())
            .filter(|server| !server.is_empty())
            .map(|server| node(server, tls.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        if nodes.is_empty() {
            return Err(Failure::new(Exit::Usage, "--server names no address"));
        }
        Ok(Self {
            nodes: nodes.into(),
            current: Arc::default(),
            timeout: args.timeout,
            tls,
            has_identity: args.cert.is_some(),
        })
    }

    /// How long one call may take, repetitions included.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A client of one other node, with the same credentials. None if the address is no address.
    pub fn other(&self, address: &str, timeout: Duration) -> Option<Self> {
        let node = node(address, self.tls.as_ref()).ok()?;
        Some(Self {
            nodes: Arc::from([node]),
            current: Arc::default(),
            timeout,
            tls: self.tls.clone(),
            has_identity: self.has_identity,
        })
    }

    /// Makes one call. A node that cannot be reached, breaks the connection or has no leader is left for the next one;
    /// rounds are repeated until the time is over. So `send` must be safe to repeat: a read, or a write whose idempotency
    /// key was made before.
    ///
    /// # Errors
    /// The status that the call ended with; [`Exit::Unavailable`] if no node could take it, [`Exit::Timeout`] if one took
    /// it and did not answer in time.
    pub async fn call<T>(
        &self,
        mut send: impl AsyncFnMut(Link) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut earlier = None;
        loop {
            let round = match (self.round(deadline, &mut send).await, earlier.take()) {
                // What a node said before tells more than that the last attempt ran out of time.
                (Err(late), Some(said)) if late.exit == Exit::Timeout => return Err(said),
                (round, said) => {
                    earlier = said;
                    round?
                }
            };
            let (failure, delay) = match round {
                Round::Done(response) => return Ok(response),
                // Nobody was there from the beginning: waiting would only hide a wrong address.
                Round::Again {
                    failure,
                    delay: None,
                } if earlier.is_none() => return Err(failure),
                Round::Again { failure, delay } => (failure, delay),
            };
            let pause = delay.unwrap_or(RETRY_DELAY);
            if Instant::now() + pause >= deadline {
                return Err(if delay.is_some() {
                    failure
                } else {
                    earlier.unwrap_or(failure)
                });
            }
            if delay.is_some() {
                earlier = Some(failure);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn round<T>(
        &self,
        deadline: Instant,
        send: &mut impl AsyncFnMut(Link) -> Result<Response<T>, Status>,
    ) -> Result<Round<T>, Failure> {
        let first = self.current.load(Ordering::Relaxed);
        let mut unreachable: Vec<String> = Vec::new();
        let mut refused = None;
        for index in (0..self.nodes.len()).map(|i| (first + i) % self.nodes.len()) {
            let Some(node) = self.nodes.get(index) else {
                continue;
            };
            let channel = match node.connect(deadline).await {
                Ok(channel) => channel,
                Err(reason) => {
                    unreachable.push(format!("{}: {reason}", node.address));
                    continue;
                }
            };
            match tokio::time::timeout_at(deadline, send(Link { channel, deadline })).await {
                Err(_) => {
                    let message = format!(
                        "{} did not answer within {}",
                        node.address,
                        duration::text(self.timeout)
                    );
                    return Err(Failure::new(Exit::Timeout, message));
                }
                Ok(Ok(response)) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(Round::Done(response.into_inner()));
                }
                Ok(Err(status))
                    if status.code() == Code::Unavailable || is_broken_connection(&status) =>
                {
                    let delay = status
                        .get_details_retry_info()
                        .and_then(|info| info.retry_delay);
                    let broken = is_broken_connection(&status);
                    let mut failure = Failure::from(status).context(&node.address);
                    if broken {
                        node.forget();
                        if !self.has_identity {
                            failure = failure.with_hint(
                                "if the node wants TLS or a client certificate: --ca, --cert, --key",
                            );
                        }
                    }
                    let delay = delay.unwrap_or(RETRY_DELAY).max(MIN_RETRY_DELAY);
                    refused = Some((failure, delay));
                }
                Ok(Err(status)) => return Err(status.into()),
            }
        }
        Ok(match refused {
            Some((failure, delay)) => Round::Again {
                failure,
                delay: Some(delay),
            },
            None => {
                let message = format!("no node can be reached ({})", unreachable.join("; "));
                Round::Again {
                    failure: Failure::new(Exit::Unavailable, message),
                    delay: None,
                }
            }
        })
    }
}

impl Node {
    async fn connect(&self, deadline: Instant) -> Result<Channel, String> {
        if let Some(channel) = self.lock().clone() {
            return Ok(channel);
        }
        let channel = match tokio::time::timeout_at(deadline, self.endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(root_cause(&error)),
            Err(_) => return Err("no connection in time".to_owned()),
        };
        *self.lock() = Some(channel.clone());
        Ok(channel)
    }

    /// Connects anew next time: the node may have gone, and a channel would hide that as a broken call.
    fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Channel>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node(server: &str, tls: Option<&ClientTlsConfig>) -> Result<Node, Failure> {
    let bad = |why: &str| Failure::new(Exit::Usage, format!("--server {server:?}: {why}"));
    let address = match server.split_once("://") {
        Some(("http", _)) if tls.is_some() => {
            return Err(bad("http:// and --ca exclude each other"));
        }
        Some(("https", _)) if tls.is_none() => return Err(bad("https:// needs --ca")),
        Some(("http" | "https", address)) => address.trim_end_matches('/'),
        Some(_) => return Err(bad("expected HOST:PORT")),
        None => server,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let uri: tonic::codegen::http::Uri = format!("{scheme}://{address}")
        .parse()
        .map_err(|_| bad("expected HOST:PORT"))?;
    if uri.port_u16().is_none_or(|port| port == 0) || uri.path() != "/" {
        return Err(bad("expected HOST:PORT"));
    }
    let mut endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .user_agent(concat!("quorate-cli/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| bad(&root_cause(&error)))?;
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.clone()).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the certificates cannot be used: {}", root_cause(&error)),
            )
        })?;
    }
    Ok(Node {
        address: address.to_owned(),
        endpoint,
        channel: Mutex::new(None),
    })
}

fn tls(args: &ClientArgs) -> Result<Option<ClientTlsConfig>, Failure> {
    let Some(ca) = &args.ca else { return Ok(None) };
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|e| Failure::from(e).context(path.display()));
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
    match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
        (None, None) => {}
        _ => {
            return Err(Failure::new(
                Exit::Usage,
                "--cert and --key belong together",
            ));
        }
    }
    Ok(Some(tls))
}

/// A new idempotency key. Made once for each change and kept across its repetitions.
pub fn new_key() -> String {
    format!("cli-{:032x}", fastrand::u128(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(servers: &[&str]) -> Result<Client, Failure> {
        Client::new(&ClientArgs {
            servers: servers.iter().map(ToString::to_string).collect(),
            ca: None,
            cert: None,
            key: None,
            timeout: Duration::from_secs(1),
        })
    }

    #[test]
    fn addresses_are_checked() {
        for good in [
            "127.0.0.1:7070",
            "node-1.example.org:1",
            "[::1]:7070",
            "http://h:1",
            "http://h:1/",
        ] {
            assert!(client(&[good]).is_ok(), "{good}");
        }
        for bad in [
            "",
            "h",
            "h:",
            "h:0",
            "h:99999",
            "https://h:1",
            "ftp://h:1",
            "h:1/path",
            "a b:1",
        ] {
            assert_eq!(
                client(&[bad]).map(|_| ()).map_err(|f| f.exit),
                Err(Exit::Usage),
                "{bad}"
            );
        }
    }

    #[test]
    fn keys_differ_and_fit() {
        let (a, b) = (new_key(), new_key());
        assert_ne!(a, b);
        assert!(a.len() <= 128);
    }

    #[tokio::test]
    async fn nobody_listening_is_told_at_once() {
        let failure = client(&["127.0.0.1:1"])
            .unwrap_or_else(|f| panic!("{f}"))
            .call(async |link| {
                link.cluster()
                    .status(quorate_proto::v1::ClusterStatusRequest {})
                    .await
            })
            .await
            .expect_err("port 1 is closed");
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(
            failure.message.contains("127.0.0.1:1: Connection refused"),
            "{failure}"
        );
    }
}
