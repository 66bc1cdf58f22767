//! What became of requests and why, on this node and all others.

use super::{ControlContext, status};
use crate::explain::{Desk, Query, client};
use crate::others::others;
use quorate_proto::peer::v1::{FindDecisions, SwitchRecording, find_decisions, switch_recording};
use quorate_proto::v1::{
    DecisionRecords, ExplainRequest, ListDecisionsRequest, NodeRecording, RecordingResponse,
    StartRecordingRequest, StopRecordingRequest, decisions_server::Decisions,
};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Longest request id that is looked for, in bytes.
const MAX_ID: usize = 128;

pub struct Service {
    context: ControlContext,
}

impl Service {
    pub fn new(context: ControlContext) -> Self {
        Self { context }
    }

    async fn find(&self, query: Query) -> Result<Response<DecisionRecords>, Status> {
        let asked = FindDecisions {
            cluster_id: self.context.cluster.cluster_id().to_owned(),
            node_id: self.context.cluster.node_id(),
            what: Some(match &query {
                Query::Explain(explain) => find_decisions::What::Explain(explain.clone()),
                Query::List(list) => find_decisions::What::List(list.clone()),
            }),
        };
        let limit = query.limit();
        let own = self.desk(move |desk| desk.find(&query));
        let theirs = others(
            &self.context.cluster,
            |_| true,
            |channel| {
                let asked = asked.clone();
                async move { client(channel).find(asked).await }
            },
        );
        let (own, (theirs, silent)) = tokio::join!(own, theirs);
        let mut records = own?;
        let mut answered = vec![self.context.decisions.node().to_owned()];
        for (name, found) in theirs {
            answered.push(name);
            records.extend(found.records);
        }
        let when = |r: &quorate_proto::v1::DecisionRecord| r.time.map(|t| (t.seconds, t.nanos));
        records.sort_by_key(|record| std::cmp::Reverse(when(record)));
        records.truncate(limit);
        Ok(Response::new(DecisionRecords {
            records,
            answered,
            silent,
        }))
    }

    async fn switch(
        &self,
        what: switch_recording::What,
        own: impl FnOnce(&Desk) -> NodeRecording + Send + 'static,
    ) -> Result<Response<RecordingResponse>, Status> {
        let asked = SwitchRecording {
            cluster_id: self.context.cluster.cluster_id().to_owned(),
            node_id: self.context.cluster.node_id(),
            what: Some(what),
        };
        let theirs = others(
            &self.context.cluster,
            |_| true,
            |channel| {
                let asked = asked.clone();
                async move { client(channel).record(asked).await }
            },
        );
        let (own, (theirs, silent)) = tokio::join!(self.desk(own), theirs);
        let mut nodes = vec![own?];
        nodes.extend(theirs.into_iter().map(|(_, report)| report));
        Ok(Response::new(RecordingResponse { nodes, silent }))
    }

    /// Asks this node's own desk, beside the runtime.
    async fn desk<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Desk) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let desk = Arc::clone(&self.context.decisions);
        tokio::task::spawn_blocking(move || ask(&desk))
            .await
            .map_err(|error| Status::internal(error.to_string()))
    }
}

#[tonic::async_trait]
impl Decisions for Service {
    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<DecisionRecords>, Status> {
        let request = request.into_inner();
        if request.request_id.is_empty() || request.request_id.len() > MAX_ID {
            let message = format!("must have 1 to {MAX_ID} characters");
            return Err(status::invalid("request_id", message));
        }
        self.find(Query::Explain(request)).await
    }

    async fn list(
        &self,
        request: Request<ListDecisionsRequest>,
    ) -> Result<Response<DecisionRecords>, Status> {
        self.find(Query::List(request.into_inner())).await
    }

    async fn start_recording(
        &self,
        request: Request<StartRecordingRequest>,
    ) -> Result<Response<RecordingResponse>, Status> {
        let request = request.into_inner();
        if !(0.0..=1.0).contains(&request.share) {
            return Err(status::invalid("share", "must be above 0 and at most 1"));
        }
        if request.file.is_empty() {
            return Err(status::invalid("file", "must be set"));
        }
        if let Some(duration) = request.duration
            && !Duration::try_from(duration).is_ok_and(|d| !d.is_zero())
        {
            return Err(status::invalid("duration", "must be positive"));
        }
        let own = request.clone();
        self.switch(switch_recording::What::Start(request), move |desk| {
            desk.start(&own)
        })
        .await
    }

    async fn stop_recording(
        &self,
        request: Request<StopRecordingRequest>,
    ) -> Result<Response<RecordingResponse>, Status> {
        let what = switch_recording::What::Stop(request.into_inner());
        self.switch(what, Desk::stop).await
    }
}
