//! The calls of the consensus protocol, answered by a group's openraft instance, whichever group it is.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, future, stream};
use openraft::{errors::RaftError, storage::RaftStateMachine};
use quorate_proto::peer::v1::{
    AppendFrame, AppendReply, TransferLeaderReply, TransferLeaderRequest, VoteReply, VoteRequest,
};
use tonic::{Status, Streaming};

use crate::{
    types::TypeConfig,
    wire::{self, Malformed},
};

type Raft<SM> = openraft::Raft<TypeConfig, SM>;
/// Answers of a replication stream.
pub(super) type Replies = Pin<Box<dyn Stream<Item = Result<AppendReply, Status>> + Send>>;

pub(super) fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

pub(super) fn stopped<E: std::fmt::Display>(error: E) -> Status {
    Status::unavailable(error.to_string())
}

/// Feeds a replication stream, whose first frame was read already. `heard` is called after each success.
pub(super) fn append<SM: RaftStateMachine<TypeConfig>>(
    raft: &Raft<SM>,
    first: AppendFrame,
    frames: Streaming<AppendFrame>,
    heard: impl Fn() + Send + 'static,
) -> Result<Replies, Status> {
    let first = wire::to_append(first).map_err(malformed)?;
    let rest = stream::unfold(frames, |mut frames| async move {
        let frame = frames.message().await.ok()??;
        match wire::to_append(frame) {
            Ok(request) => Some((request, frames)),
            Err(error) => {
                tracing::warn!(%error, "replication stream ended");
                None
            }
        }
    });
    let results = raft.stream_append(stream::once(future::ready(first)).chain(rest));
    Ok(Box::pin(results.map(move |result| match result {
        Ok(result) => {
            if result.is_ok() {
                heard();
            }
            Ok(wire::append_reply(&result))
        }
        Err(fatal) => Err(stopped(fatal)),
    })))
}

/// Answers a single append; false beside the answer if the sender leads no more.
pub(super) async fn heartbeat<SM: RaftStateMachine<TypeConfig>>(
    raft: &Raft<SM>,
    frame: AppendFrame,
) -> Result<(AppendReply, bool), Status> {
    let request = wire::to_append(frame).map_err(malformed)?;
    let prev = request.prev_log_id;
    if !request.entries.is_empty() {
        return Err(Status::invalid_argument("a heartbeat carries no entries"));
    }
    let response = raft.append_entries(request).await.map_err(stopped)?;
    let leads = !matches!(
        response,
        openraft::raft::AppendEntriesResponse::HigherVote(_)
    );
    wire::heartbeat_reply(response, prev)
        .map(|reply| (reply, leads))
        .map_err(malformed)
}

pub(super) async fn vote<SM: RaftStateMachine<TypeConfig>>(
    raft: &Raft<SM>,
    message: &VoteRequest,
) -> Result<VoteReply, Status> {
    let vote = wire::to_vote_request(message).map_err(malformed)?;
    let response = if message.pre_vote {
        raft.pre_vote(vote).await
    } else {
        raft.vote(vote).await
    };
    match response {
        Ok(response) => Ok(wire::vote_reply(&response)),
        Err(RaftError::Fatal(fatal)) => Err(stopped(fatal)),
        Err(RaftError::APIError(never)) => match never {},
    }
}

pub(super) async fn transfer<SM: RaftStateMachine<TypeConfig>>(
    raft: &Raft<SM>,
    message: &TransferLeaderRequest,
) -> Result<TransferLeaderReply, Status> {
    let transfer = wire::to_transfer_request(message).map_err(malformed)?;
    let response = raft
        .handle_transfer_leader(transfer)
        .await
        .map_err(stopped)?;
    Ok(wire::transfer_reply(&response))
}
