//! Volatile groups on real sockets: one node and three, kills, restarts, new epochs, two regions, frames of the past.

#![allow(clippy::unwrap_used)]

#[path = "support/history.rs"]
mod history;
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use history::*;
use quorate_proto::peer::v1::{AppendFrame, Header, Vote, raft_client::RaftClient};
use quorate_raft::{Options, ProposeError, Role};
use support::*;

#[test]
fn one_node_is_a_group_by_itself_and_begins_anew_after_a_restart() {
    let mut fleet = Fleet::new(1);
    let part = Part::warm(&fleet.nodes[0]);
    assert_eq!((part.write(7), part.write(8)), (0, 1));
    let status = part.status();
    assert_eq!(
        (status.epoch, status.quorate, status.members.len()),
        (1, true, 1)
    );
    assert_eq!(status.leader, Some(status.raft_id));
    let node = &fleet.nodes[0];
    for name in ["cache", "control", "Not A Name"] {
        let open = node
            .cluster
            .volatile_group(name, Arc::new(History::default()));
        assert!(node.block_on(open).is_err(), "{name}");
    }
    let large = part.try_write(9, 1 << 20).unwrap();
    assert_eq!(large, 2);
    assert!(matches!(
        part.try_write(10, (1 << 20) + 1),
        Err(ProposeError::TooLarge { .. })
    ));

    // Longer than a group waits for a leader, and nothing is written.
    std::thread::sleep(Duration::from_secs(5));
    let idle = part.status();
    assert_eq!((idle.epoch, idle.quorate), (1, true));

    drop(part);
    let killed = fleet.nodes.remove(0).kill();
    let node = fleet.restart(killed);
    let part = Part::warm(node);
    let again = part.status();
    assert_eq!(again.epoch, 2, "nobody was left of the first epoch");
    assert!(again.raft_id > status.raft_id);
    assert!(part.history.numbers().is_empty());
    part.write(1);
    part.shutdown();
    assert_eq!(part.try_write(2, 8), Err(ProposeError::Stopped));
    assert_eq!(Part::warm(node).status().epoch, 3);
}

#[test]
fn three_nodes_share_what_any_of_them_writes() {
    // Without a data directory, for a change.
    let fleet = Fleet::with(3, Arc::new(|options: &mut Options| options.data_dir = None));
    let parts = all_warm(&fleet);
    for (number, part) in parts.iter().enumerate() {
        assert_eq!(part.write(number as u64), number as u64);
    }
    assert_eq!(equal(&parts), [0, 1, 2]);
    let lead = leader(&parts);
    let status = parts[lead].status();
    for member in &status.members {
        assert!(
            member.node_id != 0 && !member.name.is_empty() && member.lag.is_some(),
            "{status:?}"
        );
    }

    // Leaving in order costs no epoch and no write.
    parts[lead].shutdown();
    let rest: Vec<Part> = parts
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != lead)
        .map(|(_, part)| part.clone())
        .collect();
    rest[0].write(3);
    settled(&rest, 2);
    assert_eq!(equal(&rest), [0, 1, 2, 3]);
    let (leaving, last) = if rest[0].leads() {
        (&rest[0], &rest[1])
    } else {
        (&rest[1], &rest[0])
    };
    leaving.shutdown();
    assert_eq!(last.write(4), 4);
    assert_eq!(last.status().epoch, 1);
}

#[test]
fn a_killed_leader_is_replaced_and_its_node_comes_back_as_a_new_member() {
    let mut fleet = Fleet::new(3);
    let mut parts = all_warm(&fleet);
    let mut number = 0;
    for _ in 0..2 {
        let lead = leader(&parts);
        for _ in 0..20 {
            parts[lead].write(number);
            number += 1;
        }
        let before = parts.remove(lead).status();
        let killed = fleet.nodes.remove(lead).kill();
        let began = Instant::now();
        parts[0].write(number);
        number += 1;
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "no new epoch is needed"
        );
        let node = fleet.restart(killed);
        parts.push(Part::warm(node));
        settled(&parts, 3);
        let raft_id = parts[2].status().raft_id;
        let after = parts[leader(&parts)].status();
        assert_eq!(after.epoch, before.epoch);
        assert!(raft_id > before.raft_id);
        assert!(!after.members.iter().any(|m| m.raft_id == before.raft_id));
    }
    assert_eq!(equal(&parts), (0..number).collect::<Vec<_>>());
}

#[test]
fn a_restart_under_load_is_warm_and_equal() {
    let mut fleet = Fleet::new(3);
    let mut parts = all_warm(&fleet);
    let (stop, written) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let restarted = (leader(&parts) + 1) % 3;
    let writer = {
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        let part = parts[leader(&parts)].clone();
        std::thread::spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                if part.try_write(number, 20 << 10).is_ok() {
                    written.fetch_add(1, Ordering::Relaxed);
                }
                number += 1;
            }
        })
    };
    let more = |than: u64| {
        let before = written.load(Ordering::Relaxed);
        until("writes go on", || {
            (written.load(Ordering::Relaxed) > before + than).then_some(())
        });
    };
    more(200);
    parts.remove(restarted);
    let killed = fleet.nodes.remove(restarted).kill();
    more(100);
    let node = fleet.restart(killed);
    let part = Part::open(node);
    part.wait_warm();
    assert!(
        part.history.numbers().len() as u64 >= 300,
        "warm means that what was committed is here"
    );
    parts.push(part);
    more(100);
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    settled(&parts, 3);
    assert!(equal(&parts).len() as u64 >= written.load(Ordering::Relaxed));
    assert_eq!(parts[0].status().epoch, 1);
}

#[test]
fn the_log_is_cut_short_and_a_large_snapshot_arrives() {
    let mut fleet = Fleet::new(3);
    let mut parts = all_warm(&fleet);
    let lead = leader(&parts);
    for number in 0..150 {
        parts[lead].try_write(number, 1 << 20).unwrap();
    }
    until("the log is cut short", || {
        // 32 MiB behind the last snapshot, and up to 64 MiB after it.
        let short = |part: &Part| part.status().log_bytes < 98 << 20;
        parts.iter().all(short).then_some(())
    });
    let away = (lead + 1) % 3;
    parts.remove(away);
    let killed = fleet.nodes.remove(away).kill();
    let node = fleet.restart(killed);
    parts.push(Part::warm(node));
    assert_eq!(equal(&parts), (0..150).collect::<Vec<_>>());
    assert_eq!(parts[2].status().epoch, 1);
}

#[test]
fn two_of_three_at_once_make_a_new_epoch_that_keeps_what_is_left() {
    let mut fleet = Fleet::new(3);
    let mut parts = all_warm(&fleet);
    for number in 0..10 {
        parts[0].write(number);
    }
    equal(&parts);
    let killed: Vec<_> = (0..2)
        .map(|_| {
            parts.remove(0);
            fleet.nodes.remove(0).kill()
        })
        .collect();
    // Neither group has a majority: what is here stays, and nothing is promised.
    until("the loss is seen", || {
        (!parts[0].status().quorate).then_some(())
    });
    assert!(parts[0].try_write(99, 8).is_err());
    assert_eq!(parts[0].status().epoch, 1);
    assert_eq!(
        parts[0].history.numbers()[..10],
        (0..10).collect::<Vec<_>>()
    );
    for node in killed {
        let node = fleet.restart(node);
        parts.push(Part::open(node));
    }
    for part in &parts {
        part.wait_warm();
    }
    parts[1].write(10);
    settled(&parts, 3);
    let held = equal(&parts);
    assert_eq!(held[..10], (0..10).collect::<Vec<_>>());
    assert_eq!(held.last(), Some(&10));
    assert_eq!(parts[1].status().epoch, 2);
}

#[test]
fn a_member_that_stays_away_is_dropped() {
    let mut fleet = Fleet::new(4);
    let mut parts = all_warm(&fleet);
    let away = (leader(&parts) + 1) % 4;
    parts.remove(away);
    drop(fleet.nodes.remove(away).kill());
    settled(&parts, 3);
    parts[0].write(1);
    assert_eq!(equal(&parts), [1]);
    assert_eq!(parts[0].status().epoch, 1);
}

#[test]
fn a_removed_node_is_out_at_once() {
    let mut fleet = Fleet::new(3);
    let mut parts = all_warm(&fleet);
    let out = (leader(&parts) + 1) % 3;
    parts.remove(out);
    let removed = fleet.nodes.remove(out);
    let node = &fleet.nodes[0];
    node.block_on(node.cluster.remove(removed.id())).unwrap();
    let began = Instant::now();
    settled(&parts, 2);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "as slow as if it had died"
    );
    parts[0].write(1);
    assert_eq!(equal(&parts), [1]);
}

#[test]
fn a_dead_member_is_dialled_with_pauses() {
    let mut fleet = Fleet::new(3);
    let mut parts = all_warm(&fleet);
    let dead = (leader(&parts) + 1) % 3;
    parts.remove(dead);
    let (_dir, address, _) = fleet.nodes.remove(dead).kill();
    // Whoever dials it is hung up on, and counted.
    let (listener, dials) = (bind(&address), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&dials);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let lead = leader(&parts);
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < Duration::from_secs(2) {
        parts[lead].write(number);
        number += 1;
    }
    // Two groups, heartbeats and appends, each every 50 ms or so.
    let dials = dials.load(Ordering::Relaxed);
    assert!(dials < 600, "{dials} dials for {number} writes");
}

fn two_regions() -> Fleet {
    let regions: Tweak = Arc::new(|options: &mut Options| {
        let west = options.node_name == "node-3";
        options.region = if west { "west" } else { "east" }.to_owned();
    });
    Fleet::with(3, regions)
}

#[test]
fn the_last_one_of_a_region_goes_on_alone() {
    let mut fleet = two_regions();
    let parts: Vec<Part> = fleet.nodes[..2].iter().map(Part::warm).collect();
    settled(&parts, 2);
    parts[0].write(1);
    equal(&parts);
    drop(fleet.nodes.remove(0).kill());
    // The control group goes on with the other region's node, so it can decide.
    parts[1].write(2);
    assert_eq!(parts[1].history.numbers(), [1, 2]);
    assert_eq!(parts[1].status().epoch, 2);
}

#[test]
fn regions_have_groups_of_their_own() {
    let fleet = two_regions();
    let parts: Vec<Part> = fleet.nodes.iter().map(Part::warm).collect();
    settled(&parts[..2], 2);
    parts[1].write(1);
    parts[2].write(2);
    assert_eq!(equal(&parts[..2]), [1]);
    assert_eq!(parts[2].history.numbers(), [2]);
    assert_eq!(parts[2].status().region, "west");
    assert_eq!(parts[2].status().members[0].role, Role::Voter);
}

#[test]
fn frames_of_another_epoch_or_for_another_id_are_refused() {
    let fleet = Fleet::new(1);
    let node = &fleet.nodes[0];
    let part = Part::warm(node);
    part.write(1);
    let status = part.status();
    let header = Header {
        cluster_id: node.cluster.cluster_id().to_owned(),
        group: "cache".to_owned(),
        epoch: status.epoch,
        from: 77,
        to: node.id(),
        start_id: 5,
        from_raft: 9,
        to_raft: status.raft_id,
    };
    let send = |header: Header| {
        let frame = AppendFrame {
            header: Some(header),
            vote: Some(Vote {
                term: 1,
                leader_id: 9,
                committed: true,
            }),
            ..AppendFrame::default()
        };
        node.block_on(async {
            let mut client = RaftClient::connect(format!("http://{}", node.address))
                .await
                .unwrap();
            client.heartbeat(frame).await
        })
    };
    let refusal = |header: Header| {
        let status = send(header).unwrap_err();
        let value = status.metadata().get("quorate-refusal").unwrap();
        value.to_str().unwrap().to_owned()
    };
    // An old term is answered, not obeyed.
    assert!(send(header.clone()).is_ok());
    for epoch in [0, status.epoch - 1, status.epoch + 1] {
        let other = Header {
            epoch,
            ..header.clone()
        };
        assert_eq!(refusal(other), "REFUSAL_STALE_EPOCH");
    }
    let other = Header {
        to_raft: status.raft_id + 1,
        ..header.clone()
    };
    assert_eq!(refusal(other), "REFUSAL_WRONG_NODE");
    let other = Header {
        group: "nothing".to_owned(),
        ..header
    };
    assert_eq!(refusal(other), "REFUSAL_UNKNOWN_GROUP");
    assert!(part.leads());
}
