//! Whom the commands talk to, what they do to the membership and to endpoints.

use quorate_cli::Exit;

use crate::{cluster_status, fake::Fake, run, run_with_input, with_manifest};

#[tokio::test]
async fn the_next_server_is_tried_and_no_leader_is_waited_for() {
    let server = with_manifest().await;
    let live = server.address.to_string();
    let out = run_with_input(
        &[
            "get",
            "regions",
            "-o",
            "name",
            "--server",
            &format!("127.0.0.1:1,{live}"),
        ],
        b"",
    )
    .await
    .ok();
    assert_eq!(out, "region/eu\n");

    server.state().no_leader = 3;
    run(&server, "get regions").await.ok();
    assert_eq!(server.state().no_leader, 0);
    server.state().no_leader = u32::MAX;
    let err = run(&server, "get regions --timeout 300ms")
        .await
        .failed(Exit::Unavailable);
    assert!(err.ends_with(": there is no leader\n"), "{err}");
    server.state().no_leader = 0;

    let err = run_with_input(&["get", "regions", "--server", "127.0.0.1:1"], b"")
        .await
        .failed(Exit::Unavailable);
    assert!(
        err.contains("no node can be reached (127.0.0.1:1: Connection refused"),
        "{err}"
    );
    server.state().hang = true;
    let err = run(&server, "get regions --timeout 100ms")
        .await
        .failed(Exit::Timeout);
    assert!(err.contains("did not answer within 100ms"), "{err}");
}

#[tokio::test]
async fn drain_waits_until_nothing_is_in_flight() {
    let server = with_manifest().await;
    server.state().in_flight = [2, 2, 1, 0, 1, 0, 0, 0].into();
    let said = run(&server, "endpoint drain gpu-1 --wait").await;
    assert!(
        said.err.contains("2 in flight") && said.err.contains("1 in flight"),
        "{said:?}"
    );
    assert_eq!(
        said.ok(),
        "endpoint/gpu-1 draining\nendpoint/gpu-1 drained\n"
    );
    let out = run(&server, "endpoint drain gpu-1 --undo --wait")
        .await
        .ok();
    assert_eq!(out, "endpoint/gpu-1 in use again\n");

    server.state().in_flight = [4].into();
    let err = run(&server, "endpoint drain gpu-1 --wait --wait-timeout 300ms")
        .await
        .failed(Exit::Timeout);
    assert!(
        err.contains("still has 4 requests in flight after 300ms"),
        "{err}"
    );
    run(&server, "endpoint drain none")
        .await
        .failed(Exit::NotFound);
}

#[tokio::test]
async fn the_cluster_is_shown_and_changed() {
    let server = Fake::default().start().await;
    server.state().cluster = cluster_status();
    let out = run(&server, "cluster status").await.ok();
    let expected = "\
Cluster   c1 (lan timing)
Leader    node-a (1), term 4
Answered  by node-a (1), log 90, applied 89
Warning   node 3 (node-c) is not reachable from node 1

NAME     ID   ROLE      REGION   REACHABLE   LAG   CONTACT   CONTROL         GATEWAY   VERSION
node-a   1    voter *   eu       yes         1     40ms      10.0.0.1:7070   -         0.1.0
node-b   2    voter     eu       yes         2     40ms      10.0.0.2:7070   -         0.1.0
node-c   3    learner   eu       no          3     40ms      10.0.0.3:7070   -         0.1.0
";
    assert_eq!(out, expected);
    let json = run(&server, "cluster status -o json").await.ok();
    assert!(
        json.contains("\"leaderId\": 1,") && json.contains("\"reachable\": false,"),
        "{json}"
    );

    let out = run(&server, "cluster add node-c").await.ok();
    assert_eq!(
        out,
        "node-c (3) is a voter; voters: node-a (1), node-b (2); learners: node-c (3)\n"
    );
    run(&server, "cluster promote 2").await.ok();
    assert_eq!(server.state().promoted, [3, 2]);
    assert_eq!(
        run(&server, "cluster transfer").await.ok(),
        "node-b (2) leads\n"
    );
    assert_eq!(
        run(&server, "cluster transfer node-c").await.ok(),
        "node-c (3) leads\n"
    );
    run(&server, "cluster demote node-b").await.ok();
    run(&server, "cluster replace node-b node-c").await.ok();
    let err = run(&server, "cluster remove node-a")
        .await
        .failed(Exit::Conflict);
    assert_eq!(err, "error: node 1 is the only voter\n");
    run(&server, "cluster add nobody")
        .await
        .failed(Exit::NotFound);
    server.state().cluster.leader_id = 0;
    assert_eq!(run(&server, "cluster status").await.exit, Exit::Unavailable);
}
