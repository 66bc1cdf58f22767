//! The sending side of the exchange: keeps one stream to one peer.

use crate::exchange::{Pace, Peer};
use crate::flows::Mail;
use crate::learnt::Satchel;
use crate::shared::Shared;
use quorate_proto::peer::v1::load_exchange_client::LoadExchangeClient;
use quorate_proto::peer::v1::{FlowMessage, LoadAck, LoadHello, LoadUpdate, TurnMessage};
use quorate_routing::now_ms;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Time for opening a stream.
const OPEN: Duration = Duration::from_secs(3);
/// A stream whose peer has not answered for this long is given up.
const ACK_SILENCE: Duration = Duration::from_secs(3);
/// Waits between attempts: the first, doubling up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Messages between here and the transport.
const QUEUE: usize = 16;

/// Opens streams to the peer for ever; each ends when the link does.
pub async fn run(shared: Arc<Shared>, peer: Peer) {
    let pace = if peer.region == shared.origin.region {
        shared.timing.near
    } else {
        shared.timing.far
    };
    let mut wait = FIRST_WAIT;
    loop {
        let begun = Instant::now();
        match stream(&shared, &peer, pace).await {
            Ok(()) => tracing::debug!(node_id = peer.node_id, "stream to peer ended"),
            Err(status) => tracing::debug!(node_id = peer.node_id, %status, "no stream to peer"),
        }
        if begun.elapsed() > ACK_SILENCE {
            wait = FIRST_WAIT;
        }
        // Nodes that lost the same peer must not come back in step.
        tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64())).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// One stream from hello to its end.
async fn stream(shared: &Shared, peer: &Peer, pace: Pace) -> Result<(), Status> {
    let near = peer.region == shared.origin.region;
    let mut client = LoadExchangeClient::new((peer.connect)());
    let mut version = shared.outbox_version.subscribe();
    let (messages, outgoing) = mpsc::channel(QUEUE);
    let mut sender = Sender {
        shared,
        messages,
        sent: 0,
        // What was put there for an earlier stream is void.
        mail: shared.flows.link_opened(peer.node_id),
        turns: near.then(|| shared.post.link_opened(peer.node_id)),
        // Routers of other regions have endpoints of their own.
        lessons: near.then(|| shared.lessons.link_opened(peer.node_id)),
    };
    let opened = client.report(ReceiverStream::new(outgoing));
    // The answer's head comes when the peer has read hello: both must be under way at once.
    let (opened, ()) = tokio::join!(timeout(OPEN, opened), sender.hello());
    let acks = opened
        .map_err(|_| Status::deadline_exceeded("the peer did not answer"))??
        .into_inner();
    tokio::select! {
        ended = wait_for_end(acks) => ended,
        () = sender.keep_sending(&mut version, pace) => Ok(()),
    }
}

/// Ends when the peer ends the stream or is silent.
async fn wait_for_end(mut acks: Streaming<LoadAck>) -> Result<(), Status> {
    loop {
        match timeout(ACK_SILENCE, acks.message()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(status)) => return Err(status),
            Err(_) => return Err(Status::deadline_exceeded("the peer is silent")),
        }
    }
}

struct Sender<'a> {
    shared: &'a Shared,
    messages: mpsc::Sender<LoadUpdate>,
    sent: u64,
    mail: Arc<Mail<FlowMessage>>,
    turns: Option<Arc<Mail<TurnMessage>>>,
    lessons: Option<Arc<Satchel>>,
}

impl Sender<'_> {
    async fn hello(&mut self) {
        let origin = &self.shared.origin;
        let hello = LoadHello {
            cluster_id: self.shared.cluster_id.clone(),
            node_id: origin.node_id,
            instance: origin.instance.clone(),
            start_id: origin.start_id,
            region: origin.region.to_string(),
        };
        let (mut updates, version) = {
            let outbox = self.shared.outbox.lock();
            (outbox.full(now_ms()), outbox.version())
        };
        self.sent = version;
        match updates.first_mut() {
            Some(first) => first.hello = Some(hello),
            None => updates.push(LoadUpdate {
                hello: Some(hello),
                ..Default::default()
            }),
        }
        for update in updates {
            // Fails only when the stream is over, which the caller sees by itself.
            let _ = self.messages.send(update).await;
        }
    }

    /// Sends what changed, at most once a gap, and something at least every keep-alive; heavy requests and what flow control has to say
    /// go at once.
    async fn keep_sending(&mut self, version: &mut watch::Receiver<u64>, pace: Pace) {
        let mut heavy = self.shared.heavy_version.subscribe();
        let mut not_before = Instant::now();
        loop {
            let sent = self.sent;
            let changed = async {
                tokio::select! {
                    changed = async {
                        tokio::time::sleep_until(not_before).await;
                        version.wait_for(|v| *v != sent).await.map(|_| ())
                    } => changed,
                    placed = heavy.wait_for(|v| *v > sent), if pace.hurry < pace.gap => placed.map(|_| ()),
                }
            };
            tokio::select! {
                () = self.mail.written() => {
                    for flow in self.mail.take() {
                        let update = LoadUpdate { flow, ..Default::default() };
                        if self.messages.send(update).await.is_err() {
                            return;
                        }
                    }
                }
                () = Mail::written_in(self.turns.as_deref()) => {
                    // Before a turn is over comes what was placed and learnt in it.
                    let turns = self.turns.as_ref().map(|mail| mail.take()).unwrap_or_default();
                    if !self.send_learnt().await || !self.send_counts(turns.concat()).await {
                        return;
                    }
                }
                () = Satchel::filled(self.lessons.as_deref()) => {
                    if !self.send_learnt().await {
                        return;
                    }
                }
                changed = timeout(pace.keep_alive, changed) => {
                    if let Ok(Err(_)) = changed {
                        return;
                    }
                    if !self.send_counts(Vec::new()).await {
                        return;
                    }
                    not_before = Instant::now() + pace.gap;
                }
            }
        }
    }

    /// Sends a message's worth of what was learnt. False: the stream is over.
    async fn send_learnt(&self) -> bool {
        let learnt = self.lessons.as_ref().map(|l| l.take()).unwrap_or_default();
        if learnt.is_empty() {
            return true;
        }
        let update = LoadUpdate {
            learnt,
            ..Default::default()
        };
        self.messages.send(update).await.is_ok()
    }

    /// Sends what changed in the outbox, and with the last of it what there is to say of turns. False: the stream is over.
    async fn send_counts(&mut self, turns: Vec<TurnMessage>) -> bool {
        let (mut updates, version) = {
            let outbox = self.shared.outbox.lock();
            (outbox.since(self.sent, now_ms()), outbox.version())
        };
        self.sent = version;
        let mut last = updates.pop().unwrap_or_default();
        last.turns = turns;
        updates.push(last);
        for update in updates {
            if self.messages.send(update).await.is_err() {
                return false;
            }
        }
        true
    }
}
