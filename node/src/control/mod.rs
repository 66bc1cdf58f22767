//! The control API: what operators and tools speak to a node, over gRPC.
//!
//! Six services of `quorate.v1` (declared resources, live endpoints, pools, decisions, caches, membership), server reflection and health. A write may
//! be sent to any node; the consensus layer takes it to the leader. Everything is checked here before it is proposed, so that
//! bad input costs no log entry.

mod cache;
mod cluster;
mod deadline;
mod decisions;
mod endpoints;
mod health;
mod meaning;
mod pools;
mod resources;
mod status;

#[cfg(test)]
mod tests;

use crate::cache::desk::CacheDesk;
use crate::explain::Desk;
use quorate_endpoint::PlaneHandle;
use quorate_proto::store::v1::Command;
use quorate_proto::v1::{
    cache_server::CacheServer, cluster_server::ClusterServer, decisions_server::DecisionsServer,
    endpoints_server::EndpointsServer, pools_server::PoolsServer,
    resources_server::ResourcesServer,
};
use quorate_raft::state::ControlView;
use quorate_raft::{Applied, Cluster, Consistency, ProposeError, ReadStamp};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Status, service::Routes};

/// Largest request that is read. A log entry holds less; a larger resource gets an error that says so.
const MAX_REQUEST_BYTES: usize = 4 << 20;

/// What the control API works on.
#[derive(Clone)]
pub struct ControlContext {
    /// Declared state and membership.
    pub cluster: Cluster,
    /// Live state of endpoints.
    pub plane: Arc<PlaneHandle>,
    /// Records of requests.
    pub decisions: Arc<Desk>,
    /// What is known of KV caches.
    pub cache: Arc<CacheDesk>,
    /// Ends watches, which never end by themselves.
    pub stop: CancellationToken,
}

impl ControlContext {
    async fn read(
        &self,
        consistency: Consistency,
        patience: Duration,
    ) -> Result<(Arc<ControlView>, ReadStamp), Status> {
        let read = self.cluster.read_within(consistency, patience).await;
        read.map_err(|error| status::unavailable(error.to_string()))
    }

    async fn propose(&self, command: Command, patience: Duration) -> Result<Applied, ProposeError> {
        self.cluster.propose_within(command, patience).await
    }
}

/// All services. Call it on the runtime that will serve them.
pub fn routes(context: ControlContext) -> Routes {
    let mut routes = Routes::builder();
    routes
        .add_service(health::service(&context))
        .add_service(
            ResourcesServer::new(resources::Service::new(context.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            EndpointsServer::new(endpoints::Service::new(context.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            PoolsServer::new(pools::Service::new(context.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            DecisionsServer::new(decisions::Service::new(context.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            CacheServer::new(cache::Service::new(context.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            ClusterServer::new(cluster::Service::new(context))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        );
    // Tools ask for either version.
    match reflection().build_v1() {
        Ok(service) => drop(routes.add_service(service)),
        Err(error) => tracing::error!(%error, "server reflection is off"),
    }
    match reflection().build_v1alpha() {
        Ok(service) => drop(routes.add_service(service)),
        Err(error) => tracing::error!(%error, "server reflection (v1alpha) is off"),
    }
    routes.routes()
}

/// Of all that the descriptors hold, only what this listener serves.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(quorate_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("quorate.v1.Resources")
        .with_service_name("quorate.v1.Endpoints")
        .with_service_name("quorate.v1.Pools")
        .with_service_name("quorate.v1.Decisions")
        .with_service_name("quorate.v1.Cache")
        .with_service_name("quorate.v1.Cluster")
        .with_service_name("grpc.health.v1.Health")
}
