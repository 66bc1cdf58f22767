//! Structured logs on standard error: for people, or one JSON object a line.

use serde::Deserialize;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// `[log]` of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What to log, as `level` or `target=level,...`; the environment variable QUORATE_LOG goes before it.
    pub level: String,
    /// How to write it.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For reading.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Human,
        }
    }
}

/// Starts logging. Called once for each process.
///
/// # Errors
/// The filter is not valid.
pub fn init(config: &LogConfig) -> anyhow::Result<()> {
    let text = std::env::var("QUORATE_LOG").unwrap_or_else(|_| config.level.clone());
    // A lone word that is no level would be taken for a module's name, and nothing would be logged.
    for part in text.split(',').map(str::trim) {
        let level = part.rsplit('=').next().unwrap_or(part);
        anyhow::ensure!(
            level.parse::<LevelFilter>().is_ok(),
            "log level {part:?} is not valid: error, warn, info, debug or trace, or module=level"
        );
    }
    // openraft and sled speak their own language at info; an operator needs what it means, which our own lines say.
    let filter = EnvFilter::try_new(format!(
        "openraft=error,sled=warn,h2=warn,hyper=warn,tower=warn,{text}"
    ))
    .map_err(|e| anyhow::anyhow!("log level {text:?} is not valid: {e}"))?;
    let base = tracing_subscriber::registry().with(filter);
    let writer = std::io::stderr;
    match config.format {
        LogFormat::Human => {
            let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
            base.with(
                fmt::layer()
                    .with_writer(writer)
                    .with_ansi(colour)
                    .with_target(false),
            )
            .try_init()
        }
        LogFormat::Json => base
            .with(fmt::layer().json().flatten_event(true).with_writer(writer))
            .try_init(),
    }
    .map_err(|e| anyhow::anyhow!("logging was started twice: {e}"))
}
