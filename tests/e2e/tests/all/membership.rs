//! Members that come and go under load.

use anyhow::{Context, ensure};
use quorate_proto::v1::{Consistency, Role};
use quorate_tests::{Fleet, Launch, Load, Router, Writer, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Names of the voters as a router sees them, in order.
async fn voters(fleet: &Fleet, router: usize) -> anyhow::Result<Vec<String>> {
    let status = fleet.control(router)?.status().await?;
    let mut voters: Vec<String> = status
        .members
        .iter()
        .filter(|m| m.role() == Role::Voter)
        .map(|m| m.name.clone())
        .collect();
    voters.sort();
    Ok(voters)
}

async fn voters_are(fleet: &Fleet, routers: &[usize], names: &[&str]) -> anyhow::Result<()> {
    for router in routers {
        until(
            &format!("router {router} to see the voters {names:?}"),
            SOON,
            async || {
                let voters = voters(fleet, *router).await?;
                ensure!(voters == names, "{voters:?}");
                anyhow::Ok(())
            },
        )
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn from_three_to_five_to_three_under_load() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).start().await?;
    // These two stay all the time.
    let stay = [1, 2];
    let staying = fleet.gateways(&stay);
    let load = Load::start(&fleet.load(&stay, 4));
    let writer = Writer::start("member", &fleet.controls(&stay))?;
    writer.progress(50, SOON).await?;

    for name in ["router-4", "router-5"] {
        fleet.add_router().await?;
        let known = fleet
            .cli(&stay, &["cluster", "status", "-o", "json"])
            .await?
            .json()?;
        ensure!(known.to_string().contains(name), "{known}");
        fleet
            .cli(&stay, &["cluster", "promote", name])
            .await?
            .ok()?;
    }
    voters_are(
        &fleet,
        &[0, 1, 2, 3, 4],
        &["router-1", "router-2", "router-3", "router-4", "router-5"],
    )
    .await?;
    writer.progress(50, SOON).await?;

    // Five voters bear the loss of two, the leader among them.
    fleet.make_leader(0).await?;
    fleet.routers[0].kill().await?;
    fleet.routers[4].kill().await?;
    writer.progress(50, SOON).await?;
    for router in [0, 4] {
        fleet.routers[router].start()?;
        fleet.routers[router].ready().await?;
    }
    fleet.caught_up(&[0, 1, 2, 3, 4]).await?;

    // Back to three: one that follows and one that leads are taken out. Both are alive and end by themselves.
    fleet.make_leader(0).await?;
    for (router, name) in [(4, "router-5"), (0, "router-1")] {
        fleet.cli(&stay, &["cluster", "remove", name]).await?.ok()?;
        let process = fleet.routers[router].process()?;
        process
            .wait(SOON)
            .await
            .with_context(|| format!("{name} was removed"))?;
        let said = process.output();
        ensure!(
            said.to_lowercase().contains("removed"),
            "{name} does not say why it ended:\n{said}"
        );
    }
    voters_are(&fleet, &[1, 2, 3], &["router-2", "router-3", "router-4"]).await?;
    writer.progress(50, SOON).await?;
    load.progress(&staying, 20, SOON).await?;

    let (report, writes) = (load.stop().await?, writer.stop().await?);
    report.all_good(&staying)?;
    for router in [1, 2, 3] {
        writes
            .verify(fleet.routers[router].control(), Consistency::Linearizable)
            .await?;
    }
    println!(
        "3 -> 5 -> 3: {} answers, {} writes, longest gap {} ms",
        report.total_ok(),
        writes.versions.len(),
        writes.longest_gap.as_millis()
    );

    // A removed node's id is never used again: with its old directory it stays out.
    let (code, said) = fleet.routers[4].refuses().await?;
    ensure!(
        code != 0 && said.to_lowercase().contains("removed"),
        "exit code {code}:\n{said}"
    );
    fleet.finish().await
}

#[tokio::test]
async fn a_dead_node_is_replaced() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).start().await?;
    let stay = [0, 1];
    let staying = fleet.gateways(&stay);
    let load = Load::start(&fleet.load(&stay, 2));
    let writer = Writer::start("replace", &fleet.controls(&stay))?;
    writer.progress(50, SOON).await?;
    fleet.routers[2].kill().await?;
    writer.progress(20, SOON).await?;
    let new = fleet.add_router().await?;
    fleet
        .cli(&stay, &["cluster", "replace", "router-3", "router-4"])
        .await?
        .ok()?;
    voters_are(&fleet, &[0, 1, new], &["router-1", "router-2", "router-4"]).await?;
    writer.progress(50, SOON).await?;
    let writes = writer.stop().await?;
    load.stop().await?.all_good(&staying)?;
    fleet.caught_up(&[0, 1, new]).await?;
    writes
        .verify(fleet.routers[new].control(), Consistency::Stale)
        .await?;
    // The new one counts: a quorum without one of the old ones.
    fleet.routers[0].kill().await?;
    let writer = Writer::start("after", &fleet.controls(&[1, new]))?;
    writer.progress(20, SOON).await?;
    writer
        .stop()
        .await?
        .verify(fleet.routers[new].control(), Consistency::Linearizable)
        .await?;
    fleet.finish().await
}

#[tokio::test]
async fn impossible_changes_are_refused() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 0).start().await?;
    let all = [0, 1, 2];
    fleet
        .cli(&all, &["cluster", "promote", "nobody"])
        .await?
        .fails(3, &["nobody"])?;
    fleet
        .cli(&all, &["cluster", "remove", "nobody"])
        .await?
        .fails(3, &["nobody"])?;
    fleet
        .cli(&all, &["cluster", "transfer", "nobody"])
        .await?
        .fails(3, &["nobody"])?;
    fleet
        .cli(&all, &["cluster", "replace", "router-1", "nobody"])
        .await?
        .fails(3, &["nobody"])?;
    for id in [0, 4711] {
        let refused = fleet.control(1)?.remove(id).await;
        let status = refused
            .err()
            .with_context(|| format!("node {id} was removed"))?;
        ensure!(
            matches!(
                status.code(),
                tonic::Code::NotFound | tonic::Code::InvalidArgument
            ),
            "removing node {id}: {status}"
        );
    }
    // A node with other timers would call elections at the wrong time.
    let host = fleet.subnet().host(50);
    let join = Launch::Join(fleet.routers[0].peer());
    let mut hasty = Router::new(
        fleet.dir(),
        "hasty",
        host,
        join,
        "",
        "[cluster]\ntiming = \"wan\"\n",
    )?;
    let (code, said) = hasty.refuses().await?;
    ensure!(
        code != 0 && said.contains("wan") && said.contains("lan"),
        "exit code {code}:\n{said}"
    );
    // Nor does a directory without a node start by itself.
    let mut empty = Router::new(fleet.dir(), "empty", host, Launch::Resume, "", "")?;
    let (code, said) = empty.refuses().await?;
    ensure!(
        code != 0 && said.contains("bootstrap"),
        "exit code {code}:\n{said}"
    );
    voters_are(&fleet, &all, &["router-1", "router-2", "router-3"]).await?;
    fleet.finish().await
}

/// The leadership goes where it is sent, and nowhere where it cannot.
#[tokio::test]
async fn leadership_is_transferred() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 0).start().await?;
    let writer = Writer::start("transfer", &fleet.controls(&[0, 1, 2]))?;
    for name in ["router-2", "router-3", "router-1"] {
        fleet
            .cli(&[0, 1, 2], &["cluster", "transfer", name])
            .await?
            .ok()?;
        until(&format!("{name} to lead"), SOON, async || {
            let leader = fleet.leader().await?;
            ensure!(
                fleet.routers[leader].name == name,
                "{} leads",
                fleet.routers[leader].name
            );
            anyhow::Ok(())
        })
        .await?;
        writer.progress(20, SOON).await?;
    }
    let learner = fleet.add_router().await?;
    let refused = fleet
        .cli(&[0], &["cluster", "transfer", &fleet.routers[learner].name])
        .await?;
    ensure!(refused.code == 4, "a learner was made leader: {refused:?}");
    let writes = writer.stop().await?;
    writes
        .verify(fleet.routers[learner].control(), Consistency::Linearizable)
        .await?;
    println!(
        "three transfers: longest gap {} ms",
        writes.longest_gap.as_millis()
    );
    fleet.finish().await
}
