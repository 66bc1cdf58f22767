//! `quorate apply`: create or change what manifests declare.

use std::{path::PathBuf, time::Duration};

use futures_util::{StreamExt as _, stream};
use quorate_proto::v1::{
    ApplyOutcome, ApplyRequest, ApplyResponse, Kind, Resource, resource::Spec,
};
use tonic::Code;

use super::{
    endpoint::wait_until_ready,
    for_pool::for_pools,
    source::{Declared, Warnings, read_all},
};
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs, new_key},
    kind,
    manifest::duration,
    output::{Format, full_name, plain, write_documents},
};

/// Requests that are made at the same time.
const PARALLEL: usize = 16;

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Create or change resources from manifests\n\n\
        Everything is read and checked, by this program and by the server, before anything is written; each error names its \
        file, line and field. Resources are written in the order in which they depend on each other: regions, pools, \
        endpoints, settings, scheduling configs, objectives, model rewrites, tenants, API keys. llm-d's InferencePool, \
        EndpointPickerConfig, InferenceObjective and InferenceModelRewrite are accepted as they are; what has no meaning here \
        is named in a warning.",
    after_help = format!("\
Examples:
  quorate apply -f pools.yaml
  quorate apply -f ./manifests --dry-run
  quorate apply -f epp-config.yaml --pool chat
  quorate get pool chat -o yaml | sed 's/vllm/sglang/' | quorate apply -f - --expected-version file

A manifest:
  apiVersion: quorate/v1
  kind: Pool
  metadata: {{name: chat}}
  spec: {{models: [llama-3-8b], health: {{interval: 2s}}}}
  ---
  apiVersion: quorate/v1
  kind: Endpoint
  metadata: {{name: gpu-1}}
  spec: {{pool: chat, url: \"http://gpu-1:8000\", engine: vllm}}

{EXIT_CODES}")
)]
pub struct ApplyArgs {
    /// A manifest, a directory of manifests, or - for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE|DIR|-", required = true)]
    file: Vec<PathBuf>,
    /// The pool that an EndpointPickerConfig is for; unless it says, or there is only one pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Let the server check everything and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Only write if the resource has this version (0: does not exist); "file": what each document's metadata says
    #[arg(long, value_name = "VERSION|file", value_parser = Expected::parse)]
    expected_version: Option<Expected>,
    /// Treat warnings as errors
    #[arg(long)]
    strict: bool,
    /// Wait until every endpoint that was applied takes requests
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Longest wait of --wait
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration::parse_std, requires = "wait")]
    wait_timeout: Duration,
    /// Write the resources as they are now instead of a line for each
    #[arg(short, long, value_name = "FORMAT", value_parser = ["yaml", "json", "name"])]
    output: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Number(u64),
    File,
}

impl Expected {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "file" => Ok(Self::File),
            number => number
                .parse()
                .map(Self::Number)
                .map_err(|_| "expected a number or the word file".to_owned()),
        }
    }
}

pub(super) async fn execute(args: ApplyArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    let mut declared = read_all(
        &args.file,
        if args.strict {
            Warnings::Refuse
        } else {
            Warnings::Tell
        },
        io,
    )?;
    for_pools(&client, &mut declared, args.pool.as_deref()).await?;
    let requests = requests(&declared, args.expected_version)?;

    let mut checked = Vec::new();
    if args.dry_run || args.strict || requests.len() > 1 {
        checked = check(&client, &declared, &requests, io).await?;
        let warned = tell_warnings(&declared, &checked, io)?;
        if warned && args.strict {
            return Err(Failure::new(
                Exit::Invalid,
                "there are warnings, which --strict takes for errors",
            ));
        }
    }
    if args.dry_run {
        return report(&checked, args.output.as_deref(), " (dry run)", io);
    }
    let (applied, failed) = write(&client, &declared, &requests, io).await?;
    if checked.is_empty() {
        tell_warnings(&declared, &applied, io)?;
    }
    report(&applied, args.output.as_deref(), "", io)?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    if args.wait {
        let is_used =
            |r: &&Resource| matches!(&r.spec, Some(Spec::Endpoint(spec)) if !spec.draining);
        let resources = applied
            .iter()
            .filter_map(|response| response.resource.as_ref());
        let names: Vec<String> = resources
            .filter(is_used)
            .map(|r| kind::name_of(r).to_owned())
            .collect();
        wait_until_ready(&client, &names, args.wait_timeout, io).await?;
    }
    Ok(Exit::Ok)
}

/// One request for each document, with its idempotency key.
fn requests(
    declared: &[Declared],
    expected: Option<Expected>,
) -> Result<Vec<ApplyRequest>, Failure> {
    if matches!(expected, Some(Expected::Number(_))) && declared.len() > 1 {
        let message = "--expected-version with a number is for one resource; for several, say --expected-version file";
        return Err(Failure::new(Exit::Usage, message));
    }
    declared
        .iter()
        .map(|this| {
            let expected_version = match expected {
                None => None,
                Some(Expected::Number(version)) => Some(version),
                Some(Expected::File) => match this.document.resource_version {
                    Some(version) => Some(version),
                    None => {
                        let message =
                            "--expected-version file: the document has no metadata.resourceVersion";
                        return Err(this.locate(Failure::new(Exit::Invalid, message)));
                    }
                },
            };
            Ok(ApplyRequest {
                idempotency_key: new_key(),
                expected_version,
                resource: Some(this.document.resource.clone()),
                validate_only: false,
            })
        })
        .collect()
}

/// Has the server check all documents; fails if it would refuse one. What it refuses only because another document of the
/// same run is not written yet is no failure.
async fn check(
    client: &Client,
    declared: &[Declared],
    requests: &[ApplyRequest],
    io: &mut Io<'_>,
) -> Result<Vec<ApplyResponse>, Failure> {
    let mut answers = stream::iter(declared.iter().zip(requests))
        .map(|(this, request)| async move {
            let request = ApplyRequest {
                validate_only: true,
                idempotency_key: String::new(),
                ..request.clone()
            };
            (
                this,
                client
                    .call(async |link| link.resources().apply(request.clone()).await)
                    .await,
            )
        })
        .buffered(PARALLEL);
    let (mut responses, mut failures) = (Vec::new(), Vec::new());
    while let Some((this, answer)) = answers.next().await {
        match answer {
            Ok(response) => responses.push(response),
            Err(failure)
                if failure.code == Some(Code::FailedPrecondition)
                    && depends_on_planned(this, declared) =>
            {
                responses.push(ApplyResponse {
                    resource: Some(this.document.resource.clone()),
                    outcome: ApplyOutcome::Created.into(),
                    warnings: Vec::new(),
                });
            }
            // Whatever else is wrong, no other document can be checked now.
            Err(failure) if matches!(failure.exit, Exit::Unavailable | Exit::Timeout) => {
                return Err(failure);
            }
            Err(failure) => failures.push(this.locate(failure)),
        }
    }
    drop(answers);
    match last_after_telling(failures, io)? {
        Some(failure) => Err(failure),
        None => Ok(responses),
    }
}

/// Whether what this document needs may come from another one of the same run.
fn depends_on_planned(this: &Declared, declared: &[Declared]) -> bool {
    let is_planned = |kind: Kind, name: &str| {
        declared
            .iter()
            .any(|other| other.document.kind == kind && other.document.name() == name)
    };
    match &this.document.resource.spec {
        Some(Spec::Endpoint(spec)) => {
            is_planned(Kind::Pool, &spec.pool) || is_planned(Kind::Region, &spec.region)
        }
        Some(Spec::SchedulingConfig(spec)) => is_planned(Kind::Pool, &spec.pool),
        Some(Spec::Objective(spec)) => is_planned(Kind::Pool, &spec.pool),
        Some(Spec::ModelRewrite(spec)) => is_planned(Kind::Pool, &spec.pool),
        Some(Spec::ApiKey(spec)) => is_planned(Kind::Tenant, &spec.tenant),
        Some(Spec::Pool(spec)) => {
            let gives_way =
                |other: &Declared| other.document.kind == Kind::Pool && !other.is_fallback_pool();
            spec.fallback && declared.iter().any(gives_way)
        }
        _ => false,
    }
}

/// Writes the documents, kind after kind. After a failure the kinds that depend on the failed one are left alone.
async fn write(
    client: &Client,
    declared: &[Declared],
    requests: &[ApplyRequest],
    io: &mut Io<'_>,
) -> Result<(Vec<ApplyResponse>, Option<Failure>), Failure> {
    let (mut applied, mut failures) = (Vec::new(), Vec::new());
    let all: Vec<_> = declared.iter().zip(requests).collect();
    let mut begun = 0;
    for same_kind in all.chunk_by(|(a, _), (b, _)| a.document.kind == b.document.kind) {
        begun += same_kind.len();
        // Only endpoints are many, and only they are independent of each other.
        let are_endpoints = same_kind
            .iter()
            .all(|(this, _)| this.document.kind == Kind::Endpoint);
        let parallel = if are_endpoints { PARALLEL } else { 1 };
        let mut answers = stream::iter(same_kind)
            .map(|(this, request)| async move {
                (
                    this,
                    client
                        .call(async |link| link.resources().apply((*request).clone()).await)
                        .await,
                )
            })
            .buffered(parallel);
        while let Some((this, answer)) = answers.next().await {
            match answer {
                Ok(response) => applied.push(response),
                Err(failure) => failures.push(this.locate(failure)),
            }
        }
        if !failures.is_empty() {
            break;
        }
    }
    let left = declared.len() - begun;
    let failure = last_after_telling(failures, io)?;
    if failure.is_some() && left > 0 {
        writeln!(io.err, "warning: {left} documents after it were not tried")?;
    }
    Ok((applied, failure))
}

/// Passes on what the server remarked. The responses are those of the first documents, in order. True if there was anything.
fn tell_warnings(
    declared: &[Declared],
    responses: &[ApplyResponse],
    io: &mut Io<'_>,
) -> Result<bool, Failure> {
    let mut any = false;
    for (this, response) in declared.iter().zip(responses) {
        for warning in &response.warnings {
            any = true;
            let place = format!("{}:{}: {}", this.file, this.document.line, this.full_name());
            writeln!(io.err, "warning: {}", plain(&format!("{place}: {warning}")))?;
        }
    }
    Ok(any)
}

/// Reports all failures but the last, which it returns for the caller to report.
fn last_after_telling(
    mut failures: Vec<Failure>,
    io: &mut Io<'_>,
) -> Result<Option<Failure>, Failure> {
    let last = failures.pop();
    for failure in failures {
        writeln!(io.err, "error: {failure}")?;
    }
    Ok(last)
}

fn report(
    responses: &[ApplyResponse],
    output: Option<&str>,
    note: &str,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let format = match output {
        Some("yaml") => Format::Yaml,
        Some("json") => Format::Json,
        Some(_) => Format::Name,
        None => {
            for response in responses {
                let outcome = match response.outcome() {
                    ApplyOutcome::Created => "created",
                    ApplyOutcome::Updated => "updated",
                    ApplyOutcome::Unchanged => "unchanged",
                    ApplyOutcome::Unspecified => "applied",
                };
                let name = response
                    .resource
                    .as_ref()
                    .map(full_name)
                    .unwrap_or_default();
                writeln!(io.out, "{name} {outcome}{note}")?;
            }
            return Ok(Exit::Ok);
        }
    };
    let resources: Vec<Resource> = responses
        .iter()
        .filter_map(|response| response.resource.clone())
        .collect();
    write_documents(&resources, format, resources.len() == 1, io.out)?;
    Ok(Exit::Ok)
}
