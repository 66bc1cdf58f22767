//! `quorate endpoint`: the live state of endpoints, and draining them.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use quorate_proto::v1::{
    Consistency, DescribeEndpointRequest, DescribeEndpointResponse, DrainEndpointRequest,
    EndpointStatus, Kind, endpoint_status::State,
};
use tokio::time::Instant;

use super::get::{Filter, list};
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs, new_key},
    kind,
    manifest::{Tree, duration, engine_word},
    output::{Table, json},
};

/// Time between two looks at an endpoint that is waited for.
const LOOK: Duration = Duration::from_millis(250);
/// Looks in a row at which nothing must be in flight: counts of other nodes arrive a moment later than their requests.
const QUIET_LOOKS: u32 = 3;
/// Endpoints that are described at the same time.
const PARALLEL: usize = 16;

/// Arguments of `endpoint`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct EndpointArgs {
    #[command(subcommand)]
    command: EndpointCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum EndpointCommand {
    /// Show the live state of all endpoints, as the answering node sees it
    #[command(after_help = EXIT_CODES)]
    List {
        /// Only those of this pool
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// How to write them
        #[arg(short, long, value_parser = ["table", "json"], default_value = "table", value_name = "FORMAT")]
        output: String,
    },
    /// Stop sending new requests to an endpoint; those in flight run to their end
    #[command(after_help = format!("\
Examples:
  quorate endpoint drain gpu-1 --wait && ssh gpu-1 systemctl restart vllm && quorate endpoint drain gpu-1 --undo

{EXIT_CODES}"))]
    Drain {
        /// The endpoint
        name: String,
        /// Take it back into use
        #[arg(long)]
        undo: bool,
        /// Wait until nothing is in flight on it (with --undo: until it takes requests)
        #[arg(long)]
        wait: bool,
        /// Longest wait of --wait
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse_std, requires = "wait")]
        wait_timeout: Duration,
    },
}

pub(super) async fn execute(args: EndpointArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    match args.command {
        EndpointCommand::List { pool, output } => {
            show(&client, pool.unwrap_or_default(), &output, io).await
        }
        EndpointCommand::Drain {
            name,
            undo,
            wait,
            wait_timeout,
        } => {
            let request = DrainEndpointRequest {
                idempotency_key: new_key(),
                name: name.clone(),
                drain: !undo,
            };
            client
                .call(async |link| link.endpoints().drain(request.clone()).await)
                .await?;
            writeln!(
                io.out,
                "endpoint/{name} {}",
                if undo { "in use again" } else { "draining" }
            )?;
            match (wait, undo) {
                (true, false) => wait_until_quiet(&client, &name, wait_timeout, io).await?,
                (true, true) => wait_until_ready(&client, &[name], wait_timeout, io).await?,
                (false, _) => {}
            }
            Ok(Exit::Ok)
        }
    }
}

/// What the answering node knows of an endpoint.
pub(super) async fn describe(
    client: &Client,
    name: &str,
) -> Result<DescribeEndpointResponse, Failure> {
    let request = DescribeEndpointRequest {
        name: name.to_owned(),
    };
    client
        .call(async |link| link.endpoints().describe(request.clone()).await)
        .await
}

/// The state as a word.
pub(super) fn state_word(status: &EndpointStatus) -> &'static str {
    match status.state() {
        State::Ready => "ready",
        State::Unknown | State::Unspecified => "unknown",
        State::Unhealthy => "unhealthy",
        State::Draining => "draining",
    }
}

/// The status as a value for programs.
pub(super) fn status_tree(status: &EndpointStatus) -> Tree {
    let mut tree = Tree::map();
    tree.put("state", state_word(status));
    tree.put(
        "reasons",
        status.reasons.iter().map(String::as_str).collect::<Tree>(),
    );
    tree.put("ownerNodeId", status.owner_node_id);
    tree.put("nodeId", status.node_id);
    tree.put("localInFlight", status.local_in_flight);
    tree.put("totalInFlight", status.total_in_flight);
    tree.put_some("running", status.running);
    tree.put_some("waiting", status.waiting);
    if let Some(usage) = status.kv_cache_usage.filter(|usage| usage.is_finite()) {
        tree.put("kvCacheUsage", Tree::Float(usage));
    }
    tree.put_some("loadAge", status.load_age.as_ref().map(duration::text_of));
    tree.put(
        "models",
        status.models.iter().map(String::as_str).collect::<Tree>(),
    );
    tree.put(
        "adapters",
        status.adapters.iter().map(String::as_str).collect::<Tree>(),
    );
    tree.put_some("breaker", status.breaker.as_str());
    tree.put_some("lastError", status.last_error.as_str());
    if !status.conditions.is_empty() {
        let conditions = status.conditions.iter().map(String::as_str);
        tree.put("conditions", conditions.collect::<Tree>());
    }
    tree.put_some("engine", engine_word(status.engine));
    tree
}

/// A share as a percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// The live state of these endpoints; the reason of the failure for those that could not be described.
pub(super) async fn describe_all(
    client: &Client,
    names: &[String],
) -> Vec<(String, Result<EndpointStatus, Failure>)> {
    stream::iter(names)
        .map(|name| async move {
            let status = describe(client, name)
                .await
                .map(|response| response.status.unwrap_or_default());
            (name.clone(), status)
        })
        .buffered(PARALLEL)
        .collect()
        .await
}

/// A table of live states.
pub(super) fn state_table(states: &[(String, Result<EndpointStatus, Failure>)]) -> Table {
    let heading = [
        "NAME",
        "STATE",
        "IN-FLIGHT",
        "RUNNING",
        "WAITING",
        "KV-CACHE",
        "MODELS",
        "OWNER",
        "WHY",
    ];
    let mut table = Table::new(&heading);
    for (name, status) in states {
        let number = |n: Option<u32>| n.map(|n| n.to_string()).unwrap_or_default();
        match status {
            Ok(status) => table.row([
                name.clone(),
                state_word(status).to_owned(),
                status.total_in_flight.to_string(),
                number(status.running),
                number(status.waiting),
                status.kv_cache_usage.map(percent).unwrap_or_default(),
                status
                    .models
                    .iter()
                    .chain(&status.adapters)
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(","),
                if status.owner_node_id == 0 {
                    String::new()
                } else {
                    status.owner_node_id.to_string()
                },
                status.reasons.join("; "),
            ]),
            Err(failure) => {
                let mut row = vec![String::new(); heading.len()];
                row[0].clone_from(name);
                row[heading.len() - 1] = failure.to_string();
                table.row(row);
            }
        }
    }
    table
}

async fn show(
    client: &Client,
    pool: String,
    output: &str,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let filter = Filter {
        pool,
        consistency: Consistency::Stale,
        ..Filter::default()
    };
    let (endpoints, _) = list(client, Kind::Endpoint, &filter).await?;
    let names: Vec<String> = endpoints
        .iter()
        .map(|endpoint| kind::name_of(endpoint).to_owned())
        .collect();
    // An endpoint may be deleted between the two calls.
    let gone = |status: &Result<EndpointStatus, Failure>| matches!(status, Err(f) if f.exit == Exit::NotFound);
    let states: Vec<_> = describe_all(client, &names)
        .await
        .into_iter()
        .filter(|(_, s)| !gone(s))
        .collect();
    if output == "json" {
        let mut items = Vec::new();
        for (name, status) in states {
            let mut item = Tree::map();
            item.put("name", name);
            item.put("status", status_tree(&status?));
            items.push(item);
        }
        writeln!(io.out, "{}", json(&Tree::Seq(items))?)?;
    } else if states.is_empty() {
        writeln!(io.err, "nothing found")?;
    } else {
        state_table(&states).write("", io.out)?;
    }
    Ok(Exit::Ok)
}

/// Waits until nothing is in flight on a draining endpoint.
async fn wait_until_quiet(
    client: &Client,
    name: &str,
    timeout: Duration,
    io: &mut Io<'_>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    let (mut quiet_looks, mut told) = (0, None);
    loop {
        let status = describe(client, name).await?.status.unwrap_or_default();
        // A node that has not seen the drain yet still adds requests.
        let quiet = status.state() == State::Draining && status.total_in_flight == 0;
        quiet_looks = if quiet { quiet_looks + 1 } else { 0 };
        if quiet_looks == QUIET_LOOKS {
            writeln!(io.out, "endpoint/{name} drained")?;
            return Ok(());
        }
        if status.total_in_flight > 0 && told != Some(status.total_in_flight) {
            writeln!(
                io.err,
                "endpoint/{name}: {} in flight",
                status.total_in_flight
            )?;
            told = Some(status.total_in_flight);
        }
        if Instant::now() + LOOK > deadline {
            let what = format!(
                "endpoint {name:?} still has {} requests in flight",
                status.total_in_flight
            );
            return Err(Failure::new(
                Exit::Timeout,
                format!("{what} after {}", duration::text(timeout)),
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the answering node would send requests to all of these endpoints.
pub(super) async fn wait_until_ready(
    client: &Client,
    names: &[String],
    timeout: Duration,
    io: &mut Io<'_>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    let mut left = names.to_vec();
    loop {
        let (mut waiting, mut why) = (Vec::new(), String::new());
        for (name, status) in describe_all(client, &left).await {
            match status {
                Ok(status) if status.state() == State::Ready => {
                    writeln!(io.err, "endpoint/{name} ready")?
                }
                Ok(status) => {
                    why = format!("endpoint {name:?} is {}", state_word(&status));
                    if !status.reasons.is_empty() {
                        why = format!("{why} ({})", status.reasons.join("; "));
                    }
                    waiting.push(name);
                }
                // The answering node may not have applied the write yet.
                Err(failure) if failure.exit == Exit::NotFound => {
                    why = failure.to_string();
                    waiting.push(name);
                }
                Err(failure) => return Err(failure),
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() + LOOK > deadline {
            let message = format!(
                "{} endpoints not ready after {}: {why}",
                waiting.len(),
                duration::text(timeout)
            );
            return Err(Failure::new(Exit::Timeout, message));
        }
        left = waiting;
        tokio::time::sleep(LOOK).await;
    }
}
