//! What the engines' own metrics pages say of their prefix caches, before a run and after it.

use crate::{args::Target, report::EnginesReport};
use anyhow::{Context, bail, ensure};
use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

const PATH: &str = "/metrics";
const LIMIT: Duration = Duration::from_secs(5);
const MOST_BYTES: u64 = 16 << 20;
/// Counters in tokens, of what was looked up and of what was found. An engine has one pair of them.
const NAMES: [(&str, &str); 3] = [
    ("vllm:prefix_cache_queries", "vllm:prefix_cache_hits"),
    (
        "vllm:gpu_prefix_cache_queries",
        "vllm:gpu_prefix_cache_hits",
    ),
    ("sglang:prompt_tokens", "sglang:cached_tokens"),
];

/// vLLM's tokens that came from below the GPU or from elsewhere; they are not among its other hits.
const EXTERNAL: &str = "vllm:external_prefix_cache_hits";

/// Tokens since the engines started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counters {
    queries: f64,
    hits: f64,
}

impl Counters {
    /// What came since.
    pub(crate) fn since(self, before: Self, engines: usize) -> EnginesReport {
        let grown = |now: f64, then: f64| (now - then).max(0.0);
        let (queries, hits) = (
            grown(self.queries, before.queries),
            grown(self.hits, before.hits),
        );
        EnginesReport {
            engines,
            prefix_queries: queries,
            prefix_hits: hits,
            hit_ratio: (queries > 0.0).then(|| hits / queries),
        }
    }
}

/// Reads all engines and adds them up.
///
/// # Errors
/// One does not answer, or its page has no prefix cache.
pub(crate) fn read(engines: &[Target]) -> anyhow::Result<Counters> {
    let mut sum = Counters::default();
    for engine in engines {
        let page = fetch(engine).with_context(|| format!("{engine}{PATH}"))?;
        let one = parse(&page)
            .with_context(|| format!("{engine}{PATH} says nothing of a prefix cache"))?;
        sum.queries += one.queries;
        sum.hits += one.hits;
    }
    Ok(sum)
}

fn fetch(engine: &Target) -> anyhow::Result<String> {
    let address = (engine.host.as_str(), engine.port)
        .to_socket_addrs()?
        .next()
        .context("has no address")?;
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    // To HTTP/1.0 a server answers with a plain body that ends with the connection.
    write!(
        stream,
        "GET {}{PATH} HTTP/1.0\r\nhost: {}\r\naccept: text/plain\r\n\r\n",
        engine.base, engine.authority
    )?;
    let mut bytes = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("no HTTP answer");
    };
    let status = head.split_ascii_whitespace().nth(1).unwrap_or_default();
    ensure!(status == "200", "status {status}");
    Ok(body.to_owned())
}

/// The first pair of names that the page has, added up over its series.
fn parse(page: &str) -> Option<Counters> {
    let sum = |name: &str| {
        let mut found = None;
        for line in page.lines() {
            let Some(rest) = line.strip_prefix(name) else {
                continue;
            };
            let rest = rest.strip_prefix("_total").unwrap_or(rest);
            // The next name that begins the same is another one.
            let value = match rest.as_bytes().first() {
                Some(b'{') => rest.rsplit_once('}').map(|(_, value)| value),
                Some(b' ') => Some(rest),
                _ => None,
            };
            let value = value.and_then(|v| v.split_ascii_whitespace().next());
            if let Some(value) = value.and_then(|v| v.parse::<f64>().ok()) {
                found = Some(found.unwrap_or(0.0) + value);
            }
        }
        found
    };
    NAMES.iter().find_map(|(queries, hits)| {
        Some(Counters {
            queries: sum(queries)?,
            hits: sum(hits)? + sum(EXTERNAL).unwrap_or(0.0),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_engines() {
        let vllm = "# TYPE vllm:prefix_cache_queries_total counter\n\
            vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"a}b\"} 40.0\n\
            vllm:prefix_cache_queries_total{engine=\"1\"} 2\n\
            vllm:prefix_cache_queries_created{engine=\"0\"} 1.7e9\n\
            vllm:prefix_cache_hits_total 1.5e1 1700000000\n";
        let (queries, hits) = (42.0, 15.0);
        assert_eq!(parse(vllm), Some(Counters { queries, hits }));
        let offload = format!("{vllm}vllm:external_prefix_cache_hits_total 5.0\n");
        assert_eq!(parse(&offload).map(|c| c.hits), Some(20.0));
        let sglang =
            "sglang:prompt_tokens_total{m=\"x\"} 10\nsglang:cached_tokens_total{m=\"x\"} 5\n";
        assert_eq!(parse(sglang).map(|c| c.hits), Some(5.0));
        assert_eq!(parse("up 1\n"), None);
        let (now, before) = (
            Counters { queries, hits },
            Counters {
                queries: 12.0,
                hits: 0.0,
            },
        );
        assert_eq!(now.since(before, 1).hit_ratio, Some(0.5));
        assert_eq!(now.since(now, 1).hit_ratio, None);
    }
}
