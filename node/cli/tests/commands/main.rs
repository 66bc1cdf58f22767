//! The commands end to end: parsed like on a shell, against a control API in memory over real sockets.
#![allow(clippy::unwrap_used)]

mod apply;
mod cache;
mod certs;
mod cluster;
mod decisions;
mod fake;
mod presets;
mod read;
mod scheduling;
mod watch;

use clap::{CommandFactory as _, Parser};
use fake::{Fake, Running};
use quorate_cli::{Command, Exit, Io};
use quorate_proto::v1::{
    ClusterStatusResponse, MemberStatus, Metadata, NodeSpec, RegionSpec, Resource, Role,
    resource::Spec,
};

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

fn cluster_status() -> ClusterStatusResponse {
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
async fn every_help_text_and_completion_is_there() {
    Cli::command().debug_assert();
    for shell in ["bash", "zsh", "fish"] {
        let script = run_with_input(&["completions", shell], b"").await.ok();
        assert!(
            script.contains("quorate") && script.contains("transfer") && script.contains("lookup"),
            "{shell}"
        );
    }
    for words in [
        vec!["apply", "--help"],
        vec!["get", "--help"],
        vec!["cluster", "--help"],
        vec!["endpoint", "drain", "--help"],
        vec!["cache", "status", "--help"],
        vec!["cache", "lookup", "--help"],
        vec!["cache", "top", "--help"],
    ] {
        let help = run_with_input(&words, b"").await.err;
        assert!(
            help.contains("Exit codes:") && help.contains("  7  timed out"),
            "{help}"
        );
    }
}
