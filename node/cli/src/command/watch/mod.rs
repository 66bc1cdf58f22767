//! `quorate watch`: follow changes as they happen, across reconnects.

mod follower;

use std::{io::Write, time::Duration};

use quorate_proto::v1::{Kind, Resource, WatchRequest, WatchResponse};
use tokio::time::Instant;
use tonic::{Code, Streaming};

use super::target::{self, Target};
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs},
    kind,
    manifest::{Tree, manifest_of},
    output::{Format, full_name, plain, resources::summary, yaml},
};
use follower::{Change, Follower};

/// Nodes send a bookmark each five seconds; after three of them missing the connection counts as dead.
const SILENCE: Duration = Duration::from_secs(16);
/// Longest pause between two attempts to connect.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Follow changes as they happen\n\n\
        First comes what is there, then each change in the order in which it was committed. When the connection breaks, the \
        watch goes on at the next node where it stopped: nothing is missed and nothing is shown twice. Ends with Ctrl-C.",
    after_help = format!("\
Examples:
  quorate watch endpoints
  quorate watch pool chat -o yaml
  quorate watch all -o json | jq -c .name       # one object a line: event, kind, name, resource

{EXIT_CODES}")
)]
pub struct WatchArgs {
    /// all, KIND, KIND NAME or KIND/NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND [NAME]")]
    target: Vec<String>,
    /// How to write each change
    #[arg(short, long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    output: Format,
    /// Show changes only, not what is there at the beginning
    #[arg(long)]
    changes_only: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn execute(args: WatchArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    let (kinds, name) = match target::parse(&args.target)? {
        Target::All => (vec![], String::new()),
        Target::Kind(kind) => (vec![kind], String::new()),
        Target::Names(names) => match <[(Kind, String); 1]>::try_from(names) {
            Ok([(kind, name)]) => (vec![kind], name),
            Err(_) => {
                return Err(Failure::new(
                    Exit::Usage,
                    "one resource, one kind or all can be watched",
                ));
            }
        },
    };
    let mut follower = Follower::new(args.changes_only);
    let mut printer = Printer {
        format: args.output,
        heading: true,
    };
    let mut connected_before = false;
    let mut pause = Pause::default();
    loop {
        let request = WatchRequest {
            kinds: kinds.iter().map(|kind| i32::from(*kind)).collect(),
            name: name.clone(),
            resume_token: follower.resume_token().to_owned(),
        };
        let why = match client
            .call(async |link| link.watches().watch(request.clone()).await)
            .await
        {
            Ok(stream) => {
                connected_before = true;
                follower.connected();
                match read(stream, &mut follower, &mut printer, &mut pause, io).await? {
                    Some(failure) => failure,
                    // The node is shutting down.
                    None => Failure::new(Exit::Unavailable, "the node ended the watch"),
                }
            }
            // A watch that has run keeps trying; one that cannot even start says why.
            Err(failure) if !connected_before => return Err(failure),
            Err(failure) => failure,
        };
        match why.code {
            // Too far behind: see what is there now and tell the difference.
            Some(Code::OutOfRange) => {
                follower.start_over();
                continue;
            }
            None
            | Some(
                Code::Unavailable
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
                | Code::Aborted,
            ) => {}
            Some(_) => return Err(why),
        }
        if pause.is_first() {
            writeln!(io.err, "connection lost ({why}), trying again")?;
        }
        pause.wait().await;
    }
}

/// Reads one connection until it ends, and says why it did.
async fn read(
    mut stream: Streaming<WatchResponse>,
    follower: &mut Follower,
    printer: &mut Printer,
    pause: &mut Pause,
    io: &mut Io<'_>,
) -> Result<Option<Failure>, Failure> {
    loop {
        let deadline = Instant::now() + SILENCE;
        let message = match tokio::time::timeout_at(deadline, stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(status)) => return Ok(Some(status.into())),
            Err(_) => {
                return Ok(Some(Failure::new(
                    Exit::Unavailable,
                    "no sign of life from the node",
                )));
            }
        };
        *pause = Pause::default();
        for change in follower.take(message) {
            printer.print(&change, io.out)?;
        }
        io.out.flush()?;
    }
}

/// Growing pauses between attempts.
#[derive(Debug, Default)]
struct Pause {
    attempts: u32,
}

impl Pause {
    fn is_first(&self) -> bool {
        self.attempts == 0
    }

    async fn wait(&mut self) {
        let pause = Duration::from_millis(100)
            .saturating_mul(1 << self.attempts.min(8))
            .min(MAX_PAUSE);
        self.attempts += 1;
        tokio::time::sleep(pause).await;
    }
}

struct Printer {
    format: Format,
    heading: bool,
}

impl Printer {
    fn print(&mut self, change: &Change, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
        let (event, resource) = match change {
            Change::Present(resource) => ("PRESENT", resource),
            Change::Put(resource) => ("CHANGED", resource),
            Change::Deleted(resource) => ("DELETED", resource),
        };
        match self.format {
            Format::Table | Format::Wide => {
                if std::mem::take(&mut self.heading) {
                    writeln!(out, "{:<8} {:<8} {:<24} SUMMARY", "EVENT", "KIND", "NAME")?;
                }
                let kind = kind::singular(kind::of(resource));
                let line = format!(
                    "{event:<8} {kind:<8} {:<24} {}",
                    kind::name_of(resource),
                    summary(resource)
                );
                writeln!(out, "{}", plain(line.trim_end()))?;
            }
            Format::Name => writeln!(out, "{}", full_name(resource))?,
            Format::Json => writeln!(out, "{}", event_tree(event, resource).to_json())?,
            Format::Yaml => write!(out, "---\n{}", yaml(&event_tree(event, resource))?)?,
        }
        Ok(())
    }
}

fn event_tree(event: &str, resource: &Resource) -> Tree {
    let mut tree = Tree::map();
    tree.put("event", event);
    tree.put("kind", kind::singular(kind::of(resource)));
    tree.put("name", kind::name_of(resource));
    tree.put("resource", manifest_of(resource));
    tree
}
