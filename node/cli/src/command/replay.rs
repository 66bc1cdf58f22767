//! `quorate replay`: what recorded decisions would have been under another scheduling config.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use quorate_proto::v1::ListDecisionsRequest;
use quorate_routing::config::EndpointPickerConfig;
use quorate_routing::explain::{RequestRecord, replay::Replay};
use quorate_routing::pipeline::Decision;

use super::explain;
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs},
    output::{Table, plain},
};

/// Arguments of `replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("\
Nothing is sent anywhere and nothing changes: the decisions are made again here, on the endpoints as they were then. Random pickers
draw the random numbers that were recorded, and ties go to whose turn it was.

Examples:
  quorate replay --config new.yaml                      # the latest 100 requests of all routers
  quorate replay --config new.yaml --last 1000 --pool chat
  quorate replay --config new.yaml --records friday.jsonl

{EXIT_CODES}"))]
pub struct ReplayArgs {
    /// The EndpointPickerConfig to replay under
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Records from a file that `quorate explain --record` wrote
    #[arg(long, value_name = "FILE", conflicts_with = "last")]
    records: Option<PathBuf>,
    /// The latest requests of all routers
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    last: u32,
    /// Only requests of this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Show also the requests for which nothing would change
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn execute(args: ReplayArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let replay = compile(&args.config, io)?;
    let mut records = match &args.records {
        Some(path) => read(path)?,
        None => {
            let client = Client::new(&args.client)?;
            let request = ListDecisionsRequest {
                limit: args.last,
                pool: args.pool.clone().unwrap_or_default(),
                ..ListDecisionsRequest::default()
            };
            let found = explain::list(&client, &request).await?;
            explain::warn_of_silent(&found.silent, io)?;
            explain::parsed(&found)?
        }
    };
    if let Some(pool) = &args.pool {
        records.retain(|record| *record.pool == **pool);
    }
    let pools: BTreeSet<&str> = records.iter().map(|record| &*record.pool).collect();
    if pools.len() > 1 {
        let pools: Vec<&str> = pools.into_iter().collect();
        let message = format!(
            "the records are of several pools, and a config is for one: name it with --pool ({})",
            plain(&pools.join(", "))
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let mut outcome = Summary::default();
    let mut table = Table::new(&["REQUEST", "ATTEMPT", "THEN", "NOW", "WHY"]);
    let mut shown = false;
    for record in &records {
        for (number, attempt) in record.attempts.iter().enumerate() {
            let Some(then) = &attempt.decision else {
                continue;
            };
            let row = outcome.add(&replay, record, then);
            if row.is_change || args.all {
                shown = true;
                let id = record.request_id.clone();
                table.row([id, (number + 1).to_string(), row.then, row.now, row.why]);
            }
        }
    }
    if shown {
        table.write("", io.out)?;
        writeln!(io.out)?;
    }
    outcome.write(io)?;
    Ok(Exit::Ok)
}

fn compile(path: &Path, io: &mut Io<'_>) -> Result<Replay, Failure> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|error| Failure::from(error).context(&shown))?;
    let invalid = |errors: quorate_routing::config::ConfigErrors| {
        Failure::new(Exit::Invalid, errors.to_string()).context(&shown)
    };
    let parsed = EndpointPickerConfig::parse(&text).map_err(invalid)?;
    for warning in &parsed.warnings {
        writeln!(io.err, "warning: {shown}: {}", plain(&warning.to_string()))?;
    }
    let replay = Replay::new(parsed.config).map_err(invalid)?;
    for warning in replay.warnings() {
        writeln!(io.err, "warning: {shown}: {}", plain(&warning.to_string()))?;
    }
    Ok(replay)
}

fn read(path: &Path) -> Result<Vec<RequestRecord>, Failure> {
    let shown = path.display().to_string();
    let file = File::open(path).map_err(|error| Failure::from(error).context(&shown))?;
    let mut records = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| Failure::from(error).context(&shown))?;
        if line.trim().is_empty() {
            continue;
        }
        let record = serde_json::from_str(&line).map_err(|error| {
            let message = format!("{shown}:{}: no record: {error}", number + 1);
            Failure::new(Exit::Invalid, message)
        })?;
        records.push(record);
    }
    Ok(records)
}

/// One decision, then and now.
struct Row {
    is_change: bool,
    then: String,
    now: String,
    why: String,
}

#[derive(Default)]
struct Summary {
    replayed: usize,
    changed: usize,
    /// By what they lack.
    not_replayed: BTreeMap<String, usize>,
    refused: (usize, usize),
    /// Picks by endpoint, then and now.
    picks: BTreeMap<String, (usize, usize)>,
}

fn pick(decision: &Decision) -> Option<&str> {
    decision.picked.first().map(|name| &**name)
}

fn shown(decision: &Decision) -> String {
    pick(decision).unwrap_or("refused").to_owned()
}

impl Summary {
    fn add(&mut self, replay: &Replay, record: &RequestRecord, then: &Decision) -> Row {
        let now = match replay.decide(record, then) {
            Ok(now) => now,
            Err(lacks) => {
                for lack in &lacks.0 {
                    *self.not_replayed.entry(lack.clone()).or_default() += 1;
                }
                return Row {
                    is_change: true,
                    then: shown(then),
                    now: "?".to_owned(),
                    why: format!("the record does not say {lacks}"),
                };
            }
        };
        self.replayed += 1;
        match pick(then) {
            Some(endpoint) => self.picks.entry(endpoint.to_owned()).or_default().0 += 1,
            None => self.refused.0 += 1,
        }
        match pick(&now) {
            Some(endpoint) => self.picks.entry(endpoint.to_owned()).or_default().1 += 1,
            None => self.refused.1 += 1,
        }
        let is_change = pick(then) != pick(&now);
        self.changed += usize::from(is_change);
        Row {
            is_change,
            then: shown(then),
            now: shown(&now),
            why: now.refused.unwrap_or_default(),
        }
    }

    fn write(&self, io: &mut Io<'_>) -> Result<(), Failure> {
        let percent = self.changed as f64 * 100.0 / self.replayed.max(1) as f64;
        writeln!(
            io.out,
            "{} decisions replayed, {} would change ({percent:.1} %)",
            self.replayed, self.changed
        )?;
        writeln!(
            io.out,
            "refused: {} then, {} now",
            self.refused.0, self.refused.1
        )?;
        for (lack, count) in &self.not_replayed {
            writeln!(
                io.out,
                "{count} not replayed: the record does not say {}",
                plain(lack)
            )?;
        }
        if !self.picks.is_empty() {
            let mut table = Table::new(&["ENDPOINT", "THEN", "NOW"]);
            for (endpoint, (then, now)) in &self.picks {
                table.row([endpoint.clone(), then.to_string(), now.to_string()]);
            }
            writeln!(io.out)?;
            table.write("", io.out)?;
        }
        Ok(())
    }
}
