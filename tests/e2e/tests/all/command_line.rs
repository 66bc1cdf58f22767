//! The command line against a real cluster: what an operator types.

use anyhow::{Context, ensure};
use quorate_tests::http::{get, metric};
use quorate_tests::{Fleet, Load, cli, until};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};

const SOON: Duration = Duration::from_secs(60);
const ALL: [usize; 3] = [0, 1, 2];

#[tokio::test]
async fn a_day_of_an_operator() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).start().await?;

    // What is declared comes out as it can go in again.
    let yaml = fleet.cli(&[1], &["get", "all", "-o", "yaml"]).await?.ok()?;
    ensure!(
        yaml.contains("sim-1") && yaml.contains("kind: Pool"),
        "{yaml}"
    );
    let endpoints = fleet
        .cli(&[1], &["get", "endpoints", "-o", "yaml"])
        .await?
        .ok()?;
    let again = fleet
        .cli_with(&[2], &["apply", "-f", "-"], &endpoints)
        .await?
        .ok()?;
    ensure!(again.matches("unchanged").count() == 2, "{again}");
    let names = fleet
        .cli(&ALL, &["get", "endpoints", "--pool", "pool", "-o", "name"])
        .await?
        .ok()?;
    ensure!(names.lines().count() == 2, "{names}");
    let described = fleet
        .cli(&ALL, &["describe", "endpoint", "sim-1"])
        .await?
        .ok()?;
    ensure!(
        described.contains("echo-model") && described.contains(&fleet.sims[0].address.to_string()),
        "{described}"
    );
    let table = fleet.cli(&ALL, &["cluster", "status"]).await?.ok()?;
    ensure!(
        ["router-1", "router-2", "router-3"]
            .iter()
            .all(|name| table.contains(name)),
        "{table}"
    );

    // llm-d's own manifest.
    let pool = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: from-llm-d}\nspec:\n  \
                selector: {matchLabels: {app: vllm}}\n  targetPorts: [{number: 8000}]\n  \
                endpointPickerRef: {name: epp, port: {number: 9002}}\n";
    let applied = fleet.cli_with(&ALL, &["apply", "-f", "-"], pool).await?;
    ensure!(
        applied.code == 0 && applied.stderr.contains("endpointPickerRef"),
        "{applied:?}"
    );
    let labelled = "apiVersion: quorate/v1\nkind: Endpoint\nmetadata: {name: chosen, labels: {app: vllm}}\n\
                    spec: {url: 'http://127.0.0.1:1'}\n";
    fleet
        .cli_with(&ALL, &["apply", "-f", "-", "--dry-run"], labelled)
        .await?
        .ok()?;
    fleet
        .cli(&ALL, &["get", "endpoint", "chosen"])
        .await?
        .fails(3, &["chosen"])?;
    fleet
        .cli_with(&ALL, &["apply", "-f", "-"], labelled)
        .await?
        .ok()?;
    let other = labelled
        .replace("chosen", "left-out")
        .replace("app: vllm", "app: other");
    fleet
        .cli_with(&ALL, &["apply", "-f", "-"], &other)
        .await?
        .ok()?;
    for (name, state) in [("chosen", "unhealthy"), ("left-out", "no pool")] {
        until(&format!("{name} to be {state}"), SOON, async || {
            let described = fleet
                .cli(&ALL, &["describe", "endpoint", name])
                .await?
                .ok()?;
            ensure!(described.contains(state), "{described}");
            anyhow::Ok(())
        })
        .await?;
    }

    // Exit codes that scripts can rely on.
    fleet
        .cli(&ALL, &["get", "pool", "nobody"])
        .await?
        .fails(3, &["nobody"])?;
    fleet
        .cli(&ALL, &["get", "pols"])
        .await?
        .fails(2, &["pols"])?;
    fleet
        .cli(&ALL, &["delete", "pool", "nobody"])
        .await?
        .fails(3, &["nobody"])?;
    let stale = fleet
        .cli_with(
            &ALL,
            &["apply", "-f", "-", "--expected-version", "1"],
            labelled,
        )
        .await?;
    ensure!(stale.code == 4, "{stale:?}");
    let nobody = cli::run(&["get", "pools", "--server", "127.0.0.1:1", "--timeout", "1s"]).await?;
    ensure!(nobody.code == 6 || nobody.code == 7, "{nobody:?}");
    fleet
        .cli(&ALL, &["delete", "endpoint", "chosen"])
        .await?
        .ok()?;
    fleet
        .cli_with(&ALL, &["delete", "-f", "-"], pool)
        .await?
        .ok()?;

    // Any of the servers will do, also if the first ones are away.
    fleet.routers[0].kill().await?;
    fleet.cli(&ALL, &["get", "pools"]).await?.ok()?;
    fleet.finish().await
}

#[tokio::test]
async fn watching_from_the_shell() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 0).start().await?;
    let servers = fleet
        .controls(&[1, 2])
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",");
    let mut watch = tokio::process::Command::new(quorate_tests::binary()?)
        .args(["watch", "settings", "-o", "name", "--server", &servers])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(watch.stdout.take().context("no output")?).lines();
    let apply = async |fleet: &Fleet, name: &str| {
        let manifest = format!(
            "apiVersion: quorate/v1\nkind: Setting\nmetadata: {{name: {name}}}\nspec: {{json: '1'}}\n"
        );
        fleet
            .cli_with(&[0, 2], &["apply", "-f", "-"], &manifest)
            .await?
            .ok()
    };
    let mut next = async |name: &str| {
        let line = tokio::time::timeout(SOON, lines.next_line())
            .await
            .context("nothing is shown")??;
        let line = line.context("the watch ended")?;
        ensure!(line.contains(name), "{line:?} instead of {name}");
        anyhow::Ok(())
    };
    apply(&fleet, "one").await?;
    next("one").await?;
    apply(&fleet, "two").await?;
    next("two").await?;
    // Its router dies: it goes on at the next one, without a gap and without showing anything twice.
    fleet.routers[1].kill().await?;
    apply(&fleet, "three").await?;
    apply(&fleet, "four").await?;
    next("three").await?;
    next("four").await?;
    fleet.finish().await
}

#[tokio::test]
async fn help_and_completions() -> anyhow::Result<()> {
    for command in [
        &["--help"][..],
        &["dev", "--help"],
        &["router", "--help"],
        &["serve", "--help"],
        &["sim", "--help"],
        &["apply", "--help"],
        &["get", "--help"],
        &["describe", "--help"],
        &["delete", "--help"],
        &["watch", "--help"],
        &["endpoint", "drain", "--help"],
        &["cluster", "--help"],
        &["cluster", "add", "--help"],
        &["bench", "http", "--help"],
        &["bench", "control", "--help"],
        &["certs", "--help"],
        &["completions", "--help"],
    ] {
        let help = cli::run(command)
            .await?
            .ok()
            .with_context(|| command.join(" "))?;
        ensure!(
            help.contains("Usage:") && help.lines().count() > 5,
            "{}: {help}",
            command.join(" ")
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = cli::run(&["completions", shell]).await?.ok()?;
        ensure!(
            script.contains("quorate") && script.contains("describe"),
            "{shell}: {script}"
        );
    }
    let version = cli::run(&["--version"]).await?.ok()?;
    ensure!(version.starts_with("quorate "), "{version}");
    Ok(())
}

/// The metrics page counts what the clients saw.
#[tokio::test]
async fn metrics_agree_with_the_clients() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 2).start().await?;
    let gateways = fleet.gateways(&ALL);
    let load = Load::start(&fleet.load(&ALL, 4));
    load.progress(&gateways, 50, SOON).await?;
    let report = load.stop().await?;
    report.all_good(&gateways)?;
    for router in &fleet.routers {
        let page = get(router.admin(), "/metrics").await?.ok()?.text();
        let requests = metric(&page, "llm_d_epp_request_total", "echo-model").unwrap_or_default();
        let seen = report.of(router.gateway()).ok;
        ensure!(
            requests as u64 == seen,
            "{}: {requests} counted, {seen} answered",
            router.name
        );
        let running = metric(&page, "llm_d_epp_request_running", "").unwrap_or_default();
        ensure!(running == 0.0, "{running} requests are said to run");
        for prefix in [
            "quorate_raft_",
            "quorate_gateway_",
            "quorate_endpoint_",
            "llm_d_epp_request_duration_seconds",
        ] {
            ensure!(
                page.lines().any(|line| line.starts_with(prefix)),
                "{}: no {prefix}* in\n{page}",
                router.name
            );
        }
        ensure!(
            page.lines().count() < 5000,
            "{} lines",
            page.lines().count()
        );
    }
    fleet.finish().await
}

/// The load generator agrees with the fleet, too.
#[tokio::test]
async fn bench_http_and_control() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 2).start().await?;
    let urls: Vec<String> = fleet
        .gateways(&ALL)
        .iter()
        .map(|gateway| format!("http://{gateway}"))
        .collect();
    let mut args = vec![
        "bench",
        "http",
        "--model",
        "echo-model",
        "--connections",
        "6",
        "--requests",
        "300",
        "--output",
        "json",
    ];
    for url in &urls {
        args.extend(["--url", url]);
    }
    let report = cli::run(&args).await?.json()?;
    ensure!(!report.is_null(), "{report}");
    let text = report.to_string();
    ensure!(text.contains("300"), "{text}");
    let controls = fleet
        .controls(&ALL)
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",");
    for operation in ["put", "get"] {
        let run = cli::run(&[
            "bench",
            "control",
            operation,
            "--endpoints",
            &controls,
            "--clients",
            "4",
            "--duration",
            "1s",
        ])
        .await?;
        ensure!(run.code == 0, "{operation}: {run:?}");
    }
    fleet.finish().await
}
