//! The command `quorate sim`: several servers, dealt out to threads.
//!
//! Each thread runs a runtime of its own, so a server's connections, its engine and its timers never cross threads.

use crate::args::SimArgs;
use crate::config::SimConfig;
use crate::fleet::Fleet;
use crate::instance::Sim;
use crate::tokenizer;
use anyhow::{Context, anyhow};
use futures_util::future::select_all;
use std::future::Future;
use std::sync::Arc;
use std::thread;
use tokio::sync::{mpsc, oneshot, watch};

/// Runs the simulated servers until `shutdown`. Prints one line for each when it listens. Ends with an error when a server
/// cannot start, or crashes without a time to come back.
pub async fn run(args: SimArgs, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let args = args.config.merged()?.unwrap_or(args);
    if let Some(directory) = &args.write_tokenizer {
        tokenizer::export::write(directory)
            .with_context(|| format!("cannot write to {}", directory.display()))?;
        println!("{}", directory.display());
        return Ok(());
    }
    let configs = args.configs()?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = if args.threads == 0 {
        cores
    } else {
        args.threads
    }
    .min(configs.len());
    let mut hands: Vec<Vec<SimConfig>> = (0..threads).map(|_| Vec::new()).collect();
    for (at, config) in configs.into_iter().enumerate() {
        if let Some(hand) = hands.get_mut(at % threads) {
            hand.push(config);
        }
    }
    let (stop, stopped) = watch::channel(());
    let (failed, mut failure) = mpsc::channel(threads);
    let fleet = Arc::new(Fleet::default());
    let mut ready = Vec::new();
    let mut joins = Vec::new();
    for (at, hand) in hands.into_iter().enumerate() {
        let (tell, told) = oneshot::channel();
        let (stopped, failed) = (stopped.clone(), failed.clone());
        let fleet = fleet.clone();
        let join = thread::Builder::new()
            .name(format!("sim-{at}"))
            .spawn(move || worker(hand, &fleet, tell, stopped, &failed))
            .context("cannot start a thread")?;
        ready.push(told);
        joins.push(join);
    }
    drop(failed);
    let mut lines = Vec::new();
    for told in ready {
        lines.extend(
            told.await
                .map_err(|_| anyhow!("a simulator thread ended before it was ready"))??,
        );
    }
    lines.sort();
    for (_, line) in lines {
        println!("{line}");
    }
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        Some(error) = failure.recv() => Err(error),
    };
    drop(stop);
    tokio::task::spawn_blocking(move || {
        joins
            .into_iter()
            .filter_map(|join| join.join().err())
            .count()
    })
    .await
    .ok()
    .filter(|panics| *panics == 0)
    .context("a simulator thread panicked")?;
    outcome
}

/// A port, to sort by, and the line that announces its server.
type Announcement = (u16, String);

fn worker(
    configs: Vec<SimConfig>,
    fleet: &Arc<Fleet>,
    ready: oneshot::Sender<anyhow::Result<Vec<Announcement>>>,
    stopped: watch::Receiver<()>,
    failed: &mpsc::Sender<anyhow::Error>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(configs, fleet, ready, stopped, failed)),
        Err(error) => {
            let _ = ready.send(Err(anyhow!(error).context("cannot start a runtime")));
        }
    }
}

async fn serve(
    configs: Vec<SimConfig>,
    fleet: &Arc<Fleet>,
    ready: oneshot::Sender<anyhow::Result<Vec<Announcement>>>,
    mut stopped: watch::Receiver<()>,
    failed: &mpsc::Sender<anyhow::Error>,
) {
    let mut sims = Vec::new();
    let mut lines = Vec::new();
    for config in configs {
        match Sim::start_among(config, fleet).await {
            Ok(sim) => {
                lines.push((sim.addr().port(), announcement(&sim)));
                sims.push(sim);
            }
            Err(error) => {
                let _ = ready.send(Err(error.into()));
                return;
            }
        }
    }
    if ready.send(Ok(lines)).is_err() {
        return;
    }
    let down = select_all(sims.iter().map(|sim| Box::pin(sim.crashed())));
    tokio::select! {
        _ = stopped.changed() => {}
        (_, at, _) = down => {
            let addr = sims.get(at).map(|sim| sim.addr().to_string()).unwrap_or_default();
            let _ = failed.send(anyhow!("the simulated server on {addr} crashed, as it was told to")).await;
        }
    }
    for sim in sims {
        sim.stop().await;
    }
}

fn announcement(sim: &Sim) -> String {
    let config = sim.config();
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let mut line = format!(
        "listening on {scheme}://{}  model {}  profile {}  metrics {}",
        sim.addr(),
        config.display_name(),
        config.profile,
        config.dialect.as_str(),
    );
    if config.rank > 0 {
        line.push_str(&format!("  rank {}", config.rank));
    }
    line
}
