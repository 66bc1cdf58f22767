//! `[ext_proc]` of the node's configuration.

use quorate_gateway::HumanDuration;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// How the server listens and what it allows. Every key has a default; without `listen` there is no server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExtProcConfig {
    /// Where Envoy connects to; unset: off.
    pub listen: Option<SocketAddr>,
    /// Worker threads; 0: one for each core. Each of Envoy's connections stays on one of them.
    pub workers: usize,
    /// Streams at the same time on one connection: requests under way of one of Envoy's threads.
    pub max_streams_per_connection: u32,
    /// Longest request body in bytes; it is held in memory until the endpoint is picked.
    pub max_body_bytes: usize,
    /// Further endpoints that are named behind the pick, for Envoy to try when the pick cannot be reached. 0 for an ORIGINAL_DST
    /// cluster, which takes a single address.
    pub fallbacks: usize,
    /// When the node stops: time between saying so through gRPC health and turning new streams away.
    pub drain_window: HumanDuration,
    /// Headers of clients that nobody knows may say what their request is (objective, flow, model). Unset: they may if `listen`
    /// is on loopback.
    pub trust_headers: Option<bool>,
    /// Ask engines for the usage of streams whose clients did not ask, and take it out of the answer again.
    pub stream_usage: bool,
    /// Tell Envoy each endpoint's score in dynamic metadata (llm-d's flag `--emit-endpoint-scores`).
    pub emit_endpoint_scores: bool,
    /// Set `x-went-into-resp-headers: true` on responses, as llm-d's picker does.
    pub mark_responses: bool,
    /// Seed of every random choice; unset: a fresh one.
    pub seed: Option<u64>,
    /// TLS; without it the connection is HTTP/2 in plain text.
    pub tls: Option<TlsConfig>,
}

/// `[ext_proc.tls]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificate chain (PEM).
    pub cert: PathBuf,
    /// Private key (PEM).
    pub key: PathBuf,
    /// Authority that Envoy's certificate must be signed by; unset: any client may connect.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// What does not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number is out of its range.
    #[error("ext_proc.{0} must be {1}")]
    Range(&'static str, &'static str),
}

impl Default for ExtProcConfig {
    fn default() -> Self {
        Self {
            listen: None,
            workers: 0,
            max_streams_per_connection: 65_536,
            max_body_bytes: 32 << 20,
            fallbacks: 0,
            drain_window: HumanDuration::secs(3),
            trust_headers: None,
            stream_usage: true,
            emit_endpoint_scores: false,
            mark_responses: false,
            seed: None,
            tls: None,
        }
    }
}

impl ExtProcConfig {
    /// `trust_headers`, or what follows from `listen`.
    pub(crate) fn trusts_headers(&self) -> bool {
        let loopback = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
        self.trust_headers
            .unwrap_or_else(|| self.listen.as_ref().is_some_and(loopback))
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// [`ConfigError`] names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.max_streams_per_connection == 0 {
            return Err(ConfigError::Range(
                "max_streams_per_connection",
                "at least 1",
            ));
        }
        if self.max_body_bytes == 0 || self.max_body_bytes > 1 << 30 {
            return Err(ConfigError::Range(
                "max_body_bytes",
                "from 1 to 1073741824 (1 GiB)",
            ));
        }
        if self.fallbacks > 16 {
            return Err(ConfigError::Range("fallbacks", "at most 16"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_off_by_default_and_says_what_is_wrong() {
        let config: ExtProcConfig = toml::from_str("").unwrap();
        assert!(config.listen.is_none() && config.validate().is_ok());
        for (text, key) in [
            ("max_body_bytes = 0", "max_body_bytes"),
            ("fallbacks = 17", "fallbacks"),
            (
                "max_streams_per_connection = 0",
                "max_streams_per_connection",
            ),
        ] {
            let config: ExtProcConfig = toml::from_str(text).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(toml::from_str::<ExtProcConfig>("listn = \"127.0.0.1:9002\"").is_err());
        assert!(toml::from_str::<ExtProcConfig>("[tls]\ncert = \"a\"").is_err());
    }
}
