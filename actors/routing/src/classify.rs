//! What a parsed request is to routing before an endpoint is picked: its pool, the model it goes to, its priority and the flow it
//! belongs to. One place for all doors that requests come through.

mod headers;

pub use headers::{ClassHeaders, grpc_timeout, is_classifying, strip_classifying};

use crate::objective::DEFAULT_FLOW;
use crate::pipeline::{self, SchedulingRequest};
use crate::request::{PromptIn, PromptKind, RequestInfo};
use crate::view::{Pool, Route, RoutingView};
use http::HeaderMap;
use std::sync::Arc;
use std::time::Duration;

/// Who sent a request, as far as routing needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Headers may say what the request is; else those that would are as good as absent.
    pub trusted: bool,
    /// The objective of requests whose headers name none.
    pub objective: Option<Arc<str>>,
    /// The flow of requests whose headers name none.
    pub fairness_id: Option<Arc<str>>,
}

/// A request as routing classifies it.
#[derive(Clone, Debug)]
pub struct Class {
    /// The pool it goes to, with the policy that holds for it.
    pub pool: Arc<Pool>,
    /// The model that the engine is asked for, where it is another than the client's.
    pub target: Option<Arc<str>>,
    /// Name of the rewrite object that said so; `None` if a header did, or nothing was rewritten.
    pub rewrite: Option<Arc<str>>,
    /// Name of its objective, if it has one; whether that exists or not.
    pub objective: Option<Arc<str>>,
    /// 0 without an objective; negative: may be dropped under load.
    pub priority: i32,
    /// `None`: [`DEFAULT_FLOW`].
    pub fairness_id: Option<Arc<str>>,
    /// What it wants, in milliseconds.
    pub slo_ttft_ms: Option<f64>,
    /// The same for the time per output token.
    pub slo_tpot_ms: Option<f64>,
    /// How long it may take in all from its arrival, as its client says.
    pub timeout: Option<Duration>,
    /// A caller that is not trusted said so: it bounds the request, but gives it no better place in a queue.
    pub timeout_of_stranger: bool,
    /// The session it belongs to, by header or body.
    pub session: Option<Arc<str>>,
    /// The only endpoints that may be used.
    pub subset: Option<Arc<str>>,
}

impl Class {
    /// The id of its flow.
    pub fn flow(&self) -> &str {
        self.fairness_id.as_deref().unwrap_or(DEFAULT_FLOW)
    }

    /// The request as a scheduler sees it; `prompt` and `media` ([`media_sizes`]) are of its body as it goes to the endpoint.
    pub fn scheduling<'a>(
        &'a self,
        info: &'a RequestInfo<'_>,
        headers: &'a HeaderMap,
        prompt: &'a PromptIn<'a>,
        media: &'a [u64],
    ) -> SchedulingRequest<'a> {
        let known = info.prompt.kind != PromptKind::None;
        SchedulingRequest {
            request_id: headers
                .get("x-request-id")
                .and_then(|id| id.to_str().ok())
                .unwrap_or_default(),
            incoming_model: &info.model,
            model: self.target.as_deref().unwrap_or(&info.model),
            headers,
            priority: self.priority,
            fairness_id: self.flow(),
            objective: self.objective.as_deref(),
            prompt: known.then_some(prompt as &dyn pipeline::Prompt),
            prompt_bytes: if known {
                info.prompt.bytes()
            } else {
                info.body_bytes
            },
            prompt_tokens: info.prompt.counted_tokens(prompt.body),
            tokens: None,
            cache_salt: info.cache_salt.as_deref(),
            max_tokens: info.max_tokens,
            stream: info.stream,
            session: self.session.as_deref(),
            slo_ttft_ms: self.slo_ttft_ms,
            slo_tpot_ms: self.slo_tpot_ms,
            // The route has been narrowed to it.
            subset: None,
            together: None,
            multimodal: media,
        }
    }
}

/// Sizes in bytes of what is no text in a prompt.
pub fn media_sizes(prompt: &PromptIn<'_>) -> Vec<u64> {
    let media = prompt.prompt.media(prompt.body);
    media.iter().map(|item| item.span.len() as u64).collect()
}

/// Why a request has no place to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unroutable {
    /// There is no pool at all.
    #[error("no pool is configured yet")]
    NoPools,
    /// No pool serves its model.
    #[error("no pool serves the model")]
    ModelNotFound,
    /// It names no model, its API needs one, and no rewrite rule gives it one.
    #[error("you must provide a model parameter")]
    NoModel,
    /// It names no model, and more than one pool could take it.
    #[error("nothing is served at this path")]
    NoRoute,
}

/// Classifies a request; `random` draws the target of a rewrite.
///
/// # Errors
/// [`Unroutable`].
pub fn classify(
    view: &RoutingView,
    info: &RequestInfo<'_>,
    headers: &HeaderMap,
    caller: &Caller,
    random: u64,
) -> Result<Class, Unroutable> {
    let said = if caller.trusted {
        ClassHeaders::read(headers)
    } else {
        ClassHeaders::default()
    };
    let pool = pool_for(view, info)?;
    let policy = &pool.policy;
    let session = said.session.or(info.session.as_deref());
    let mut target = None;
    let mut rewrite = None;
    if info.api.is_rewritable() {
        if let Some(rewritten) = policy.rewrites.decide(&info.model, session, random) {
            rewrite = Some(Arc::clone(rewritten.rewrite));
            target = Some(Arc::clone(rewritten.model));
        } else if let Some(model) = said.model_rewrite {
            target = Some(model.into());
        }
        // A rule may well send a share of the requests to the model they name.
        target = target.filter(|target| **target != *info.model);
    }
    if info.model.is_empty() && target.is_none() && info.api.needs_model() {
        return Err(Unroutable::NoModel);
    }
    let derived = || {
        let agent = policy.agent_identity.as_ref().filter(|_| caller.trusted)?;
        agent.of(headers).map(Arc::from)
    };
    let fairness_id = said
        .fairness_id
        .map(Arc::from)
        .or_else(|| caller.fairness_id.clone())
        .or_else(derived);
    let timeout = said
        .timeout_ms
        .and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
    let call = info.api.is_grpc().then(|| grpc_timeout(headers)).flatten();
    let objective = said.objective.or(caller.objective.as_deref());
    Ok(Class {
        target,
        rewrite,
        objective: objective.map(Arc::from),
        priority: policy.objectives.priority(objective),
        fairness_id,
        slo_ttft_ms: said.slo_ttft_ms,
        slo_tpot_ms: said.slo_tpot_ms,
        timeout: [timeout, call].into_iter().flatten().min(),
        timeout_of_stranger: !caller.trusted,
        session: session.map(Arc::from),
        subset: said.subset.map(Arc::from),
        pool,
    })
}

fn pool_for(view: &RoutingView, info: &RequestInfo<'_>) -> Result<Arc<Pool>, Unroutable> {
    if !info.model.is_empty()
        && let Some(route) = view.route(&info.model)
    {
        return Ok(Arc::clone(&route.pool));
    }
    if view.pools().is_empty() {
        return Err(Unroutable::NoPools);
    }
    // A body of an API without a model may have a `model` that means something else to the engine.
    match view.route_without_model() {
        Some(route) if !info.api.needs_model() => Ok(route.pool),
        Some(route) if info.model.is_empty() && route.pool.policy.rewrites.has_generic() => {
            Ok(route.pool)
        }
        _ if !info.api.needs_model() => Err(Unroutable::NoRoute),
        _ if info.model.is_empty() => Err(Unroutable::NoModel),
        _ => Err(Unroutable::ModelNotFound),
    }
}

impl RoutingView {
    /// Where a classified request goes now; asked again for each attempt, since the view may have changed meanwhile.
    ///
    /// # Errors
    /// [`Unroutable`]: its pool is gone.
    pub fn route_of(&self, class: &Class, info: &RequestInfo<'_>) -> Result<Route, Unroutable> {
        let route = match &class.target {
            Some(target) => {
                let pool = self
                    .pool(&class.pool.spec.name)
                    .ok_or(Unroutable::NoRoute)?;
                self.route_in(pool, target)
            }
            None => match self.route(&info.model).filter(|_| !info.model.is_empty()) {
                Some(route) => route.clone(),
                None if info.api.needs_model() && self.pools().is_empty() => {
                    return Err(Unroutable::NoPools);
                }
                None if info.api.needs_model() => return Err(Unroutable::ModelNotFound),
                None => self
                    .route_without_model()
                    .ok_or(if self.pools().is_empty() {
                        Unroutable::NoPools
                    } else {
                        Unroutable::NoRoute
                    })?,
            },
        };
        Ok(match &class.subset {
            Some(subset) => route.within(subset),
            None => route,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::tests::endpoint;
    use crate::request::Api;
    use crate::rewrite::{ModelRewrite, ModelRewrites, RewriteRule, RewriteTarget};
    use crate::{AgentIdentity, PoolPolicy, PoolSpec, ServedModel};
    use http::{HeaderName, HeaderValue};

    fn caller(trusted: bool) -> Caller {
        Caller {
            trusted,
            ..Caller::default()
        }
    }

    fn headers(said: &[(&'static str, &'static str)]) -> HeaderMap {
        said.iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    fn rewrites(matched: &[&str], target: &str) -> Arc<ModelRewrites> {
        Arc::new(ModelRewrites::new(vec![ModelRewrite {
            name: "canary".into(),
            sticky: false,
            rules: vec![RewriteRule {
                models: matched.iter().map(|m| (*m).to_owned()).collect(),
                targets: vec![RewriteTarget {
                    model: target.into(),
                    weight: None,
                }],
            }],
        }]))
    }

    fn view(pools: Vec<(&str, &[&str], PoolPolicy)>) -> RoutingView {
        RoutingView::with_policies(pools.into_iter().map(|(name, models, policy)| {
            let endpoint = endpoint(&format!("{name}-1"));
            let model = |id: &&str| ServedModel {
                id: (*id).into(),
                ..ServedModel::default()
            };
            endpoint.set_models(models.iter().map(model).collect());
            let spec = PoolSpec {
                name: name.into(),
                ..PoolSpec::default()
            };
            (spec, Arc::new(policy), vec![endpoint])
        }))
    }

    fn info(api: Api, model: &str) -> RequestInfo<'_> {
        RequestInfo {
            api,
            model: model.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn only_trusted_headers_count() {
        let policy = PoolPolicy {
            objectives: Arc::new([("batch", -3)].into_iter().collect()),
            agent_identity: Some(Arc::new(AgentIdentity::default())),
            ..PoolPolicy::default()
        };
        let view = view(vec![("p", &["m", "n"], policy)]);
        let map = headers(&[
            ("x-llm-d-inference-objective", "batch"),
            ("x-llm-d-model-name-rewrite", "n"),
            ("session-id", "agent-7"),
        ]);
        let info = info(Api::Chat, "m");
        let trusted = classify(&view, &info, &map, &caller(true), 0).unwrap();
        assert_eq!((trusted.priority, trusted.flow()), (-3, "agent-7"));
        assert_eq!(trusted.target.as_deref(), Some("n"));
        let stranger = classify(&view, &info, &map, &caller(false), 0).unwrap();
        assert_eq!((stranger.priority, stranger.flow()), (0, DEFAULT_FLOW));
        assert!(stranger.target.is_none() && stranger.rewrite.is_none());
        let known = Caller {
            trusted: false,
            objective: Some("batch".into()),
            fairness_id: Some("tenant".into()),
        };
        let known = classify(&view, &info, &map, &known, 0).unwrap();
        assert_eq!((known.priority, known.flow()), (-3, "tenant"));
    }

    #[test]
    fn a_timeout_is_the_shortest_that_counts() {
        let view = view(vec![("p", &["m"], PoolPolicy::default())]);
        let map = headers(&[
            ("x-llm-d-request-timeout-ms", "1500"),
            ("grpc-timeout", "2S"),
        ]);
        let of = |api, trusted| {
            let class = classify(&view, &info(api, "m"), &map, &caller(trusted), 0).unwrap();
            (class.timeout, class.timeout_of_stranger)
        };
        let (header, call) = (Duration::from_millis(1_500), Duration::from_secs(2));
        assert_eq!(of(Api::Chat, true), (Some(header), false));
        assert_eq!(of(Api::Chat, false), (None, true), "not gRPC, not trusted");
        assert_eq!(of(Api::VllmGrpcGenerate, true), (Some(header), false));
        assert_eq!(of(Api::VllmGrpcGenerate, false), (Some(call), true));
    }

    #[test]
    fn rules_go_before_the_header_and_name_a_model_where_none_is() {
        let exact = PoolPolicy {
            rewrites: rewrites(&["alias"], "m"),
            ..PoolPolicy::default()
        };
        let view_exact = view(vec![("p", &["m"], exact)]);
        let map = headers(&[("x-llm-d-model-name-rewrite", "other")]);
        let target = |model, api| {
            let class = classify(&view_exact, &info(api, model), &map, &caller(true), 0).unwrap();
            (
                class.target.map(|t| t.to_string()),
                class.rewrite.map(|r| r.to_string()),
            )
        };
        let rule = (Some("m".to_owned()), Some("canary".to_owned()));
        assert_eq!(target("alias", Api::Chat), rule);
        assert_eq!(target("m", Api::Chat), (Some("other".into()), None));
        assert_eq!(target("m", Api::Native), (None, None));
        let generic = PoolPolicy {
            rewrites: rewrites(&[], "m"),
            ..PoolPolicy::default()
        };
        let view = view(vec![("p", &["m"], generic)]);
        let none = classify(
            &view,
            &info(Api::Chat, ""),
            &HeaderMap::new(),
            &caller(false),
            0,
        )
        .unwrap();
        assert_eq!(none.target.as_deref(), Some("m"));
        let same = classify(
            &view,
            &info(Api::Chat, "m"),
            &HeaderMap::new(),
            &caller(false),
            0,
        )
        .unwrap();
        assert!(same.target.is_none());
        let unheard = classify(
            &view,
            &info(Api::Chat, "x"),
            &HeaderMap::new(),
            &caller(false),
            0,
        )
        .unwrap();
        assert_eq!(unheard.target.as_deref(), Some("m"));
        assert_eq!(
            view.route_of(&unheard, &info(Api::Chat, "x"))
                .unwrap()
                .endpoints
                .len(),
            1
        );
    }

    #[test]
    fn says_why_there_is_no_way() {
        let none = HeaderMap::new();
        let fails = |view: &RoutingView, api, model| {
            classify(view, &info(api, model), &none, &caller(true), 0)
                .map(|_| ())
                .unwrap_err()
        };
        let empty = RoutingView::default();
        assert_eq!(fails(&empty, Api::Chat, "m"), Unroutable::NoPools);
        let two = view(vec![
            ("p", &["m"], PoolPolicy::default()),
            ("q", &["n"], PoolPolicy::default()),
        ]);
        assert_eq!(fails(&two, Api::Chat, "x"), Unroutable::ModelNotFound);
        assert_eq!(fails(&two, Api::Chat, ""), Unroutable::NoModel);
        assert_eq!(fails(&two, Api::Native, "x"), Unroutable::NoRoute);
        assert_eq!(fails(&two, Api::SglangGenerate, ""), Unroutable::NoRoute);
        let one = view(vec![("p", &["m"], PoolPolicy::default())]);
        assert!(classify(&one, &info(Api::Native, "x"), &none, &caller(true), 0).is_ok());
        assert_eq!(fails(&one, Api::Chat, ""), Unroutable::NoModel);
    }

    #[test]
    fn a_subset_narrows_the_endpoints() {
        let view = view(vec![("p", &["m"], PoolPolicy::default())]);
        let endpoints = |subset: &'static str| {
            let map = headers(&[("x-gateway-destination-endpoint-subset", subset)]);
            let class = classify(&view, &info(Api::Chat, "m"), &map, &caller(true), 0).unwrap();
            view.route_of(&class, &info(Api::Chat, "m"))
                .unwrap()
                .endpoints
                .len()
        };
        assert_eq!(endpoints("127.0.0.1:8000"), 1);
        assert_eq!(endpoints("10.0.0.1:8000 , 127.0.0.1:8000"), 1);
        assert_eq!(endpoints("127.0.0.1:8001"), 0);
        assert_eq!(endpoints(""), 0);
    }
}
