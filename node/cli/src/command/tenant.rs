//! `quorate tenant`: who may send requests, and how much.

use std::time::SystemTime;

use quorate_proto::v1::{
    ApplyRequest, ApplyResponse, Consistency, Kind, Limits, Metadata, Resource, TenantSpec,
    resource::Spec,
};

use super::get::{Filter, get, list};
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs, new_key},
    output::{full_name, resources},
};

/// Arguments of `tenant`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct TenantArgs {
    #[command(subcommand)]
    command: TenantCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum TenantCommand {
    /// Make a tenant
    #[command(after_help = format!("\
Examples:
  quorate tenant create search --model 'llama*' --requests-per-second 50 --tokens-per-minute 1000000
  quorate key create search-prod --tenant search

To change a tenant: quorate get tenant search -o yaml | $EDITOR | quorate apply -f -

{EXIT_CODES}"))]
    Create {
        /// Its name
        name: String,
        /// The flow that its requests queue in; else its name
        #[arg(long, value_name = "ID")]
        fairness_id: Option<String>,
        /// The objective of requests that name none
        #[arg(long, value_name = "NAME")]
        default_objective: Option<String>,
        /// What it is, for people
        #[arg(long)]
        description: Option<String>,
        /// Honour its requests' own headers for fairness, rewrites, service levels and endpoints: it speaks for others
        #[arg(long)]
        trusted: bool,
        #[command(flatten)]
        allowed: Allowed,
    },
    /// List the tenants
    #[command(after_help = EXIT_CODES)]
    List,
    /// Refuse all requests of a tenant
    #[command(after_help = EXIT_CODES)]
    Disable {
        /// The tenant
        name: String,
    },
    /// Take its requests again
    #[command(after_help = EXIT_CODES)]
    Enable {
        /// The tenant
        name: String,
    },
}

/// What may be used, of a tenant or a key.
#[derive(Debug, clap::Args)]
pub(super) struct Allowed {
    /// A model that may be asked for; "name*" for all that begin so; may be repeated, all if not given
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// An objective that may be named; may be repeated, all if not given
    #[arg(long = "objective", value_name = "NAME")]
    pub objectives: Vec<String>,
    /// Requests in a second, over all routers
    #[arg(long, value_name = "N")]
    requests_per_second: Option<f64>,
    /// Tokens of prompts and answers in a minute, over all routers
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u64>,
    /// Requests at the same time, over all routers
    #[arg(long, value_name = "N")]
    concurrent: Option<u32>,
}

impl Allowed {
    pub fn limits(&self) -> Option<Limits> {
        let limits = Limits {
            requests_per_second: self.requests_per_second,
            tokens_per_minute: self.tokens_per_minute,
            concurrent: self.concurrent,
        };
        (limits != Limits::default()).then_some(limits)
    }
}

pub(super) async fn execute(args: TenantArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    match args.command {
        TenantCommand::Create {
            name,
            fairness_id,
            default_objective,
            description,
            trusted,
            allowed,
        } => {
            let spec = TenantSpec {
                description: description.unwrap_or_default(),
                fairness_id: fairness_id.unwrap_or_default(),
                limits: allowed.limits(),
                models: allowed.models,
                objectives: allowed.objectives,
                default_objective: default_objective.unwrap_or_default(),
                disabled: false,
                trusted,
            };
            let resource = named(&name, Spec::Tenant(spec));
            let response = write(&client, resource, Some(0)).await?;
            writeln!(
                io.out,
                "{} created",
                response.resource.as_ref().map(full_name).unwrap_or(name)
            )?;
            Ok(Exit::Ok)
        }
        TenantCommand::List => show_kind(&client, Kind::Tenant, |_| true, io).await,
        TenantCommand::Disable { name } => set_disabled(&client, &name, true, io).await,
        TenantCommand::Enable { name } => set_disabled(&client, &name, false, io).await,
    }
}

async fn set_disabled(
    client: &Client,
    name: &str,
    disabled: bool,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let word = if disabled { "disabled" } else { "enabled" };
    change(client, Kind::Tenant, name, |spec| {
        if let Spec::Tenant(tenant) = spec {
            tenant.disabled = disabled;
        }
    })
    .await?;
    writeln!(io.out, "tenant/{name} {word}")?;
    Ok(Exit::Ok)
}

/// A resource to be written.
pub(super) fn named(name: &str, spec: Spec) -> Resource {
    Resource {
        metadata: Some(Metadata {
            name: name.to_owned(),
            ..Metadata::default()
        }),
        spec: Some(spec),
    }
}

/// Writes a resource.
pub(super) async fn write(
    client: &Client,
    resource: Resource,
    expected_version: Option<u64>,
) -> Result<ApplyResponse, Failure> {
    let request = ApplyRequest {
        idempotency_key: new_key(),
        expected_version,
        resource: Some(resource),
        validate_only: false,
    };
    client
        .call(async |link| link.resources().apply(request.clone()).await)
        .await
}

/// Changes a resource, unless somebody else does so at the same time.
pub(super) async fn change(
    client: &Client,
    kind: Kind,
    name: &str,
    edit: impl FnOnce(&mut Spec),
) -> Result<(), Failure> {
    let (mut resource, _) = get(client, kind, name, Consistency::Linearizable).await?;
    let version = resource.metadata.as_ref().map(|m| m.resource_version);
    if let Some(spec) = &mut resource.spec {
        edit(spec);
    }
    write(client, resource, version).await?;
    Ok(())
}

/// A table of the resources of a kind.
pub(super) async fn show_kind(
    client: &Client,
    kind: Kind,
    wanted: impl Fn(&Resource) -> bool,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let filter = Filter {
        consistency: Consistency::Linearizable,
        ..Filter::default()
    };
    let (mut found, _) = list(client, kind, &filter).await?;
    found.retain(wanted);
    if found.is_empty() {
        writeln!(io.err, "nothing found")?;
    } else {
        resources::table(kind, &found, false, SystemTime::now()).write("", io.out)?;
    }
    Ok(Exit::Ok)
}
