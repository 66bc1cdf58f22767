//! Writes or reads in a closed loop: throughput and latency.

use super::{LoadArgs, Settings, describe, new_run};
use crate::{quantiles::Durations, report::ControlReport};
use anyhow::{Context, anyhow};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Barrier, task::JoinSet, time::timeout};

/// Load before the measured window.
const WARMUP: Duration = Duration::from_millis(500);

/// Pause after a failure: a node that is down is not hammered.
const BACKOFF: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Put,
    Get,
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    errors: u64,
    first_error: Option<String>,
}

pub(super) async fn run(args: LoadArgs, op: Op) -> anyhow::Result<ControlReport> {
    let run = new_run();
    let together = Arc::new(Barrier::new(args.clients as usize));
    let mut clients = JoinSet::new();
    for index in 0..args.clients {
        let endpoint = args.endpoints[index as usize % args.endpoints.len()].clone();
        let (args, together) = (args.clone(), together.clone());
        clients.spawn(async move {
            let connect = timeout(args.timeout, endpoint.connect()).await;
            let uri = endpoint.uri();
            let channel = connect
                .map_err(|_| anyhow!("cannot connect to {uri}: timed out"))?
                .with_context(|| format!("cannot connect to {uri}"))?;
            client(
                &args,
                op,
                index,
                Settings::new(channel, run, args.bytes),
                &together,
            )
            .await
        });
    }
    let mut all = Durations::new()?;
    let (mut ops, mut errors, mut first_error) = (0, 0, None);
    // The first client that cannot begin ends the run: dropping the set stops the others.
    while let Some(seen) = clients.join_next().await {
        let seen = seen??;
        ops += seen.latencies.len() as u64;
        errors += seen.errors;
        first_error = first_error.or(seen.first_error);
        for latency in seen.latencies {
            all.record(latency);
        }
    }
    let seconds = args.duration.as_secs_f64();
    Ok(ControlReport {
        op: if op == Op::Put { "put" } else { "get" }.into(),
        clients: args.clients,
        bytes: args.bytes as usize,
        seconds,
        ops,
        errors,
        first_error,
        per_s: ops as f64 / seconds,
        latency_us: all.quantiles(),
        longest_outage_ms: None,
        outages_ms: Vec::new(),
    })
}

async fn client(
    args: &LoadArgs,
    op: Op,
    index: u32,
    mut settings: Settings,
    together: &Barrier,
) -> anyhow::Result<Seen> {
    let name = |n: u64| format!("bench.{index}.{}", n % u64::from(args.keys));
    if op == Op::Get {
        for n in 0..u64::from(args.keys) {
            let written =
                timeout(args.timeout, settings.put(name(n), &format!("{index}-{n}"))).await;
            written
                .map_err(|_| anyhow!("writing the settings to read: timed out"))?
                .map_err(|status| anyhow!("writing the settings to read: {}", describe(&status)))?;
        }
    }
    together.wait().await;
    let from = Instant::now() + WARMUP;
    let end = from + args.duration;
    let mut seen = Seen::default();
    for n in 0.. {
        let start = Instant::now();
        if start >= end {
            break;
        }
        let call = async {
            match op {
                Op::Put => settings.put(name(n), &format!("{index}-{n}")).await,
                Op::Get => settings.get(name(n)).await,
            }
        };
        let failure = match timeout(args.timeout, call).await {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some(describe(&status)),
            Err(_) => Some(format!("no answer after {:?}", args.timeout)),
        };
        let taken = start.elapsed();
        let measured = start >= from;
        match failure {
            None if measured => seen.latencies.push(taken),
            None => {}
            Some(text) => {
                if measured {
                    seen.errors += 1;
                    seen.first_error.get_or_insert(text);
                }
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
    Ok(seen)
}
