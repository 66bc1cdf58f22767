//! The gateway's configuration: every limit with its unit and its default.

use crate::duration::HumanDuration;
use serde::{Deserialize, Deserializer};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// `[gateway]`: what the gateway listens on and the limits it keeps.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Addresses for HTTP/1.1 and HTTP/2 without TLS, one or a list. Default `0.0.0.0:8080`.
    #[serde(deserialize_with = "one_or_many")]
    pub listen: Vec<SocketAddr>,
    /// A listener with TLS, beside or instead of `listen`.
    pub tls: Option<TlsConfig>,
    /// Worker threads; 0: one per core. A client connection stays on one worker together with its upstream connections.
    pub workers: usize,
    /// Open client connections over all listeners; more get a 503 and are closed. Default 65536.
    pub max_connections: usize,
    /// Requests at the same time on one HTTP/2 connection. Default 256.
    pub max_streams_per_connection: u32,
    /// Longest request body in bytes; it is held in memory until an endpoint has answered. Default 32 MiB.
    pub max_body_bytes: usize,
    /// Longest request head in bytes, request line included. Default 64 KiB, at least 8 KiB.
    pub max_header_bytes: usize,
    /// Most header fields of a request. Default 100.
    pub max_headers: usize,
    /// A request head must be complete this long after its first byte. Default 10 s.
    pub header_timeout: HumanDuration,
    /// A connection without a request is closed after this. Default 75 s.
    pub idle_timeout: HumanDuration,
    /// Time for a request body, on top of what `body_min_rate` grants for the bytes that came. Default 30 s.
    pub body_timeout: HumanDuration,
    /// Slowest request body in bytes per second after `body_timeout`. Default 16384.
    pub body_min_rate: u64,
    /// A client that takes no byte of its answer for this long is cut off. Default 60 s.
    pub write_timeout: HumanDuration,
    /// Time to connect to an endpoint, name look-up and TLS included. Default 2 s.
    pub connect_timeout: HumanDuration,
    /// Time from sending a request until the first byte of the answer (of its body, for the model APIs). Default 10 min.
    pub first_byte_timeout: HumanDuration,
    /// Longest pause inside an answer. Default 2 min.
    pub stream_idle_timeout: HumanDuration,
    /// Time for a whole request, retries included; 0: no limit. Default 0.
    pub total_timeout: HumanDuration,
    /// When a request goes to another endpoint.
    pub retry: RetryConfig,
    /// Connections to endpoints.
    pub upstream: UpstreamConfig,
    /// Forward paths that are none of the model APIs (tokenize, rerank, engine metrics, ...) to an engine. Default true.
    pub passthrough: bool,
    /// Believe what requests say about themselves in headers (objective, fairness id, model rewrite, SLOs, session, endpoint
    /// subset). Default: on listeners bound to a loopback address only.
    pub trust_headers: Option<bool>,
    /// Ask engines for the usage of streams, for metrics and limits, and take it out again for clients that did not ask.
    /// Default true.
    pub stream_usage: bool,
    /// Share of requests that get a line in the access log, 0 to 1. Default 0.
    pub access_log: f64,
    /// Seed of the picks, to repeat a run exactly; unset: a fresh one.
    pub seed: Option<u64>,
}

/// `[gateway.tls]`: HTTP/1.1 and HTTP/2 (by ALPN) over TLS.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Addresses, one or a list.
    #[serde(deserialize_with = "one_or_many")]
    pub listen: Vec<SocketAddr>,
    /// Certificate chain, PEM, leaf first. Read again when it or the key changes; no restart.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// `[gateway.retry]`: a request moves to another endpoint when it could not connect, when the connection broke before the first
/// byte of the answer, or on 502, 503 and 504. Once a byte went to the client there is no retry.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Endpoints that one request may be sent to, the first included. Default 3; 1: no retries.
    pub max_attempts: u32,
    /// Retries per hundred requests. Default 20.
    pub budget_percent: u32,
    /// Retries per second that are always allowed. Default 10.
    pub budget_min_per_second: u32,
    /// Most retries that can be saved up. Default 1000.
    pub budget_burst: u32,
}

/// `[gateway.upstream]`: connections to endpoints.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Idle connections kept for each endpoint and worker. Default 256.
    pub max_idle: usize,
    /// An idle connection is closed after this. Default 4 s: engines on uvicorn close theirs after 5 s.
    pub idle_timeout: HumanDuration,
    /// Certificate authorities (PEM) for `https` endpoints; unset: the system's.
    pub ca: Option<PathBuf>,
    /// Do not verify certificates of `https` endpoints. Default false.
    pub insecure: bool,
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gateway.{field}: {problem}")]
pub struct ConfigError {
    field: &'static str,
    problem: &'static str,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080)],
            tls: None,
            workers: 0,
            max_connections: 65_536,
            max_streams_per_connection: 256,
            max_body_bytes: 32 << 20,
            max_header_bytes: 64 << 10,
            max_headers: 100,
            header_timeout: HumanDuration::secs(10),
            idle_timeout: HumanDuration::secs(75),
            body_timeout: HumanDuration::secs(30),
            body_min_rate: 16 << 10,
            write_timeout: HumanDuration::secs(60),
            connect_timeout: HumanDuration::secs(2),
            first_byte_timeout: HumanDuration::secs(600),
            stream_idle_timeout: HumanDuration::secs(120),
            total_timeout: HumanDuration::secs(0),
            retry: RetryConfig::default(),
            upstream: UpstreamConfig::default(),
            passthrough: true,
            trust_headers: None,
            stream_usage: true,
            access_log: 0.0,
            seed: None,
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            budget_percent: 20,
            budget_min_per_second: 10,
            budget_burst: 1000,
        }
    }
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            max_idle: 256,
            idle_timeout: HumanDuration::secs(4),
            ca: None,
            insecure: false,
        }
    }
}

impl GatewayConfig {
    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// The first field that cannot be used, and why.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, field, problem| {
            if ok {
                Ok(())
            } else {
                Err(ConfigError { field, problem })
            }
        };
        let tls_listens = self.tls.as_ref().is_some_and(|tls| !tls.listen.is_empty());
        check(
            !self.listen.is_empty() || tls_listens,
            "listen",
            "needs at least one address",
        )?;
        check(self.workers <= 1024, "workers", "must be at most 1024")?;
        check(
            self.max_connections > 0,
            "max_connections",
            "must be at least 1",
        )?;
        check(
            self.max_streams_per_connection > 0,
            "max_streams_per_connection",
            "must be at least 1",
        )?;
        check(
            self.max_body_bytes > 0,
            "max_body_bytes",
            "must be at least 1",
        )?;
        check(
            (8 << 10..=16 << 20).contains(&self.max_header_bytes),
            "max_header_bytes",
            "must be from 8192 (8 KiB) to 16777216 (16 MiB)",
        )?;
        check(
            (1..=10_000).contains(&self.max_headers),
            "max_headers",
            "must be from 1 to 10000",
        )?;
        check(
            self.body_min_rate > 0,
            "body_min_rate",
            "must be at least 1",
        )?;
        for (field, value) in [
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("body_timeout", self.body_timeout),
            ("write_timeout", self.write_timeout),
            ("connect_timeout", self.connect_timeout),
            ("first_byte_timeout", self.first_byte_timeout),
            ("stream_idle_timeout", self.stream_idle_timeout),
        ] {
            check(value.limit().is_some(), field, "must be more than 0")?;
        }
        check(
            (1..=16).contains(&self.retry.max_attempts),
            "retry.max_attempts",
            "must be from 1 to 16",
        )?;
        check(
            self.retry.budget_percent <= 1000,
            "retry.budget_percent",
            "must be at most 1000",
        )?;
        check(
            (0.0..=1.0).contains(&self.access_log),
            "access_log",
            "must be from 0 to 1",
        )
    }
}

/// Takes `"addr"` as well as `["addr", ...]`.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "an address such as \"0.0.0.0:8080\" or \"[::]:8080\", or a list of them"
    )]
    enum Listen {
        One(SocketAddr),
        Many(Vec<SocketAddr>),
    }
    Ok(match Listen::deserialize(deserializer)? {
        Listen::One(address) => vec![address],
        Listen::Many(addresses) => addresses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_the_default() {
        let config: GatewayConfig = toml::from_str("").unwrap();
        assert_eq!(config, GatewayConfig::default());
        config.validate().unwrap();
    }

    #[test]
    fn reads_addresses_durations_and_tables() {
        let config: GatewayConfig = toml::from_str(
            "listen = \"[::1]:80\"\nfirst_byte_timeout = \"250ms\"\n[retry]\nmax_attempts = 2\n\
             [tls]\nlisten = [\"127.0.0.1:443\"]\ncert = \"c\"\nkey = \"k\"\n",
        )
        .unwrap();
        assert_eq!(config.listen, ["[::1]:80".parse().unwrap()]);
        assert_eq!(config.first_byte_timeout, HumanDuration::millis(250));
        assert_eq!(config.retry.max_attempts, 2);
        assert_eq!(config.tls.unwrap().listen.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, said) in [
            ("liste = \"127.0.0.1:1\"", "liste"),
            ("listen = \"nowhere\"", "an address such as"),
            ("idle_timeout = 5", "a duration with its unit"),
            ("[upstream]\nmax_idl = 1", "max_idl"),
        ] {
            let error = toml::from_str::<GatewayConfig>(text)
                .unwrap_err()
                .to_string();
            assert!(error.contains(said), "{error}");
        }
        for (text, field) in [
            ("listen = []", "gateway.listen"),
            ("max_header_bytes = 10", "gateway.max_header_bytes"),
            ("connect_timeout = \"0\"", "gateway.connect_timeout"),
            ("access_log = 2.0", "gateway.access_log"),
            ("[retry]\nmax_attempts = 0", "gateway.retry.max_attempts"),
        ] {
            let config: GatewayConfig = toml::from_str(text).unwrap();
            assert!(
                config
                    .validate()
                    .unwrap_err()
                    .to_string()
                    .starts_with(field),
                "{text}"
            );
        }
    }
}
