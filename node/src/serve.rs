//! `quorate serve`: one router in front of running engines. It is a cluster of one that keeps its state in memory, so the
//! control API and the CLI work as everywhere.

use crate::config::auth::AuthMode;
use crate::config::{Config, NodeConfig};
use crate::log::{self, LogFormat};
use crate::node::{self, Start};
use crate::router::{control_runtime, stop_signal};
use clap::Args;
use quorate_proto::v1;
use quorate_routing::Target;
use std::net::SocketAddr;

/// What `quorate serve` takes.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Address of the gateway.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,
    /// Model servers: http://host:port, separated by commas.
    #[arg(long, required = true, value_delimiter = ',', value_name = "URL")]
    endpoints: Vec<String>,
    /// Address of the control API.
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDR")]
    control: SocketAddr,
    /// Address of /metrics, /health and /ready.
    #[arg(long, default_value = "127.0.0.1:7072", value_name = "ADDR")]
    admin: SocketAddr,
    /// Let everybody who can connect use it; otherwise clients must show an API key unless it listens on loopback
    #[arg(long)]
    no_auth: bool,
    /// Worker threads of the gateway; 0: one per core.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Form of the log.
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    log_format: LogFormat,
}

/// Runs until it is told to stop.
///
/// # Errors
/// An endpoint is no URL, or an address cannot be listened on.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let endpoints = args
        .endpoints
        .iter()
        .map(|url| Target::parse(url.trim()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| anyhow::anyhow!("--endpoints: {e}"))?;
    let mut config = Config {
        node: NodeConfig {
            name: "serve".into(),
            ..Default::default()
        },
        ..Default::default()
    };
    config.gateway.listen = vec![args.listen];
    config.gateway.workers = args.workers;
    config.control.listen = args.control;
    config.admin.listen = args.admin;
    config.peer.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.log.format = args.log_format;
    if args.no_auth {
        config.auth.mode = AuthMode::Off;
    }
    config.check()?;
    log::init(&config.log)?;

    let mut resources = vec![resource(
        "default",
        v1::resource::Spec::Pool(v1::PoolSpec::default()),
    )];
    for (i, target) in endpoints.iter().enumerate() {
        let spec = v1::EndpointSpec {
            pool: "default".into(),
            url: target.to_string(),
            ..Default::default()
        };
        resources.push(resource(
            &format!("endpoint-{}", i + 1),
            v1::resource::Spec::Endpoint(spec),
        ));
    }
    let runtime = control_runtime()?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        node::run(config, Start::InMemory(resources), stop).await
    })
}

fn resource(name: &str, spec: v1::resource::Spec) -> v1::Resource {
    v1::Resource {
        metadata: Some(v1::Metadata {
            name: name.into(),
            ..Default::default()
        }),
        spec: Some(spec),
    }
}
