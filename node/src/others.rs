//! Asking the other nodes for what only they know, all at the same time.

use futures_util::future::join_all;
use quorate_proto::v1::SilentNode;
use quorate_raft::{Cluster, MemberStatus};
use std::future::Future;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// How long another node may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Largest answer of another node.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Asks every other node that is one of `those`. What each that answered said, with its name, and who did not.
pub async fn others<T, F>(
    cluster: &Cluster,
    those: impl Fn(&MemberStatus) -> bool,
    ask: impl Fn(Channel) -> F,
) -> (Vec<(String, T)>, Vec<SilentNode>)
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let own = cluster.node_id();
    let members = cluster.status().members;
    let others = members
        .into_iter()
        .filter(|member| member.node_id != own && those(member));
    let asked = join_all(others.map(|member| {
        let answer = cluster.peer_channel(member.node_id).map(&ask);
        async move {
            let result = match answer {
                None => Err("its address is not known".to_owned()),
                Some(answer) => match tokio::time::timeout(PATIENCE, answer).await {
                    Ok(Ok(answer)) => Ok(answer.into_inner()),
                    Ok(Err(status)) => Err(status.message().to_owned()),
                    Err(_) => Err("no answer in time".to_owned()),
                },
            };
            match result {
                Ok(answer) => Ok((member.name, answer)),
                Err(why) => Err(SilentNode {
                    node_id: member.node_id,
                    name: member.name,
                    why,
                }),
            }
        }
    }))
    .await;
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for one in asked {
        match one {
            Ok(answer) => answers.push(answer),
            Err(node) => silent.push(node),
        }
    }
    (answers, silent)
}
