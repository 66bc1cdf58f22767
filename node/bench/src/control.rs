//! `quorate bench control`: durable writes, linearizable reads and failover of the control API, one gRPC channel a client.

mod failover;
mod load;

use crate::{args::duration, report::Report};
use anyhow::{Context, anyhow};
use quorate_proto::v1::{
    ApplyRequest, Consistency, GetRequest, Kind, Metadata, Resource, SettingSpec, resource::Spec,
    resources_client::ResourcesClient,
};
use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Arguments of `quorate bench control`.
#[derive(Debug, Clone, clap::Args)]
pub struct ControlArgs {
    /// What to measure.
    #[command(subcommand)]
    pub op: ControlOp,
}

/// The control benchmarks.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum ControlOp {
    /// Durable writes in a closed loop: each client replaces its own settings in turn.
    Put(LoadArgs),
    /// Linearizable reads in a closed loop of settings written before.
    Get(LoadArgs),
    /// One write every 2 ms, to the next node after a failure; says "ready", then each outage ("outage_ms N").
    Failover(FailoverArgs),
}

/// Arguments of `put` and `get`.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadArgs {
    /// Control APIs of the nodes, e.g. 127.0.0.1:9090; client number c uses one of them.
    #[arg(long, value_delimiter = ',', required = true, value_parser = endpoint)]
    pub endpoints: Vec<Endpoint>,
    /// Clients, one request at a time each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// Length of the measured window; half a second of load comes before it.
    #[arg(short = 'd', long, default_value = "5s", value_parser = duration)]
    pub duration: Duration,
    /// Bytes of each value.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(48..=512 * 1024))]
    pub bytes: u32,
    /// Settings of each client.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub keys: u32,
    /// Longest time for one call.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// Threads of this program.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
}

/// Arguments of `failover`.
#[derive(Debug, Clone, clap::Args)]
pub struct FailoverArgs {
    /// Control APIs of the nodes.
    #[arg(long, value_delimiter = ',', required = true, value_parser = endpoint)]
    pub endpoints: Vec<Endpoint>,
    /// How long to go on.
    #[arg(short = 'd', long, default_value = "8s", value_parser = duration)]
    pub duration: Duration,
    /// Longest time for one write before the next node is tried.
    #[arg(long, default_value = "200ms", value_parser = duration)]
    pub deadline: Duration,
}

fn endpoint(text: &str) -> anyhow::Result<Endpoint> {
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let endpoint = Endpoint::from_shared(url).context("not an address")?;
    let uri = endpoint.uri();
    anyhow::ensure!(
        uri.scheme_str() == Some("http"),
        "only cleartext (http://) is supported"
    );
    anyhow::ensure!(
        uri.port_u16().is_some_and(|p| p > 0),
        "no port in the address"
    );
    Ok(endpoint.tcp_nodelay(true))
}

/// Runs a control benchmark and blocks until it is over. `say` gets its progress lines.
pub fn run_control(args: ControlArgs, say: fn(&str)) -> anyhow::Result<Report> {
    // On a thread of its own: a runtime cannot be started within another one.
    let body = move || {
        let threads = match &args.op {
            ControlOp::Put(a) | ControlOp::Get(a) => a.threads as usize,
            ControlOp::Failover(_) => 1,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            match args.op {
                ControlOp::Put(args) => load::run(args, load::Op::Put).await,
                ControlOp::Get(args) => load::run(args, load::Op::Get).await,
                ControlOp::Failover(args) => failover::run(args, say).await,
            }
        })
    };
    let handle = thread::Builder::new()
        .name("bench-control".into())
        .spawn(body)?;
    let report = handle
        .join()
        .map_err(|_| anyhow!("the benchmark's thread failed"))??;
    Ok(Report::Control(Box::new(report)))
}

/// Writes and reads settings; every write of every run is a different one.
#[derive(Clone)]
struct Settings {
    client: ResourcesClient<Channel>,
    /// Tells runs apart: the nodes remember idempotency keys, and an equal value would be no write.
    run: u128,
    bytes: usize,
}

impl Settings {
    fn new(channel: Channel, run: u128, bytes: u32) -> Self {
        Settings {
            client: ResourcesClient::new(channel),
            run,
            bytes: bytes as usize,
        }
    }

    /// Writes setting `name`; `write` is different for each write of this run.
    async fn put(&mut self, name: String, write: &str) -> Result<(), Status> {
        let mut json = format!("\"{:x} {write} ", self.run);
        while json.len() + 1 < self.bytes {
            json.push('x');
        }
        json.push('"');
        let resource = Resource {
            metadata: Some(Metadata {
                name,
                ..Metadata::default()
            }),
            spec: Some(Spec::Setting(SettingSpec { json })),
        };
        let request = ApplyRequest {
            idempotency_key: format!("{:x}-{write}", self.run),
            resource: Some(resource),
            ..ApplyRequest::default()
        };
        self.client.apply(request).await.map(|_| ())
    }

    /// A linearizable read of setting `name`.
    async fn get(&mut self, name: String) -> Result<(), Status> {
        let request = GetRequest {
            kind: Kind::Setting as i32,
            name,
            consistency: Consistency::Linearizable as i32,
        };
        self.client.get(request).await.map(|_| ())
    }
}

/// A number that no other run has.
fn new_run() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| t.as_nanos())
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
