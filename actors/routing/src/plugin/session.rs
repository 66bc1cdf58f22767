//! Which endpoint a session goes to: what `session-affinity-filter` and `session-affinity-scorer` share.
//!
//! `encoded_endpoint_header` keeps nothing: the answer carries the endpoint's name in a header, in base64, and the client sends it back.
//! `session_id` keeps a binding for each session that it has seen, forgets it after a time without use, and binds anew only when the
//! bound endpoint is not among the candidates any more. The routers of a region tell each other which sessions they bound.

mod bindings;

use crate::config::Fields;
use crate::config::registry::{Build, Produces};
use crate::endpoint::Endpoint;
use crate::learnt::{Learner, Learnt, NotLearnt, SESSION_WORDS};
use crate::pipeline::{ColumnId, Context, Extras, OnPicked, Row, Stages};
use crate::plugin::labels::header_name;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub use bindings::{Bindings, Place};
use http::{HeaderName, HeaderValue};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Where a session's name is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A header of the request.
    Header(HeaderName),
    /// What a producer found, else what the request's parser found.
    Attribute(Option<ColumnId>),
}

/// How a session is recognised.
#[derive(Debug)]
pub enum Strategy {
    /// The client carries the endpoint's name.
    EncodedEndpoint(HeaderName),
    /// The client carries the session's name; the first source that has one counts.
    SessionId(Vec<Source>, Bindings),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct SessionAffinity {
    /// How a session is recognised.
    pub strategy: Strategy,
    /// The profile whose pick is bound; `None`: the primary one.
    pub profile: Option<usize>,
}

fn decode(token: &str) -> Option<String> {
    let bytes = STANDARD.decode(token).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    // llm-d writes `namespace/name`; there is no namespace here.
    Some(match text.rsplit_once('/') {
        Some((_, name)) => name.to_owned(),
        None => text,
    })
}

impl SessionAffinity {
    fn session<'a>(sources: &[Source], context: &Context<'a>) -> Option<&'a str> {
        let request = context.request;
        let attributes = context.attributes;
        sources.iter().find_map(|source| match source {
            Source::Header(name) => request.header(name),
            Source::Attribute(column) => column
                .and_then(|column| attributes.text(column))
                .or(request.session),
        })
    }

    /// The bound endpoint, if it is among `rows`.
    pub fn bound(&self, context: &Context<'_>, rows: &[Row]) -> Option<Row> {
        match &self.strategy {
            Strategy::EncodedEndpoint(header) => {
                let name = decode(context.request.header(header)?)?;
                rows.iter()
                    .copied()
                    .find(|row| context.endpoint(*row).is_some_and(|e| e.name() == name))
            }
            Strategy::SessionId(sources, bindings) => {
                let session = Self::session(sources, context)?;
                let uid = bindings.get(session, context.now)?;
                rows.iter().copied().find(|row| {
                    context
                        .endpoint(*row)
                        .is_some_and(|e| e.slot().uid() == uid)
                })
            }
        }
    }

    /// Reads `strategy` and its section.
    pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Option<Self> {
        let by_id = fields.one_of(
            "strategy",
            &[("encoded_endpoint_header", false), ("session_id", true)],
            false,
        );
        let profile_name = fields.text("profileName").filter(|name| !name.is_empty());
        let profile = profile_name.and_then(|name| {
            let profile = build.profile(&name);
            if profile.is_none() {
                fields.error("profileName", format!("there is no profile `{name}`"));
            }
            profile
        });
        // The old spelling of the header had no section.
        let flat = fields
            .has("headerName")
            .then(|| header_name(fields, "headerName", None))
            .flatten();
        fields.raw("headerName");
        let header = fields.object("encodedEndpointHeaderConfig", |section| {
            header_name(section, "header", Some("x-session-token"))
        });
        let (sources, ttl, sweep) = fields.object("sessionIdConfig", |section| {
            let mut sources = Vec::new();
            for (path, item) in section.items("sources") {
                let mut entry = Fields::new(&path, Some(item), section.findings());
                match (entry.has("header"), entry.has("attribute")) {
                    (true, false) => {
                        sources.extend(header_name(&mut entry, "header", None).map(Source::Header));
                    }
                    (false, true) => {
                        entry.text("attribute");
                        sources.push(Source::Attribute(build.existing(Produces::Session)));
                    }
                    _ => entry.error("header", "give either `header` or `attribute`"),
                }
                for key in ["header", "attribute"] {
                    entry.raw(key);
                }
                entry.finish();
            }
            let seconds = 0.001..=1e9;
            let ttl = section.number("evictionTtlSeconds", 300.0, seconds.clone());
            let sweep = section.number("evictionSweepSeconds", 10.0, seconds);
            (sources, ttl, sweep)
        });
        let strategy = if by_id {
            let sources = if sources.is_empty() {
                vec![
                    Source::Header(HeaderName::from_static("x-session-id")),
                    Source::Attribute(build.existing(Produces::Session)),
                ]
            } else {
                sources
            };
            let bindings =
                Bindings::new(Duration::from_secs_f64(ttl), Duration::from_secs_f64(sweep));
            Strategy::SessionId(sources, bindings)
        } else {
            Strategy::EncodedEndpoint(flat.or(header)?)
        };
        Some(Self { strategy, profile })
    }
}

impl OnPicked for SessionAffinity {
    fn on_picked(&self, context: &Context<'_>, stages: &Stages, primary: Row, extras: &mut Extras) {
        let row = match self.profile {
            Some(profile) => stages.best_of(profile),
            None => Some(primary),
        };
        let Some(endpoint) = row.and_then(|row| context.endpoint(row)) else {
            return;
        };
        match &self.strategy {
            Strategy::EncodedEndpoint(header) => {
                let token = STANDARD.encode(format!("default/{}", endpoint.name()));
                if let Ok(value) = HeaderValue::from_str(&token) {
                    extras.response_headers.push((header.clone(), value));
                }
            }
            Strategy::SessionId(sources, bindings) => {
                if let Some(session) = Self::session(sources, context) {
                    let still_there = |uid| {
                        context
                            .endpoints
                            .iter()
                            .any(|e| e.slot().uid() == uid && e.tier(context.now).is_some())
                    };
                    bindings.bind(session, Place::of(endpoint), context.now, still_there);
                }
            }
        }
    }
}

impl Learner for SessionAffinity {
    fn take(
        &self,
        endpoints: &[Arc<Endpoint>],
        budget: &mut usize,
        now: u64,
    ) -> Vec<(Arc<Endpoint>, Learnt)> {
        let Strategy::SessionId(_, bindings) = &self.strategy else {
            return Vec::new();
        };
        let mut by_endpoint: HashMap<u64, Vec<_>> = HashMap::new();
        for (uid, binding) in bindings.take(*budget / SESSION_WORDS, now) {
            *budget = budget.saturating_sub(SESSION_WORDS);
            by_endpoint.entry(uid).or_default().push(binding);
        }
        // Of endpoints that are gone nobody needs to know.
        let named = endpoints.iter().filter_map(|endpoint| {
            let bindings = by_endpoint.remove(&endpoint.slot().uid())?;
            Some((Arc::clone(endpoint), Learnt::Sessions(bindings)))
        });
        named.collect()
    }

    fn lost(&self) -> u64 {
        match &self.strategy {
            Strategy::EncodedEndpoint(_) => 0,
            Strategy::SessionId(_, bindings) => bindings.lost(),
        }
    }

    fn copy(&self, endpoint: &Arc<Endpoint>, words: usize, now: u64) -> Option<Learnt> {
        let Strategy::SessionId(_, bindings) = &self.strategy else {
            return None;
        };
        let found = bindings.copy(endpoint.slot().uid(), words / SESSION_WORDS, now);
        (!found.is_empty()).then_some(Learnt::Sessions(found))
    }

    fn learn(&self, endpoint: &Arc<Endpoint>, learnt: &Learnt, now: u64) -> Result<(), NotLearnt> {
        match (&self.strategy, learnt) {
            (Strategy::SessionId(_, bindings), Learnt::Sessions(told)) => {
                for binding in told {
                    bindings.learn(binding, endpoint.slot().uid(), now);
                }
                Ok(())
            }
            _ => Err(NotLearnt::Kind),
        }
    }
}

#[cfg(test)]
mod tests;
