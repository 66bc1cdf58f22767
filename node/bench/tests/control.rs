//! The control benchmarks against gRPC servers in the test: what is counted is what was written.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use clap::Parser;
use quorate_bench::{ControlArgs, ControlReport, Report, run_control};
use quorate_proto::v1::{
    ApplyRequest, ApplyResponse, Consistency, DeleteRequest, DeleteResponse, GetRequest,
    GetResponse, ListRequest, ListResponse, WatchRequest, WatchResponse,
    resource::Spec,
    resources_server::{Resources, ResourcesServer},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: ControlArgs,
}

fn bench(args: &[&str], say: fn(&str)) -> anyhow::Result<ControlReport> {
    let cli = Cli::try_parse_from(["bench"].iter().chain(args))?;
    match run_control(cli.args, say)? {
        Report::Control(report) => Ok(*report),
        Report::Http(_) => anyhow::bail!("not a control report"),
    }
}

/// What the nodes of one test share.
#[derive(Default)]
struct Store {
    values: BTreeMap<String, String>,
    keys: BTreeSet<String>,
    writes: u64,
    reads: u64,
    /// No write succeeds before this.
    down_until: Option<Instant>,
    /// The write after which that begins, and for how long.
    outage: Option<(u64, Duration)>,
}

#[derive(Clone, Default)]
struct Node(Arc<Mutex<Store>>);

type Watch =
    std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Resources for Node {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let ApplyRequest {
            idempotency_key,
            resource,
            ..
        } = request.into_inner();
        let resource = resource.ok_or_else(|| Status::invalid_argument("no resource"))?;
        let Some(Spec::Setting(setting)) = resource.spec else {
            return Err(Status::invalid_argument("no setting"));
        };
        let mut store = self.0.lock().unwrap();
        if store.down_until.is_some_and(|t| Instant::now() < t) {
            return Err(Status::unavailable("no leader"));
        }
        let value: String = serde_json::from_str(&setting.json)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        if !store.keys.insert(idempotency_key) {
            return Err(Status::already_exists("this key was used before"));
        }
        let name = resource.metadata.unwrap_or_default().name;
        if store.values.insert(name, setting.json) == Some(format!("\"{value}\"")) {
            return Err(Status::already_exists("the value did not change"));
        }
        store.writes += 1;
        if let Some((_, length)) = store.outage.filter(|(after, _)| *after == store.writes) {
            store.down_until = Some(Instant::now() + length);
        }
        Ok(Response::new(Default::default()))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let request = request.into_inner();
        if request.consistency() != Consistency::Linearizable {
            return Err(Status::invalid_argument("not linearizable"));
        }
        let mut store = self.0.lock().unwrap();
        store.reads += 1;
        if !store.values.contains_key(&request.name) {
            return Err(Status::not_found(request.name));
        }
        Ok(Response::new(Default::default()))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    type WatchStream = Watch;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Watch>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// Serves the store until the returned sender is dropped; connections break then.
fn serve(node: Node) -> (SocketAddr, tokio::sync::oneshot::Sender<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (alive, dead) = tokio::sync::oneshot::channel::<()>();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = TcpListenerStream::new(listener)
                .map(|s| s.inspect(|s| s.set_nodelay(true).unwrap()));
            let server =
                tonic::transport::Server::builder().add_service(ResourcesServer::new(node));
            tokio::select! {
                result = server.serve_with_incoming(incoming) => result.unwrap(),
                _ = dead => {}
            }
        });
    });
    (address, alive)
}

#[test]
fn every_write_is_another_one() {
    let node = Node::default();
    let ((a, _alive_a), (b, _alive_b)) = (serve(node.clone()), serve(node.clone()));
    let endpoints = format!("{a},http://{b}");
    let args = [
        "put",
        "--endpoints",
        &endpoints,
        "--clients",
        "4",
        "--duration",
        "400ms",
        "--keys",
        "5",
    ];
    let r = bench(&args, |_| {}).unwrap();
    assert_eq!(
        (r.errors, r.first_error.as_deref(), r.op.as_str()),
        (0, None, "put")
    );
    assert!(r.ops > 0 && r.latency_us.count == r.ops && r.latency_us.p50 > 0.0);
    assert!((r.per_s - r.ops as f64 / 0.4).abs() < 1e-6);
    let store = node.0.lock().unwrap();
    // Those before the window were written too.
    assert!(store.writes > r.ops);
    assert_eq!(store.keys.len() as u64, store.writes);
    assert_eq!(store.values.len(), 20);
    assert!(store.values.values().all(|json| json.len() == 256));
}

#[test]
fn reads_find_what_they_read() {
    let node = Node::default();
    let (address, _alive) = serve(node.clone());
    let endpoints = address.to_string();
    let args = [
        "get",
        "--endpoints",
        &endpoints,
        "--clients",
        "2",
        "--duration",
        "300ms",
        "--keys",
        "3",
    ];
    let r = bench(&args, |_| {}).unwrap();
    assert_eq!((r.errors, r.first_error.as_deref()), (0, None));
    let store = node.0.lock().unwrap();
    assert_eq!(store.writes, 6);
    assert!(r.ops > 0 && store.reads > r.ops);
}

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[test]
fn an_outage_is_as_long_as_it_was() {
    let node = Node::default();
    node.0.lock().unwrap().outage = Some((50, Duration::from_millis(700)));
    let ((a, _alive_a), (b, _alive_b)) = (serve(node.clone()), serve(node.clone()));
    let args = [
        "failover",
        "--endpoints",
        &format!("{a},{b}"),
        "--duration",
        "2s",
    ];
    let r = bench(&args, |line| SAID.lock().unwrap().push(line.to_owned())).unwrap();
    let longest = r.longest_outage_ms.unwrap();
    assert!((699.0..5000.0).contains(&longest), "{longest}");
    assert!(r.errors > 0 && r.ops > 50, "{r:?}");
    assert!(r.first_error.as_ref().unwrap().contains("no leader"));
    assert!(r.outages_ms.contains(&longest));
    let said = SAID.lock().unwrap();
    assert_eq!(said[0], "ready");
    assert!(
        said.contains(&format!("outage_ms {}", longest as u64)),
        "{said:?}"
    );
}

#[test]
fn another_node_takes_over() {
    let node = Node::default();
    let ((a, alive_a), (b, _alive_b)) = (serve(node.clone()), serve(node.clone()));
    let watched = node.clone();
    let killer = thread::spawn(move || {
        while watched.0.lock().unwrap().writes < 50 {
            thread::sleep(Duration::from_millis(1));
        }
        drop(alive_a);
        watched.0.lock().unwrap().writes
    });
    let args = [
        "failover",
        "--endpoints",
        &format!("{a},{b}"),
        "--duration",
        "1s",
    ];
    let r = bench(&args, |_| {}).unwrap();
    let at_kill = killer.join().unwrap();
    assert!(r.errors >= 1, "{r:?}");
    assert!(
        node.0.lock().unwrap().writes > at_kill + 20,
        "writes go on: {r:?}"
    );
}

#[test]
fn what_cannot_run_is_an_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = listener.local_addr().unwrap().to_string();
    drop(listener);
    let e = bench(&["put", "--endpoints", &gone, "--duration", "1s"], |_| {}).unwrap_err();
    assert!(format!("{e:#}").contains("cannot connect"), "{e:#}");
    for wrong in [
        &["put"][..],
        &["put", "--endpoints", "https://127.0.0.1:1"],
        &["put", "--endpoints", "127.0.0.1"],
        &["put", "--endpoints", "127.0.0.1:1", "--clients", "0"],
        &["put", "--endpoints", "127.0.0.1:1", "--bytes", "4"],
        &["failover", "--endpoints", "not an address"],
    ] {
        assert!(bench(wrong, |_| {}).is_err(), "{wrong:?}");
    }
}
