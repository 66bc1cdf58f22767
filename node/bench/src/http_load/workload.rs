//! What is asked: the bodies of the requests, made from the arguments and the number of the request alone.

use super::{body::Pieces, text, trace};
use crate::args::{Api, HttpArgs, SharedPrefix};
use anyhow::{Context, ensure};
use bytes::Bytes;
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
};

// Streams of the random generator.
const TEMPLATE: u64 = 0;
const PREFIX: u64 = 1;
const REQUEST: u64 = 2;

/// Different texts that fill up `--prompt-bytes`; the number at the start of each prompt makes it unique anyway.
const FILLERS: u64 = 16;

/// Digits of that number.
const NUMBER: usize = 12;

/// The bodies of one run.
pub(crate) struct Workload {
    seed: u64,
    shape: Shape,
    kind: Kind,
}

enum Kind {
    /// No body.
    Get,
    /// A number, then one of these texts (which end the body).
    Filled {
        head: Bytes,
        tails: Vec<Bytes>,
    },
    SharedPrefix {
        spec: SharedPrefix,
        heads: Vec<Bytes>,
        tail: Bytes,
    },
    File(Vec<(Bytes, bool)>),
    Trace(Vec<trace::Row>),
}

/// One request, ready to be sent.
pub(crate) struct Prepared {
    pub(crate) body: Pieces,
    /// The body asks for a stream.
    pub(crate) stream: bool,
}

/// The JSON around a prompt.
struct Shape {
    api: Api,
    model: String,
    max_tokens: u32,
    stream: bool,
    usage: bool,
}

impl Shape {
    /// Everything before the prompt; with `system`, a prefix of the prompt that the caller ends with [`Shape::turn`].
    fn head(&self, system: bool) -> String {
        let model = &self.model;
        match (self.api, system) {
            (Api::Chat, true) => {
                format!("{{\"model\":{model},\"messages\":[{{\"role\":\"system\",\"content\":\"")
            }
            (Api::Chat, false) => {
                format!("{{\"model\":{model},\"messages\":[{{\"role\":\"user\",\"content\":\"")
            }
            (Api::Embeddings, _) => format!("{{\"model\":{model},\"input\":\""),
            (Api::Completions | Api::Models, _) => format!("{{\"model\":{model},\"prompt\":\""),
        }
    }

    /// Between the common and the own part of a prompt.
    fn turn(&self) -> &'static str {
        match self.api {
            Api::Chat => "\"},{\"role\":\"user\",\"content\":\"",
            _ => "",
        }
    }

    /// Everything after the prompt.
    fn tail(&self, max_tokens: u32) -> String {
        let mut out = String::from(match self.api {
            Api::Chat => "\"}]",
            _ => "\"",
        });
        if self.api != Api::Embeddings {
            out += &format!(
                ",\"max_tokens\":{max_tokens},\"temperature\":0.0,\"stream\":{}",
                self.stream
            );
            if self.usage {
                out += ",\"stream_options\":{\"include_usage\":true}";
            }
        }
        out + "}"
    }
}

impl Workload {
    pub(crate) fn new(args: &HttpArgs) -> anyhow::Result<Self> {
        let shape = Shape {
            api: args.api,
            model: serde_json::to_string(&args.model)?,
            max_tokens: args.max_tokens,
            stream: args.stream,
            usage: args.include_usage,
        };
        ensure!(
            !args.stream || matches!(args.api, Api::Chat | Api::Completions),
            "--stream is for --api chat and completions"
        );
        let kind = if args.api == Api::Models {
            ensure!(
                args.prompts.is_none() && args.shared_prefix.is_none() && args.trace.is_none(),
                "--api models sends no body: it takes no --prompts, --shared-prefix or --trace"
            );
            Kind::Get
        } else if let Some(path) = &args.prompts {
            Kind::File(load_bodies(path)?)
        } else if let Some(path) = &args.trace {
            Kind::Trace(trace::load(path, args.trace_spread)?)
        } else if let Some(spec) = args.shared_prefix {
            shared_prefix(&shape, spec, args.seed)
        } else {
            filled(&shape, args.prompt_bytes as usize, args.seed)
        };
        Ok(Workload {
            seed: args.seed,
            shape,
            kind,
        })
    }

    /// The rows, if this is a trace.
    pub(crate) fn trace(&self) -> Option<&[trace::Row]> {
        match &self.kind {
            Kind::Trace(rows) => Some(rows),
            _ => None,
        }
    }

    /// The request with this number.
    pub(crate) fn prepare(&self, number: u64) -> Prepared {
        let (pieces, stream) = match &self.kind {
            Kind::Get => (Default::default(), false),
            Kind::Filled { head, tails } => {
                let tail = &tails[(number % tails.len() as u64) as usize];
                (
                    [head.clone(), self.number(number), tail.clone()],
                    self.shape.stream,
                )
            }
            Kind::SharedPrefix { spec, heads, tail } => {
                let mut rng = text::rng(self.seed, REQUEST, number);
                let head = &heads[rng.usize(..heads.len())];
                let mut suffix = Vec::new();
                text::append_tokens(&mut suffix, &mut rng, spec.suffix_tokens as usize);
                (
                    [head.clone(), suffix.into(), tail.clone()],
                    self.shape.stream,
                )
            }
            Kind::File(bodies) => {
                let (body, stream) = &bodies[(number % bodies.len() as u64) as usize];
                ([body.clone(), Bytes::new(), Bytes::new()], *stream)
            }
            Kind::Trace(rows) => {
                let row = &rows[(number % rows.len() as u64) as usize];
                let mut body = self.shape.head(false).into_bytes();
                row.append_prompt(&mut body);
                body.extend_from_slice(self.shape.tail(row.output_length.max(1)).as_bytes());
                ([body.into(), Bytes::new(), Bytes::new()], self.shape.stream)
            }
        };
        Prepared {
            body: Pieces::new(pieces),
            stream,
        }
    }

    /// Twelve digits that no other request of this run has, nor one of a run with another seed (up to a thousand seeds).
    fn number(&self, number: u64) -> Bytes {
        let mut digits = [b'0'; NUMBER];
        let mut x = (self.seed % 1000) * 1_000_000_000 + number % 1_000_000_000;
        for d in digits.iter_mut().rev() {
            *d = b'0' + (x % 10) as u8;
            x /= 10;
        }
        Bytes::copy_from_slice(&digits)
    }
}

fn filled(shape: &Shape, prompt_bytes: usize, seed: u64) -> Kind {
    let tails = (0..FILLERS).map(|i| {
        let mut out = Vec::new();
        text::append_bytes(
            &mut out,
            &mut text::rng(seed, TEMPLATE, i),
            prompt_bytes.saturating_sub(NUMBER),
        );
        out.extend_from_slice(shape.tail(shape.max_tokens).as_bytes());
        out.into()
    });
    Kind::Filled {
        head: shape.head(false).into(),
        tails: tails.collect(),
    }
}

fn shared_prefix(shape: &Shape, spec: SharedPrefix, seed: u64) -> Kind {
    let heads = (0..spec.groups).map(|group| {
        let mut out = shape.head(true).into_bytes();
        text::append_tokens(
            &mut out,
            &mut text::rng(seed, PREFIX, group.into()),
            spec.prefix_tokens as usize,
        );
        let _ = out.write_all(shape.turn().as_bytes());
        out.into()
    });
    let tail = shape
        .tail(spec.output_tokens.unwrap_or(shape.max_tokens))
        .into();
    Kind::SharedPrefix {
        spec,
        heads: heads.collect(),
        tail,
    }
}

fn load_bodies(path: &Path) -> anyhow::Result<Vec<(Bytes, bool)>> {
    #[derive(serde::Deserialize)]
    struct Asks {
        #[serde(default)]
        stream: Option<bool>,
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut bodies = Vec::new();
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let at = || format!("{} line {}", path.display(), n + 1);
        let line = line.with_context(at)?;
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        ensure!(line.starts_with('{'), "{}: not a JSON object", at());
        let asks: Asks = serde_json::from_str(line).with_context(at)?;
        bodies.push((
            Bytes::copy_from_slice(line.as_bytes()),
            asks.stream.unwrap_or(false),
        ));
    }
    ensure!(!bodies.is_empty(), "{} holds no body", path.display());
    Ok(bodies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use http_body_util::BodyExt;
    use serde_json::Value;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: HttpArgs,
    }

    fn workload(more: &[&str]) -> anyhow::Result<Workload> {
        let all = ["bench", "--url", "http://127.0.0.1:1", "--model", "a\"b"]
            .iter()
            .chain(more);
        Workload::new(&Cli::try_parse_from(all)?.args)
    }

    fn json(w: &Workload, number: u64) -> Value {
        let body = w.prepare(number).body;
        let rt = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let bytes = rt.block_on(body.collect()).unwrap().to_bytes();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn prompts_have_the_length_asked_for_and_differ_from_the_first_byte_on() {
        let w = workload(&["--prompt-bytes", "1000", "--max-tokens", "7"]).unwrap();
        let (a, b) = (json(&w, 1), json(&w, 17));
        assert_eq!(a["model"], "a\"b");
        assert_eq!((&a["max_tokens"], &a["stream"]), (&7.into(), &false.into()));
        let text = |v: &Value| v["messages"][0]["content"].as_str().unwrap().to_owned();
        assert_eq!(text(&a).len(), 1000);
        assert!(text(&a).starts_with("000000000001 ") && text(&b).starts_with("000000000017 "));
        assert_eq!(json(&w, 1), a);
        let other = workload(&["--prompt-bytes", "1000", "--seed", "2"]).unwrap();
        assert!(text(&json(&other, 1)).starts_with("002000000001 "));
    }

    #[test]
    fn shared_prefixes_are_shared_and_suffixes_are_not() {
        for api in ["chat", "completions"] {
            let w = workload(&[
                "--api",
                api,
                "--shared-prefix",
                "2:100:10:5",
                "--stream",
                "--include-usage",
            ])
            .unwrap();
            let (mut prefixes, mut suffixes) = (
                std::collections::BTreeSet::new(),
                std::collections::BTreeSet::new(),
            );
            for n in 0..40 {
                let v = json(&w, n);
                assert_eq!(
                    (&v["max_tokens"], &v["stream_options"]["include_usage"]),
                    (&5.into(), &true.into())
                );
                let (p, s) = match api {
                    "chat" => {
                        let content =
                            |i: usize| v["messages"][i]["content"].as_str().unwrap().to_owned();
                        (content(0), content(1))
                    }
                    _ => {
                        let p = v["prompt"].as_str().unwrap();
                        (p[..400].to_owned(), p[400..].to_owned())
                    }
                };
                assert_eq!((p.len(), s.len()), (400, 40));
                prefixes.insert(p);
                suffixes.insert(s);
            }
            assert_eq!((prefixes.len(), suffixes.len()), (2, 40));
        }
    }

    #[test]
    fn other_shapes() {
        let v = json(
            &workload(&["--api", "embeddings", "--prompt-bytes", "16"]).unwrap(),
            3,
        );
        assert_eq!(v["input"].as_str().unwrap().len(), 16);
        assert!(v.get("max_tokens").is_none());
        assert!(
            workload(&["--api", "models"])
                .unwrap()
                .prepare(0)
                .body
                .left()
                == 0
        );
        assert!(workload(&["--api", "embeddings", "--stream"]).is_err());
        assert!(workload(&["--api", "models", "--shared-prefix", "1:1:1"]).is_err());
    }

    #[test]
    fn bodies_from_a_file() {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(b"{\"a\":1}\n\n {\"b\":2,\"stream\":true}\n")
            .unwrap();
        let path = f.path().to_str().unwrap().to_owned();
        let w = workload(&["--prompts", &path]).unwrap();
        assert_eq!(json(&w, 2)["a"], 1);
        assert!(w.prepare(1).stream && !w.prepare(0).stream);
        for wrong in ["[1]\n", "{\"a\":\n", "{\"stream\":3}\n"] {
            let mut g = tempfile::NamedTempFile::new().unwrap();
            g.write_all(wrong.as_bytes()).unwrap();
            let e = workload(&["--prompts", g.path().to_str().unwrap()])
                .err()
                .unwrap();
            assert!(format!("{e:#}").contains("line 1"), "{e:#}");
        }
        assert!(workload(&["--prompts", "/no/such"]).is_err());
        assert!(workload(&["--prompts", &path, "--trace", &path]).is_err());
    }
}
