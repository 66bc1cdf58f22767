//! `--config FILE`: the options of the command line from a YAML file. What the command line or the environment says wins.
//!
//! The file is turned into arguments and parsed together with those of the command line, so that an option means the same
//! in both places and is refused with the same words.

use crate::args::SimArgs;
use anyhow::{Context, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Largest configuration file in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// A configuration file, and what need not be looked up in it.
#[derive(Clone, Debug, Default)]
pub struct ConfigFile {
    path: Option<PathBuf>,
    /// Options that the command line or the environment sets, as they were written.
    given: Vec<(String, Vec<OsString>)>,
}

impl Args for ConfigFile {
    fn augment_args(command: Command) -> Command {
        command.arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("YAML file with these options under their names without the dashes; the command line wins"),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigFile {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let explicit = |id: &clap::Id| {
            let source = matches.value_source(id.as_str());
            source.is_some_and(|source| source != ValueSource::DefaultValue)
        };
        let given = matches.ids().filter(|id| explicit(id)).map(|id| {
            let raw = matches.get_raw(id.as_str()).into_iter().flatten();
            (id.to_string(), raw.map(OsString::from).collect())
        });
        Ok(ConfigFile {
            given: given.collect(),
            path: matches.get_one("config").cloned(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl ConfigFile {
    /// The options of the file and of the command line together; `None` when there is no file.
    pub fn merged(&self) -> anyhow::Result<Option<SimArgs>> {
        let Some(path) = &self.path else {
            return Ok(None);
        };
        let shown = path.display();
        let size = std::fs::metadata(path)
            .with_context(|| format!("cannot read {shown}"))?
            .len();
        if size > MAX_BYTES {
            bail!("{shown} is larger than {MAX_BYTES} bytes");
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        merge(&text, &self.given)
            .with_context(|| shown.to_string())
            .map(Some)
    }
}

fn merge(text: &str, given: &[(String, Vec<OsString>)]) -> anyhow::Result<SimArgs> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let file: Option<BTreeMap<String, Value>> =
        serde_saphyr::from_str_with_options(text, options).context("not valid YAML")?;
    let mut command = SimArgs::augment_args(Command::new("sim").no_binary_name(true));
    command.build();
    let mut argv: Vec<OsString> = Vec::new();
    let mut seen = Vec::new();
    for (key, value) in file.unwrap_or_default() {
        let arg = find(&command, &key)?;
        if seen.contains(&arg.get_id()) {
            bail!("`{key}` stands there twice, under two of its names");
        }
        seen.push(arg.get_id());
        let parts = parts(&key, &value, arg)?;
        if !given.iter().any(|(id, _)| arg.get_id() == id.as_str()) {
            argv.extend(parts);
        }
    }
    for (id, values) in given {
        // Other identifiers are groups, or options of the program around this command.
        let mut args = command.get_arguments();
        let Some(arg) = args.find(|arg| arg.get_id() == id.as_str() && id != "config") else {
            continue;
        };
        let name = arg.get_long().unwrap_or_default();
        if !arg.get_action().takes_values() {
            argv.push(format!("--{name}").into());
            continue;
        }
        for value in values {
            let mut part = OsString::from(format!("--{name}="));
            part.push(value);
            argv.push(part);
        }
    }
    let matches = command.try_get_matches_from(argv).map_err(plain)?;
    SimArgs::from_arg_matches(&matches).map_err(plain)
}

/// The option with this name.
fn find<'a>(command: &'a Command, key: &str) -> anyhow::Result<&'a Arg> {
    let known: Vec<(&str, &Arg)> = command
        .get_arguments()
        .filter(|arg| !matches!(arg.get_id().as_str(), "config" | "help"))
        .flat_map(|arg| {
            let names = arg.get_long().into_iter();
            names
                .chain(arg.get_all_aliases().unwrap_or_default())
                .map(move |name| (name, arg))
        })
        .collect();
    if let Some((_, arg)) = known.iter().find(|(name, _)| *name == key) {
        return Ok(arg);
    }
    let likely = known
        .iter()
        .map(|(name, _)| (strsim::jaro_winkler(key, name), *name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match likely {
        Some((score, name)) if score > 0.8 => {
            bail!("there is no option `{key}`; did you mean `{name}`?")
        }
        _ => bail!("there is no option `{key}`"),
    }
}

/// What a value would be on the command line.
fn parts(key: &str, value: &Value, arg: &Arg) -> anyhow::Result<Vec<OsString>> {
    if !arg.get_action().takes_values() {
        return match value {
            Value::Bool(true) => Ok(vec![format!("--{key}").into()]),
            Value::Bool(false) => Ok(Vec::new()),
            _ => bail!("`{key}` must be true or false"),
        };
    }
    let part = |value: &Value| match value {
        Value::Null => bail!("`{key}` has no value"),
        Value::String(text) => Ok(format!("--{key}={text}").into()),
        // Adapters and figures are JSON on the command line.
        other => Ok(format!("--{key}={other}").into()),
    };
    match value {
        Value::Array(values) if takes_several(arg) => values.iter().map(part).collect(),
        Value::Array(_) => bail!("`{key}` takes one value"),
        value => Ok(vec![part(value)?]),
    }
}

fn takes_several(arg: &Arg) -> bool {
    matches!(arg.get_action(), clap::ArgAction::Append)
}

/// An error of the command-line parser without its advice on how to call the program.
fn plain(error: clap::Error) -> anyhow::Error {
    let text = error.render().to_string();
    let text = text.split("\n\nFor more").next().unwrap_or_default();
    anyhow::anyhow!("{}", text.trim().trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::time::Duration;

    #[derive(Parser)]
    struct Cli {
        /// An option of the program around the command.
        #[arg(long, global = true)]
        other: bool,
        #[command(subcommand)]
        command: Sub,
    }

    #[derive(clap::Subcommand)]
    enum Sub {
        /// Simulate.
        Sim(Box<SimArgs>),
    }

    fn with_file(text: &str, args: &[&str]) -> anyhow::Result<SimArgs> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("sim.yaml");
        std::fs::write(&path, text)?;
        let path = path.to_string_lossy().into_owned();
        let first = ["x", "sim", "--other", "--config", &path];
        let cli = Cli::try_parse_from(first.iter().chain(args))?;
        assert!(cli.other);
        let Sub::Sim(args) = cli.command;
        args.config
            .merged()?
            .context("a file was given, so something is merged")
    }

    const FILE: &str = "
model: from-file
served-model-name: [a, b]
ttft: 20ms
seed: 18446744073709551615
time-scale: 0.5
log-http: true
no-enable-prefix-caching: false
output-length: 64
fault: stall-after=3
lora-modules:
  - name: l1
    path: /l1
  - l2=/l2
fake-metrics: {kv-cache-usage: 0.5}
min-tool-call-integer-param: -5
";

    #[test]
    fn the_file_counts_and_the_command_line_wins() {
        let args = with_file(FILE, &[]).unwrap();
        assert_eq!(args.model, "from-file");
        assert_eq!(args.served_model_name, ["a", "b"]);
        assert_eq!(args.time_to_first_token, Duration::from_millis(20));
        assert_eq!((args.seed, args.time_scale), (u64::MAX, 0.5));
        assert!(args.log_http && !args.no_enable_prefix_caching);
        assert_eq!(args.lora_modules.len(), 2);
        assert_eq!(args.tool_calls.min_integer, -5);
        assert!(args.fake_metrics.is_some());
        assert_eq!(args.block_size, 16, "the rest keeps its default");

        let flags = [
            "--served-model-name",
            "c",
            "d",
            "--time-to-first-token=1s",
            "--count=2",
            "--no-enable-sleep-mode",
        ];
        let args = with_file(FILE, &flags).unwrap();
        assert_eq!(args.served_model_name, ["c", "d"]);
        assert_eq!(args.time_to_first_token, Duration::from_secs(1));
        assert_eq!((args.count, args.model.as_str()), (2, "from-file"));
        assert!(args.no_enable_sleep_mode && args.log_http);
        assert!(with_file("", &[]).is_ok(), "an empty file says nothing");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("max-num-seq: 4", "did you mean `max-num-seqs`?"),
            ("max_num_seqs: 4", "did you mean `max-num-seqs`?"),
            ("qqq: 4", "there is no option `qqq`"),
            ("config: other.yaml", "there is no option `config`"),
            ("model:", "`model` has no value"),
            ("log-http: 1", "`log-http` must be true or false"),
            ("seed: [1, 2]", "`seed` takes one value"),
            ("seed: many", "invalid value 'many' for '--seed"),
            ("ttft: 1s\ntime-to-first-token: 1s", "twice"),
            ("seed: 1\nseed: 2", "not valid YAML"),
            ("- seed", "not valid YAML"),
            ("seed: [", "not valid YAML"),
        ] {
            let error = format!("{:#}", with_file(text, &[]).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
            assert!(error.contains("sim.yaml"), "{error}");
        }
        let missing = Cli::try_parse_from(["x", "sim", "--config", "/nowhere/x.yaml"]).unwrap();
        let Sub::Sim(args) = missing.command;
        let error = format!("{:#}", args.configs().unwrap_err());
        assert!(error.contains("cannot read /nowhere/x.yaml"), "{error}");
    }
}
