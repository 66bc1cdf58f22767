//! Asking other nodes: to be taken in, and whether this is the only process with its identity.

use std::{sync::Arc, time::Instant};

use futures_util::future::join_all;
use quorate_proto::{
    peer::v1::{JoinReply, JoinRequest, Refusal},
    v1::NodeSpec,
};
use tonic::{Code, Status};

use crate::{
    error::Error,
    identity::Identity,
    network::{self, Peers, Tls, raft_client, refusal_of},
    options::{Start, Timing},
    state::SCHEMA,
    types::Member,
};

use super::{JOIN_CALL, JOIN_TIMEOUT, RETRY, START_CHECK};

pub(super) fn join_request(
    identity: &Identity,
    node: NodeSpec,
    start_id: u64,
    cluster_id: &str,
    settle: bool,
) -> JoinRequest {
    JoinRequest {
        cluster_id: cluster_id.to_owned(),
        name: identity.name.clone(),
        node: Some(node),
        start_id,
        timing: identity.timing.name().to_owned(),
        schema: SCHEMA,
        settle,
        forwarded: None,
    }
}

/// Asks the given peers, one after the other and again, until one takes the node in or refuses it.
pub(super) async fn first_contact(
    addresses: &[String],
    tls: Option<&Arc<Tls>>,
    timing: Timing,
    request: JoinRequest,
) -> Result<JoinReply, Error> {
    let started = Instant::now();
    let mut last = String::from("no peer was reached");
    while started.elapsed() < JOIN_TIMEOUT {
        for address in addresses {
            let channel = network::dial(tls, address, None, timing)?;
            let why =
                match tokio::time::timeout(JOIN_CALL, raft_client(channel).join(request.clone()))
                    .await
                {
                    Ok(Ok(reply)) => return Ok(reply.into_inner()),
                    Ok(Err(status)) if is_final(&status) => {
                        return Err(Error::Refused {
                            peer: address.clone(),
                            why: status.message().to_owned(),
                        });
                    }
                    Ok(Err(status)) => format!("{address}: {}", describe(&status)),
                    Err(_) => format!("{address}: no answer"),
                };
            // Said once, not at each attempt: an operator who waits must be able to see what for.
            if why != last {
                tracing::warn!(%why, "cannot join yet, trying on");
                last = why;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
    Err(Error::JoinTimeout {
        waited: JOIN_TIMEOUT,
        why: last,
    })
}

/// A status with what caused it: the transport's own message hides the reason.
pub(super) fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Asking again would not help.
pub(super) fn is_final(status: &Status) -> bool {
    match refusal_of(status) {
        Some(refusal) => !matches!(
            refusal,
            Refusal::NotLeader | Refusal::UnknownGroup | Refusal::Storage
        ),
        None => status.code() == Code::InvalidArgument,
    }
}

/// Asks the other members whether this is the only process with its identity, and whether it still belongs to them. Those
/// that do not answer in time do not hold the start up.
pub(super) async fn check_alone(
    peers: &Peers,
    recorded: Option<&Member>,
    start: &Start,
) -> Result<(), Error> {
    let mut asked: Vec<(String, Option<String>, u64, bool)> = peers
        .all()
        .iter()
        .map(|peer| {
            let member = peer.member();
            (member.peer_address, Some(member.name), peer.node_id, false)
        })
        .collect();
    // Where this node was last: if somebody answers there under its id, that one is the node.
    if let Some(recorded) =
        recorded.filter(|recorded| recorded.peer_address != peers.local.peer_address)
    {
        asked.push((
            recorded.peer_address.clone(),
            Some(recorded.name.clone()),
            peers.local.node_id,
            false,
        ));
    }
    // Peers named on the command line must be of this cluster; others may live at a recorded address by now.
    if let Start::Join(named) = start {
        let strangers = named.iter().filter(|address| {
            **address != peers.local.peer_address
                && !asked.iter().any(|(known, ..)| known == *address)
        });
        let strangers: Vec<_> = strangers
            .map(|address| (address.clone(), None, 0, true))
            .collect();
        asked.extend(strangers);
    }
    let checks = asked
        .into_iter()
        .map(|(address, name, node_id, named)| async move {
            let channel = peers.dial(&address, name).ok()?;
            let hello = peers.hello(node_id, true);
            let answer = tokio::time::timeout(START_CHECK, raft_client(channel).hello(hello))
                .await
                .ok()?;
            let status = answer.err()?;
            match refusal_of(&status)? {
                Refusal::Removed | Refusal::Duplicate => {}
                Refusal::WrongCluster if named => {}
                refusal => {
                    tracing::warn!(
                        address,
                        ?refusal,
                        why = status.message(),
                        "a recorded peer refused the hello"
                    );
                    return None;
                }
            }
            Some(Error::Refused {
                peer: address,
                why: status.message().to_owned(),
            })
        });
    match join_all(checks).await.into_iter().flatten().next() {
        Some(refused) => Err(refused),
        None => Ok(()),
    }
}
