//! A stream of control writes that remembers what was acknowledged, to be compared with what is there afterwards.

use crate::control::{Control, setting};
use anyhow::{Context, ensure};
use quorate_proto::v1;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// A call that takes longer is repeated on the next router, under the same idempotency key.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Writes one setting after the other until it is stopped.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<anyhow::Result<WriteReport>>,
}

/// What was acknowledged.
#[derive(Debug, Default)]
pub struct WriteReport {
    /// Version of each setting by name.
    pub versions: BTreeMap<String, u64>,
    /// Longest time between two acknowledgements.
    pub longest_gap: Duration,
    /// Attempts that failed or took too long and were repeated.
    pub repeated: u64,
}

/// The content of a written setting; follows from its name.
fn content(name: &str) -> String {
    format!(
        "{{\"written\":\"{name}\",\"padding\":\"{}\"}}",
        "x".repeat(200)
    )
}

impl Writer {
    /// Starts writing settings `PREFIX-0`, `PREFIX-1`, ... through these routers' control addresses: through the first one as
    /// long as it answers, then through the next.
    ///
    /// # Errors
    /// Never for socket addresses.
    pub fn start(prefix: &str, routers: &[SocketAddr]) -> anyhow::Result<Self> {
        let controls = routers
            .iter()
            .map(|address| Control::new(*address))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(write(
            prefix.to_owned(),
            controls,
            Arc::clone(&stop),
            Arc::clone(&acknowledged),
        ));
        Ok(Self {
            stop,
            acknowledged,
            task,
        })
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Relaxed)
    }

    /// Waits until `more` writes have been acknowledged from now on.
    ///
    /// # Errors
    /// Not within `within`.
    pub async fn progress(&self, more: u64, within: Duration) -> anyhow::Result<()> {
        let goal = self.acknowledged() + more;
        crate::until(&format!("{more} more writes"), within, async || {
            let now = self.acknowledged();
            if now >= goal {
                Ok(())
            } else {
                Err(format!("{now} of {goal} acknowledged"))
            }
        })
        .await
    }

    /// Lets the write under way end and says what was acknowledged.
    ///
    /// # Errors
    /// A write was refused, or an answer was wrong.
    pub async fn stop(self) -> anyhow::Result<WriteReport> {
        self.stop.store(true, Relaxed);
        self.task.await?
    }
}

async fn write(
    prefix: String,
    controls: Vec<Control>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> anyhow::Result<WriteReport> {
    let mut report = WriteReport::default();
    let mut routers = controls.iter().cycle();
    let mut control = routers.next().context("no router")?;
    let mut last = Instant::now();
    while !stop.load(Relaxed) {
        let name = format!("{prefix}-{}", report.versions.len());
        // It must not be there: if a repeated call did not get the first one's answer, this says so.
        let key = format!("key-{name}");
        let version = loop {
            let call = control.apply(setting(&name, &content(&name)), &key, Some(0));
            match tokio::time::timeout(ATTEMPT, call).await {
                Ok(Ok(response)) => {
                    ensure!(
                        response.outcome() == v1::ApplyOutcome::Created,
                        "{name} was created, but the answer says {:?}",
                        response.outcome()
                    );
                    break version_of(response.resource.as_ref())?;
                }
                Ok(Err(status)) => {
                    let refused = [
                        tonic::Code::InvalidArgument,
                        tonic::Code::AlreadyExists,
                        tonic::Code::Aborted,
                        tonic::Code::Internal,
                        tonic::Code::DataLoss,
                    ];
                    ensure!(
                        !refused.contains(&status.code()),
                        "writing {name}: {status}"
                    );
                }
                Err(_) => {}
            }
            ensure!(
                !stop.load(Relaxed) || last.elapsed() < Duration::from_secs(20),
                "no write goes through any more"
            );
            report.repeated += 1;
            control = routers.next().context("no router")?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        report.longest_gap = report.longest_gap.max(last.elapsed());
        last = Instant::now();
        report.versions.insert(name, version);
        acknowledged.fetch_add(1, Relaxed);
    }
    Ok(report)
}

fn version_of(resource: Option<&v1::Resource>) -> anyhow::Result<u64> {
    Ok(resource
        .and_then(|r| r.metadata.as_ref())
        .context("no metadata in the answer")?
        .resource_version)
}

impl WriteReport {
    /// Compares with what a router says: everything acknowledged is there, once, as written.
    ///
    /// # Errors
    /// Names what is lost or different.
    pub async fn verify(
        &self,
        router: SocketAddr,
        consistency: v1::Consistency,
    ) -> anyhow::Result<()> {
        let listed = Control::new(router)?
            .list(v1::Kind::Setting, consistency)
            .await?;
        let mut found = BTreeMap::new();
        for resource in &listed {
            let metadata = resource.metadata.as_ref().context("no metadata")?;
            let Some(v1::resource::Spec::Setting(spec)) = &resource.spec else {
                anyhow::bail!("a setting without its spec: {resource:?}")
            };
            ensure!(
                found.insert(&metadata.name, (metadata, spec)).is_none(),
                "{} is listed twice",
                metadata.name
            );
        }
        let lost: Vec<&String> = self
            .versions
            .keys()
            .filter(|name| !found.contains_key(name))
            .collect();
        ensure!(
            lost.is_empty(),
            "{} of {} acknowledged writes are lost: {lost:?}",
            lost.len(),
            self.versions.len()
        );
        for (name, version) in &self.versions {
            let (metadata, spec) = found[name];
            ensure!(
                metadata.resource_version == *version
                    && metadata.generation == 1
                    && spec.json == content(name),
                "{name} was acknowledged with version {version} and is now {metadata:?}, {spec:?}"
            );
        }
        Ok(())
    }
}
