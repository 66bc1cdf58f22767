//! The receiving side of the exchange: the gRPC service that peers report to.

use crate::events::PlaneEvent;
use crate::exchange::Pace;
use crate::exchange::table::{Origin, StreamId};
use crate::learnt;
use crate::shared::Shared;
use crate::turns;
use quorate_proto::peer::v1::load_exchange_server::LoadExchange;
use quorate_proto::peer::v1::{LoadAck, LoadUpdate};
use quorate_routing::now_ms;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Time for the first message of a stream.
const HELLO: Duration = Duration::from_secs(5);
/// Time between two answers.
const ACK: Duration = Duration::from_millis(500);

/// Implements `quorate.peer.v1.LoadExchange`. Cheap to clone.
#[derive(Clone)]
pub struct LoadService {
    shared: Arc<Shared>,
}

impl LoadService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Who opens the stream, if it may.
    fn welcome(&self, first: &LoadUpdate, call: &tonic::Extensions) -> Result<Origin, Status> {
        let hello = first.hello.as_ref().ok_or_else(|| {
            Status::invalid_argument("the first message of a stream must carry hello")
        })?;
        let own = &self.shared.origin;
        if hello.cluster_id != self.shared.cluster_id {
            return Err(Status::failed_precondition(format!(
                "this node belongs to cluster {:?}, not to {:?}",
                self.shared.cluster_id, hello.cluster_id
            )));
        }
        // Before anything is done for it: counts, ownership and the alarm about a doubled node id are for nodes of this cluster
        // in their own name.
        (self.shared.check_caller)(hello.node_id, call).inspect_err(|refusal| {
            tracing::warn!(node_id = hello.node_id, %refusal, "load reports of a node are refused");
        })?;
        if hello.node_id == own.node_id {
            if hello.start_id != own.start_id {
                tracing::error!(
                    node_id = own.node_id,
                    instance = hello.instance,
                    "another process uses this node's id"
                );
                self.shared.tell(PlaneEvent::NodeIdUsedTwice {
                    node_id: own.node_id,
                    instances: [own.instance.clone(), hello.instance.clone()],
                });
            }
            return Err(Status::already_exists(format!(
                "this is node {} itself",
                own.node_id
            )));
        }
        Ok(Origin {
            node_id: hello.node_id,
            start_id: hello.start_id,
            instance: hello.instance.clone(),
            region: hello.region.as_str().into(),
        })
    }
}

#[tonic::async_trait]
impl LoadExchange for LoadService {
    type ReportStream = ReceiverStream<Result<LoadAck, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<LoadUpdate>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (_, call, mut updates) = request.into_parts();
        let first = tokio::time::timeout(HELLO, updates.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??
            .ok_or_else(|| Status::invalid_argument("the stream ended before hello"))?;
        let origin = self.welcome(&first, &call)?;
        let pace = if origin.region == self.shared.origin.region {
            self.shared.timing.near
        } else {
            self.shared.timing.far
        };
        let incoming = Incoming::open(Arc::clone(&self.shared), origin, &first);
        let (acks, answers) = mpsc::channel(2);
        tokio::spawn(async move {
            let stop = incoming.shared.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = incoming.receive(updates, acks, pace) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// A stream in the table. Dropping it, however its task ends, takes all that it said away.
struct Incoming {
    shared: Arc<Shared>,
    id: StreamId,
    node_id: u64,
}

impl Incoming {
    fn open(shared: Arc<Shared>, origin: Origin, first: &LoadUpdate) -> Self {
        let node_id = origin.node_id;
        let now = now_ms();
        tracing::info!(node_id, region = %origin.region, "load reports of a node begin");
        let mut table = shared.table.lock();
        let (id, opened) = table.open(origin, now);
        // Within the same lock, so that no sum is seen between the old stream's counts and the new one's.
        let mut changes = table.update(id, first, 0, now);
        drop(table);
        changes.counts.extend(opened.counts);
        changes.nodes |= opened.nodes;
        shared.apply(changes);
        Self {
            shared,
            id,
            node_id,
        }
    }

    async fn receive(
        &self,
        mut updates: Streaming<LoadUpdate>,
        acks: mpsc::Sender<Result<LoadAck, Status>>,
        pace: Pace,
    ) {
        let grace = u64::try_from((pace.silence / 2).as_millis()).unwrap_or(u64::MAX);
        let mut ack = tokio::time::interval(ACK);
        ack.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deadline = Instant::now() + pace.silence;
        loop {
            tokio::select! {
                // Messages first: a busy node must not take its own lateness for the peer's silence.
                biased;
                message = updates.message() => match message {
                    Ok(Some(update)) => {
                        deadline = Instant::now() + pace.silence;
                        self.shared.flows.receive(self.node_id, &update.flow);
                        learnt::receive(&self.shared, &update.learnt);
                        let changes = self.shared.table.lock().update(self.id, &update, grace, now_ms());
                        self.shared.apply(changes);
                        turns::receive(&self.shared, self.node_id, &update.turns);
                    }
                    Ok(None) => return,
                    Err(status) => {
                        tracing::debug!(node_id = self.node_id, %status, "stream broke");
                        return;
                    }
                },
                _ = ack.tick() => {
                    // A full channel means that nobody reads: the transport will notice.
                    let _ = acks.try_send(Ok(LoadAck { node_id: self.shared.node_id() }));
                }
                () = tokio::time::sleep_until(deadline) => {
                    tracing::warn!(node_id = self.node_id, silence = ?pace.silence, "node is silent");
                    return;
                }
            }
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        tracing::info!(node_id = self.node_id, "load reports of a node ended");
        let changes = self.shared.table.lock().close(self.id);
        self.shared.apply(changes);
    }
}
