//! Data directories that are damaged, full, copied or somebody else's: refused with a clear error, never served from.

use anyhow::{Context, bail, ensure};
use quorate_proto::v1::{Consistency, Kind};
use quorate_tests::http::{chat, post};
use quorate_tests::{
    Fleet, Launch, Load, Router, TinyDisk, Writer, command_exists, setting, until,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// All files below a directory.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// Where `needle` is found last, in files whose path `wanted` likes.
fn find(
    dir: &Path,
    needle: &[u8],
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<(PathBuf, usize)> {
    let mut looked = Vec::new();
    for path in files(dir)? {
        let name = path.to_string_lossy().into_owned();
        if wanted(&name) {
            let bytes = std::fs::read(&path)?;
            if let Some(at) = bytes
                .windows(needle.len())
                .rposition(|window| window == needle)
            {
                return Ok((path, at));
            }
            looked.push(format!("{name} ({} bytes)", bytes.len()));
        }
    }
    bail!("{} is not in {looked:?}", String::from_utf8_lossy(needle))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for path in files(from)? {
        let target = to.join(path.strip_prefix(from)?);
        std::fs::create_dir_all(target.parent().context("no parent")?)?;
        std::fs::copy(&path, target)?;
    }
    Ok(())
}

fn flip(path: &Path, at: usize) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(path)?;
    *bytes.get_mut(at).context("beyond the end")? ^= 0x20;
    std::fs::write(path, bytes)?;
    Ok(())
}

fn truncate(path: &Path, to: u64) -> anyhow::Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .set_len(to)?;
    Ok(())
}

/// Router 3 must not start, whatever `damage` did; the same directory without the damage starts.
async fn refuses_damage(
    fleet: &mut Fleet,
    what: &str,
    damage: impl Fn(&Path) -> anyhow::Result<PathBuf>,
) -> anyhow::Result<()> {
    let good = fleet.dir().join("good");
    copy(&fleet.routers[2].data_dir, &good)?;
    let damaged = damage(&fleet.routers[2].data_dir).with_context(|| what.to_owned())?;
    let (code, said) = fleet.routers[2]
        .refuses()
        .await
        .with_context(|| what.to_owned())?;
    ensure!(code != 0, "{what}: exit code 0\n{said}");
    let place = damaged
        .parent()
        .context("no parent")?
        .file_name()
        .context("no name")?
        .to_string_lossy();
    ensure!(
        said.contains(&*damaged.to_string_lossy()) || said.contains(&*place),
        "{what}: the error does not name {}:\n{said}",
        damaged.display()
    );
    // The others go on as if nothing were.
    for router in [0, 1] {
        let gateway = fleet.routers[router].gateway();
        post(
            gateway,
            "/v1/chat/completions",
            &chat("echo-model", "still here", 8, false),
        )
        .await?
        .ok()?;
    }
    fleet
        .control(0)?
        .apply(setting("during-damage", "1"), "", None)
        .await?;
    std::fs::remove_dir_all(&fleet.routers[2].data_dir)?;
    std::fs::rename(&good, &fleet.routers[2].data_dir)?;
    Ok(())
}

#[tokio::test]
async fn a_damaged_log_is_refused_and_the_node_replaced() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).start().await?;
    let writer = Writer::start("torn", &fleet.controls(&[0, 1]))?;
    writer.progress(200, SOON).await?;
    let writes = writer.stop().await?;
    fleet.caught_up(&[0, 1, 2]).await?;
    fleet.routers[2].kill().await?;

    refuses_damage(
        &mut fleet,
        "a byte of an acknowledged entry is flipped",
        |dir| {
            let (path, at) = find(&dir.join("raft"), b"written\":\"torn-150", |_| true)?;
            flip(&path, at)?;
            Ok(path)
        },
    )
    .await?;
    refuses_damage(
        &mut fleet,
        "the database's file is torn in the middle",
        |dir| {
            let (path, at) = find(&dir.join("raft"), b"written\":\"torn-100", |_| true)?;
            truncate(&path, at as u64)?;
            Ok(path)
        },
    )
    .await?;
    refuses_damage(&mut fleet, "the database's file is gone", |dir| {
        let (path, _) = find(&dir.join("raft"), b"written\":\"torn-100", |_| true)?;
        std::fs::remove_file(&path)?;
        Ok(path)
    })
    .await?;
    refuses_damage(&mut fleet, "the identity is edited", |dir| {
        let path = dir.join("identity");
        let text = std::fs::read_to_string(&path)?;
        let edited = text.replace("\nnode ", "\nnode 1");
        ensure!(edited != text, "no node id in {text}");
        std::fs::write(&path, edited)?;
        Ok(path)
    })
    .await?;

    // With the directory as it was, it comes back by itself.
    fleet.routers[2].start()?;
    fleet.routers[2].ready().await?;
    writes
        .verify(fleet.routers[2].control(), Consistency::Stale)
        .await?;
    fleet.routers[2].kill().await?;

    // Damaged for good: a new node takes its place.
    let (path, at) = find(
        &fleet.routers[2].data_dir.join("raft"),
        b"written\":\"torn-150",
        |_| true,
    )?;
    flip(&path, at)?;
    let new = fleet.add_router().await?;
    fleet
        .cli(&[0, 1], &["cluster", "replace", "router-3", "router-4"])
        .await?
        .ok()?;
    fleet.caught_up(&[0, 1, new]).await?;
    writes
        .verify(fleet.routers[new].control(), Consistency::Stale)
        .await?;
    fleet.finish().await
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 1)
        .config("[cluster]\nsnapshot_every = 200\nkeep_logs = 50")
        .start()
        .await?;
    let writer = Writer::start("snap", &fleet.controls(&[0, 1]))?;
    writer.progress(600, SOON).await?;
    writer.stop().await?;
    fleet.caught_up(&[0, 1, 2]).await?;
    let in_snapshot = |name: &str| name.contains("snapshot");
    let data_dir = fleet.routers[2].data_dir.clone();
    until("a snapshot", SOON, async || {
        find(&data_dir, b"snap-10", in_snapshot)
    })
    .await?;
    fleet.routers[2].stop().await?;

    refuses_damage(&mut fleet, "a byte of the snapshot is flipped", |dir| {
        let (path, at) = find(dir, b"snap-10", in_snapshot)?;
        flip(&path, at)?;
        Ok(path)
    })
    .await?;
    refuses_damage(&mut fleet, "the snapshot is torn", |dir| {
        let (path, at) = find(dir, b"snap-10", in_snapshot)?;
        truncate(&path, at as u64)?;
        Ok(path)
    })
    .await?;
    refuses_damage(&mut fleet, "the snapshot is gone", |dir| {
        let (path, _) = find(dir, b"snap-10", in_snapshot)?;
        for file in files(path.parent().context("no parent")?)? {
            std::fs::remove_file(file)?;
        }
        Ok(path)
    })
    .await?;
    fleet.routers[2].start()?;
    fleet.routers[2].ready().await?;
    fleet.caught_up(&[0, 1, 2]).await?;
    fleet.finish().await
}

/// The leader's disk fills up under load: it acknowledges nothing it does not have, and comes back once there is room.
#[tokio::test]
async fn a_full_disk() -> anyhow::Result<()> {
    if !command_exists("unshare") || !command_exists("nsenter") {
        bail!("this test needs `unshare` and `nsenter` (package util-linux)");
    }
    let mut fleet = Fleet::of(2, 2).start().await?;
    let full = fleet.prepare_router()?;
    std::fs::create_dir_all(&fleet.routers[full].data_dir)?;
    let disk = match TinyDisk::mount(&fleet.routers[full].data_dir, 256).await {
        Ok(disk) => disk,
        Err(error) => {
            eprintln!("SKIPPED: a_full_disk needs root or user namespaces: {error:#}");
            return fleet.finish().await;
        }
    };
    fleet.routers[full].wrapper = disk.wrapper()?;
    fleet.routers[full].start()?;
    fleet.routers[full].ready().await?;
    fleet.used(0).await?;
    fleet.make_leader(full).await?;

    let others = [0, 1];
    let surviving = fleet.gateways(&others);
    let load = Load::start(&fleet.load(&others, 2));
    let writer = Writer::start("full", &fleet.controls(&[0, 1]))?;
    writer.progress(50, SOON).await?;
    disk.fill()?;
    // More writes, until whatever room is left inside the database's file is used up as well.
    let control = fleet.control(0)?;
    let padding = format!("\"{}\"", "x".repeat(256 << 10));
    let admin = fleet.routers[full].admin();
    let mut accepted = 0;
    for n in 0..400 {
        let name = format!("big-{n}");
        let write = control.apply(setting(&name, &padding), &name, None);
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(2), write).await {
            accepted += 1;
        }
        let well = quorate_tests::http::get(admin, "/ready")
            .await
            .is_ok_and(|r| r.status == 200);
        if !well {
            break;
        }
    }
    // It has ended, or it says that it is not well; the others have another leader and go on.
    let running = fleet.routers[full].is_running();
    until("the node to say what is wrong", SOON, async || {
        let said = fleet.routers[full].whole_log().to_lowercase();
        ensure!(
            said.contains("no space") || said.contains("disk is full") || said.contains("full"),
            "not a word"
        );
        anyhow::Ok(())
    })
    .await?;
    if running {
        until("the node not to be ready", SOON, async || {
            let reply = quorate_tests::http::get(fleet.routers[full].admin(), "/ready").await?;
            ensure!(
                reply.status.as_u16() == 503,
                "{} {}",
                reply.status,
                reply.text()
            );
            anyhow::Ok(())
        })
        .await?;
    }
    writer.progress(100, SOON).await?;
    load.progress(&surviving, 50, SOON).await?;
    let (report, writes) = (load.stop().await?, writer.stop().await?);
    report.all_good(&surviving)?;
    for router in others {
        writes
            .verify(fleet.routers[router].control(), Consistency::Linearizable)
            .await?;
    }
    println!(
        "full disk on the leader: it {}; {accepted} large writes accepted, longest gap {} ms",
        if running {
            "stayed up, not ready"
        } else {
            "ended"
        },
        writes.longest_gap.as_millis()
    );

    disk.free()?;
    if fleet.routers[full].is_running() {
        fleet.routers[full].kill().await?;
    }
    fleet.routers[full].start()?;
    fleet.routers[full].ready().await?;
    fleet.caught_up(&[0, 1, full]).await?;
    writes
        .verify(fleet.routers[full].control(), Consistency::Stale)
        .await?;
    ensure!(
        writes.longest_gap < Duration::from_secs(10),
        "no write went through for {:?}",
        writes.longest_gap
    );
    fleet.finish().await
}

#[tokio::test]
async fn a_data_directory_belongs_to_one_process() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 1).start().await?;
    let host = fleet.subnet().host(50);

    // A second process on the same directory.
    let mut second = Router::new(fleet.dir(), "second", host, Launch::Resume, "", "")?;
    point_at(&second, "second", "router-2", &fleet.routers[1].data_dir)?;
    let (code, said) = second.refuses().await?;
    ensure!(
        code != 0 && said.contains("another process uses this data directory"),
        "exit code {code}:\n{said}"
    );

    // A copy of a live node's directory: the same node id twice.
    let copied = fleet.dir().join("copied");
    copy(&fleet.routers[1].data_dir, &copied)?;
    let mut twin = Router::new(fleet.dir(), "twin", host, Launch::Resume, "", "")?;
    point_at(&twin, "twin", "router-2", &copied)?;
    let (code, said) = twin.refuses().await?;
    ensure!(code != 0, "exit code {code}:\n{said}");
    ensure!(
        said.contains("router-2") || said.contains("identity") || said.contains("node id"),
        "{said}"
    );

    // Another node with a name that is taken.
    let first = fleet.routers[0].peer();
    let mut namesake = Router::new(fleet.dir(), "namesake", host, Launch::Join(first), "", "")?;
    point_at(
        &namesake,
        "namesake",
        "router-2",
        &fleet.dir().join("namesake"),
    )?;
    let (code, said) = namesake.refuses().await?;
    ensure!(
        code != 0 && said.contains("router-2"),
        "exit code {code}:\n{said}"
    );

    // None of it touched the node that was there first.
    fleet
        .control(1)?
        .apply(setting("fine", "1"), "", None)
        .await?;
    let status = fleet.control(0)?.status().await?;
    ensure!(status.members.len() == 3, "{:?}", status.members);
    fleet.finish().await
}

/// Gives a node that is not started yet another name and directory.
fn point_at(router: &Router, old: &str, name: &str, data_dir: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&router.config)?;
    let text = text
        .replace(&format!("name = \"{old}\""), &format!("name = \"{name}\""))
        .replace(
            &*router.data_dir.to_string_lossy(),
            &data_dir.to_string_lossy(),
        );
    std::fs::write(&router.config, text)?;
    Ok(())
}

/// A node that was founded anew stands where a member of another cluster is expected: neither listens to the other.
#[tokio::test]
async fn another_cluster_at_a_known_address() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 0).start().await?;
    fleet.make_leader(1).await?;
    fleet
        .control(1)?
        .apply(setting("of-the-old", "1"), "", None)
        .await?;
    fleet.caught_up(&[0, 1, 2]).await?;
    fleet.routers[0].kill().await?;
    std::fs::remove_dir_all(&fleet.routers[0].data_dir)?;
    fleet.routers[0].start()?;
    fleet.routers[0].ready().await?;

    let (old, new) = (fleet.control(1)?, fleet.control(0)?);
    let (old_id, new_id) = (
        old.status().await?.cluster_id,
        new.status().await?.cluster_id,
    );
    ensure!(
        !old_id.is_empty() && old_id != new_id,
        "cluster ids {old_id:?} and {new_id:?}"
    );
    new.apply(setting("of-the-new", "1"), "", None).await?;
    until("the old cluster to write on without it", SOON, async || {
        old.apply(setting("of-the-old-too", "1"), "", None).await
    })
    .await?;
    until(
        "the old cluster to say that it cannot talk to it",
        SOON,
        async || {
            let status = old.status().await?;
            let member = status
                .members
                .iter()
                .find(|m| m.name == "router-1")
                .context("router-1 is forgotten")?;
            ensure!(!member.reachable, "router-1 counts as reachable");
            anyhow::Ok(())
        },
    )
    .await?;
    for (control, foreign) in [
        (&old, "of-the-new"),
        (&new, "of-the-old"),
        (&new, "of-the-old-too"),
    ] {
        for consistency in [Consistency::Linearizable, Consistency::Stale] {
            let status = control
                .get(Kind::Setting, foreign, consistency)
                .await
                .err()
                .context("states were mixed")?;
            ensure!(status.code() == tonic::Code::NotFound, "{status}");
        }
    }
    let logs = [1, 2, 0].map(|i| fleet.routers[i].whole_log()).join("\n");
    ensure!(
        logs.contains(&old_id) && logs.contains(&new_id) && logs.contains("cluster"),
        "no log names the two clusters"
    );
    fleet.finish().await
}
