//! What the engines have of one prompt: its tokens made as the pool's requests have theirs made, then looked for in the map.

use super::status;
use quorate_proto::v1::{
    CacheLookupRequest, CacheLookupResponse, CachePrefixKey, CacheTiers, CachedPrefix,
    cache_lookup_request::What,
};
use quorate_routing::cache::{PromptCache, RankCache};
use quorate_routing::pipeline::TierBlocks;
use quorate_routing::tokens::{Origin, PromptTokens, TokenRequest};
use quorate_routing::view::Pool;
use quorate_routing::{Api, Endpoint, RequestInfo, RoutingView};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// What the answer says of a pool's prompt, but for the node.
pub async fn look_up(
    view: &RoutingView,
    pool: &Arc<Pool>,
    request: &CacheLookupRequest,
    patience: Duration,
) -> Result<CacheLookupResponse, Status> {
    let name = &pool.spec.name;
    let not_now = |message: String| status::precondition(&format!("pool/{name}"), message);
    let Some(prefixes) = &pool.policy.prefixes else {
        return Err(not_now(format!("pool {name:?} does not look prompts up")));
    };
    let body = Body::of(request)?;
    let model = [request.model.as_str(), &body.model()]
        .into_iter()
        .find(|model| !model.is_empty())
        .map(Arc::from)
        .or_else(|| served(pool))
        .ok_or_else(|| {
            not_now(format!(
                "no endpoint of pool {name:?} says which model it serves: name one"
            ))
        })?;
    let route = view.route_in(pool, &model);
    let tokens = match body {
        Body::Tokens(ids) => given(ids),
        Body::Request(api, fields) => {
            let source = pool.policy.tokens.as_ref().ok_or_else(|| {
                not_now(format!(
                    "pool {name:?} makes no tokens: its scheduling config has no token-producer"
                ))
            })?;
            let body = with_model(fields, &model)?;
            let info = RequestInfo::parse(api, &body)
                .map_err(|error| status::invalid("body", error.to_string()))?;
            let lora = adapter(&route.endpoints, &model);
            let request = TokenRequest {
                info: &info,
                body: &body,
                lora,
            };
            let made = source.tokens_or_why(request, &route.endpoints);
            let made = tokio::time::timeout(patience, made).await;
            made.unwrap_or_else(|_| Err(format!("it took longer than {patience:?}")))
                .map_err(|why| not_now(format!("no tokens can be made of this prompt: {why}")))?
        }
    };
    let found = prefixes
        .look_up(&tokens, &route.endpoints)
        .map_err(|why| not_now(format!("the prompt cannot be looked up: {why}")))?;
    Ok(CacheLookupResponse {
        node: String::new(),
        pool: name.to_string(),
        model: model.to_string(),
        token_ids: tokens.ids.to_vec(),
        origin: origin(tokens.origin).to_owned(),
        exact: tokens.exact,
        cached: rows(&found, &route.endpoints),
        prefixes: found
            .prefixes
            .iter()
            .map(|prefix| CachePrefixKey {
                tokens: prefix.tokens,
                key: format!("{:016x}", prefix.key),
            })
            .collect(),
    })
}

enum Body {
    Tokens(Arc<[u32]>),
    Request(Api, Fields),
}

/// A request's outermost members as they were written: a template may write tools out, members in the order in which they came.
type Fields = BTreeMap<String, Box<RawValue>>;

impl Body {
    fn of(request: &CacheLookupRequest) -> Result<Self, Status> {
        match &request.what {
            None => Err(status::invalid(
                "what",
                "a prompt, a body or tokens must be given",
            )),
            Some(What::Tokens(tokens)) if tokens.ids.is_empty() => {
                Err(status::invalid("tokens", "must not be empty"))
            }
            Some(What::Tokens(tokens)) => Ok(Self::Tokens(tokens.ids.as_slice().into())),
            Some(What::Prompt(text)) => {
                let messages = raw(&json!([{"role": "user", "content": text}]))?;
                let fields = [("messages".to_owned(), messages)];
                Ok(Self::Request(Api::Chat, fields.into()))
            }
            Some(What::Body(body)) => {
                let fields: Fields = serde_json::from_slice(&body.json)
                    .map_err(|error| status::invalid("body", format!("no JSON object: {error}")))?;
                let api = api(&body.path, &fields)?;
                Ok(Self::Request(api, fields))
            }
        }
    }

    /// Empty if it names none.
    fn model(&self) -> String {
        let field = match self {
            Self::Tokens(_) => None,
            Self::Request(_, fields) => fields.get("model"),
        };
        field
            .and_then(|model| serde_json::from_str(model.get()).ok())
            .unwrap_or_default()
    }
}

fn raw(value: &impl serde::Serialize) -> Result<Box<RawValue>, Status> {
    to_raw_value(value).map_err(|error| status::invalid("body", error.to_string()))
}

fn api(path: &str, fields: &Fields) -> Result<Api, Status> {
    if !path.is_empty() {
        return match Api::of(path) {
            Api::Native | Api::VllmGrpcGenerate | Api::VllmGrpcEmbed => Err(status::invalid(
                "path",
                format!("{path:?} takes no prompt in JSON that is known here"),
            )),
            api => Ok(api),
        };
    }
    let known = [
        ("messages", Api::Chat),
        ("prompt", Api::Completions),
        ("input", Api::Responses),
    ];
    let found = known.iter().find(|(field, _)| fields.contains_key(*field));
    found.map(|(_, api)| *api).ok_or_else(|| {
        status::invalid(
            "body",
            "has neither `messages` nor `prompt` nor `input`: is it a request?",
        )
    })
}

fn with_model(mut fields: Fields, model: &str) -> Result<Vec<u8>, Status> {
    fields.insert("model".to_owned(), raw(&model)?);
    serde_json::to_vec(&fields).map_err(|error| status::invalid("body", error.to_string()))
}

/// The base model that the first endpoint which says so serves.
fn served(pool: &Pool) -> Option<Arc<str>> {
    pool.endpoints.iter().find_map(|endpoint| {
        let models = endpoint.models();
        let base = models.iter().find(|model| model.parent.is_none())?;
        Some(base.id.as_str().into())
    })
}

/// The model's name, if the endpoints say that it is an adapter of another model.
fn adapter<'m>(endpoints: &[Arc<Endpoint>], model: &'m str) -> Option<&'m str> {
    let served = endpoints.first()?.models();
    let found = served.iter().find(|served| served.id == model)?;
    found.parent.is_some().then_some(model)
}

fn given(ids: Arc<[u32]>) -> PromptTokens {
    PromptTokens {
        ids,
        media: Vec::new(),
        lora: None,
        salt: None,
        origin: Origin::Given,
        exact: true,
    }
}

const fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Given => "given",
        Origin::Local => "local",
        Origin::Engine => "engine",
        Origin::Estimate => "estimate",
    }
}

fn tiers(of: &TierBlocks) -> CacheTiers {
    CacheTiers {
        gpu: of.gpu.into(),
        cpu: of.cpu.into(),
        disk: of.disk.into(),
        storage: of.storage.into(),
        unknown: of.unknown.into(),
        expected: of.expected.into(),
    }
}

/// A row for each rank, and one for each endpoint of which nothing is known.
fn rows(found: &PromptCache, endpoints: &[Arc<Endpoint>]) -> Vec<CachedPrefix> {
    let best = found.ranks.iter().map(|of| of.worth).fold(0.0, f64::max);
    let row = |endpoint: &Endpoint, of: &RankCache| CachedPrefix {
        endpoint: endpoint.name().to_owned(),
        rank: of.rank,
        block_tokens: of.block_tokens,
        blocks: of.blocks,
        cached_blocks: of.cached,
        cached_tokens: u64::from(of.cached) * u64::from(of.block_tokens),
        tiers: Some(tiers(&of.tiers)),
        worth: of.worth,
        first: best > 0.0 && of.worth >= best,
    };
    let mut rows = Vec::new();
    for (place, endpoint) in endpoints.iter().enumerate() {
        let before = rows.len();
        let ranks = found.ranks.iter().filter(|of| of.row == place);
        rows.extend(ranks.map(|of| row(endpoint, of)));
        if rows.len() == before {
            let unknown = RankCache {
                rank: endpoint.spec().rank.unwrap_or(0),
                ..RankCache::default()
            };
            rows.push(row(endpoint, &unknown));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_request_is_told_by_its_path_or_its_fields() {
        for (path, body, expected) in [
            ("", r#"{"messages": []}"#, Some(Api::Chat)),
            ("", r#"{"prompt": "x"}"#, Some(Api::Completions)),
            ("", r#"{"input": "x"}"#, Some(Api::Responses)),
            ("/v1/messages", r#"{"messages": []}"#, Some(Api::Messages)),
            ("", r#"{"model": "m"}"#, None),
            ("/healthz", r#"{"messages": []}"#, None),
        ] {
            assert_eq!(api(path, &fields(body)).ok(), expected, "{path} {body}");
        }
    }

    #[test]
    fn all_but_the_model_stays_as_it_was_written() {
        let tools = r#"[{"type": "function", "function": {"parameters": {"type": "object", "a": 1.50, "A": {"z": 1, "b": 2}}}}]"#;
        let written = fields(&format!(
            r#"{{"tools": {tools}, "model": "a", "messages": []}}"#
        ));
        let body = String::from_utf8(with_model(written, "b").unwrap()).unwrap();
        assert!(body.contains(tools), "{body}");
        let model = Body::Request(Api::Chat, fields(&body)).model();
        assert_eq!((model.as_str(), fields(&body).len()), ("b", 3));
    }
}
