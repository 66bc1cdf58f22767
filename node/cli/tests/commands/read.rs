//! Reading: get and describe.

use std::io::Write;

use clap::{CommandFactory as _, Parser as _};
use quorate_cli::{Exit, Io};

use crate::{Cli, cluster_status, node_resource, run, with_manifest};

#[tokio::test]
async fn get_shows_tables() {
    let server = with_manifest().await;
    // The age of the resources grows with the day on which the test runs.
    let columns = |text: String| {
        text.lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    let lines = columns(run(&server, "get ep").await.ok());
    assert_eq!(lines[0], "NAME POOL URL ENGINE REGION DRAINING AGE");
    assert!(
        lines[1].starts_with("gpu-1 chat http://gpu-1:8000 vllm - - "),
        "{lines:?}"
    );
    assert!(
        lines[2].starts_with("gpu-2 chat http://gpu-2:8000 - - - "),
        "{lines:?}"
    );
    let lines = columns(
        run(&server, "get endpoints -l gpu=h100 --pool chat -o wide")
            .await
            .ok(),
    );
    assert_eq!(
        lines[0],
        "NAME POOL URL ENGINE REGION DRAINING AGE RANK SOURCE METRICS LABELS VERSION"
    );
    assert!(lines[1].ends_with(" 1 - - gpu=h100 3"), "{lines:?}");
    assert_eq!(lines.len(), 2);
    let lines = columns(run(&server, "get all").await.ok());
    assert!(
        lines.starts_with(&["REGIONS".to_owned()]) && lines.contains(&"SETTINGS".to_owned()),
        "{lines:?}"
    );

    let said = run(&server, "get pools --stale -o name").await;
    assert_eq!(
        (said.out.as_str(), said.err.as_str()),
        (
            "pool/chat\n",
            "view of node 2: log index 5, at most 13ms old\n"
        )
    );
    let json = run(&server, "get setting limits -o json").await.ok();
    assert!(json.contains("\"value\": {\n      \"burst\": 3,"), "{json}");
    let json = run(&server, "get settings -o json").await.ok();
    assert!(json.contains("\"kind\": \"List\""), "{json}");

    let said = run(&server, "get pool chat none").await;
    assert!(
        said.out.contains("chat"),
        "what is there is shown: {said:?}"
    );
    assert_eq!(
        said.failed(Exit::NotFound),
        "error: there is no pool \"none\"\n"
    );
    for usage in [
        "get",
        "get pots",
        "get pools --pool x",
        "get pool a -l b=c",
        "get pools -l x",
        "delete pool",
        "apply",
    ] {
        assert_eq!(run(&server, usage).await.exit, Exit::Usage, "{usage}");
    }
}

#[tokio::test]
async fn describe_says_what_is_known() {
    let server = with_manifest().await;
    server.state().in_flight = [7].into();
    server.state().put(node_resource());
    let out = run(&server, "describe endpoint gpu-1").await.ok();
    let live = "\
Live state, seen by node 2:
  State:        ready
  Probed by:    node-a (1)
  In flight:    1 from this node, 7 from the region
  Engine load:  3 running, KV cache 12% used (read 300ms ago)
  Engine:       vllm
  Models:       llama
  Breaker:      closed
  Condition:    KvEventsSilent: nothing is announced
";
    assert!(out.ends_with(live), "{out}");
    assert!(
        out.starts_with("Name:     gpu-1\nKind:     endpoint\nLabels:   gpu=a100\n"),
        "{out}"
    );
    let json = run(&server, "describe ep/gpu-1 -o json").await.ok();
    assert!(json.contains("\"totalInFlight\": 7"), "{json}");
    assert!(
        json.contains("\"KvEventsSilent: nothing is announced\""),
        "{json}"
    );

    let out = run(&server, "describe pool chat").await.ok();
    assert!(out.contains("Endpoints: 2 of 2 ready\n"), "{out}");
    let out = run(&server, "endpoint list --pool chat").await.ok();
    assert!(
        out.lines()
            .any(|l| l.starts_with("gpu-2") && l.contains("ready")),
        "{out}"
    );
    server.state().cluster = cluster_status();
    let out = run(&server, "describe node node-a").await.ok();
    assert!(out.contains("  Role:          voter, leader\n"), "{out}");
    let out = run(&server, "describe setting limits").await.ok();
    assert!(out.contains("\n  value:\n    burst: 3\n"), "{out}");
    run(&server, "describe endpoint none")
        .await
        .failed(Exit::NotFound);
}

/// A reader that went away.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let server = with_manifest().await;
    let address = server.address.to_string();
    let cli = Cli::parse_from(["quorate", "get", "pools", "--server", &address]);
    let mut err = Vec::new();
    let mut io = Io {
        out: &mut Closed,
        err: &mut err,
        input: &mut std::io::empty(),
    };
    let exit = quorate_cli::run_with(cli.command, Cli::command, &mut io).await;
    assert_eq!((exit, err), (Exit::Ok, vec![]));
}
