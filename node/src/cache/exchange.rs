//! What is known of KV caches, between nodes: the client, and what answers it.

use super::desk::CacheDesk;
use super::regions::region_of;
use crate::others::MAX_ANSWER_BYTES;
use quorate_endpoint::CheckCaller;
use quorate_proto::peer::v1::cache_exchange_client::CacheExchangeClient;
use quorate_proto::peer::v1::cache_exchange_server::{CacheExchange, CacheExchangeServer};
use quorate_proto::peer::v1::{CacheReport, CacheReportRequest, CacheSummarized, CacheSummary};
use std::sync::{Arc, OnceLock};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// Hottest prefixes of a pool in one answer, at most.
pub const MAX_PREFIXES: usize = 1000;

/// A client of what another node knows.
pub fn client(channel: Channel) -> CacheExchangeClient<Channel> {
    CacheExchangeClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// Answers other nodes, once this node knows who it is.
#[derive(Clone, Default)]
pub struct CacheReceiver(Arc<OnceLock<Door>>);

struct Door {
    check_caller: CheckCaller,
    desk: Arc<CacheDesk>,
}

impl CacheReceiver {
    /// What goes to the peer listener.
    pub fn server(&self) -> CacheExchangeServer<Self> {
        CacheExchangeServer::new(self.clone())
    }

    /// From here on others are answered.
    pub fn open(&self, check_caller: CheckCaller, desk: Arc<CacheDesk>) {
        // Set once, by the one place that assembles the node.
        let _ = self.0.set(Door { check_caller, desk });
    }

    fn desk(
        &self,
        cluster_id: &str,
        node_id: u64,
        call: &tonic::Extensions,
    ) -> Result<&CacheDesk, Status> {
        let Some(door) = self.0.get() else {
            return Err(Status::unavailable("this node is still joining"));
        };
        if cluster_id != door.desk.cluster.cluster_id() {
            return Err(Status::failed_precondition("another cluster"));
        }
        (door.check_caller)(node_id, call)?;
        Ok(&door.desk)
    }
}

#[tonic::async_trait]
impl CacheExchange for CacheReceiver {
    async fn report(
        &self,
        request: Request<CacheReportRequest>,
    ) -> Result<Response<CacheReport>, Status> {
        let (_, call, request) = request.into_parts();
        let desk = self.desk(&request.cluster_id, request.node_id, &call)?;
        let prefixes = usize::try_from(request.prefixes).unwrap_or(MAX_PREFIXES);
        Ok(Response::new(
            desk.report(&request.pool, prefixes.min(MAX_PREFIXES)),
        ))
    }

    async fn summarize(
        &self,
        request: Request<CacheSummary>,
    ) -> Result<Response<CacheSummarized>, Status> {
        let (_, call, request) = request.into_parts();
        let desk = self.desk(&request.cluster_id, request.node_id, &call)?;
        let members = desk.cluster.status().members;
        let caller = members.iter().find(|m| m.node_id == request.node_id);
        let Some(caller) = caller.filter(|caller| region_of(caller) == request.region) else {
            return Err(Status::permission_denied(
                "a node speaks for its own region only",
            ));
        };
        let now = Instant::now();
        desk.regions
            .said(&request.region, &caller.name, request.pools, now);
        Ok(Response::new(CacheSummarized {}))
    }
}
