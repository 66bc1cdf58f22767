//! The arguments of `quorate bench http`: parsed and checked here, so that a run never starts on bad input.

use http::{HeaderName, HeaderValue, Uri};
use std::{path::PathBuf, str::FromStr, time::Duration};

/// Arguments of `quorate bench http`.
#[derive(Debug, Clone, clap::Args)]
pub struct HttpArgs {
    /// Server to load, e.g. http://127.0.0.1:8080. Repeat it to spread the connections over several servers.
    #[arg(long = "url", value_name = "URL", required = true)]
    pub urls: Vec<Target>,
    /// API to call; it selects the path and the shape of the body.
    #[arg(long, value_enum, default_value_t = Api::Chat)]
    pub api: Api,
    /// Path to call instead of the API's own.
    #[arg(long)]
    pub path: Option<String>,
    /// Model name in the generated bodies.
    #[arg(long, default_value = "default")]
    pub model: String,
    /// Connections. Closed loop: each runs one request at a time [default: 32]. Open loop: opened before the start, more
    /// follow when all are busy [default: one for each URL].
    #[arg(short = 'c', long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: Option<u32>,
    /// Open loop: start this many requests a second, whether or not earlier ones have ended.
    #[arg(long, value_name = "PER_S", value_parser = positive)]
    pub rate: Option<f64>,
    /// Spacing of the starts in an open loop.
    #[arg(long, value_enum, default_value_t = Arrival::Constant, requires = "rate")]
    pub arrival: Arrival,
    /// Open loop: most requests in flight. A start beyond it waits, counts as delayed and keeps its intended start.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_in_flight: u32,
    /// Length of the measured window, e.g. 10s, 500ms, 2m [default: 10s, or the whole of --requests or --trace].
    #[arg(short = 'd', long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Load before the measured window [default: 1s, 0 with --requests or --trace].
    #[arg(long, value_parser = duration)]
    pub warmup: Option<Duration>,
    /// Stop after this many measured requests.
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// Longest time for one request, from its start to its last byte; also the limit for one connect.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Bytes of prompt text in a generated body. Every prompt begins with another number.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=64 << 20))]
    pub prompt_bytes: u32,
    /// File with one JSON body a line, sent as they are, over and over.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shared_prefix", "trace"])]
    pub prompts: Option<PathBuf>,
    /// Prompts of GROUPS shared prefixes of TOKENS tokens, each with its own SUFFIX of so many tokens [and OUT tokens to answer].
    #[arg(
        long,
        value_name = "GROUPS:TOKENS:SUFFIX[:OUT]",
        conflicts_with = "trace"
    )]
    pub shared_prefix: Option<SharedPrefix>,
    /// Replay a Mooncake trace (JSON lines: timestamp in ms, input_length, output_length, hash_ids): an open loop of its own.
    #[arg(long, value_name = "FILE", conflicts_with = "rate")]
    pub trace: Option<PathBuf>,
    /// Replay the trace this many times as fast.
    #[arg(long, default_value_t = 1.0, value_parser = positive, requires = "trace")]
    pub trace_speed: f64,
    /// Spread the trace's requests of one timestamp evenly until the next one: for traces with a coarse clock (Mooncake's ticks every 3 s).
    #[arg(long, requires = "trace")]
    pub trace_spread: bool,
    /// Tokens to ask for.
    #[arg(long, default_value_t = 64)]
    pub max_tokens: u32,
    /// Ask for a stream and measure its tokens.
    #[arg(long)]
    pub stream: bool,
    /// Ask for a usage event at the end of each stream (token counts of the engine, prefix-cache hits).
    #[arg(long, requires = "stream")]
    pub include_usage: bool,
    /// Read answers no faster than this many bytes a second (for each connection).
    #[arg(long, value_name = "BYTES_PER_S", value_parser = clap::value_parser!(u64).range(1..))]
    pub slow_reader: Option<u64>,
    /// Close the connection after so many tokens of each stream.
    #[arg(long, value_name = "TOKENS", requires = "stream", value_parser = clap::value_parser!(u64).range(1..))]
    pub disconnect_after: Option<u64>,
    /// Header to send, "name: value". Repeatable.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<Header>,
    /// Speak HTTP/2 with prior knowledge (cleartext).
    #[arg(long)]
    pub http2: bool,
    /// Concurrent requests on each HTTP/2 connection.
    #[arg(long, default_value_t = 1, requires = "http2", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub streams: u32,
    /// Threads; each has its own connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Seed of prompts and Poisson starts. The same seed sends the same prompts: take another one where caches must be cold.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Process whose CPU time and memory to report: of the server, so as to know its cost per request and token. Repeatable.
    #[arg(long, value_name = "PID", num_args = 1.., value_parser = clap::value_parser!(u32).range(1..))]
    pub cpu_pid: Vec<u32>,
    /// Model server whose metrics page to read before and after the run: tells which share of the prompts' tokens the engines had cached
    /// (vLLM, SGLang). Repeatable.
    #[arg(long = "engine", value_name = "URL")]
    pub engines: Vec<Target>,
}

/// The APIs that bodies can be generated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// POST /v1/chat/completions
    Chat,
    /// POST /v1/completions
    Completions,
    /// POST /v1/embeddings
    Embeddings,
    /// GET /v1/models
    Models,
}

impl Api {
    /// The path of the API.
    pub fn path(self) -> &'static str {
        match self {
            Api::Chat => "/v1/chat/completions",
            Api::Completions => "/v1/completions",
            Api::Embeddings => "/v1/embeddings",
            Api::Models => "/v1/models",
        }
    }
}

/// Spacing of the starts of an open loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrival {
    /// Equal gaps.
    Constant,
    /// Exponential gaps: independent clients.
    Poisson,
}

/// What is wrong with an argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ArgError(String);

fn bad(text: impl Into<String>) -> ArgError {
    ArgError(text.into())
}

/// A server: `http://host[:port][/base]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port; 80 if the URL names none.
    pub port: u16,
    /// As in the URL: the `Host` header.
    pub authority: String,
    /// Put before every path; no slash at its end.
    pub base: String,
}

impl FromStr for Target {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        let uri: Uri = text.parse().map_err(|e| bad(format!("not a URL: {e}")))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(bad("https is not supported: load the cleartext port")),
            _ => return Err(bad("a URL begins with http://")),
        }
        if uri.query().is_some() {
            return Err(bad("a URL here has no query; use --path")); // it would be lost when the path is joined
        }
        let authority = uri.authority().ok_or_else(|| bad("no host in the URL"))?;
        if authority.as_str().contains('@') {
            return Err(bad("no user name in the URL; use -H 'authorization: ...'"));
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        if host.is_empty() {
            return Err(bad("no host in the URL"));
        }
        // `port_u16` is None for "host:99999" and for "host:" too: neither may turn into port 80 unnoticed.
        let port = match authority.port_u16() {
            Some(0) => return Err(bad("port 0 cannot be connected to")),
            Some(port) => port,
            None if authority.as_str() == authority.host() => 80,
            None => return Err(bad("the port is not a number from 1 to 65535")),
        };
        Ok(Target {
            host: host.to_owned(),
            port,
            authority: authority.to_string(),
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.base)
    }
}

/// A header from the command line, `name: value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
}

impl FromStr for Header {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        let (name, value) = text
            .split_once(':')
            .ok_or_else(|| bad("a header is written \"name: value\""))?;
        let name: HeaderName = name
            .trim()
            .parse()
            .map_err(|e| bad(format!("header name: {e}")))?;
        if name == http::header::CONTENT_LENGTH || name == http::header::TRANSFER_ENCODING {
            return Err(bad(format!("{name} follows from the body")));
        }
        let value = value
            .trim()
            .parse()
            .map_err(|e| bad(format!("header value: {e}")))?;
        Ok(Header { name, value })
    }
}

/// The workload of `--shared-prefix`, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedPrefix {
    /// Different prefixes; each request takes one at random.
    pub groups: u32,
    /// Length of each prefix.
    pub prefix_tokens: u32,
    /// Length of what follows it and no other request has.
    pub suffix_tokens: u32,
    /// Tokens to ask for; `--max-tokens` if not given.
    pub output_tokens: Option<u32>,
}

/// Prefixes are kept in memory, four bytes a token.
const MAX_PREFIX_TOKENS: u64 = 256 << 20;

impl FromStr for SharedPrefix {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        let numbers = text
            .split(':')
            .map(|n| {
                n.parse::<u32>()
                    .map_err(|_| bad(format!("\"{n}\" is not a number")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (groups, prefix_tokens, suffix_tokens, output_tokens) = match numbers[..] {
            [g, p, s] => (g, p, s, None),
            [g, p, s, o] => (g, p, s, Some(o)),
            _ => return Err(bad("three or four numbers: GROUPS:TOKENS:SUFFIX[:OUT]")),
        };
        if groups == 0 || prefix_tokens == 0 || suffix_tokens == 0 {
            return Err(bad("GROUPS, TOKENS and SUFFIX are at least 1"));
        }
        if u64::from(groups) * u64::from(prefix_tokens) > MAX_PREFIX_TOKENS
            || suffix_tokens > 16 << 20
        {
            return Err(bad("that many tokens do not fit in memory"));
        }
        Ok(SharedPrefix {
            groups,
            prefix_tokens,
            suffix_tokens,
            output_tokens,
        })
    }
}

/// "10s", "500ms", "2m", "1h", or a plain number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, ArgError> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number
        .parse()
        .map_err(|_| bad("a duration is a number and a unit: 10s, 500ms, 2m, 1h"))?;
    let seconds = match unit.trim() {
        "" | "s" => number,
        "ms" => number / 1e3,
        "us" => number / 1e6,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        other => return Err(bad(format!("unknown unit \"{other}\": us, ms, s, m or h"))),
    };
    // A bound keeps every sum of an instant and a duration representable.
    match Duration::try_from_secs_f64(seconds) {
        Ok(d) if d <= Duration::from_secs(30 * 24 * 3600) => Ok(d),
        _ => Err(bad("longer than 30 days")),
    }
}

fn positive(text: &str) -> Result<f64, ArgError> {
    match text.parse::<f64>() {
        Ok(x) if (1e-6..=1e7).contains(&x) => Ok(x),
        _ => Err(bad("a number from 0.000001 to 10000000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let t: Target = "http://[::1]:8080/base/".parse().unwrap();
        assert_eq!(
            (t.host.as_str(), t.port, t.base.as_str()),
            ("::1", 8080, "/base")
        );
        assert_eq!(t.authority, "[::1]:8080");
        let t: Target = "http://router.example".parse().unwrap();
        assert_eq!((t.port, t.base.as_str()), (80, ""));
        for wrong in [
            "",
            "127.0.0.1:80",
            "https://a",
            "http://a:0",
            "http://a:99999",
            "http://a:/",
            "http://u@a",
            "http://a/?q=1",
            "ftp://a",
            "http://",
        ] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("1.5").unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        for wrong in ["", "s", "-1s", "1d", "1e3", "99999h", "1..2s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shared_prefixes() {
        let s: SharedPrefix = "150:6000:1200:1000".parse().unwrap();
        assert_eq!(
            (s.groups, s.prefix_tokens, s.suffix_tokens, s.output_tokens),
            (150, 6000, 1200, Some(1000))
        );
        for wrong in [
            "",
            "1:2",
            "0:1:1",
            "1:1:0",
            "1:2:3:4:5",
            "a:1:1",
            "4000000000:4000000000:1",
        ] {
            assert!(wrong.parse::<SharedPrefix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn headers() {
        let h: Header = "X-Request-Id:  a:b ".parse().unwrap();
        assert_eq!(
            (h.name.as_str(), h.value.as_bytes()),
            ("x-request-id", &b"a:b"[..])
        );
        for wrong in ["x", ": y", "a b: c", "content-length: 3", "x: \u{7f}\n"] {
            assert!(wrong.parse::<Header>().is_err(), "{wrong}");
        }
    }
}
