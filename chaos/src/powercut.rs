//! The two ends of the power-cut test: a node that writes and says what it acknowledged, and the check of its disk.
//!
//! The node is alone, so its own disk is the only copy: whatever it acknowledged must be there.

use std::{
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use quorate_proto::{
    store::v1::{Command, PutResource, command::Op},
    v1::{Kind, Metadata, Resource, SettingSpec, resource::Spec},
};
use quorate_raft::{Cluster, Durability, Options, Start};

const NAME: &str = "powercut";
/// Writers at the same time, so that entries of several sizes and group commits occur.
const WRITERS: usize = 3;
const READY: Duration = Duration::from_secs(20);
/// Small enough that snapshots and purges happen within seconds.
const SNAPSHOT_EVERY: u64 = 300;

fn options(dir: &Path, start: Start) -> Result<Options> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a port for node-to-node traffic")?;
    let mut options = Options::new(NAME, listener);
    options.data_dir = Some(dir.to_owned());
    options.start = start;
    options.snapshot_every = SNAPSHOT_EVERY;
    options.keep_logs = SNAPSHOT_EVERY / 3;
    Ok(options)
}

fn name(number: u64) -> String {
    format!("w{number}")
}

/// Content of varying length that can be told from its number.
fn content(number: u64) -> String {
    let filler = "x".repeat((number.wrapping_mul(2_654_435_761) % 400) as usize);
    format!("\"{number} {filler}\"")
}

/// Writes for ever; prints each number once its write is acknowledged.
pub(crate) async fn write(dir: PathBuf, durability: Durability) -> Result<ExitCode> {
    let mut options = options(&dir, Start::Bootstrap)?;
    options.durability = durability;
    let cluster = Cluster::start(options)
        .await
        .context("the node does not start")?;
    cluster
        .ready(READY)
        .await
        .context("the node does not become ready")?;
    let next = Arc::new(AtomicU64::new(0));
    // Unbuffered: a line that was printed must be in the file when the process is stopped.
    let output = Arc::new(Mutex::new(std::io::stdout()));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (cluster, next, output) = (cluster.clone(), Arc::clone(&next), Arc::clone(&output));
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let resource = Resource {
                    metadata: Some(Metadata {
                        name: name(number),
                        ..Metadata::default()
                    }),
                    spec: Some(Spec::Setting(SettingSpec {
                        json: content(number),
                    })),
                };
                let put = PutResource {
                    resource: Some(resource),
                    expected_version: None,
                };
                let command = Command {
                    op: Some(Op::Put(put)),
                    ..Command::default()
                };
                cluster
                    .propose(command)
                    .await
                    .map_err(|error| anyhow!("write {number}: {error}"))?;
                let mut output = output.lock().map_err(|_| anyhow!("a writer panicked"))?;
                output.write_all(format!("{number}\n").as_bytes())?;
                output.flush()?;
            }
        });
    }
    let ended: Option<Result<Result<()>, _>> = writers.join_next().await;
    match ended {
        Some(Ok(Err(error))) => Err(error),
        _ => Err(anyhow!("a writer ended")),
    }
}

/// Opens the directory as the node would and looks for every acknowledged write.
pub(crate) async fn verify(dir: PathBuf, acknowledged: PathBuf) -> Result<ExitCode> {
    let text = std::fs::read_to_string(&acknowledged)
        .with_context(|| acknowledged.display().to_string())?;
    // The last line may have been cut short by the stop; what has no line end was not acknowledged to anyone.
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    let numbers: Vec<u64> = complete
        .lines()
        .map(|line| {
            line.parse()
                .with_context(|| format!("{}: {line:?}", acknowledged.display()))
        })
        .collect::<Result<_>>()?;
    let cluster = match Cluster::start(options(&dir, Start::Resume)?).await {
        Ok(cluster) => cluster,
        Err(error) => {
            println!("does not open: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    cluster
        .ready(READY)
        .await
        .context("the node does not become ready")?;
    let view = cluster.view();
    let holds = |number: &u64| {
        view.get(Kind::Setting, &name(*number)).is_some_and(
            |resource| matches!(&resource.spec, Some(Spec::Setting(setting)) if setting.json == content(*number)),
        )
    };
    let missing = numbers.iter().filter(|number| !holds(number)).count();
    println!(
        "{} acknowledged, {} missing, {} stored",
        numbers.len(),
        missing,
        view.count(Kind::Setting)
    );
    cluster.shutdown().await;
    Ok(if missing == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
