//! `quorate dev`: one command, a whole cluster.

use anyhow::{Context, ensure};
use quorate_tests::http::{chat, get, post};
use quorate_tests::{Process, Start, Subnet, cli, until};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

/// Processes that have this text in their command line.
fn processes(text: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let me = std::process::id();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != me)
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}

async fn none_is_left(text: &str) -> anyhow::Result<()> {
    until("every child to be gone", SOON, async || {
        let left = processes(text);
        ensure!(left.is_empty(), "{left:?}");
        anyhow::Ok(())
    })
    .await
}

fn start(dir: &Path, gateway: SocketAddr) -> anyhow::Result<Process> {
    let (listen, data_dir) = (gateway.to_string(), dir.join("dev"));
    let args = [
        "dev",
        "--endpoints",
        "2",
        "--listen",
        &listen,
        "--data-dir",
        &data_dir.to_string_lossy(),
    ];
    Process::start(&Start {
        name: "dev".into(),
        wrapper: Vec::new(),
        args: args.iter().map(Into::into).collect(),
        env: Vec::new(),
        log: dir.join("dev.log"),
    })
}

/// Waits for the ready line and says how long it took.
async fn ready(dev: &mut Process) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut ended = false;
    until("the ready line", SOON, async || {
        ended = !dev.is_running();
        let said = dev.output();
        ensure!(
            ended || said.lines().any(|line| line.starts_with("ready in ")),
            "{said}"
        );
        anyhow::Ok(())
    })
    .await?;
    ensure!(!ended, "it ended:\n{}", dev.output());
    Ok(started.elapsed())
}

#[tokio::test]
async fn a_cluster_with_one_command() -> anyhow::Result<()> {
    let subnet = Subnet::claim()?;
    let dir = tempfile::tempdir()?;
    let gateway = SocketAddr::from((subnet.host(1), 8080));
    let control = SocketAddr::from((subnet.host(1), 7070)).to_string();
    let marker = dir.path().to_string_lossy().into_owned();
    let sims = format!("{}:9101", subnet.host(1));

    let mut dev = start(dir.path(), gateway)?;
    let first = ready(&mut dev).await?;
    let said = dev.output();
    ensure!(
        said.contains("curl")
            && said.contains("cluster status")
            && said.contains("/v1/chat/completions"),
        "{said}"
    );
    ensure!(
        processes(&marker).len() == 4,
        "dev and three routers: {:?}",
        processes(&marker)
    );
    for port in [8080, 8081, 8082] {
        let address = SocketAddr::from((subnet.host(1), port));
        post(
            address,
            "/v1/chat/completions",
            &chat("llama-8b", "hello", 8, false),
        )
        .await?
        .ok()?;
        let models = get(address, "/v1/models").await?.ok()?.json()?;
        ensure!(models["data"][0]["id"] == "llama-8b", "{models}");
    }
    let manifest =
        "apiVersion: quorate/v1\nkind: Setting\nmetadata: {name: kept}\nspec: {json: '1'}\n";
    cli::run_with(&["apply", "-f", "-", "--server", &control], &[], manifest)
        .await?
        .ok()?;

    // A second one on the same ports says so and harms nothing.
    let other = dir.path().join("other");
    let second = cli::run(&[
        "dev",
        "--listen",
        &gateway.to_string(),
        "--data-dir",
        &other.to_string_lossy(),
    ])
    .await?;
    second.fails(1, &["in use"])?;

    // A killed router comes back.
    let routers = processes("router-2.toml")
        .into_iter()
        .filter(|pid| processes(&marker).contains(pid))
        .collect::<Vec<_>>();
    let [victim] = routers[..] else {
        anyhow::bail!("{routers:?}")
    };
    let victim = rustix::process::Pid::from_raw(i32::try_from(victim)?).context("no pid")?;
    rustix::process::kill_process(victim, Signal::KILL)?;
    until("the killed router to be back", SOON, async || {
        ensure!(
            dev.output().contains("router-2 is started again"),
            "not started again"
        );
        get(SocketAddr::from((subnet.host(1), 8081)), "/ready")
            .await?
            .ok()
    })
    .await?;

    dev.signal(Signal::INT)?;
    let status = dev.wait(SOON).await?;
    ensure!(status.success(), "{status}: {}", dev.output());
    none_is_left(&marker).await?;
    none_is_left(&sims).await?;

    // The second start goes on from the first.
    let mut dev = start(dir.path(), gateway)?;
    let again = ready(&mut dev).await?;
    let kept = cli::run(&["get", "setting", "kept", "-o", "name", "--server", &control])
        .await?
        .ok()?;
    ensure!(kept.contains("kept"), "{kept}");
    println!(
        "dev: ready in {} ms, the second time in {} ms",
        first.as_millis(),
        again.as_millis()
    );
    ensure!(
        first < Duration::from_secs(15) && again < Duration::from_secs(15),
        "{first:?}, {again:?}"
    );

    // Killed hard, it leaves no child behind either.
    dev.kill().await?;
    none_is_left(&marker).await?;
    none_is_left(&sims).await
}
