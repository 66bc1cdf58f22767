//! What the control API promises: a write applies once, at the version that was expected, or not at all; reads are as fresh as asked for.

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use quorate_proto::v1::{ApplyOutcome, ApplyRequest, Consistency, Kind};
use quorate_tests::{Fleet, raw_call, setting};
use std::collections::BTreeSet;
use tonic::Code;

#[tokio::test]
async fn a_retried_write_applies_once() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 0).start().await?;
    let first = fleet
        .control(0)?
        .apply(setting("s", "{\"n\":1}"), "key", Some(0))
        .await?;
    ensure!(first.outcome() == ApplyOutcome::Created, "{first:?}");
    for router in [0, 1, 2] {
        let again = fleet
            .control(router)?
            .apply(setting("s", "{\"n\":1}"), "key", Some(0))
            .await?;
        ensure!(
            again == first,
            "router {router} answers {again:?} instead of {first:?}"
        );
    }
    // The key stands for this one call.
    let other = fleet
        .control(1)?
        .apply(setting("other", "2"), "key", None)
        .await;
    let status = other.err().context("a key was used for two calls")?;
    ensure!(
        matches!(
            status.code(),
            Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists
        ),
        "{status}"
    );

    // The same call at the same time on all nodes, again and again.
    for n in 0..20 {
        let (name, key) = (format!("race-{n}"), format!("race-key-{n}"));
        let mut controls = Vec::new();
        for i in 0..9 {
            controls.push(fleet.control(i % 3)?);
        }
        let calls = controls
            .iter()
            .map(|control| control.apply(setting(&name, "0"), &key, Some(0)));
        let mut versions = BTreeSet::new();
        for answer in join_all(calls).await {
            let answer = answer.with_context(|| name.clone())?;
            ensure!(answer.outcome() == ApplyOutcome::Created, "{answer:?}");
            versions.insert(
                answer
                    .resource
                    .and_then(|r| r.metadata)
                    .context("no metadata")?
                    .resource_version,
            );
        }
        ensure!(versions.len() == 1, "{name} was created as {versions:?}");
    }

    // The leader that answered first is gone.
    let (leader, followers) = fleet.leader_and_followers().await?;
    fleet.routers[leader].kill().await?;
    fleet.leader().await?;
    let again = fleet
        .control(followers[0])?
        .apply(setting("s", "{\"n\":1}"), "key", Some(0))
        .await?;
    ensure!(
        again == first,
        "after the leader's death: {again:?} instead of {first:?}"
    );
    fleet.finish().await
}

#[tokio::test]
async fn versions_protect_from_lost_updates() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 0).start().await?;
    let control = fleet.control(1)?;
    let created = control.apply(setting("s", "1"), "", Some(0)).await?;
    let version = created
        .resource
        .and_then(|r| r.metadata)
        .context("no metadata")?
        .resource_version;
    let status = control
        .apply(setting("s", "2"), "", Some(0))
        .await
        .err()
        .context("created twice")?;
    ensure!(
        matches!(status.code(), Code::AlreadyExists | Code::Aborted),
        "{status}"
    );
    let status = control
        .apply(setting("s", "2"), "", Some(version + 1))
        .await
        .err()
        .context("wrong version")?;
    ensure!(status.code() == Code::Aborted, "{status}");
    let status = control
        .apply(setting("new", "2"), "", Some(version))
        .await
        .err()
        .context("not there")?;
    ensure!(
        matches!(status.code(), Code::Aborted | Code::NotFound),
        "{status}"
    );

    // Nine writers who all read the same version: one wins.
    let mut controls = Vec::new();
    for i in 0..9 {
        controls.push(fleet.control(i % 3)?);
    }
    let texts: Vec<String> = (0..9).map(|i| format!("{{\"writer\":{i}}}")).collect();
    let calls = controls
        .iter()
        .zip(&texts)
        .map(|(control, text)| control.apply(setting("s", text), "", Some(version)));
    let answers = join_all(calls).await;
    ensure!(
        answers.iter().filter(|a| a.is_ok()).count() == 1,
        "{answers:?}"
    );
    ensure!(
        answers
            .iter()
            .filter_map(|a| a.as_ref().err())
            .all(|s| s.code() == Code::Aborted),
        "{answers:?}"
    );

    // The same content again is no change.
    let now = control
        .get(Kind::Setting, "s", Consistency::Linearizable)
        .await?
        .resource
        .context("gone")?;
    let same = control.apply(now.clone(), "", None).await?;
    ensure!(same.outcome() == ApplyOutcome::Unchanged, "{same:?}");
    ensure!(
        same.resource.as_ref() == Some(&now),
        "{same:?} instead of {now:?}"
    );

    // A check writes nothing.
    let request = ApplyRequest {
        resource: Some(setting("checked", "1")),
        validate_only: true,
        ..Default::default()
    };
    control.resources().apply(request).await?;
    let status = control
        .get(Kind::Setting, "checked", Consistency::Linearizable)
        .await
        .err()
        .context("it was written")?;
    ensure!(status.code() == Code::NotFound, "{status}");

    // Deleted and made anew is another incarnation.
    let old = control
        .delete(Kind::Setting, "s")
        .await?
        .metadata
        .context("no metadata")?;
    let new = control
        .apply(setting("s", "1"), "", Some(0))
        .await?
        .resource
        .and_then(|r| r.metadata)
        .context("no metadata")?;
    ensure!(
        new.incarnation != old.incarnation && new.resource_version > old.resource_version,
        "{old:?} {new:?}"
    );
    fleet.finish().await
}

/// A linearizable read on any node sees what was acknowledged on another before it.
#[tokio::test]
async fn reads_are_as_fresh_as_asked_for() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 0).start().await?;
    for n in 0..100 {
        let (name, writer, reader) = (format!("fresh-{n}"), n % 3, (n + 1) % 3);
        fleet
            .control(writer)?
            .apply(setting(&name, "1"), "", None)
            .await?;
        let read = fleet
            .control(reader)?
            .get(Kind::Setting, &name, Consistency::Linearizable)
            .await;
        let stamp = read
            .with_context(|| format!("written on {writer}, read on {reader}"))?
            .stamp
            .context("no stamp")?;
        ensure!(stamp.applied_index > 0, "{stamp:?}");
    }
    let stamp = fleet
        .control(2)?
        .get(Kind::Setting, "fresh-0", Consistency::Stale)
        .await?
        .stamp
        .context("no stamp")?;
    let age = stamp.age.context("a stale read without its age")?;
    ensure!(age.seconds < 5, "{age:?} old, although all is well");
    fleet.finish().await
}

/// Generic tools find their way: health checks and reflection.
#[tokio::test]
async fn health_and_reflection() -> anyhow::Result<()> {
    let fleet = Fleet::of(1, 0).start().await?;
    let address = fleet.routers[0].control();
    let (status, body) =
        raw_call(address, "/grpc.health.v1.Health/Check", vec![0, 0, 0, 0, 0]).await?;
    // Field 1 (status) is 1 (SERVING).
    ensure!(
        status == "0" && body.ends_with(&[0x08, 0x01]),
        "grpc-status {status}, {body:?}"
    );
    // Field 7 (list_services) with an empty text.
    let request = vec![0, 0, 0, 0, 2, 0x3a, 0];
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let (status, body) = raw_call(address, path, request).await?;
    let services = String::from_utf8_lossy(&body);
    for service in [
        "quorate.v1.Resources",
        "quorate.v1.Endpoints",
        "quorate.v1.Cluster",
        "grpc.health.v1.Health",
    ] {
        ensure!(
            services.contains(service),
            "{service} is not listed: grpc-status {status}, {services:?}"
        );
    }
    fleet.finish().await
}
