// long: one test for each thing that can happen to a cluster, on one harness.
//! Three and more nodes on real sockets and disks: writes, reads, failures, restarts, membership.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quorate_proto::{
    peer::v1::{JoinRequest, raft_client::RaftClient},
    store::v1::rejection::Code,
    v1::Kind,
};
use quorate_raft::{
    Consistency, ProposeError, Role, Start, StopReason,
    watch::{WatchEventType, WatchFilter},
};
use support::*;

#[test]
fn three_nodes_elect_a_leader_and_take_writes_anywhere() {
    let fleet = Fleet::new(3);
    for (index, node) in fleet.nodes.iter().enumerate() {
        let applied = node.put(&format!("s{index}"), "1").unwrap();
        assert!(applied.index > 0);
    }
    for node in &fleet.nodes {
        let (view, stamp) = node
            .block_on(node.cluster.read(Consistency::Linearizable))
            .unwrap();
        assert_eq!(view.list(Kind::Setting).count(), 3);
        assert_eq!(stamp.node_id, node.id());
        assert!(stamp.age.is_some());
        let status = node.cluster.status();
        assert_eq!(status.members.len(), 3);
        assert!(
            status
                .members
                .iter()
                .all(|member| member.role == Role::Voter)
        );
    }
    fleet.check_equal();
    let refused =
        fleet.nodes[1].block_on(fleet.nodes[1].cluster.propose(put_if("s0", "2", Some(999))));
    let Err(ProposeError::Rejected(rejection)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(rejection.code(), Code::VersionConflict);
}

#[test]
fn a_retried_write_applies_once_across_a_leader_kill() {
    let mut fleet = Fleet::new(3);
    let mut version = 0;
    for round in 0..3 {
        let mut command = put("counter", &format!("{round}"));
        command.idempotency_key = format!("round-{round}");
        let follower = fleet.follower();
        let first = fleet.nodes[follower]
            .block_on(
                fleet.nodes[follower]
                    .cluster
                    .propose_within(command.clone(), WAIT),
            )
            .unwrap();
        let leader = fleet.leader();
        let killed = fleet.nodes.remove(leader).kill();
        let survivor = &fleet.nodes[0];
        let again = survivor
            .block_on(survivor.cluster.propose_within(command, WAIT))
            .unwrap();
        assert_eq!(
            (again.index, &again.resource),
            (first.index, &first.resource),
            "applied twice"
        );
        let now = again.resource.metadata.as_ref().unwrap().resource_version;
        assert!(now > version);
        version = now;
        fleet.restart(killed).ready();
    }
    fleet.check_equal();
}

#[test]
fn acknowledged_writes_survive_kills_under_load() {
    let mut fleet = Fleet::new(3);
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    // Handles of the nodes that are alive: one that is kept would keep a killed node's directory open.
    let alive = |fleet: &Fleet| {
        fleet
            .nodes
            .iter()
            .map(|node| node.cluster.clone())
            .collect::<Vec<_>>()
    };
    let clusters = Arc::new(Mutex::new(alive(&fleet)));
    let writer = {
        let (stop, acknowledged, clusters) = (
            Arc::clone(&stop),
            Arc::clone(&acknowledged),
            Arc::clone(&clusters),
        );
        std::thread::spawn(move || {
            let runtime = runtime();
            let mut written = Vec::new();
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let cluster = {
                    let clusters = clusters.lock().unwrap();
                    clusters[number as usize % clusters.len()].clone()
                };
                let result = runtime.block_on(cluster.propose_within(
                    put(&format!("w{number}"), "true"),
                    Duration::from_millis(1500),
                ));
                if result.is_ok() {
                    written.push(number);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                number += 1;
            }
            written
        })
    };
    for _ in 0..2 {
        let before = acknowledged.load(Ordering::Relaxed);
        until("writes go on", || {
            (acknowledged.load(Ordering::Relaxed) > before + 50).then_some(())
        });
        let leader = fleet.leader();
        clusters.lock().unwrap().remove(leader);
        let killed = fleet.nodes.remove(leader).kill();
        until("a new leader", || {
            fleet
                .nodes
                .iter()
                .any(|node| node.cluster.is_leader())
                .then_some(())
        });
        fleet.restart(killed).ready();
        *clusters.lock().unwrap() = alive(&fleet);
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.join().unwrap();
    assert!(written.len() > 100);
    fleet.check_equal();
    let leader = &fleet.nodes[fleet.leader()];
    for number in written {
        assert!(
            leader.setting(&format!("w{number}")).is_some(),
            "w{number} was acknowledged and is gone"
        );
    }
}

#[test]
fn a_restart_of_all_nodes_keeps_everything() {
    let mut fleet = Fleet::new(3);
    for number in 0..200 {
        fleet.nodes[number % 3]
            .put(&format!("k{number}"), &format!("{number}"))
            .unwrap();
    }
    let before = fleet.nodes[0].cluster.view();
    let killed: Vec<_> = fleet.nodes.drain(..).map(Node::kill).collect();
    for node in killed {
        fleet.restart(node);
    }
    for node in &fleet.nodes {
        node.ready();
        for number in 0..200 {
            assert_eq!(
                node.setting(&format!("k{number}")),
                Some(number.to_string())
            );
        }
        assert_eq!(node.cluster.view().cluster_id(), before.cluster_id());
    }
    fleet.nodes[0].put("after", "1").unwrap();
    fleet.check_equal();
}

#[test]
fn a_node_far_behind_gets_a_snapshot() {
    let mut fleet = Fleet::with(
        3,
        Arc::new(|options| {
            options.snapshot_every = 100;
            options.keep_logs = 20;
        }),
    );
    let follower = fleet.follower();
    let down = fleet.nodes.remove(follower).kill();
    // One at a time: one entry each, so the log moves on past what is kept.
    for number in 0..600 {
        fleet.nodes[number % 2]
            .put(&format!("k{}", number % 50), &format!("{number}"))
            .unwrap();
    }
    let node = fleet.restart(down);
    node.ready();
    assert_eq!(node.setting("k49"), Some("599".to_owned()));
    let snapshots = std::fs::read_dir(node.dir.join("snapshots"))
        .unwrap()
        .count();
    assert_eq!(snapshots, 1, "the installed snapshot is the only file");
    fleet.check_equal();
    // And what was installed is enough to start from.
    let last = fleet.nodes.len() - 1;
    let down = fleet.nodes.remove(last).kill();
    let node = fleet.restart(down);
    node.ready();
    assert_eq!(node.setting("k49"), Some("599".to_owned()));
}

#[test]
fn five_nodes_and_back_under_writes() {
    let mut fleet = Fleet::new(3);
    let stop = Arc::new(AtomicBool::new(false));
    let cluster = fleet.nodes[0].cluster.clone();
    let writer = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let runtime = runtime();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                runtime
                    .block_on(cluster.propose_within(put(&format!("w{}", number % 100), "1"), WAIT))
                    .expect("no write may fail while the membership changes");
                number += 1;
            }
            number
        })
    };
    let (fourth, fifth) = (fleet.add().id(), fleet.add().id());
    let learner = |id: u64, fleet: &Fleet| {
        fleet.nodes[0]
            .cluster
            .status()
            .members
            .iter()
            .any(|m| m.node_id == id && m.role == Role::Learner)
    };
    assert!(
        learner(fourth, &fleet) && learner(fifth, &fleet),
        "three voters are enough by default"
    );
    let node = &fleet.nodes[1];
    node.block_on(node.cluster.promote(fourth)).unwrap();
    let members = node.block_on(node.cluster.promote(fifth)).unwrap();
    assert_eq!(members.voters.len(), 5);
    // Take out two of the first three, the leader among them, but not the node that the writer uses.
    let leader = fleet.nodes[fleet.leader()].id();
    let keep = fleet.nodes[0].id();
    let gone: Vec<u64> = [leader, fleet.nodes[1].id(), fleet.nodes[2].id()]
        .into_iter()
        .filter(|id| *id != keep)
        .take(2)
        .collect();
    let node = &fleet.nodes[0];
    for id in &gone {
        node.block_on(node.cluster.remove(*id)).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.join().unwrap() > 0);
    for id in &gone {
        let node = fleet.nodes.iter().find(|node| node.id() == *id).unwrap();
        assert_eq!(node.block_on(node.cluster.stopped()), StopReason::Removed);
    }
    fleet.nodes.retain(|node| !gone.contains(&node.id()));
    assert_eq!(
        fleet.nodes[0].cluster.status().members.len(),
        5 - gone.len()
    );
    fleet.check_equal();
}

#[test]
fn a_dead_node_is_replaced_and_never_comes_back() {
    let mut fleet = Fleet::new(3);
    let fourth = fleet.add().id();
    let follower = {
        let leader = fleet.leader();
        (0..3).find(|index| *index != leader).unwrap()
    };
    let dead = fleet.nodes[follower].id();
    let killed = fleet.nodes.remove(follower).kill();
    let node = &fleet.nodes[fleet.follower()];
    let members = node.block_on(node.cluster.replace(dead, fourth)).unwrap();
    assert!(members.voters.contains(&fourth) && !members.voters.contains(&dead));
    node.put("after", "1").unwrap();
    let back = restart(&killed.0, &killed.1, &killed.2, None);
    match back {
        Err(quorate_raft::Error::Refused { why, .. }) => assert!(why.contains("removed"), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a removed node was let in"),
    }
}

#[test]
fn a_change_that_would_leave_no_quorum_is_refused_even_right_after_a_death() {
    let mut fleet = Fleet::new(3);
    let leader = fleet.nodes[fleet.leader()].id();
    let dead = fleet
        .nodes
        .iter()
        .position(|node| node.id() != leader)
        .unwrap();
    fleet.nodes.remove(dead).kill();
    let other = fleet
        .nodes
        .iter()
        .find(|node| node.id() != leader)
        .unwrap()
        .id();
    let node = fleet.nodes.iter().find(|node| node.id() == leader).unwrap();
    for change in [
        node.block_on(node.cluster.demote(other)),
        node.block_on(node.cluster.remove(other)),
    ] {
        match change {
            Err(quorate_raft::ChangeError::Refused(why)) => {
                assert!(why.contains("no majority"), "{why}")
            }
            changed => panic!("{changed:?}"),
        }
    }
    node.put("still", "1").unwrap();
}

#[test]
fn the_leadership_moves_without_a_gap() {
    let fleet = Fleet::new(3);
    for _ in 0..3 {
        let follower = fleet.follower();
        let target = fleet.nodes[follower].id();
        let leader = &fleet.nodes[fleet.leader()];
        assert_eq!(
            leader
                .block_on(leader.cluster.transfer_leadership(Some(target)))
                .unwrap(),
            target
        );
        let started = Instant::now();
        leader.put("x", "1").unwrap();
        println!("first write after a transfer: {:?}", started.elapsed());
    }
    // A node that stops hands over first.
    let mut fleet = fleet;
    let leader = fleet.leader();
    let node = fleet.nodes.remove(leader);
    node.stop();
    let started = Instant::now();
    fleet.nodes[0].put("y", "1").unwrap();
    println!(
        "first write after a leader's shutdown: {:?}",
        started.elapsed()
    );
}

#[test]
fn linearizable_reads_are_never_stale() {
    let fleet = Fleet::new(3);
    let stop = Arc::new(AtomicBool::new(false));
    // Highest value whose write was acknowledged.
    let floor = Arc::new(AtomicU64::new(0));
    fleet.nodes[0].put("n", "0").unwrap();
    let readers: Vec<_> = fleet
        .nodes
        .iter()
        .map(|node| {
            let (cluster, stop, floor) =
                (node.cluster.clone(), Arc::clone(&stop), Arc::clone(&floor));
            std::thread::spawn(move || {
                let runtime = runtime();
                let mut reads = 0_u64;
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let at_least = floor.load(Ordering::SeqCst);
                    let (view, _) = runtime
                        .block_on(cluster.read_within(Consistency::Linearizable, WAIT))
                        .unwrap();
                    let Some(quorate_proto::v1::resource::Spec::Setting(setting)) = view
                        .get(Kind::Setting, "n")
                        .and_then(|resource| resource.spec.clone())
                    else {
                        panic!("gone");
                    };
                    let value: u64 = setting.json.parse().unwrap();
                    assert!(
                        value >= at_least,
                        "read {value} after {at_least} was acknowledged"
                    );
                    assert!(value >= last, "time went backwards");
                    last = value;
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for value in 1..400_u64 {
        fleet.nodes[(value % 3) as usize]
            .put("n", &value.to_string())
            .unwrap();
        floor.store(value, Ordering::SeqCst);
        if value % 100 == 0 {
            let target = fleet.nodes[fleet.follower()].id();
            let node = &fleet.nodes[0];
            node.block_on(node.cluster.transfer_leadership(Some(target)))
                .unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 10);
    }
}

#[test]
fn without_a_quorum_nothing_is_acknowledged_and_stale_reads_say_so() {
    let mut fleet = Fleet::new(3);
    fleet.nodes[0].put("x", "1").unwrap();
    let killed = [fleet.nodes.remove(2).kill(), fleet.nodes.remove(1).kill()];
    let alone = &fleet.nodes[0];
    until("the lease is over", || {
        (alone.cluster.age()? > Duration::from_secs(1)).then_some(())
    });
    // A deadline that passes while an attempt is out is told as "unknown"; between two attempts, as "nothing was changed".
    until("the answer is definite", || {
        let refused = alone.block_on(
            alone
                .cluster
                .propose_within(put("x", "2"), Duration::from_millis(700)),
        );
        match refused {
            Err(ProposeError::NoLeader { .. }) => Some(()),
            Err(ProposeError::Timeout { .. }) => None,
            other => panic!("{other:?}"),
        }
    });
    assert!(
        alone
            .block_on(
                alone
                    .cluster
                    .read_within(Consistency::Linearizable, Duration::from_millis(300))
            )
            .is_err()
    );
    let (view, stamp) = alone
        .block_on(alone.cluster.read(Consistency::Stale))
        .unwrap();
    assert!(view.get(Kind::Setting, "x").is_some() && stamp.age.unwrap() > Duration::from_secs(1));
    assert!(!alone.cluster.status().warnings.is_empty());
    for node in killed {
        fleet.restart(node);
    }
    fleet.nodes[0].put("x", "3").unwrap();
    until("fresh again", || {
        (fleet.nodes[0].cluster.age()? < Duration::from_secs(1)).then_some(())
    });
}

#[test]
fn watches_resume_on_another_node() {
    let fleet = Fleet::new(3);
    let filter = WatchFilter {
        kinds: vec![Kind::Setting],
        name: None,
    };
    let mut watch = fleet.nodes[0].cluster.watch(filter.clone(), None).unwrap();
    fleet.nodes[1].put("a", "1").unwrap();
    let mut token = None;
    let mut seen = BTreeMap::new();
    while !seen.contains_key("a") {
        let event = fleet.nodes[0].block_on(watch.next()).unwrap();
        token = event.resume_token.or(token);
        if let (WatchEventType::Put, Some(resource)) = (event.kind, event.resource) {
            seen.insert(resource.metadata.clone().unwrap().name, ());
        }
    }
    fleet.nodes[2].put("b", "1").unwrap();
    let other = &fleet.nodes[2];
    let mut resumed = other.cluster.watch(filter, token.as_ref()).unwrap();
    let event = other.block_on(resumed.next()).unwrap();
    assert_eq!(event.resource.unwrap().metadata.clone().unwrap().name, "b");
}

/// Between its election and its first entry a founder has nothing to judge a joining node by: it must say "come again" and not "no".
#[test]
fn nobody_is_turned_away_while_the_cluster_is_being_founded() {
    // One that a founded cluster takes in never, so that it can ask on and on.
    let request = JoinRequest {
        name: "node-2".into(),
        timing: "no such preset".into(),
        ..Default::default()
    };
    let asked_while_founding = || {
        let root = tempfile::tempdir().unwrap();
        let listener = free_listener();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let options = options("node-1", root.path(), listener, Start::Bootstrap);
        let founder = std::thread::spawn(move || Node::try_start(options));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let come_again = runtime.block_on(async {
            let channel = tonic::transport::Endpoint::from_shared(address).unwrap();
            let mut client = RaftClient::new(channel.connect_lazy());
            let mut come_again = false;
            loop {
                let refused = client.join(request.clone()).await.unwrap_err();
                come_again |= refused.message().contains("being founded");
                if refused.message().contains("timing preset") {
                    return come_again;
                }
            }
        });
        founder.join().unwrap().unwrap().ready();
        come_again
    };
    // The moment is short; a question every half a millisecond seldom misses it.
    assert!((0..20).any(|_| asked_while_founding()));
}

#[test]
fn a_node_moves_to_another_address() {
    let mut fleet = Fleet::new(3);
    let follower = fleet.follower();
    let (dir, _, name) = fleet.nodes.remove(follower).kill();
    let elsewhere = free_listener();
    let address = elsewhere.local_addr().unwrap().to_string();
    drop(elsewhere);
    let node = restart(&dir, &address, &name, None).unwrap();
    node.ready();
    let id = node.id();
    fleet.nodes.push(node);
    for node in &fleet.nodes {
        until("the new address is known", || {
            node.cluster
                .status()
                .members
                .iter()
                .any(|member| {
                    member.node_id == id
                        && member
                            .node
                            .as_ref()
                            .is_some_and(|n| n.peer_address == address)
                })
                .then_some(())
        });
    }
    fleet.nodes[0].put("x", "1").unwrap();
    fleet.check_equal();
}

#[test]
fn starting_again_is_safe_whatever_it_is_told() {
    let mut fleet = Fleet::new(1);
    fleet.nodes[0].put("x", "1").unwrap();
    let cluster_id = fleet.nodes[0].cluster.cluster_id().to_owned();
    let (dir, address, name) = fleet.nodes.remove(0).stop();
    for start in [
        Start::Bootstrap,
        Start::Join(vec![address.clone()]),
        Start::Resume,
    ] {
        let node = Node::try_start(options(&name, &dir, bind(&address), start)).unwrap();
        node.ready();
        assert_eq!(node.cluster.cluster_id(), cluster_id);
        assert_eq!(node.setting("x"), Some("1".to_owned()));
        node.stop();
    }
}
