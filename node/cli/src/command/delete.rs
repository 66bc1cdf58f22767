//! `quorate delete`: delete resources by name, or those that manifests declare.

use std::path::PathBuf;

use quorate_proto::v1::{DeleteRequest, Kind};

use super::{
    for_pool::for_pools,
    source::{Warnings, read_all},
    target,
};
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs, new_key},
    kind,
};

/// Arguments of `delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("\
A pool can be deleted when no endpoint names it any more. Requests in flight run to their end; to stop new ones first and
wait for the rest, use `quorate endpoint drain`. Nodes are taken out with `quorate cluster remove`.

Examples:
  quorate delete endpoint gpu-1 gpu-2
  quorate delete -f pools.yaml --ignore-not-found
  quorate get endpoints --pool old -o name | xargs quorate delete

{EXIT_CODES}"))]
pub struct DeleteArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(
        required_unless_present = "file",
        conflicts_with = "file",
        value_name = "KIND NAME"
    )]
    target: Vec<String>,
    /// Delete what a manifest declares; may be repeated
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    file: Vec<PathBuf>,
    /// The pool that an EndpointPickerConfig of a manifest is for
    #[arg(long, value_name = "NAME", requires = "file")]
    pool: Option<String>,
    /// Only delete it if it has this version
    #[arg(long, value_name = "VERSION")]
    expected_version: Option<u64>,
    /// That there is no such resource is fine
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn execute(args: DeleteArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    let names: Vec<(Kind, String)> = if args.file.is_empty() {
        target::parse_names(&args.target)?
    } else {
        // In the order of application, backwards: what refers to something goes before it.
        let mut declared = read_all(&args.file, Warnings::Ignore, io)?;
        for_pools(&client, &mut declared, args.pool.as_deref()).await?;
        declared
            .iter()
            .rev()
            .map(|this| (this.document.kind, this.document.name().to_owned()))
            .collect()
    };
    if names.iter().any(|(kind, _)| *kind == Kind::Node) {
        return Err(Failure::new(
            Exit::Usage,
            "a node is taken out with `quorate cluster remove`",
        ));
    }
    if args.expected_version.is_some() && names.len() > 1 {
        return Err(Failure::new(
            Exit::Usage,
            "--expected-version is for one resource",
        ));
    }
    let mut failed = None;
    for (kind, name) in names {
        let full_name = format!("{}/{name}", kind::singular(kind));
        let request = DeleteRequest {
            idempotency_key: new_key(),
            expected_version: args.expected_version,
            kind: kind.into(),
            name,
        };
        match client
            .call(async |link| link.resources().delete(request.clone()).await)
            .await
        {
            Ok(_) => writeln!(io.out, "{full_name} deleted")?,
            Err(failure) if failure.exit == Exit::NotFound && args.ignore_not_found => {}
            Err(failure) if matches!(failure.exit, Exit::Unavailable | Exit::Timeout) => {
                return Err(failure);
            }
            Err(failure) => {
                if let Some(earlier) = failed.replace(failure.context(full_name)) {
                    writeln!(io.err, "error: {earlier}")?;
                }
            }
        }
    }
    failed.map_or(Ok(Exit::Ok), Err)
}
