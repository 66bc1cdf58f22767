//! Records of requests between nodes: the client, and what answers it.

use super::desk::{Desk, Query};
use crate::others::MAX_ANSWER_BYTES;
use quorate_endpoint::CheckCaller;
use quorate_proto::peer::v1::decision_exchange_client::DecisionExchangeClient;
use quorate_proto::peer::v1::decision_exchange_server::{DecisionExchange, DecisionExchangeServer};
use quorate_proto::peer::v1::{FindDecisions, SwitchRecording, find_decisions, switch_recording};
use quorate_proto::v1::{DecisionRecords, NodeRecording};
use quorate_raft::Cluster;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// A client of another node's records.
pub fn client(channel: Channel) -> DecisionExchangeClient<Channel> {
    DecisionExchangeClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// Answers other nodes, once this node knows who it is.
#[derive(Clone, Default)]
pub struct DecisionReceiver(Arc<OnceLock<Door>>);

struct Door {
    cluster_id: String,
    check_caller: CheckCaller,
    desk: Arc<Desk>,
}

impl DecisionReceiver {
    /// What goes to the peer listener.
    pub fn server(&self) -> DecisionExchangeServer<Self> {
        DecisionExchangeServer::new(self.clone())
    }

    /// From here on others are answered.
    pub fn open(&self, cluster: &Cluster, check_caller: CheckCaller, desk: Arc<Desk>) {
        let door = Door {
            cluster_id: cluster.cluster_id().to_owned(),
            check_caller,
            desk,
        };
        // Set once, by the one place that assembles the node.
        let _ = self.0.set(door);
    }

    fn desk(
        &self,
        cluster_id: &str,
        node_id: u64,
        call: &tonic::Extensions,
    ) -> Result<Arc<Desk>, Status> {
        let Some(door) = self.0.get() else {
            return Err(Status::unavailable("this node is still joining"));
        };
        if cluster_id != door.cluster_id {
            return Err(Status::failed_precondition("another cluster"));
        }
        (door.check_caller)(node_id, call)?;
        Ok(Arc::clone(&door.desk))
    }
}

#[tonic::async_trait]
impl DecisionExchange for DecisionReceiver {
    async fn find(
        &self,
        request: Request<FindDecisions>,
    ) -> Result<Response<DecisionRecords>, Status> {
        let (_, call, request) = request.into_parts();
        let desk = self.desk(&request.cluster_id, request.node_id, &call)?;
        let query = match request.what {
            Some(find_decisions::What::Explain(explain)) => Query::Explain(explain),
            Some(find_decisions::What::List(list)) => Query::List(list),
            None => return Err(Status::invalid_argument("nothing is asked for")),
        };
        let records = blocking(move || desk.find(&query)).await?;
        Ok(Response::new(DecisionRecords {
            records,
            ..DecisionRecords::default()
        }))
    }

    async fn record(
        &self,
        request: Request<SwitchRecording>,
    ) -> Result<Response<NodeRecording>, Status> {
        let (_, call, request) = request.into_parts();
        let desk = self.desk(&request.cluster_id, request.node_id, &call)?;
        let report = match request.what {
            Some(switch_recording::What::Start(start)) => blocking(move || desk.start(&start)),
            Some(switch_recording::What::Stop(_)) => blocking(move || desk.stop()),
            None => return Err(Status::invalid_argument("nothing is asked for")),
        };
        Ok(Response::new(report.await?))
    }
}

/// Runs what may take a while beside the runtime.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::pin::Pin<Box<dyn Future<Output = Result<T, Status>> + Send>> {
    let running = tokio::task::spawn_blocking(work);
    Box::pin(async move {
        running
            .await
            .map_err(|error| Status::internal(error.to_string()))
    })
}
