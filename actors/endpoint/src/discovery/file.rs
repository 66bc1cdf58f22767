//! Endpoints from a watched file, YAML or JSON, in one of two forms (they may be mixed):
//!
//! ```yaml
//! endpoints:
//! - {name: gpu-1, url: "http://gpu-1.example.org:8000", labels: {tier: a}, engine: vllm}   # Quorate's
//! - {name: gpu-2, namespace: prod, address: 10.0.0.2, port: "8000", labels: {app: x}}      # llm-d's endpoints.yaml
//! ```
//! An entry with an address and no port gets one endpoint for each target port of the pool.

use crate::discovery::reconcile::valid_name;
use crate::discovery::{Answer, Found};
use quorate_proto::v1::Engine;
use quorate_routing::Target;
use serde::Deserialize;
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::time::SystemTime;
use tokio::io::AsyncReadExt;
use xxhash_rust::xxh3::xxh3_64;

/// Longest file in bytes.
const LIMIT: u64 = 8 << 20;

/// A file that is looked at again and again.
pub struct FileSource {
    path: PathBuf,
    ports: Vec<u32>,
    /// What the last good look saw.
    seen: Option<Seen>,
}

struct Seen {
    modified: Option<SystemTime>,
    len: u64,
    hash: u64,
    answer: Answer,
}

impl FileSource {
    /// Nothing is read yet.
    pub fn new(path: PathBuf, ports: Vec<u32>) -> Self {
        Self {
            path,
            ports,
            seen: None,
        }
    }

    /// Reads the file if it changed; else repeats the last answer.
    ///
    /// # Errors
    /// The file cannot be read or is not a list of endpoints.
    pub async fn look(&mut self) -> Result<Answer, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.path.display());
        let file = tokio::fs::File::open(&self.path).await.map_err(failed)?;
        let meta = file.metadata().await.map_err(failed)?;
        // Reading a pipe or a device would wait for ever.
        if !meta.is_file() {
            return Err(format!("{} is not a regular file", self.path.display()));
        }
        if meta.len() > LIMIT {
            return Err(format!(
                "{} is longer than {LIMIT} bytes",
                self.path.display()
            ));
        }
        let modified = meta.modified().ok();
        if let Some(seen) = &self.seen
            && (seen.modified, seen.len) == (modified, meta.len())
            && modified.is_some_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() > 2))
        {
            return Ok(seen.answer.clone());
        }
        let mut text = Vec::new();
        file.take(LIMIT)
            .read_to_end(&mut text)
            .await
            .map_err(failed)?;
        let hash = xxh3_64(&text);
        if let Some(seen) = &mut self.seen
            && seen.hash == hash
        {
            (seen.modified, seen.len) = (modified, meta.len());
            return Ok(seen.answer.clone());
        }
        let answer =
            parse(&text, &self.ports).map_err(|e| format!("{}: {e}", self.path.display()))?;
        self.seen = Some(Seen {
            modified,
            len: meta.len(),
            hash,
            answer: answer.clone(),
        });
        Ok(answer)
    }
}

#[derive(Deserialize)]
struct Document {
    endpoints: Vec<Spanned<Value>>,
}

/// Parses a file's content.
///
/// # Errors
/// It is not text, not YAML, or not a list of endpoints: with the line.
pub fn parse(text: &[u8], ports: &[u32]) -> Result<Answer, String> {
    let text = std::str::from_utf8(text).map_err(|e| format!("not UTF-8 text: {e}"))?;
    let entries = if begins_with_list(text) {
        serde_saphyr::from_str::<Vec<Spanned<Value>>>(text)
    } else {
        serde_saphyr::from_str::<Document>(text).map(|d| d.endpoints)
    }
    .map_err(|e| located(&e))?;
    let mut answer = Answer::default();
    for entry in entries {
        let line = entry.referenced.line();
        match read_entry(&entry.value, ports) {
            Ok((endpoints, unknown)) => {
                for key in unknown {
                    answer
                        .problems
                        .push(format!("line {line}: unknown key {key:?} is ignored"));
                }
                for (name, found) in endpoints {
                    match answer.found.entry(name) {
                        Entry::Occupied(taken) => {
                            let name = taken.key();
                            answer.problems.push(format!(
                            "line {line}: endpoint {name:?} is listed twice; the first one counts"
                        ));
                        }
                        Entry::Vacant(free) => {
                            free.insert(found);
                        }
                    }
                }
            }
            Err(why) => answer
                .problems
                .push(format!("line {line}: {why}; the entry is skipped")),
        }
    }
    Ok(answer)
}

fn begins_with_list(text: &str) -> bool {
    text.lines()
        .map(str::trim_start)
        .find(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("---"))
        .is_some_and(|line| line.starts_with('[') || line == "-" || line.starts_with("- "))
}

fn located(e: &serde_saphyr::Error) -> String {
    let what = e.without_snippet().to_string();
    match e.location() {
        // The parser's own text mentions the place only sometimes.
        Some(at) if !what.contains("line") => format!("line {}: {what}", at.line()),
        _ => what,
    }
}

type Endpoints = Vec<(String, Found)>;

/// An entry's endpoints, and its keys that mean nothing here.
fn read_entry(entry: &Value, ports: &[u32]) -> Result<(Endpoints, Vec<String>), String> {
    const KNOWN: [&str; 9] = [
        "name",
        "url",
        "labels",
        "engine",
        "rank",
        "metrics_url",
        "namespace",
        "address",
        "port",
    ];
    let entry = entry
        .as_object()
        .ok_or("an entry must be a map with a name")?;
    let unknown = entry
        .keys()
        .filter(|k| !KNOWN.contains(&k.as_str()))
        .cloned()
        .collect();
    let short_name = text(entry, "name")?.ok_or("the entry has no name")?;
    let name = match text(entry, "namespace")?.as_deref() {
        None | Some("" | "default") => short_name,
        Some(namespace) => format!("{namespace}.{short_name}"),
    };
    let of = |why: String| format!("endpoint {name:?}: {why}");
    if !valid_name(&name) {
        return Err(of("a name has lower-case letters, digits, '-', '.', '_' and ':' only, and begins and ends with a letter or digit".into()));
    }
    let found = Found {
        labels: labels(entry).map_err(of)?,
        engine: engine(entry).map_err(of)?,
        rank: rank(entry).map_err(of)?,
        metrics_url: text(entry, "metrics_url").map_err(of)?.unwrap_or_default(),
        url: String::new(),
    };
    let endpoints = addresses(entry, ports)
        .map_err(of)?
        .into_iter()
        .map(|(rank, url)| {
            let name = rank.map_or_else(|| name.clone(), |r| format!("{name}-rank-{r}"));
            let rank = rank.or(found.rank);
            (
                name,
                Found {
                    url,
                    rank,
                    ..found.clone()
                },
            )
        })
        .collect();
    Ok((endpoints, unknown))
}

/// Addresses of an entry; ranks where the pool's target ports multiply it.
fn addresses(
    entry: &Map<String, Value>,
    ports: &[u32],
) -> Result<Vec<(Option<u32>, String)>, String> {
    let checked = |url: String| {
        Target::parse(&url).map_err(|e| e.to_string())?;
        Ok::<_, String>(url)
    };
    let host = match (text(entry, "url")?, text(entry, "address")?) {
        (Some(_), Some(_)) => return Err("it has both url and address".into()),
        (None, None) => return Err("it has neither url nor address".into()),
        (Some(url), None) => return Ok(vec![(None, checked(url)?)]),
        (None, Some(host)) => host,
    };
    match text(entry, "port")? {
        Some(port) => Ok(vec![(None, checked(url_of("http", &host, &port))?)]),
        None if ports.is_empty() => {
            Err("it has an address and no port, and the pool has no target_ports".into())
        }
        None => (0u32..)
            .zip(ports)
            .map(|(i, port)| {
                let rank = (ports.len() > 1).then_some(i);
                Ok((rank, checked(url_of("http", &host, &port.to_string()))?))
            })
            .collect(),
    }
}

/// `scheme://host:port`, with brackets around an IPv6 address.
pub fn url_of(scheme: &str, host: &str, port: &str) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("{scheme}://[{host}]:{port}")
    } else {
        format!("{scheme}://{host}:{port}")
    }
}

/// A text, or a number written without quotes.
fn text(entry: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match entry.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => scalar(value)
            .map(Some)
            .ok_or_else(|| format!("{key} must be a text")),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

fn labels(entry: &Map<String, Value>) -> Result<BTreeMap<String, String>, String> {
    match entry.get("labels") {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Object(labels)) => labels
            .iter()
            .map(|(k, v)| {
                let v = scalar(v).ok_or_else(|| format!("label {k:?} must be a text"))?;
                Ok((k.clone(), v))
            })
            .collect(),
        Some(_) => Err("labels must be a map of texts".into()),
    }
}

fn engine(entry: &Map<String, Value>) -> Result<Engine, String> {
    match text(entry, "engine")?.as_deref() {
        None | Some("") => Ok(Engine::Unspecified),
        Some("vllm") => Ok(Engine::Vllm),
        Some("sglang") => Ok(Engine::Sglang),
        Some("trtllm") => Ok(Engine::Trtllm),
        Some("triton") => Ok(Engine::Triton),
        Some(other) => Err(format!(
            "engine {other:?} is none of vllm, sglang, trtllm, triton"
        )),
    }
}

fn rank(entry: &Map<String, Value>) -> Result<Option<u32>, String> {
    text(entry, "rank")?
        .map(|r| r.parse().map_err(|_| format!("rank {r:?} is not a number")))
        .transpose()
}

#[cfg(test)]
mod tests;
