//! The commands end to end: parsed like on a shell, against a control API in memory over real sockets.

#![allow(clippy::unwrap_used)]

mod fake;

use std::{
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::{CommandFactory as _, Parser};
use fake::{Fake, Running};
use quorate_cli::{Command, Exit, Io};
use quorate_proto::v1::{
    ClusterStatusResponse, Kind, MemberStatus, Metadata, NodeSpec, RegionSpec, Resource, Role,
    resource::Spec,
};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

#[derive(Parser)]
#[command(name = "quorate")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What a command said.
#[derive(Debug)]
struct Said {
    exit: Exit,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.exit, Exit::Ok, "{self:?}");
        self.out
    }

    #[track_caller]
    fn failed(self, exit: Exit) -> String {
        assert_eq!(self.exit, exit, "{self:?}");
        assert!(
            self.err.lines().any(|line| line.starts_with("error: ")),
            "{self:?}"
        );
        self.err
    }
}

async fn run_with_input(words: &[&str], mut input: &[u8]) -> Said {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let command = match Cli::try_parse_from(std::iter::once(&"quorate").chain(words)) {
        Ok(cli) => cli.command,
        Err(error) => {
            return Said {
                exit: Exit::Usage,
                out: String::new(),
                err: error.to_string(),
            };
        }
    };
    let mut io = Io {
        out: &mut out,
        err: &mut err,
        input: &mut input,
    };
    let exit = quorate_cli::run_with(command, Cli::command, &mut io).await;
    Said {
        exit,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

/// Runs a command against a server; `words` are split at spaces.
async fn run(server: &Running, words: &str) -> Said {
    run_input(server, words, "").await
}

async fn run_input(server: &Running, words: &str, input: &str) -> Said {
    let address = server.address.to_string();
    let mut words: Vec<&str> = words.split(' ').collect();
    words.extend(["--server", &address]);
    run_with_input(&words, input.as_bytes()).await
}

const MANIFEST: &str = "\
apiVersion: quorate/v1
kind: Endpoint
metadata: {name: gpu-2, labels: {gpu: h100}}
spec: {pool: chat, url: \"http://gpu-2:8000\", dataParallelRank: 1}
---
apiVersion: quorate/v1
kind: Endpoint
metadata: {name: gpu-1, labels: {gpu: a100}}
spec: {pool: chat, url: \"http://gpu-1:8000\", engine: vllm}
---
apiVersion: quorate/v1
kind: Setting
metadata: {name: limits}
spec: {value: {burst: 3, names: [a, \"1\"]}}
---
apiVersion: quorate/v1
kind: Pool
metadata: {name: chat}
spec: {models: [llama], health: {interval: 2s}, fallback: true}
---
apiVersion: quorate/v1
kind: Region
metadata: {name: eu}
spec: {description: Frankfurt}
";

async fn with_manifest() -> Running {
    let server = Fake::default().start().await;
    run_input(&server, "apply -f -", MANIFEST).await.ok();
    server
}

#[tokio::test]
async fn apply_orders_documents_and_tells_what_it_did() {
    let server = Fake::default().start().await;
    let out = run_input(&server, "apply -f - --dry-run", MANIFEST)
        .await
        .ok();
    assert_eq!(
        out.lines()
            .filter(|line| line.ends_with("created (dry run)"))
            .count(),
        5
    );
    assert!(server.state().applies.is_empty());

    let out = run_input(&server, "apply -f -", MANIFEST).await.ok();
    assert_eq!(
        out,
        "region/eu created\npool/chat created\nendpoint/gpu-2 created\nendpoint/gpu-1 created\nsetting/limits created\n"
    );
    let changed = MANIFEST.replace("2s", "3s");
    let out = run_input(&server, "apply -f - --wait", &changed).await.ok();
    assert!(
        out.contains("pool/chat updated\nendpoint/gpu-2 unchanged\n"),
        "{out}"
    );
    let out = run_input(&server, "apply -f - -o name", MANIFEST)
        .await
        .ok();
    assert!(out.starts_with("region/eu\npool/chat\n"), "{out}");
}

#[tokio::test]
async fn what_get_writes_can_be_applied_again() {
    let server = with_manifest().await;
    for format in ["yaml", "json"] {
        let text = run(&server, &format!("get all -o {format}")).await.ok();
        let out = run_input(&server, "apply -f - --expected-version file", &text)
            .await
            .ok();
        assert_eq!(
            out.lines()
                .filter(|line| line.ends_with(" unchanged"))
                .count(),
            5,
            "{out}"
        );
    }
    let text = run(&server, "get pool chat -o yaml").await.ok();
    let expected = "apiVersion: quorate/v1\nkind: Pool\nmetadata:\n  name: chat\n  resourceVersion: 2\n  incarnation: 2\n  \
                    generation: 1\n  createdAt: 2023-11-14T22:13:20Z\nspec:\n  models:\n  - llama\n  health:\n    interval: 2s\n  \
                    fallback: true\n";
    assert_eq!(text.replace('"', ""), expected);
    // Somebody else was faster.
    let changed = text.replace("2s", "5s");
    run_input(&server, "apply -f - --expected-version file", &changed)
        .await
        .ok();
    let err = run_input(&server, "apply -f - --expected-version file", &changed)
        .await
        .failed(Exit::Conflict);
    assert!(
        err.contains("stdin:1: pool/chat: has version 6, not 2"),
        "{err}"
    );
}

#[tokio::test]
async fn nothing_is_written_if_anything_is_wrong() {
    let server = Fake::default().start().await;
    // Wrong for this program.
    let text = MANIFEST.replace("fallback", "falback");
    let err = run_input(&server, "apply -f -", &text)
        .await
        .failed(Exit::Invalid);
    let expected = "error: stdin:19: spec.falback: unknown field, did you mean \"fallback\"?\n";
    assert_eq!(err, expected);
    // Wrong for the server.
    let text = MANIFEST.replace("http://gpu-1", "ftp://gpu-1");
    let err = run_input(&server, "apply -f -", &text)
        .await
        .failed(Exit::Invalid);
    assert_eq!(
        err,
        "error: stdin:9: endpoint/gpu-1: spec.url: must begin with http:// or https://\n"
    );
    assert!(server.state().applies.is_empty());
    // Refers to nothing: only an endpoint whose pool is in the same file is forgiven.
    let text = "apiVersion: quorate/v1\nkind: Endpoint\nmetadata: {name: a}\nspec: {pool: none, url: \"http://a:1\"}\n";
    let err = run_input(&server, "apply -f -", text)
        .await
        .failed(Exit::Conflict);
    assert_eq!(
        err,
        "error: stdin:1: endpoint/a: there is no pool \"none\"\n"
    );
}

#[tokio::test]
async fn directories_are_read_and_warnings_can_be_errors() {
    let server = Fake::default().start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("b.yaml"), MANIFEST).unwrap();
    let pool = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: llmd, namespace: x}\n\
                spec: {selector: {matchLabels: {app: a}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: e}}\n";
    std::fs::write(path("a.yml"), pool).unwrap();
    std::fs::write(path("notes.txt"), "not a manifest").unwrap();
    let dir_name = dir.path().display();
    let err = run(&server, &format!("apply --strict -f {dir_name}"))
        .await
        .failed(Exit::Invalid);
    assert!(
        err.contains("a.yml:4: spec.endpointPickerRef: is ignored"),
        "{err}"
    );
    assert!(server.state().applies.is_empty());
    let said = run(&server, &format!("apply -f {dir_name}")).await;
    assert!(
        said.err.contains("warning: ") && said.err.contains("metadata.namespace"),
        "{said:?}"
    );
    assert!(said.ok().contains("pool/llmd created\npool/chat created\n"));

    std::fs::write(
        path("c.json"),
        r#"{"apiVersion":"quorate/v1","kind":"Region","metadata":{"name":"eu"}}"#,
    )
    .unwrap();
    let err = run(&server, &format!("apply -f {dir_name}"))
        .await
        .failed(Exit::Invalid);
    assert!(
        err.contains("region/eu is declared in ") && err.contains("b.yaml as well"),
        "{err}"
    );
    let missing = path("none.yaml");
    run(&server, &format!("apply -f {}", missing.display()))
        .await
        .failed(Exit::NotFound);
}

#[tokio::test]
async fn a_lost_answer_does_not_apply_twice() {
    let server = Fake::default().start().await;
    server.state().lose_answers = 1;
    let text = "apiVersion: quorate/v1\nkind: Region\nmetadata: {name: eu}\n";
    let out = run_input(&server, "apply -f -", text).await.ok();
    assert_eq!(out, "region/eu created\n");
    let state = server.state();
    assert_eq!((state.revision, state.applies.len()), (1, 1));
}

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
async fn delete_by_name_and_by_file() {
    let server = with_manifest().await;
    let out = run(&server, "delete endpoint/gpu-1 setting/limits")
        .await
        .ok();
    assert_eq!(out, "endpoint/gpu-1 deleted\nsetting/limits deleted\n");
    run_input(&server, "delete -f -", MANIFEST)
        .await
        .failed(Exit::NotFound);
    let out = run_input(&server, "delete -f - --ignore-not-found", MANIFEST)
        .await
        .ok();
    assert_eq!(out, "");
    assert!(server.state().resources.is_empty());
    let err = run(&server, "delete node n1").await.failed(Exit::Usage);
    assert!(err.contains("quorate cluster remove"), "{err}");
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
";
    assert!(out.ends_with(live), "{out}");
    assert!(
        out.starts_with("Name:     gpu-1\nKind:     endpoint\nLabels:   gpu=a100\n"),
        "{out}"
    );
    let json = run(&server, "describe ep/gpu-1 -o json").await.ok();
    assert!(json.contains("\"totalInFlight\": 7"), "{json}");

    let out = run(&server, "describe pool chat").await.ok();
    assert!(out.contains("Endpoints: 2 of 2 ready\n"), "{out}");
    let out = run(&server, "endpoint list --pool chat").await.ok();
    assert!(
        out.lines()
            .any(|l| l.starts_with("gpu-2") && l.contains("ready")),
        "{out}"
    );
    server.state().cluster = cluster();
    let out = run(&server, "describe node node-a").await.ok();
    assert!(out.contains("  Role:          voter, leader\n"), "{out}");
    let out = run(&server, "describe setting limits").await.ok();
    assert!(out.contains("\n  value:\n    burst: 3\n"), "{out}");
    run(&server, "describe endpoint none")
        .await
        .failed(Exit::NotFound);
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

fn node_resource() -> Resource {
    let metadata = Metadata {
        name: "node-a".to_owned(),
        ..Metadata::default()
    };
    let spec = NodeSpec {
        node_id: 1,
        region: "eu".to_owned(),
        ..NodeSpec::default()
    };
    Resource {
        metadata: Some(metadata),
        spec: Some(Spec::Node(spec)),
    }
}

fn cluster() -> ClusterStatusResponse {
    let member = |name: &str, node_id, role: Role, reachable| MemberStatus {
        node_id,
        name: name.to_owned(),
        node: Some(NodeSpec {
            region: "eu".to_owned(),
            control_address: format!("10.0.0.{node_id}:7070"),
            version: "0.1.0".to_owned(),
            ..NodeSpec::default()
        }),
        role: role.into(),
        reachable,
        lag: Some(node_id),
        last_contact: Some(prost_types::Duration {
            seconds: 0,
            nanos: 40_000_000,
        }),
    };
    ClusterStatusResponse {
        cluster_id: "c1".to_owned(),
        node_id: 1,
        leader_id: 1,
        term: 4,
        last_log_index: 90,
        applied_index: 89,
        members: vec![
            member("node-a", 1, Role::Voter, false),
            member("node-b", 2, Role::Voter, true),
            member("node-c", 3, Role::Learner, false),
        ],
        timing: "lan".to_owned(),
        warnings: vec!["node 3 (node-c) is not reachable from node 1".to_owned()],
    }
}

#[tokio::test]
async fn the_cluster_is_shown_and_changed() {
    let server = Fake::default().start().await;
    server.state().cluster = cluster();
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

/// A stream that the test can read while a command writes it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shared {
    async fn wait_for_lines(&self, count: usize) -> Vec<String> {
        for _ in 0..1500 {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "not {count} lines: {}",
            String::from_utf8_lossy(&self.0.lock().unwrap())
        );
    }
}

fn region(name: &str) -> Resource {
    let metadata = Metadata {
        name: name.to_owned(),
        ..Metadata::default()
    };
    Resource {
        metadata: Some(metadata),
        spec: Some(Spec::Region(RegionSpec::default())),
    }
}

#[tokio::test]
async fn a_watch_goes_on_where_it_stopped() {
    let server = Fake::default().start().await;
    server.state().put(region("a"));
    let address = server.address.to_string();
    let (mut out, mut err) = (Shared::default(), Shared::default());
    let (seen, told) = (out.clone(), err.clone());
    let watch = async move {
        let cli = Cli::parse_from([
            "quorate", "watch", "regions", "-o", "json", "--server", &address,
        ]);
        let mut io = Io {
            out: &mut out,
            err: &mut err,
            input: &mut std::io::empty(),
        };
        quorate_cli::run_with(cli.command, Cli::command, &mut io).await
    };
    let script = async {
        seen.wait_for_lines(1).await;
        server.state().put(region("b"));
        seen.wait_for_lines(2).await;
        // The connection ends; the next one misses nothing and repeats nothing.
        server.state().watchers.clear();
        server.state().put(region("c"));
        seen.wait_for_lines(3).await;
        assert_eq!(server.state().resumed, ["", "2"]);
        // The history is gone: what is there now is compared with what was shown.
        {
            let mut state = server.state();
            state.floor = 100;
            state.watchers.clear();
            state
                .resources
                .remove(&(Kind::Region.into(), "a".to_owned()));
            state.put(region("b"));
        }
        seen.wait_for_lines(5).await
    };
    let lines = tokio::select! {
        exit = watch => panic!("the watch ended: {exit:?} {}", String::from_utf8_lossy(&told.0.lock().unwrap())),
        lines = script => lines,
    };
    let brief: Vec<String> = lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|event| {
            format!(
                "{} {}",
                event["event"].as_str().unwrap(),
                event["name"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        brief,
        [
            "PRESENT a",
            "CHANGED b",
            "CHANGED c",
            "CHANGED b",
            "DELETED a"
        ]
    );
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

#[tokio::test]
async fn certificates_make_a_mutual_tls_connection() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display().to_string();
    let certs = |words: String| async move {
        let words: Vec<&str> = words.split(' ').collect();
        run_with_input(&words, b"").await
    };
    certs(format!("certs node n1 --hosts localhost --ca {dir}"))
        .await
        .failed(Exit::NotFound);
    certs(format!("certs init --out {dir}")).await.ok();
    certs(format!(
        "certs node node-1 --hosts localhost,127.0.0.1,[::1] --ca {dir}"
    ))
    .await
    .ok();
    certs(format!("certs client alice --ca {dir} --days 30"))
        .await
        .ok();
    for file in ["ca.key", "ca.crt", "node-1.key", "alice.key"] {
        let mode = std::fs::metadata(Path::new(&dir).join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let shown = certs(format!("certs show {dir}/node-1.crt")).await.ok();
    for part in [
        "Subject      CN=node-1\n",
        "Issuer       CN=quorate cluster CA\n",
        "Names        quorate://node/node-1, localhost, 127.0.0.1, ::1\n",
        "Usage        server, client\n",
        " (825 days left)\n",
    ] {
        assert!(
            shown.replace("(824", "(825").contains(part),
            "{part:?}: {shown}"
        );
    }
    assert!(
        certs(format!("certs show {dir}/ca.crt"))
            .await
            .ok()
            .contains("Usage        CA\n")
    );

    // What there is is not overwritten, and what makes no sense is refused.
    for (words, exit) in [
        (format!("certs init --out {dir}"), Exit::Conflict),
        (format!("certs client alice --ca {dir}"), Exit::Conflict),
        (
            format!("certs node ca --hosts a --ca {dir} --force"),
            Exit::Invalid,
        ),
        (
            format!("certs node Node --hosts a --ca {dir}"),
            Exit::Invalid,
        ),
        (
            format!("certs node b --hosts a:1 --ca {dir}"),
            Exit::Invalid,
        ),
        (
            format!("certs node b --hosts a --ca {dir} --days 36000"),
            Exit::Invalid,
        ),
        (format!("certs show {dir}/alice.key"), Exit::Invalid),
        (format!("certs show {dir}/none.crt"), Exit::NotFound),
    ] {
        certs(words).await.failed(exit);
    }
    certs(format!("certs client alice --ca {dir} --force"))
        .await
        .ok();

    let read = |file: &str| std::fs::read(Path::new(&dir).join(file)).unwrap();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read("node-1.crt"), read("node-1.key")))
        .client_ca_root(Certificate::from_pem(read("ca.crt")));
    let server = Fake::default().start_with(Some(tls)).await;
    server.state().put(region("a"));
    let tls = format!("--ca {dir}/ca.crt --cert {dir}/alice.crt --key {dir}/alice.key");
    assert_eq!(
        run(&server, &format!("get regions -o name {tls}"))
            .await
            .ok(),
        "region/a\n"
    );
    // Without a client certificate, without TLS, and with another CA.
    run(
        &server,
        &format!("get regions --timeout 2s --ca {dir}/ca.crt"),
    )
    .await
    .failed(Exit::Unavailable);
    run(&server, "get regions --timeout 2s")
        .await
        .failed(Exit::Unavailable);
    certs(format!("certs init --out {dir}/other")).await.ok();
    let err = run(
        &server,
        &format!("get regions --timeout 2s --ca {dir}/other/ca.crt"),
    )
    .await
    .failed(Exit::Unavailable);
    assert!(err.contains("certificate"), "{err}");
}

#[tokio::test]
async fn every_help_text_and_completion_is_there() {
    Cli::command().debug_assert();
    for shell in ["bash", "zsh", "fish"] {
        let script = run_with_input(&["completions", shell], b"").await.ok();
        assert!(
            script.contains("quorate") && script.contains("transfer"),
            "{shell}"
        );
    }
    for words in [
        vec!["apply", "--help"],
        vec!["get", "--help"],
        vec!["cluster", "--help"],
        vec!["endpoint", "drain", "--help"],
    ] {
        let help = run_with_input(&words, b"").await.err;
        assert!(
            help.contains("Exit codes:") && help.contains("  7  timed out"),
            "{help}"
        );
    }
}
