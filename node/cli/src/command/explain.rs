//! `quorate explain`: what became of a request and why; and the switch that has records written to files.

mod table;

use std::time::{Duration, SystemTime};

use quorate_proto::v1::{
    DecisionRecords, ExplainRequest, ListDecisionsRequest, RecordingResponse, SilentNode,
    StartRecordingRequest, StopRecordingRequest,
};
use quorate_routing::explain::RequestRecord;

use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs},
    manifest::{Tree, duration},
    output::{Table, plain},
};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["request_id", "last", "record", "stop_recording"])))]
#[command(after_help = format!("\
Examples:
  quorate explain 0a1b2c3d4e5f60718293a4b5c6d7e8f9   # the x-request-id that a client logged
  quorate explain --last 20 --outcome client_gone
  quorate explain --last 500 --pool chat -o json
  quorate explain --record friday.jsonl --rate 0.1 --for 10m
  quorate explain --stop-recording

{EXIT_CODES}"))]
pub struct ExplainArgs {
    /// The request: value of the header x-request-id of its answer
    #[arg(value_name = "REQUEST-ID")]
    request_id: Option<String>,
    /// List the latest requests of all routers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    last: Option<u32>,
    /// Only requests of this pool
    #[arg(long, requires = "last", value_name = "NAME")]
    pool: Option<String>,
    /// Only requests of this model, as clients name it or as endpoints are asked for it
    #[arg(long, requires = "last", value_name = "NAME")]
    model: Option<String>,
    /// Only requests that ended so: complete, client_gone, or an error code as in the metrics
    #[arg(long, requires = "last", value_name = "END")]
    outcome: Option<String>,
    /// Have every router append records to this file below its data directory
    #[arg(long, value_name = "FILE")]
    record: Option<String>,
    /// Share of the requests that go to the file
    #[arg(long, requires = "record", value_name = "SHARE", default_value_t = 1.0)]
    rate: f64,
    /// How long; without it until --stop-recording
    #[arg(long = "for", requires = "record", value_name = "TIME", value_parser = duration::parse_std)]
    duration: Option<Duration>,
    /// Have every router write no more records to a file
    #[arg(long)]
    stop_recording: bool,
    /// How records are written
    #[arg(
        long,
        short,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    output: Shape,
    #[command(flatten)]
    client: ClientArgs,
}

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    /// For people
    Table,
    /// The whole records as YAML
    Yaml,
    /// The whole records as JSON
    Json,
}

pub(super) async fn execute(args: ExplainArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    if let Some(file) = &args.record {
        let request = StartRecordingRequest {
            file: file.clone(),
            share: args.rate,
            duration: args.duration.and_then(|duration| duration.try_into().ok()),
        };
        if !(args.rate > 0.0 && args.rate <= 1.0) {
            return Err(Failure::new(
                Exit::Usage,
                "--rate must be above 0 and at most 1",
            ));
        }
        let started = client
            .call(async |link| link.decisions().start_recording(request.clone()).await)
            .await?;
        return switched(&started, "recording to", io);
    }
    if args.stop_recording {
        let stopped = client
            .call(async |link| {
                link.decisions()
                    .stop_recording(StopRecordingRequest {})
                    .await
            })
            .await?;
        return switched(&stopped, "stopped", io);
    }
    if let Some(id) = &args.request_id {
        let found = find(&client, id).await?;
        warn_of_silent(&found.silent, io)?;
        let records = parsed(&found)?;
        if records.is_empty() {
            return Err(not_found(id, &found));
        }
        return match args.output {
            Shape::Table => {
                for (i, record) in records.iter().enumerate() {
                    if i > 0 {
                        writeln!(io.out)?;
                    }
                    table::write(record, io.out)?;
                }
                Ok(Exit::Ok)
            }
            shape => documents(&records, shape, io),
        };
    }
    let request = ListDecisionsRequest {
        limit: args.last.unwrap_or_default(),
        pool: args.pool.unwrap_or_default(),
        model: args.model.unwrap_or_default(),
        outcome: args.outcome.unwrap_or_default(),
    };
    let found = list(&client, &request).await?;
    warn_of_silent(&found.silent, io)?;
    let records = parsed(&found)?;
    match args.output {
        Shape::Table => {
            overview(&records, io)?;
            Ok(Exit::Ok)
        }
        shape => documents(&records, shape, io),
    }
}

async fn find(client: &Client, id: &str) -> Result<DecisionRecords, Failure> {
    let request = ExplainRequest {
        request_id: id.to_owned(),
    };
    client
        .call(async |link| link.decisions().explain(request.clone()).await)
        .await
}

/// The latest records of all nodes.
pub(super) async fn list(
    client: &Client,
    request: &ListDecisionsRequest,
) -> Result<DecisionRecords, Failure> {
    client
        .call(async |link| link.decisions().list(request.clone()).await)
        .await
}

/// The records in an answer.
pub(super) fn parsed(found: &DecisionRecords) -> Result<Vec<RequestRecord>, Failure> {
    let parse = |json: &str| {
        serde_json::from_str(json).map_err(|error| {
            Failure::new(Exit::Failed, format!("a record cannot be read: {error}"))
        })
    };
    found
        .records
        .iter()
        .map(|record| parse(&record.json))
        .collect()
}

/// Tells who could not be asked.
pub(super) fn warn_of_silent(silent: &[SilentNode], io: &mut Io<'_>) -> Result<(), Failure> {
    for node in silent {
        writeln!(io.err, "warning: {}", silence(node))?;
    }
    Ok(())
}

/// Who could not be asked, for programs.
pub(super) fn silent_tree(silent: &[SilentNode]) -> Tree {
    let node = |node: &SilentNode| {
        let mut tree = Tree::map();
        tree.put("nodeId", node.node_id);
        tree.put("name", node.name.as_str());
        tree.put("why", node.why.as_str());
        tree
    };
    silent.iter().map(node).collect()
}

fn silence(node: &SilentNode) -> String {
    let (name, why) = (plain(&node.name), plain(&node.why));
    format!("node {} ({name}) could not be asked: {why}", node.node_id)
}

fn not_found(id: &str, found: &DecisionRecords) -> Failure {
    let mut message = format!(
        "no record of request {id:?} on {}",
        found.answered.join(", ")
    );
    if found.silent.is_empty() {
        message.push_str(": it is too old, was not recorded, or never came");
    } else {
        for node in &found.silent {
            message.push_str("; ");
            message.push_str(&silence(node));
        }
    }
    Failure::new(Exit::NotFound, message)
}

fn switched(answer: &RecordingResponse, verb: &str, io: &mut Io<'_>) -> Result<Exit, Failure> {
    warn_of_silent(&answer.silent, io)?;
    let mut exit = Exit::Ok;
    for node in &answer.nodes {
        let (name, path) = (plain(&node.node), plain(&node.path));
        if !node.problem.is_empty() {
            writeln!(io.err, "error: {name}: {}", plain(&node.problem))?;
            exit = Exit::Conflict;
        }
        if path.is_empty() {
            if node.problem.is_empty() {
                writeln!(io.out, "{name}: was not recording to a file")?;
            }
        } else {
            writeln!(
                io.out,
                "{name}: {verb} {path}, {} written, {} lost",
                node.written, node.lost
            )?;
        }
    }
    Ok(exit)
}

fn documents(records: &[RequestRecord], shape: Shape, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let failed = |error: String| Failure::new(Exit::Failed, format!("cannot be written: {error}"));
    if shape == Shape::Json {
        let text = match records {
            [one] => serde_json::to_string_pretty(one),
            many => serde_json::to_string_pretty(many),
        };
        writeln!(
            io.out,
            "{}",
            text.map_err(|error| failed(error.to_string()))?
        )?;
        return Ok(Exit::Ok);
    }
    for (i, record) in records.iter().enumerate() {
        if i > 0 {
            writeln!(io.out, "---")?;
        }
        let text = serde_saphyr::to_string(record).map_err(|error| failed(error.to_string()))?;
        io.out.write_all(text.as_bytes())?;
    }
    Ok(Exit::Ok)
}

/// The time of a record as others write it.
fn time(record: &RequestRecord) -> String {
    let since = Duration::from_millis(record.time_ms);
    SystemTime::UNIX_EPOCH
        .checked_add(since)
        .map_or_else(String::new, |time| {
            prost_types::Timestamp::from(time).to_string()
        })
}

fn milliseconds(value: f64) -> String {
    format!("{value:.1} ms")
}

fn overview(records: &[RequestRecord], io: &mut Io<'_>) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "TIME", "NODE", "REQUEST", "POOL", "MODEL", "ENDPOINT", "TRIES", "QUEUED", "STATUS", "END",
        "DURATION", "TTFT",
    ]);
    for record in records {
        let ending = &record.ending;
        let queued = record.flow.as_ref().filter(|flow| flow.queued);
        table.row([
            time(record),
            record.node.clone(),
            record.request_id.clone(),
            record.pool.to_string(),
            record.model.clone(),
            record
                .endpoint()
                .map(ToString::to_string)
                .unwrap_or_default(),
            record.attempts.len().to_string(),
            queued
                .map(|flow| milliseconds(flow.queue_ms))
                .unwrap_or_default(),
            ending.status.to_string(),
            ending.end.to_string(),
            milliseconds(ending.duration_ms),
            ending.ttft_ms.map(milliseconds).unwrap_or_default(),
        ]);
    }
    table.write("", io.out)?;
    Ok(())
}
