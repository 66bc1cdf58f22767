//! `quorate cache`: what lies in the engines' KV caches, and how well that is known.

mod lookup;
mod status;
mod top;

use std::path::PathBuf;

use quorate_proto::v1::{CacheTiers, CacheUsage};

use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs},
    manifest::Tree,
    output::{json, yaml},
};

/// Arguments of `cache`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum CacheCommand {
    /// Show how engines are followed, what each has cached, the routers' copies of that map, and what other regions have
    #[command(after_help = format!("\
Examples:
  quorate cache status
  quorate cache status chat -o wide
  quorate cache status -o json | jq '.holders[] | select(.link.conditions != null)'

{EXIT_CODES}"))]
    Status {
        /// Only this pool
        pool: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Show what each engine has cached of one prompt
    #[command(after_help = format!("\
Examples:
  quorate cache lookup chat --prompt 'Why is the sky blue?'
  quorate cache lookup chat --file request.json -o json
  quorate cache lookup chat --tokens 1,15043,29892

{EXIT_CODES}"))]
    Lookup(LookupArgs),
    /// Show the beginnings of prompts that come most often, and how much of the prompts was cached
    #[command(after_help = format!("\
Examples:
  quorate cache top
  quorate cache top chat --limit 30

A prefix is named by the key of its last block; `cache lookup` shows the keys of a prompt's prefixes.

{EXIT_CODES}"))]
    Top {
        /// Only this pool
        pool: Option<String>,
        /// Prefixes of each pool
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
        #[command(flatten)]
        output: Output,
    },
}

/// Arguments of `cache lookup`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["prompt", "file", "tokens"])))]
struct LookupArgs {
    /// The pool
    pool: String,
    /// The text of a user's message
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A whole request as a client would send it, in JSON; - reads it from standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Token ids
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
    /// The path that the request would be sent to, if its fields do not tell: /v1/messages, say
    #[arg(long, conflicts_with_all = ["prompt", "tokens"], value_name = "PATH")]
    path: Option<String>,
    /// The model that is asked for; else the request's own, else the one that the pool's endpoints serve
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// How answers are written.
#[derive(Debug, clap::Args)]
struct Output {
    /// How to write it
    #[arg(
        id = "output",
        short,
        long,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    /// For people
    Table,
    /// More columns
    Wide,
    /// YAML
    Yaml,
    /// JSON
    Json,
}

impl Shape {
    /// Writes the value if it is for programs. False: it is for people, and nothing was written.
    fn write(self, value: impl FnOnce() -> Tree, io: &mut Io<'_>) -> Result<bool, Failure> {
        match self {
            Self::Table | Self::Wide => return Ok(false),
            Self::Json => writeln!(io.out, "{}", json(&value())?)?,
            Self::Yaml => io.out.write_all(yaml(&value())?.as_bytes())?,
        }
        Ok(true)
    }
}

pub(super) async fn execute(args: CacheArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    match args.command {
        CacheCommand::Status { pool, output } => {
            status::execute(&client, pool.unwrap_or_default(), output.shape, io).await
        }
        CacheCommand::Lookup(args) => lookup::execute(&client, args, io).await,
        CacheCommand::Top {
            pool,
            limit,
            output,
        } => top::execute(&client, (pool.unwrap_or_default(), limit), output.shape, io).await,
    }
}

fn named(tiers: &CacheTiers) -> [(&'static str, u64); 6] {
    [
        ("gpu", tiers.gpu),
        ("cpu", tiers.cpu),
        ("disk", tiers.disk),
        ("storage", tiers.storage),
        ("unknown", tiers.unknown),
        ("expected", tiers.expected),
    ]
}

/// `1200 gpu, 3 cpu`; `0` where there are none; nothing where that is not known.
fn tiers_text(tiers: Option<&CacheTiers>) -> String {
    let Some(tiers) = tiers else {
        return String::new();
    };
    let there = named(tiers).into_iter().filter(|(_, blocks)| *blocks > 0);
    let there: Vec<String> = there
        .map(|(tier, blocks)| format!("{blocks} {tier}"))
        .collect();
    match there.as_slice() {
        [] => "0".to_owned(),
        there => there.join(", "),
    }
}

fn tiers_tree(tiers: Option<&CacheTiers>) -> Tree {
    let Some(tiers) = tiers else {
        return Tree::Null;
    };
    let mut tree = Tree::map();
    for (tier, blocks) in named(tiers) {
        // Only a lookup knows what is expected.
        if tier != "expected" || blocks > 0 {
            tree.put(tier, blocks);
        }
    }
    tree
}

/// `part` of `whole`; nothing if there is no whole.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return String::new();
    }
    format!("{:.1}%", 100.0 * part as f64 / whole as f64)
}

fn ratio(part: u64, whole: u64) -> Tree {
    if whole == 0 {
        return Tree::Null;
    }
    Tree::Float(part as f64 / whole as f64)
}

fn usage_tree(usage: &CacheUsage) -> Tree {
    let mut tree = Tree::map();
    tree.put("picks", usage.picks);
    tree.put("promptTokens", usage.prompt_tokens);
    tree.put("predictedTokens", usage.predicted_tokens);
    tree.put_some(
        "predictedRatio",
        ratio(usage.predicted_tokens, usage.prompt_tokens),
    );
    tree.put("answers", usage.answers);
    tree.put("answeredTokens", usage.answered_tokens);
    tree.put("foundTokens", usage.found_tokens);
    tree.put_some(
        "foundRatio",
        ratio(usage.found_tokens, usage.answered_tokens),
    );
    tree.put_some("windowSeconds", seconds(usage.window.as_ref()));
    tree
}

fn seconds(duration: Option<&prost_types::Duration>) -> Tree {
    let Some(duration) = duration else {
        return Tree::Null;
    };
    Tree::Float(duration.seconds as f64 + f64::from(duration.nanos) / 1e9)
}

/// A time that has passed, like `3s`.
fn passed(duration: Option<&prost_types::Duration>) -> String {
    let Some(duration) = duration else {
        return String::new();
    };
    match duration.seconds.max(0) {
        0 if duration.nanos < 950_000_000 => {
            format!("{:.1}s", f64::from(duration.nanos.max(0)) / 1e9)
        }
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}
