//! Volatile groups on real sockets: one node and three, kills, restarts, new epochs, a control group that is away.

#![allow(clippy::unwrap_used)]

#[path = "support/map.rs"]
mod map;
mod support;

use map::{Map, command};
use quorate_raft::{Role, VolatileGroup};
use support::*;

/// A node's part in the group.
struct Part {
    map: Map,
    group: VolatileGroup,
}

fn open(node: &Node) -> Part {
    let map = Map::default();
    let replica = std::sync::Arc::new(map.clone());
    let group = node
        .block_on(node.cluster.volatile_group("cache", replica))
        .unwrap();
    Part { map, group }
}

fn warm(node: &Node, part: &Part) {
    let warm = tokio_timeout(node, part.group.warm());
    assert!(warm.is_some(), "not warm: {:?}", part.group.status());
}

fn tokio_timeout<F: Future>(node: &Node, future: F) -> Option<F::Output> {
    node.block_on(async { tokio::time::timeout(WAIT, future).await.ok() })
}

fn put_until_done(node: &Node, part: &Part, key: u64, value: &[u8]) -> bytes::Bytes {
    until("a command is applied", || {
        node.block_on(part.group.propose(command(key, value))).ok()
    })
}

#[test]
fn one_node_is_a_group_by_itself_and_begins_anew_after_a_restart() {
    let mut fleet = Fleet::new(1);
    let part = open(&fleet.nodes[0]);
    warm(&fleet.nodes[0], &part);
    assert_eq!(put_until_done(&fleet.nodes[0], &part, 1, b"a"), "");
    assert_eq!(put_until_done(&fleet.nodes[0], &part, 1, b"b"), "a");
    let status = part.group.status();
    assert_eq!(
        (status.epoch, status.quorate, status.members.len()),
        (1, true, 1)
    );
    assert_eq!(status.leader, Some(status.raft_id));
    assert!(
        fleet.nodes[0]
            .block_on(
                fleet.nodes[0]
                    .cluster
                    .volatile_group("cache", std::sync::Arc::new(Map::default()))
            )
            .is_err(),
        "it is open"
    );

    drop(part);
    let killed = fleet.nodes.remove(0).kill();
    let node = fleet.restart(killed);
    let part = open(node);
    warm(node, &part);
    let again = part.group.status();
    assert_eq!(again.epoch, 2, "nobody was left of the first epoch");
    assert!(again.raft_id > status.raft_id);
    assert!(part.map.entries().is_empty());
    put_until_done(node, &part, 2, b"c");
    node.block_on(part.group.shutdown());
    assert!(node.block_on(part.group.propose(command(3, b""))).is_err());
    let reopened = open(node);
    warm(node, &reopened);
    assert_eq!(reopened.group.status().epoch, 3);
}

#[test]
fn three_nodes_share_what_any_of_them_writes() {
    let fleet = Fleet::new(3);
    let parts: Vec<Part> = fleet.nodes.iter().map(open).collect();
    for (node, part) in fleet.nodes.iter().zip(&parts) {
        warm(node, part);
    }
    for (key, (node, part)) in fleet.nodes.iter().zip(&parts).enumerate() {
        put_until_done(node, part, key as u64, b"x");
    }
    until("all are equal", || {
        parts
            .iter()
            .all(|part| part.map.entries().len() == 3)
            .then_some(())
    });
    let leader = until("three voters", || {
        parts.iter().map(|part| part.group.status()).find(|status| {
            let voters = status.members.iter().filter(|m| m.role == Role::Voter);
            status.leader == Some(status.raft_id) && voters.count() == 3
        })
    });
    assert!(
        leader
            .members
            .iter()
            .all(|member| member.lag.is_some() || member.raft_id == leader.raft_id)
    );
    assert!(leader.members.iter().all(|member| member.node_id != 0));
}
