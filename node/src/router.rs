//! `quorate router`: a node of a cluster, configured by a file and a few flags.

use crate::config::{Config, Timing};
use crate::log::{self, LogFormat};
use crate::node::{self, Start};
use clap::Args;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use tokio::signal::unix::{SignalKind, signal};

/// What `quorate router` takes. Flags go before the configuration file.
#[derive(Args, Clone, Debug)]
pub struct RouterArgs {
    /// Configuration file; deploy/router.toml is the annotated example. Without it every key has its default.
    #[arg(long, short, value_name = "FILE", env = "QUORATE_CONFIG")]
    config: Option<PathBuf>,
    /// Found a new cluster if this node is in none yet. Give it to one node, once; repeating it is safe.
    #[arg(long, conflicts_with = "join")]
    bootstrap: bool,
    /// Join the cluster of these nodes (host:port of their peer listener) if this node is in none yet.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    join: Vec<String>,
    /// Unique name of this node.
    #[arg(long)]
    name: Option<String>,
    /// Region of this node.
    #[arg(long)]
    region: Option<String>,
    /// Where the replicated state is kept.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address of the gateway.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Timer preset; only the bootstrap sets it.
    #[arg(long)]
    timing: Option<Timing>,
    /// Form of the log.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// The configuration is not valid, the node cannot join, or something it needs broke for good.
pub fn run(args: RouterArgs) -> anyhow::Result<()> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    if let Some(name) = args.name {
        config.node.name = name;
    }
    if let Some(region) = args.region {
        config.node.region = region;
    }
    if let Some(dir) = args.data_dir {
        config.node.data_dir = dir;
    }
    if let Some(listen) = args.listen {
        config.gateway.listen = vec![listen];
    }
    if let Some(timing) = args.timing {
        config.cluster.timing = timing;
    }
    if let Some(format) = args.log_format {
        config.log.format = format;
    }
    config.check()?;
    log::init(&config.log)?;
    let start = match (args.bootstrap, args.join.is_empty()) {
        (true, _) => Start::Bootstrap,
        (false, false) => Start::Join(args.join),
        (false, true) if !config.cluster.join.is_empty() => {
            Start::Join(config.cluster.join.clone())
        }
        (false, true) => Start::Resume,
    };
    let runtime = control_runtime()?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        node::run(config, start, stop).await
    })
}

/// The runtime of everything but the request path, which has threads of its own.
pub fn control_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 4).clamp(2, 8))
        .thread_name("control")
        .enable_all()
        .build()
}

/// A future that ends when the process is asked to stop.
pub type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Ends on SIGINT, SIGTERM, and, if the environment has QUORATE_STOP_WITH_STDIN, when standard input closes (a parent died).
///
/// # Errors
/// The handlers cannot be installed.
pub fn stop_signal() -> anyhow::Result<Stop> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let with_stdin = std::env::var_os("QUORATE_STOP_WITH_STDIN").is_some();
    Ok(Box::pin(async move {
        let stdin_closed = async {
            if !with_stdin {
                return std::future::pending().await;
            }
            let (closed, wait) = tokio::sync::oneshot::channel();
            // A thread of its own: a blocking read on the runtime's pool would hold up the shutdown.
            std::thread::spawn(move || {
                let mut sink = std::io::sink();
                let _ = std::io::copy(&mut std::io::stdin().lock(), &mut sink);
                let _ = closed.send(());
            });
            let _ = wait.await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = stdin_closed => {}
        }
    }))
}

/// Runs something simple with logging and a stop signal.
///
/// # Errors
/// Whatever the work fails with.
pub fn with_signals<F>(work: impl FnOnce(Stop) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    log::init(&log::LogConfig::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        work(stop).await
    })
}
