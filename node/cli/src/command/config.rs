//! `quorate config`: how pools schedule, as it was and as it is.
//!
//! Every version of a scheduling config that is applied is kept for a while (`configrevisions`). A rollback applies an old text
//! again, as a new version.

use std::{path::PathBuf, time::SystemTime};

use quorate_cache::route::registry_to_check_with;
use quorate_proto::v1::{
    ApplyRequest, ConfigRevisionSpec, Consistency, Kind, Metadata, Resource, SchedulingConfigSpec,
    resource::Spec,
};
use quorate_routing::config::{ConfigErrors, EndpointPickerConfig, presets as built_in};
use similar::TextDiff;

use super::get::{Filter, get, list};
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs, new_key},
    output::{Table, age, full_name, plain},
};

/// Lines around a difference.
const CONTEXT: usize = 3;

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Write the text of a scheduling config
    #[command(after_help = format!("\
Examples:
  quorate config show chat > epp-config.yaml
  quorate config show chat --version 3

{EXIT_CODES}"))]
    Show {
        /// The scheduling config; it has the name of its pool if nothing else was said
        name: String,
        /// A version of its history instead of the present one
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// List the versions of a scheduling config
    #[command(after_help = EXIT_CODES)]
    History {
        /// The scheduling config
        name: String,
    },
    /// Show what changed between two versions
    #[command(after_help = format!("\
Examples:
  quorate config diff chat        # what the last change did
  quorate config diff chat 3      # from version 3 to the present one
  quorate config diff chat 3 5

{EXIT_CODES}"))]
    Diff {
        /// The scheduling config
        name: String,
        /// The version to start from; the one before the present one if it is not said
        from: Option<u64>,
        /// The version to end with; the present one if it is not said
        to: Option<u64>,
    },
    /// Apply an old version again
    #[command(after_help = format!("\
It becomes a new version, in effect on all routers at once; a change that somebody else makes meanwhile is not overwritten.

{EXIT_CODES}"))]
    Rollback {
        /// The scheduling config
        name: String,
        /// The version to go back to; the one before the present one if it is not said
        version: Option<u64>,
    },
    /// Check EndpointPickerConfig files, without a server
    #[command(after_help = EXIT_CODES)]
    Validate {
        /// Files; - for standard input
        #[arg(required = true, value_name = "FILE|-")]
        files: Vec<PathBuf>,
        /// Treat warnings as errors
        #[arg(long)]
        strict: bool,
    },
    /// List the configs that come with Quorate, or write one
    #[command(after_help = format!("\
Examples:
  quorate config presets
  quorate config presets optimized-baseline | quorate apply -f - --pool chat

{EXIT_CODES}"))]
    Presets {
        /// The one to write
        name: Option<String>,
    },
}

pub(super) async fn execute(args: ConfigArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = || Client::new(&args.client);
    match args.command {
        ConfigCommand::Show { name, version } => show(&client()?, &name, version, io).await,
        ConfigCommand::History { name } => show_history(&client()?, &name, io).await,
        ConfigCommand::Diff { name, from, to } => diff(&client()?, &name, from, to, io).await,
        ConfigCommand::Rollback { name, version } => rollback(&client()?, &name, version, io).await,
        ConfigCommand::Validate { files, strict } => validate(&files, strict, io),
        ConfigCommand::Presets { name } => presets(name.as_deref(), io),
    }
}

async fn current(client: &Client, name: &str) -> Result<(Metadata, SchedulingConfigSpec), Failure> {
    let (resource, _) = get(
        client,
        Kind::SchedulingConfig,
        name,
        Consistency::Linearizable,
    )
    .await?;
    match resource {
        Resource {
            metadata: Some(metadata),
            spec: Some(Spec::SchedulingConfig(spec)),
        } => Ok((metadata, spec)),
        _ => Err(Failure::new(
            Exit::Failed,
            "the server sent an empty answer",
        )),
    }
}

/// One version, by its number.
async fn version_of(
    client: &Client,
    name: &str,
    version: u64,
) -> Result<ConfigRevisionSpec, Failure> {
    let found = get(
        client,
        Kind::ConfigRevision,
        &format!("{name}:{version}"),
        Consistency::Linearizable,
    )
    .await;
    match found {
        Ok((resource, _)) => match resource.spec {
            Some(Spec::ConfigRevision(spec)) => Ok(spec),
            _ => Err(Failure::new(
                Exit::Failed,
                "the server sent an empty answer",
            )),
        },
        Err(failure) if failure.exit == Exit::NotFound => {
            let message = format!(
                "there is no version {version} of {name:?} (see `quorate config history {name}`)"
            );
            Err(Failure::new(Exit::NotFound, message))
        }
        Err(failure) => Err(failure),
    }
}

async fn show(
    client: &Client,
    name: &str,
    version: Option<u64>,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let text = match version {
        Some(version) => version_of(client, name, version).await?.config,
        None => current(client, name).await?.1.config,
    };
    io.out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        writeln!(io.out)?;
    }
    Ok(Exit::Ok)
}

async fn show_history(client: &Client, name: &str, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let (now, _) = current(client, name).await?;
    let filter = Filter {
        consistency: Consistency::Linearizable,
        ..Filter::default()
    };
    let (resources, _) = list(client, Kind::ConfigRevision, &filter).await?;
    let mut versions: Vec<(Metadata, ConfigRevisionSpec)> = resources
        .into_iter()
        .filter_map(|resource| match (resource.metadata, resource.spec) {
            (Some(metadata), Some(Spec::ConfigRevision(spec)))
                if spec.scheduling_config == name =>
            {
                Some((metadata, spec))
            }
            _ => None,
        })
        .collect();
    versions.sort_by_key(|(_, spec)| std::cmp::Reverse(spec.generation));
    let mut table = Table::new(&["VERSION", "POOL", "BYTES", "AGE", "STATE"]);
    for (metadata, spec) in versions {
        let state = if spec.generation == now.generation {
            "present"
        } else {
            ""
        };
        table.row([
            spec.generation.to_string(),
            spec.pool,
            spec.config.len().to_string(),
            age(metadata.created_at.as_ref(), SystemTime::now()),
            state.to_owned(),
        ]);
    }
    table.write("", io.out)?;
    Ok(Exit::Ok)
}

async fn diff(
    client: &Client,
    name: &str,
    from: Option<u64>,
    to: Option<u64>,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let to = match to {
        Some(to) => to,
        None => current(client, name).await?.0.generation,
    };
    let from = match from {
        Some(from) => from,
        None if to > 1 => to - 1,
        None => {
            let message = format!("{name:?} has only one version: there is nothing to compare");
            return Err(Failure::new(Exit::NotFound, message));
        }
    };
    let (old, new) = (
        version_of(client, name, from).await?,
        version_of(client, name, to).await?,
    );
    if old.pool != new.pool {
        writeln!(io.out, "pool: {} -> {}", old.pool, new.pool)?;
    }
    let diff = TextDiff::from_lines(&old.config, &new.config);
    let text = diff
        .unified_diff()
        .context_radius(CONTEXT)
        .header(&format!("{name}:{from}"), &format!("{name}:{to}"))
        .to_string();
    for line in text.lines() {
        writeln!(io.out, "{}", plain(line))?;
    }
    Ok(Exit::Ok)
}

async fn rollback(
    client: &Client,
    name: &str,
    version: Option<u64>,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let (metadata, now) = current(client, name).await?;
    let version = match version {
        Some(version) => version,
        None if metadata.generation > 1 => metadata.generation - 1,
        None => {
            let message = format!("{name:?} has only one version: there is nothing to go back to");
            return Err(Failure::new(Exit::NotFound, message));
        }
    };
    let old = version_of(client, name, version).await?;
    if (&old.pool, &old.config) == (&now.pool, &now.config) {
        writeln!(
            io.out,
            "schedulingconfig/{name} is as in version {version} already"
        )?;
        return Ok(Exit::Ok);
    }
    let request = ApplyRequest {
        idempotency_key: new_key(),
        expected_version: Some(metadata.resource_version),
        resource: Some(Resource {
            metadata: Some(Metadata {
                name: metadata.name,
                labels: metadata.labels,
                annotations: metadata.annotations,
                ..Metadata::default()
            }),
            spec: Some(Spec::SchedulingConfig(SchedulingConfigSpec {
                pool: old.pool,
                config: old.config,
            })),
        }),
        validate_only: false,
    };
    let response = client
        .call(async |link| link.resources().apply(request.clone()).await)
        .await?;
    for warning in &response.warnings {
        writeln!(io.err, "warning: {}", plain(warning))?;
    }
    let resource = response.resource.unwrap_or_default();
    let generation = resource.metadata.as_ref().map_or(0, |m| m.generation);
    writeln!(
        io.out,
        "{} is now version {generation}, as it was in version {version}",
        full_name(&resource)
    )?;
    Ok(Exit::Ok)
}

fn validate(files: &[PathBuf], strict: bool, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let mut bad = Vec::new();
    for (file, text) in super::source::read_texts(files, io)? {
        let before = bad.len();
        match EndpointPickerConfig::parse(&text) {
            Ok(parsed) => {
                let mut warnings = parsed.warnings;
                match parsed.config.compile_with(&registry_to_check_with()) {
                    Ok(compiled) => warnings.extend(compiled.warnings),
                    Err(errors) => bad.extend(lines(&file, &errors)),
                }
                for warning in &warnings {
                    writeln!(io.err, "warning: {file}: {}", plain(&warning.to_string()))?;
                }
                if strict && !warnings.is_empty() {
                    let message = "there are warnings, which --strict takes for errors";
                    bad.push(format!("{file}: {message}"));
                }
                if bad.len() == before {
                    writeln!(io.out, "{file}: valid")?;
                }
            }
            Err(errors) => bad.extend(lines(&file, &errors)),
        }
    }
    if bad.is_empty() {
        return Ok(Exit::Ok);
    }
    // One line each; the first one gets the word "error" from whoever reports the failure.
    Err(Failure::new(Exit::Invalid, bad.join("\nerror: ")))
}

/// A line for each error, with its file.
fn lines(file: &str, errors: &ConfigErrors) -> Vec<String> {
    let problems = errors.0.iter();
    problems
        .map(|problem| format!("{file}: {}", plain(&problem.to_string())))
        .collect()
}

fn presets(name: Option<&str>, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let Some(name) = name else {
        for (name, _) in built_in::ALL {
            writeln!(io.out, "{name}")?;
        }
        return Ok(Exit::Ok);
    };
    match built_in::get(name) {
        Some(text) => {
            io.out.write_all(text.as_bytes())?;
            Ok(Exit::Ok)
        }
        None => {
            let hint =
                crate::manifest::suggestion(name, built_in::ALL.iter().map(|(name, _)| *name));
            Err(Failure::new(
                Exit::NotFound,
                format!("there is no preset {name:?}{hint}"),
            ))
        }
    }
}
