//! Endpoints that nobody declares: from a watched file.

use anyhow::ensure;
use quorate_proto::v1::{Consistency, Discovery, FileDiscovery, Kind, PoolSpec, discovery::Source};
use quorate_tests::http::{chat, post};
use quorate_tests::{Fleet, pool, until};
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A file changes as a whole or not at all.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(new, path)?)
}

/// Waits until there are so many endpoints, all from the file, and every router serves or refuses accordingly.
async fn endpoints_are(fleet: &Fleet, wanted: usize) -> anyhow::Result<()> {
    for router in 0..fleet.routers.len() {
        until(
            &format!("router {router} to know {wanted} endpoints"),
            SOON,
            async || {
                let endpoints = fleet
                    .control(router)?
                    .list(Kind::Endpoint, Consistency::Stale)
                    .await?;
                ensure!(endpoints.len() == wanted, "{endpoints:?}");
                let gateway = fleet.routers[router].gateway();
                let reply = post(
                    gateway,
                    "/v1/chat/completions",
                    &chat("echo-model", "hello", 8, false),
                )
                .await?;
                ensure!(
                    reply.status.is_success() == (wanted > 0),
                    "{} {}",
                    reply.status,
                    reply.text()
                );
                anyhow::Ok(())
            },
        )
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn endpoints_from_a_watched_file() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 0).start().await?;
    for _ in 0..2 {
        fleet.add_sim().await?;
    }
    let path = fleet.dir().join("endpoints.yaml");
    let source = Source::File(FileDiscovery {
        path: path.to_string_lossy().into_owned(),
    });
    let spec = PoolSpec {
        discovery: Some(Discovery {
            source: Some(source),
        }),
        ..Default::default()
    };
    let mut declared = pool("from-file");
    declared.spec = Some(quorate_proto::v1::resource::Spec::Pool(spec));
    fleet.control(0)?.apply(declared, "", None).await?;

    let (one, two) = (fleet.sims[0].address, fleet.sims[1].address);
    let ours = format!("- {{name: gpu-1, url: \"http://{one}\"}}\n");
    // As llm-d writes it.
    let theirs = format!(
        "- {{name: gpu-2, address: {}, port: \"{}\"}}\n",
        two.ip(),
        two.port()
    );
    write(&path, &format!("endpoints:\n{ours}"))?;
    endpoints_are(&fleet, 1).await?;
    write(&path, &format!("endpoints:\n{ours}{theirs}"))?;
    endpoints_are(&fleet, 2).await?;

    // Nonsense changes nothing.
    write(&path, "endpoints: [{name: gpu-1, url: ")?;
    until("a router to say that the file is wrong", SOON, async || {
        let said = fleet.routers.iter().any(|router| {
            let log = router.whole_log();
            log.lines()
                .any(|line| line.contains("WARN") && line.contains("endpoints.yaml"))
        });
        ensure!(said, "not a word");
        anyhow::Ok(())
    })
    .await?;
    endpoints_are(&fleet, 2).await?;

    // Whoever reads the file may die.
    write(&path, &format!("endpoints:\n{theirs}"))?;
    endpoints_are(&fleet, 1).await?;
    let leader = fleet.leader().await?;
    fleet.routers[leader].kill().await?;
    write(&path, &format!("endpoints:\n{ours}{theirs}"))?;
    for router in fleet.running() {
        until("the survivors to see the new entry", SOON, async || {
            let endpoints = fleet
                .control(router)?
                .list(Kind::Endpoint, Consistency::Stale)
                .await?;
            ensure!(endpoints.len() == 2, "{endpoints:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    fleet.finish().await
}
