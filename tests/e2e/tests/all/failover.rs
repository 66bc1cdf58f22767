//! What the crash of any process does to requests and to writes while both go on.

use anyhow::{Context, ensure};
use quorate_proto::v1::{
    ApplyRequest, Consistency, GetRequest, Kind, endpoint_status::State, watch_response::Type,
};
use quorate_tests::{Fleet, Load, Writer, setting, until};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tonic::Code;

/// An issue, not a slow machine, if it takes longer.
const SOON: Duration = Duration::from_secs(60);
/// Generous for a busy machine; the figure itself is printed.
const WRITES_AGAIN: Duration = Duration::from_secs(5);

/// What a node says that cannot do it at present.
fn cannot_now(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}

/// Kills one router under load and brings it back.
async fn a_router_is_killed(leader_dies: bool) -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 3).start().await?;
    let (leader, followers) = fleet.leader_and_followers().await?;
    let victim = if leader_dies { leader } else { followers[0] };
    let survivors: Vec<usize> = (0..3).filter(|i| *i != victim).collect();
    let surviving = fleet.gateways(&survivors);

    let load = Load::start(&fleet.load(&[0, 1, 2], 4));
    // Through the victim first, so that its clients have to go elsewhere.
    let writer = Writer::start(
        "kill",
        &fleet.controls(&[victim, survivors[0], survivors[1]]),
    )?;
    load.progress(&fleet.gateways(&[0, 1, 2]), 40, SOON).await?;
    writer.progress(50, SOON).await?;

    fleet.routers[victim].kill().await?;
    let killed = Instant::now();
    writer.progress(1, SOON).await?;
    let again = killed.elapsed();
    load.progress(&surviving, 100, SOON).await?;
    writer.progress(50, SOON).await?;

    fleet.routers[victim].start()?;
    let started = Instant::now();
    fleet.routers[victim].ready().await?;
    let ready = started.elapsed();
    load.progress(&fleet.gateways(&[0, 1, 2]), 40, SOON).await?;

    let (report, writes) = (load.stop().await?, writer.stop().await?);
    report.all_good(&surviving)?;
    fleet.caught_up(&[0, 1, 2]).await?;
    for router in &fleet.routers {
        writes
            .verify(router.control(), Consistency::Linearizable)
            .await?;
        writes.verify(router.control(), Consistency::Stale).await?;
    }
    println!(
        "{} killed: a write succeeds again after {} ms, longest gap {} ms, ready {} ms after its restart; {} answers, {} writes, {} \
         calls repeated",
        if leader_dies { "leader" } else { "follower" },
        again.as_millis(),
        writes.longest_gap.as_millis(),
        ready.as_millis(),
        report.total_ok(),
        writes.versions.len(),
        writes.repeated,
    );
    ensure!(
        writes.longest_gap < WRITES_AGAIN,
        "no write went through for {:?}",
        writes.longest_gap
    );
    fleet.finish().await
}

#[tokio::test]
async fn the_leader_is_killed() -> anyhow::Result<()> {
    a_router_is_killed(true).await
}

#[tokio::test]
async fn a_follower_is_killed() -> anyhow::Result<()> {
    a_router_is_killed(false).await
}

#[tokio::test]
async fn an_endpoint_is_killed() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 3).start().await?;
    let gateways = fleet.gateways(&[0, 1, 2]);
    // No streams: one that has begun on the killed server cannot be saved.
    let mut spec = fleet.load(&[0, 1, 2], 6);
    spec.streams = false;
    let load = Load::start(&spec);
    let writer = Writer::start("endpoint", &fleet.controls(&[0, 1, 2]))?;
    load.progress(&gateways, 100, SOON).await?;
    fleet.sims[1].kill().await?;
    load.progress(&gateways, 300, SOON).await?;
    fleet.endpoint_is(1, State::Unhealthy, SOON).await?;
    load.progress(&gateways, 50, SOON).await?;

    fleet.sims[1].start().await?;
    let healthy = Instant::now();
    until("the restarted server to get requests", SOON, async || {
        let requests = fleet.sims[1].stat("requests").await?;
        ensure!(requests > 0, "none yet");
        anyhow::Ok(())
    })
    .await?;
    let used = healthy.elapsed();
    load.progress(&gateways, 100, SOON).await?;
    let (report, writes) = (load.stop().await?, writer.stop().await?);
    report.all_good(&gateways)?;
    writes
        .verify(fleet.routers[0].control(), Consistency::Linearizable)
        .await?;
    println!(
        "a killed endpoint is used again {} ms after it answers; {} answers",
        used.as_millis(),
        report.total_ok()
    );
    ensure!(
        used < Duration::from_secs(3),
        "used again only after {used:?}"
    );
    fleet.finish().await
}

/// A leader that stands still is as good as dead; when it wakes up it must not answer from the past.
#[tokio::test]
async fn the_leader_stands_still_and_wakes_up() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).start().await?;
    let (leader, followers) = fleet.leader_and_followers().await?;
    let surviving = fleet.gateways(&followers);
    let load = Load::start(&fleet.load(&followers, 4));
    let writer = Writer::start("pause", &fleet.controls(&followers))?;
    writer.progress(50, SOON).await?;
    fleet.routers[leader].pause()?;
    writer.progress(50, SOON).await?;
    load.progress(&surviving, 50, SOON).await?;
    let last = format!("pause-{}", writer.acknowledged() - 1);
    fleet.routers[leader].unpause()?;
    // From the first moment on: the newest acknowledged write, or an error.
    let control = fleet.control(leader)?;
    for _ in 0..20 {
        match control
            .get(Kind::Setting, &last, Consistency::Linearizable)
            .await
        {
            Ok(_) => {}
            Err(status) => ensure!(
                cannot_now(&status),
                "the old leader says of an acknowledged write: {status}"
            ),
        }
    }
    until("the old leader to answer", SOON, async || {
        control
            .get(Kind::Setting, &last, Consistency::Linearizable)
            .await
    })
    .await?;
    let (report, writes) = (load.stop().await?, writer.stop().await?);
    report.all_good(&surviving)?;
    for router in &fleet.routers {
        writes
            .verify(router.control(), Consistency::Linearizable)
            .await?;
    }
    println!(
        "leader paused: longest gap {} ms",
        writes.longest_gap.as_millis()
    );
    ensure!(
        writes.longest_gap < WRITES_AGAIN,
        "no write went through for {:?}",
        writes.longest_gap
    );
    fleet.finish().await
}

/// SIGTERM hands the leadership over first: no election, no failed request elsewhere.
#[tokio::test]
async fn the_leader_is_stopped_in_order() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).start().await?;
    let (leader, followers) = fleet.leader_and_followers().await?;
    let surviving = fleet.gateways(&followers);
    let load = Load::start(&fleet.load(&followers, 4));
    let writer = Writer::start("stop", &fleet.controls(&followers))?;
    writer.progress(50, SOON).await?;
    fleet.routers[leader].stop().await?;
    writer.progress(50, SOON).await?;
    load.progress(&surviving, 50, SOON).await?;
    fleet.routers[leader].start()?;
    fleet.routers[leader].ready().await?;
    writer.progress(50, SOON).await?;
    let (report, writes) = (load.stop().await?, writer.stop().await?);
    report.all_good(&surviving)?;
    fleet.caught_up(&[0, 1, 2]).await?;
    writes
        .verify(fleet.routers[leader].control(), Consistency::Stale)
        .await?;
    println!(
        "leader stopped in order: longest gap {} ms",
        writes.longest_gap.as_millis()
    );
    ensure!(
        writes.longest_gap < WRITES_AGAIN,
        "no write went through for {:?}",
        writes.longest_gap
    );
    fleet.finish().await
}

/// Without a quorum requests go on, stale reads say their age, and writes fail instead of being lost.
#[tokio::test]
async fn one_router_is_left() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).start().await?;
    let writer = Writer::start("alone", &fleet.controls(&[0, 1, 2]))?;
    writer.progress(20, SOON).await?;
    let writes = writer.stop().await?;
    fleet.caught_up(&[0, 1, 2]).await?;
    let load = Load::start(&fleet.load(&[2], 4));
    let gateway = fleet.gateways(&[2]);
    load.progress(&gateway, 20, SOON).await?;
    fleet.routers[0].kill().await?;
    fleet.routers[1].kill().await?;
    load.progress(&gateway, 300, SOON).await?;

    let control = fleet.control(2)?;
    // Both say how long they can wait, so that the test need not wait for the node's own patience.
    let mut write = tonic::Request::new(ApplyRequest {
        resource: Some(setting("lonely", "1")),
        ..Default::default()
    });
    write.set_timeout(Duration::from_secs(2));
    let status = control
        .resources()
        .apply(write)
        .await
        .err()
        .context("a write without a quorum succeeded")?;
    ensure!(cannot_now(&status), "a write without a quorum: {status}");
    let mut read = tonic::Request::new(GetRequest {
        kind: Kind::Setting.into(),
        name: "alone-0".into(),
        consistency: Consistency::Linearizable.into(),
    });
    read.set_timeout(Duration::from_secs(2));
    let status = control
        .resources()
        .get(read)
        .await
        .err()
        .context("a linearizable read without a quorum succeeded")?;
    ensure!(
        cannot_now(&status),
        "a linearizable read without a quorum: {status}"
    );
    writes
        .verify(fleet.routers[2].control(), Consistency::Stale)
        .await?;
    until("a stale read to show its age", SOON, async || {
        let read = control
            .get(Kind::Setting, "alone-0", Consistency::Stale)
            .await?;
        let age = read.stamp.and_then(|stamp| stamp.age).context("no age")?;
        ensure!(age.seconds >= 1, "age {age:?}");
        anyhow::Ok(())
    })
    .await?;

    for router in [0, 1] {
        fleet.routers[router].start()?;
    }
    for router in [0, 1] {
        fleet.routers[router].ready().await?;
    }
    until("writes to go through again", SOON, async || {
        control
            .apply(setting("together", "1"), "together", None)
            .await
    })
    .await?;
    load.stop().await?.all_good(&gateway)?;
    fleet.finish().await
}

/// A watcher sees every acknowledged write exactly once and in order, although the leader and then the watched router die.
#[tokio::test]
async fn a_watch_outlives_the_leader_and_its_own_router() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 0).start().await?;
    let (leader, followers) = fleet.leader_and_followers().await?;
    let writer = Writer::start("watched", &fleet.controls(&followers))?;

    let mut watched = followers[0];
    let mut token = String::new();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let (mut newest, mut synced) = (0, false);
    let mut step = 0;
    let mut stream = fleet.control(watched)?.watch(Kind::Setting, &token).await?;
    let mut report = None;
    let mut writer = Some(writer);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        ensure!(
            Instant::now() < deadline,
            "step {step}: saw {} writes",
            seen.len()
        );
        let event = tokio::time::timeout(Duration::from_secs(10), stream.message())
            .await
            .context("nothing comes")?;
        match event {
            Ok(Some(event)) => {
                if !event.resume_token.is_empty() {
                    token.clone_from(&event.resume_token);
                }
                let kind = event.r#type();
                ensure!(kind != Type::Delete, "nobody deleted anything");
                synced |= kind == Type::Synced;
                if kind == Type::Put {
                    let metadata = event
                        .resource
                        .and_then(|r| r.metadata)
                        .context("no metadata")?;
                    let version = metadata.resource_version;
                    // The state at the start has no order of its own.
                    ensure!(
                        !synced || version > newest,
                        "{} has version {version} after {newest}",
                        metadata.name
                    );
                    newest = newest.max(version);
                    ensure!(
                        seen.insert(metadata.name.clone(), version).is_none(),
                        "{} came twice",
                        metadata.name
                    );
                }
            }
            Ok(None) | Err(_) => {
                // Its router is gone: go on at another one where this one ended.
                ensure!(
                    step >= 2,
                    "the watch broke although its router lives: {event:?}"
                );
                watched = followers[1];
                stream = until("another router to take the watch", SOON, async || {
                    fleet
                        .control(watched)?
                        .watch(Kind::Setting, &token)
                        .await
                        .map_err(anyhow::Error::from)
                })
                .await?;
            }
        }
        match step {
            0 if seen.len() >= 100 => {
                fleet.routers[leader].kill().await?;
                step = 1;
            }
            1 if seen.len() >= 300 => {
                // Back first, so that a quorum is left when the next one dies.
                fleet.routers[leader].start()?;
                fleet.routers[leader].ready().await?;
                fleet.routers[watched].kill().await?;
                step = 2;
            }
            2 if seen.len() >= 500 => {
                report = Some(writer.take().context("stopped twice")?.stop().await?);
                step = 3;
            }
            _ => {}
        }
        if let Some(report) = &report
            && report.versions.keys().all(|name| seen.contains_key(name))
        {
            ensure!(
                report
                    .versions
                    .iter()
                    .all(|(name, version)| seen.get(name) == Some(version)),
                "the watch showed other versions than were acknowledged"
            );
            break;
        }
    }
    fleet.finish().await
}
