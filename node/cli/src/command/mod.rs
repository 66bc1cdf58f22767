//! The commands and what is common to them.

mod apply;
mod cache;
mod certs;
mod cluster;
mod completions;
mod config;
mod delete;
mod describe;
mod endpoint;
mod explain;
mod for_pool;
mod get;
mod key;
mod replay;
mod source;
mod target;
mod tenant;
mod watch;

use crate::{Exit, Failure, Io};

/// What an operator can do with a running cluster. Flattened into the binary's own commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Create or change resources from manifests
    Apply(apply::ApplyArgs),
    /// List resources or show some of them
    Get(get::GetArgs),
    /// Show everything that is known about one resource, live state included
    Describe(describe::DescribeArgs),
    /// Delete resources
    Delete(delete::DeleteArgs),
    /// Follow changes as they happen
    Watch(watch::WatchArgs),
    /// See and drain endpoints
    Endpoint(endpoint::EndpointArgs),
    /// Show what became of a request and why, on whichever router it was
    Explain(explain::ExplainArgs),
    /// Make recorded decisions again under another scheduling config
    Replay(replay::ReplayArgs),
    /// See what lies in the engines' KV caches, and how well that is known
    Cache(cache::CacheArgs),
    /// See, compare and take back how pools schedule
    Config(config::ConfigArgs),
    /// See and change who may send requests
    Tenant(tenant::TenantArgs),
    /// Make, see and revoke the keys that clients show
    Key(key::KeyArgs),
    /// See and change the membership of the cluster
    Cluster(cluster::ClusterArgs),
    /// Make the cluster's CA, and certificates for nodes and clients
    Certs(certs::CertsArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

impl Command {
    pub(crate) async fn execute(
        self,
        parser: fn() -> clap::Command,
        io: &mut Io<'_>,
    ) -> Result<Exit, Failure> {
        match self {
            Self::Apply(args) => apply::execute(args, io).await,
            Self::Get(args) => get::execute(args, io).await,
            Self::Describe(args) => describe::execute(args, io).await,
            Self::Delete(args) => delete::execute(args, io).await,
            Self::Watch(args) => watch::execute(args, io).await,
            Self::Endpoint(args) => endpoint::execute(args, io).await,
            Self::Explain(args) => explain::execute(args, io).await,
            Self::Replay(args) => replay::execute(args, io).await,
            Self::Cache(args) => cache::execute(args, io).await,
            Self::Config(args) => config::execute(args, io).await,
            Self::Tenant(args) => tenant::execute(args, io).await,
            Self::Key(args) => key::execute(args, io).await,
            Self::Cluster(args) => cluster::execute(args, io).await,
            Self::Certs(args) => certs::execute(args, io),
            Self::Completions(args) => completions::execute(&args, parser(), io),
        }
    }
}
