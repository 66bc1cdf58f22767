//! Conversions between openraft's types and the messages of `quorate.peer.v1`; nothing of openraft is ever serialised
//! directly, so an upgrade of it changes neither the wire nor the disk.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
        VoteResponse,
    },
    vote::RaftLeaderId,
};
use quorate_proto::peer::v1 as peer;

use crate::types::{
    Commands, Entry, LeaderId, LogId, Member, Membership, Payload, SnapshotMeta, StoredMembership,
    TypeConfig, Vote,
};

/// A message that does not describe a valid value.
#[derive(Debug, thiserror::Error)]
#[error("malformed {what}")]
pub(crate) struct Malformed {
    what: &'static str,
}

const fn malformed(what: &'static str) -> Malformed {
    Malformed { what }
}

pub(crate) fn log_id(id: &LogId) -> peer::LogId {
    peer::LogId {
        term: id.leader_id.term,
        leader_id: id.leader_id.node_id,
        index: id.index,
    }
}

pub(crate) fn to_log_id(wire: &peer::LogId) -> LogId {
    LogId::new(LeaderId::new(wire.term, wire.leader_id), wire.index)
}

pub(crate) fn vote(vote: &Vote) -> peer::Vote {
    peer::Vote {
        term: vote.leader_id.term,
        leader_id: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

pub(crate) fn to_vote(wire: &peer::Vote) -> Vote {
    if wire.committed {
        Vote::new_committed(wire.term, wire.leader_id)
    } else {
        Vote::new(wire.term, wire.leader_id)
    }
}

fn need_vote(wire: Option<&peer::Vote>) -> Result<Vote, Malformed> {
    wire.map(to_vote).ok_or(malformed("message: no vote"))
}

pub(crate) fn membership(m: &Membership) -> peer::Membership {
    peer::Membership {
        voters: m
            .get_joint_config()
            .iter()
            .map(|set| peer::VoterSet {
                node_ids: set.iter().copied().collect(),
            })
            .collect(),
        members: m.nodes().map(|(id, node)| node.to_wire(*id)).collect(),
    }
}

pub(crate) fn to_membership(wire: peer::Membership) -> Result<Membership, Malformed> {
    let configs: Vec<BTreeSet<u64>> = wire
        .voters
        .into_iter()
        .map(|set| set.node_ids.into_iter().collect())
        .collect();
    let nodes: BTreeMap<u64, Member> = wire
        .members
        .into_iter()
        .map(|member| (member.node_id, Member::from(member)))
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| malformed("membership: a voter is not a member"))
}

pub(crate) fn stored_membership(m: &StoredMembership) -> peer::StoredMembership {
    peer::StoredMembership {
        log_id: m.log_id().as_ref().map(log_id),
        membership: Some(membership(m.membership())),
    }
}

pub(crate) fn to_stored_membership(
    wire: peer::StoredMembership,
) -> Result<StoredMembership, Malformed> {
    let membership = match wire.membership {
        Some(membership) => to_membership(membership)?,
        None => Membership::default(),
    };
    Ok(StoredMembership::new(
        wire.log_id.as_ref().map(to_log_id),
        membership,
    ))
}

pub(crate) fn snapshot_meta(meta: &SnapshotMeta) -> peer::SnapshotMeta {
    peer::SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(log_id),
        last_membership: Some(stored_membership(&meta.last_membership)),
    }
}

pub(crate) fn to_snapshot_meta(wire: peer::SnapshotMeta) -> Result<SnapshotMeta, Malformed> {
    Ok(SnapshotMeta {
        last_log_id: wire.last_log_id.as_ref().map(to_log_id),
        last_membership: to_stored_membership(wire.last_membership.unwrap_or_default())?,
    })
}

pub(crate) fn entry(entry: &Entry) -> peer::Entry {
    let payload = match &entry.payload {
        Payload::Blank => peer::entry::Payload::Blank(peer::Blank {}),
        Payload::Normal(commands) => peer::entry::Payload::Commands(commands.0.clone()),
        Payload::Membership(m) => peer::entry::Payload::Membership(membership(m)),
    };
    peer::Entry {
        log_id: Some(log_id(&entry.log_id)),
        payload: Some(payload),
    }
}

pub(crate) fn to_entry(wire: peer::Entry) -> Result<Entry, Malformed> {
    let log_id = wire
        .log_id
        .as_ref()
        .map(to_log_id)
        .ok_or(malformed("log entry: no log id"))?;
    let payload = match wire.payload.ok_or(malformed(
        "log entry: no payload, or one of a newer version",
    ))? {
        peer::entry::Payload::Blank(_) => Payload::Blank,
        peer::entry::Payload::Commands(bytes) => Payload::Normal(Commands(bytes)),
        peer::entry::Payload::Membership(m) => Payload::Membership(to_membership(m)?),
    };
    Ok(Entry { log_id, payload })
}

pub(crate) fn append(
    request: &AppendEntriesRequest<TypeConfig>,
    header: Option<peer::Header>,
) -> peer::AppendFrame {
    peer::AppendFrame {
        header,
        vote: Some(vote(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id),
        entries: request.entries.iter().map(entry).collect(),
        committed: request.leader_commit.as_ref().map(log_id),
    }
}

pub(crate) fn to_append(
    wire: peer::AppendFrame,
) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let first = wire.prev.as_ref().map_or(0, |prev| prev.index + 1);
    let mut entries = Vec::with_capacity(wire.entries.len());
    for (due, item) in (first..).zip(wire.entries) {
        let item = to_entry(item)?;
        // A gap would break the log for good: refuse the frame instead.
        if item.log_id.index != due {
            return Err(malformed("append frame: entries do not follow each other"));
        }
        entries.push(item);
    }
    Ok(AppendEntriesRequest {
        vote: need_vote(wire.vote.as_ref())?,
        prev_log_id: wire.prev.as_ref().map(to_log_id),
        entries,
        leader_commit: wire.committed.as_ref().map(to_log_id),
    })
}

pub(crate) fn append_reply(result: &StreamAppendResult<TypeConfig>) -> peer::AppendReply {
    use peer::append_reply::Result as Reply;
    let result = match result {
        Ok(matched) => Reply::Matched(peer::Matched {
            log_id: matched.as_ref().map(log_id),
        }),
        Err(StreamAppendError::Conflict(at)) => Reply::Conflict(log_id(at)),
        Err(StreamAppendError::HigherVote(higher)) => Reply::HigherVote(vote(higher)),
    };
    peer::AppendReply {
        result: Some(result),
    }
}

/// The answer to a single append without entries, in the form the streams use.
pub(crate) fn heartbeat_reply(
    response: AppendEntriesResponse<TypeConfig>,
    prev: Option<LogId>,
) -> Result<peer::AppendReply, Malformed> {
    if response.is_conflict() && prev.is_none() {
        return Err(malformed("answer: conflict at the beginning of the log"));
    }
    Ok(append_reply(&response.into_stream_result(prev, prev)))
}

pub(crate) fn to_append_reply(
    wire: &peer::AppendReply,
) -> Result<StreamAppendResult<TypeConfig>, Malformed> {
    use peer::append_reply::Result as Reply;
    match wire
        .result
        .as_ref()
        .ok_or(malformed("append reply: no result"))?
    {
        Reply::Matched(matched) => Ok(Ok(matched.log_id.as_ref().map(to_log_id))),
        Reply::Conflict(at) => Ok(Err(StreamAppendError::Conflict(to_log_id(at)))),
        Reply::HigherVote(higher) => Ok(Err(StreamAppendError::HigherVote(to_vote(higher)))),
    }
}

pub(crate) fn vote_request(
    request: &VoteRequest<TypeConfig>,
    header: peer::Header,
    pre_vote: bool,
) -> peer::VoteRequest {
    peer::VoteRequest {
        header: Some(header),
        vote: Some(vote(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id),
        pre_vote,
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn to_vote_request(
    wire: &peer::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let mut request = VoteRequest::new(
        need_vote(wire.vote.as_ref())?,
        wire.last.as_ref().map(to_log_id),
    );
    request.leadership_transfer = wire.leadership_transfer;
    Ok(request)
}

pub(crate) fn vote_reply(response: &VoteResponse<TypeConfig>) -> peer::VoteReply {
    peer::VoteReply {
        vote: Some(vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id),
    }
}

pub(crate) fn to_vote_reply(wire: &peer::VoteReply) -> Result<VoteResponse<TypeConfig>, Malformed> {
    Ok(VoteResponse {
        vote: need_vote(wire.vote.as_ref())?,
        vote_granted: wire.granted,
        last_log_id: wire.last.as_ref().map(to_log_id),
    })
}

pub(crate) fn transfer_request(
    request: &TransferLeaderRequest<TypeConfig>,
    header: peer::Header,
) -> peer::TransferLeaderRequest {
    peer::TransferLeaderRequest {
        header: Some(header),
        from_leader: Some(vote(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(log_id),
    }
}

pub(crate) fn to_transfer_request(
    wire: &peer::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    Ok(TransferLeaderRequest::new(
        need_vote(wire.from_leader.as_ref())?,
        wire.to,
        wire.last.as_ref().map(to_log_id),
    ))
}

pub(crate) fn transfer_reply(
    response: &TransferLeaderResponse<TypeConfig>,
) -> peer::TransferLeaderReply {
    use peer::transfer_leader_reply::Result as Reply;
    let result = match response {
        Ok(()) => Reply::Accepted(peer::Blank {}),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => Reply::VoteChanged(vote(actual)),
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            Reply::LogNotFlushed(peer::Matched {
                log_id: actual.as_ref().map(log_id),
            })
        }
    };
    peer::TransferLeaderReply {
        result: Some(result),
    }
}

pub(crate) fn to_transfer_reply(
    wire: &peer::TransferLeaderReply,
    request: &TransferLeaderRequest<TypeConfig>,
) -> Result<TransferLeaderResponse<TypeConfig>, Malformed> {
    use peer::transfer_leader_reply::Result as Reply;
    Ok(
        match wire
            .result
            .as_ref()
            .ok_or(malformed("transfer reply: no result"))?
        {
            Reply::Accepted(_) => Ok(()),
            Reply::VoteChanged(actual) => Err(TransferLeaderError::VoteChanged {
                expected: *request.from_leader(),
                actual: to_vote(actual),
            }),
            Reply::LogNotFlushed(last) => Err(TransferLeaderError::LogNotFlushed {
                expected: request.last_log_id().copied(),
                actual: last.log_id.as_ref().map(to_log_id),
            }),
        },
    )
}
