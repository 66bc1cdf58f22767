//! The services over real sockets, on a cluster of one in memory.

mod cache;
mod decisions;
mod live;
mod resources;
mod scheduling;

use super::{ControlContext, routes};
use crate::cache::CacheParts;
use crate::explain::{Desk, FileOptions};
use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use quorate_cache::index::{CacheIndex, IndexConfig};
use quorate_cache::route::CachePlugins;
use quorate_endpoint::{Declare, DeclareError, Declared, DiscoveryOp, EndpointPlane, PlaneOptions};
use quorate_proto::v1::{
    self, ApplyOutcome, Kind, cluster_client::ClusterClient, endpoints_client::EndpointsClient,
    resource::Spec, resources_client::ResourcesClient, watch_response::Type,
};
use quorate_raft::{Cluster, Options};
use quorate_routing::explain::{Recorder, RecorderOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

struct NoDiscovery;

#[tonic::async_trait]
impl Declare for NoDiscovery {
    async fn apply(&self, _: Vec<DiscoveryOp>) -> Result<(), DeclareError> {
        Ok(())
    }
}

struct Node {
    channel: Channel,
    cluster: Cluster,
    stop: CancellationToken,
    recorder: Arc<Recorder>,
    cache: CacheParts,
    index: Arc<CacheIndex>,
    /// Where files of decisions go.
    data: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Pools and endpoints, as they change.
fn declared(cluster: &Cluster) -> watch::Receiver<Declared> {
    let list = |cluster: &Cluster| {
        let view = cluster.view();
        let of = |kind| view.list(kind).map(|r| v1::Resource::clone(r)).collect();
        Declared {
            pools: of(Kind::Pool),
            endpoints: of(Kind::Endpoint),
            configs: of(Kind::SchedulingConfig),
            objectives: of(Kind::Objective),
            rewrites: of(Kind::ModelRewrite),
        }
    };
    let (sender, receiver) = watch::channel(list(cluster));
    let (cluster, mut revision) = (cluster.clone(), cluster.revision());
    tokio::spawn(async move {
        while revision.changed().await.is_ok() && sender.send(list(&cluster)).is_ok() {}
    });
    receiver
}

impl Node {
    async fn start() -> Self {
        let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut options = Options::new("node-1", peer);
        options.region = "eu".to_owned();
        let cluster = Cluster::start(options).await.unwrap();
        cluster.ready(Duration::from_secs(20)).await.unwrap();
        let config = IndexConfig { max_bytes: 1 << 20 };
        let index = Arc::new(CacheIndex::new(config));
        let plugins = CachePlugins::new(Arc::clone(&index));
        let view = Arc::new(ArcSwap::from_pointee(
            quorate_routing::RoutingView::default(),
        ));
        let plane = EndpointPlane::start(PlaneOptions {
            node_id: cluster.node_id(),
            instance: cluster.instance().to_owned(),
            cluster_id: cluster.cluster_id().to_owned(),
            region: "eu".into(),
            check_caller: Arc::new(|_, _| Ok(())),
            declared: declared(&cluster),
            peers: watch::channel(Vec::new()).1,
            view: Arc::clone(&view),
            declare: Arc::new(NoDiscovery),
            tls: None,
            timing: quorate_endpoint::Timing::default(),
            registry: plugins.register(quorate_routing::config::Registry::default()),
        })
        .await
        .unwrap();
        let plane = Arc::new(plane);
        let map = (Arc::clone(&index), config);
        let cache = CacheParts::start(&cluster, &plane, view, map, plugins, None)
            .await
            .unwrap();
        let recorder = Arc::new(Recorder::new(RecorderOptions {
            capacity: 100,
            max_bytes: 1 << 20,
            share: 1.0,
            max_per_second: 1000,
        }));
        let data = tempfile::tempdir().unwrap();
        let files = FileOptions {
            data_dir: Some(data.path().to_owned()),
            max_bytes: 1 << 20,
        };
        let decisions = Arc::new(Desk::new("node-1", Arc::clone(&recorder), files));
        let stop = CancellationToken::new();
        let routes = routes(ControlContext {
            cluster: cluster.clone(),
            plane,
            decisions,
            cache: Arc::clone(cache.desk()),
            stop: stop.clone(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(
            Server::builder()
                .add_routes(routes)
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped),
        );
        let channel = Channel::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self {
            channel,
            cluster,
            stop,
            recorder,
            cache,
            index,
            data,
        }
    }

    fn resources(&self) -> ResourcesClient<Channel> {
        ResourcesClient::new(self.channel.clone())
    }

    fn endpoints(&self) -> EndpointsClient<Channel> {
        EndpointsClient::new(self.channel.clone())
    }

    fn members(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    async fn apply(&self, resource: v1::Resource) -> Result<v1::ApplyResponse, Status> {
        let request = v1::ApplyRequest {
            resource: Some(resource),
            ..v1::ApplyRequest::default()
        };
        Ok(self.resources().apply(request).await?.into_inner())
    }
}

fn resource(name: &str, spec: Spec) -> v1::Resource {
    let metadata = v1::Metadata {
        name: name.to_owned(),
        ..v1::Metadata::default()
    };
    v1::Resource {
        metadata: Some(metadata),
        spec: Some(spec),
    }
}

fn pool(name: &str) -> v1::Resource {
    resource(name, Spec::Pool(v1::PoolSpec::default()))
}

fn setting(name: &str, bytes: usize) -> v1::Resource {
    resource(
        name,
        Spec::Setting(v1::SettingSpec {
            json: format!("{:?}", "x".repeat(bytes)),
        }),
    )
}

fn endpoint(name: &str, pool: &str) -> v1::Resource {
    let spec = v1::EndpointSpec {
        pool: pool.to_owned(),
        url: "http://127.0.0.1:9".to_owned(),
        ..v1::EndpointSpec::default()
    };
    resource(name, Spec::Endpoint(spec))
}

fn field_of(status: &Status) -> String {
    let details = status
        .get_details_bad_request()
        .unwrap_or_else(|| panic!("no BadRequest: {status:?}"));
    details.field_violations[0].field.clone()
}

fn version(resource: Option<&v1::Resource>) -> u64 {
    resource
        .and_then(|r| r.metadata.as_ref())
        .map(|m| m.resource_version)
        .unwrap()
}
