//! The outage that a careful client sees when a node dies: one write after the other, each with a short deadline, to the next
//! node after a failure.

use super::{FailoverArgs, Settings, describe, new_run};
use crate::{quantiles::Durations, report::ControlReport};
use anyhow::bail;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Pause between two writes.
const GAP: Duration = Duration::from_millis(2);

/// A longer time between good writes is an outage.
const OUTAGE: Duration = Duration::from_millis(100);

/// How long the first good write may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of each value.
const BYTES: u32 = 256;

pub(super) async fn run(args: FailoverArgs, say: fn(&str)) -> anyhow::Result<ControlReport> {
    let run = new_run();
    let mut nodes = Vec::new();
    for endpoint in &args.endpoints {
        // Connects when it is used: a node may be down.
        let channel = endpoint
            .clone()
            .connect_timeout(args.deadline)
            .connect_lazy();
        nodes.push(Settings::new(channel, run, BYTES));
    }
    let mut writer = Writer {
        nodes,
        node: 0,
        writes: 0,
        deadline: args.deadline,
    };
    let asked = Instant::now();
    while let Err(text) = writer.write().await {
        if asked.elapsed() > PATIENCE {
            bail!("no write succeeded within {PATIENCE:?}: {text}");
        }
        sleep(GAP).await;
    }
    say("ready");

    let begun = Instant::now();
    let mut last = begun;
    let mut latencies = Durations::new()?;
    let (mut ops, mut errors, mut first_error) = (0, 0, None);
    let (mut longest, mut outages_ms) = (Duration::ZERO, Vec::new());
    let mut note = |outage: Duration| {
        longest = longest.max(outage);
        if outage > OUTAGE {
            say(&format!("outage_ms {}", outage.as_millis()));
            outages_ms.push(outage.as_secs_f64() * 1e3);
        }
    };
    while begun.elapsed() < args.duration {
        let start = Instant::now();
        match writer.write().await {
            Ok(()) => {
                ops += 1;
                latencies.record(start.elapsed());
                note(last.elapsed());
                last = Instant::now();
            }
            Err(text) => {
                errors += 1;
                first_error.get_or_insert(text);
            }
        }
        sleep(GAP).await;
    }
    // An outage that is not over yet counts as far as it was seen.
    note(last.elapsed());
    let seconds = begun.elapsed().as_secs_f64();
    Ok(ControlReport {
        op: "failover".into(),
        clients: 1,
        bytes: BYTES as usize,
        seconds,
        ops,
        errors,
        first_error,
        per_s: ops as f64 / seconds,
        latency_us: latencies.quantiles(),
        longest_outage_ms: Some(longest.as_secs_f64() * 1e3),
        outages_ms,
    })
}

struct Writer {
    nodes: Vec<Settings>,
    node: usize,
    writes: u64,
    deadline: Duration,
}

impl Writer {
    /// One write; after a failure the next one goes to another node.
    async fn write(&mut self) -> Result<(), String> {
        let count = self.nodes.len();
        let node = &mut self.nodes[self.node % count];
        self.writes += 1;
        let write = self.writes.to_string();
        let put = node.put("bench.failover".into(), &write);
        let text = match timeout(self.deadline, put).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(status)) => describe(&status),
            Err(_) => format!("no answer after {:?}", self.deadline),
        };
        self.node += 1;
        Err(text)
    }
}
