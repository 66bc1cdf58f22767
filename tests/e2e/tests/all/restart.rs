//! The whole cluster stops and starts again with everything it knew.

use anyhow::{Context, ensure};
use quorate_proto::v1::{ApplyOutcome, Consistency, Kind, Resource};
use quorate_tests::http::{chat, post};
use quorate_tests::{Fleet, Load, WriteReport, Writer, setting, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const KINDS: [Kind; 5] = [
    Kind::Pool,
    Kind::Endpoint,
    Kind::Node,
    Kind::Region,
    Kind::Setting,
];

/// Everything declared, as one router says.
async fn everything(fleet: &Fleet, router: usize) -> anyhow::Result<Vec<Resource>> {
    let control = fleet.control(router)?;
    let mut all = Vec::new();
    for kind in KINDS {
        all.extend(control.list(kind, Consistency::Linearizable).await?);
    }
    ensure!(
        all.iter()
            .all(|r| r.metadata.as_ref().is_some_and(|m| m.resource_version > 0)),
        "a resource without a version"
    );
    Ok(all)
}

async fn start_all(fleet: &mut Fleet) -> anyhow::Result<()> {
    // With the flags of the first start: --bootstrap and --join are safe to repeat.
    for router in &mut fleet.routers {
        router.start()?;
    }
    for router in &mut fleet.routers {
        router.ready().await?;
    }
    Ok(())
}

#[tokio::test]
async fn stopped_in_order() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).start().await?;
    let writer = Writer::start("before", &fleet.controls(&[0, 1, 2]))?;
    writer.progress(150, SOON).await?;
    let writes = writer.stop().await?;
    let once = fleet
        .control(1)?
        .apply(setting("once", "{\"n\":1}"), "key-of-once", Some(0))
        .await?;
    ensure!(once.outcome() == ApplyOutcome::Created, "{once:?}");
    // A later version of the same resource: the old key must still give the old answer.
    let later = fleet
        .control(2)?
        .apply(setting("once", "{\"n\":2}"), "another key", None)
        .await?;
    let before = everything(&fleet, 0).await?;

    for router in &mut fleet.routers {
        router.stop().await?;
    }
    start_all(&mut fleet).await?;

    for router in 0..3 {
        let after = everything(&fleet, router).await?;
        for (old, new) in before.iter().zip(&after) {
            ensure!(
                old == new,
                "before the restart:\n{old:?}\nafter it:\n{new:?}"
            );
        }
        ensure!(
            before.len() == after.len(),
            "{} resources became {}",
            before.len(),
            after.len()
        );
        let again = fleet
            .control(router)?
            .apply(setting("once", "{\"n\":1}"), "key-of-once", Some(0))
            .await?;
        ensure!(
            again == once,
            "the first answer was {once:?}, the repeated call got {again:?}"
        );
    }
    let now = fleet
        .control(0)?
        .get(Kind::Setting, "once", Consistency::Linearizable)
        .await?;
    ensure!(
        now.resource == later.resource,
        "the repeated call changed something: {now:?}"
    );
    writes
        .verify(fleet.routers[0].control(), Consistency::Linearizable)
        .await?;
    for sim in 0..2 {
        fleet.used(sim).await?;
    }
    for router in &fleet.routers {
        post(
            router.gateway(),
            "/v1/chat/completions",
            &chat("echo-model", "hello again", 8, false),
        )
        .await?
        .ok()?;
    }
    // Versions go on where they were.
    let next = fleet
        .control(0)?
        .apply(setting("next", "0"), "", None)
        .await?;
    let newest = before
        .iter()
        .filter_map(|r| r.metadata.as_ref())
        .map(|m| m.resource_version)
        .max();
    let version = next
        .resource
        .and_then(|r| r.metadata)
        .context("no metadata")?
        .resource_version;
    ensure!(Some(version) > newest, "version {version} after {newest:?}");
    fleet.finish().await
}

#[tokio::test]
async fn all_killed_at_once_under_load() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).start().await?;
    let mut reports: Vec<WriteReport> = Vec::new();
    for round in 0..2 {
        let load = Load::start(&fleet.load(&[0, 1, 2], 2));
        let writer = Writer::start(&format!("round-{round}"), &fleet.controls(&[0, 1, 2]))?;
        writer.progress(100, SOON).await?;
        for router in &mut fleet.routers {
            router.kill().await?;
        }
        start_all(&mut fleet).await?;
        // The writer went on trying all the time, under the same key.
        writer.progress(50, SOON).await?;
        load.progress(&fleet.gateways(&[0, 1, 2]), 10, SOON).await?;
        reports.push(writer.stop().await?);
        load.stop().await?;
        fleet.caught_up(&[0, 1, 2]).await?;
        for report in &reports {
            for router in &fleet.routers {
                report
                    .verify(router.control(), Consistency::Linearizable)
                    .await?;
                report.verify(router.control(), Consistency::Stale).await?;
            }
        }
    }
    fleet.finish().await
}

/// A node that was away for long gets a snapshot instead of the log, and has the same state.
#[tokio::test]
async fn a_node_far_behind_gets_a_snapshot() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 0)
        .config("[cluster]\nsnapshot_every = 200\nkeep_logs = 50")
        .start()
        .await?;
    fleet.make_leader(0).await?;
    fleet.routers[2].kill().await?;
    let writer = Writer::start("far", &fleet.controls(&[0, 1]))?;
    writer.progress(1500, Duration::from_secs(60)).await?;
    let writes = writer.stop().await?;
    fleet.routers[2].start()?;
    fleet.routers[2].ready().await?;
    fleet.caught_up(&[0, 1, 2]).await?;
    writes
        .verify(fleet.routers[2].control(), Consistency::Stale)
        .await?;
    let all = everything(&fleet, 0).await?;
    until("the same state everywhere", SOON, async || {
        let stale = fleet
            .control(2)?
            .list(Kind::Setting, Consistency::Stale)
            .await?;
        let same = all.iter().filter(|r| stale.contains(r)).count();
        ensure!(
            same == stale.len() && same >= 1500,
            "{same} of {} are the same",
            stale.len()
        );
        anyhow::Ok(())
    })
    .await?;
    fleet.finish().await
}
