//! What the gateway routes by: pools, their endpoints, and which model goes where. Built anew when any of that changes and
//! published whole; loads and health change inside the endpoints without a new view.

use crate::cache::{CacheNeeds, PrefixLookup};
use crate::endpoint::{Endpoint, ServedModel};
use crate::flow::FlowControl;
use crate::learnt::Learner;
use crate::objective::{AgentIdentity, Objectives};
use crate::pick::{PowerOfTwo, Scheduler};
use crate::pipeline::Named;
use crate::plugin::producer::burst_prefix::Burst;
use crate::plugin::reporter::Report;
use crate::rewrite::ModelRewrites;
use crate::tokens::TokenSource;
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

/// The view that is swapped in by the endpoint directory and loaded once per request by the gateway.
pub type SharedView = Arc<ArcSwap<RoutingView>>;

/// What a pool declares, as far as routing needs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolSpec {
    /// Name of the pool resource.
    pub name: Arc<str>,
    /// Models that the pool answers to; empty: what its endpoints report.
    pub models: Vec<String>,
    /// Takes requests for models that nobody serves.
    pub fallback: bool,
}

/// How a pool's requests are judged and placed. Kept as long as nothing in it changes, since its parts have state.
#[derive(Clone)]
pub struct PoolPolicy {
    /// Picks endpoints.
    pub scheduler: Arc<dyn Scheduler>,
    /// Which model an engine is asked for.
    pub rewrites: Arc<ModelRewrites>,
    /// Priorities by name.
    pub objectives: Arc<Objectives>,
    /// Derives a fairness id for requests that name none; `None`: they are all one flow.
    pub agent_identity: Option<Arc<AgentIdentity>>,
    /// Holds requests until their window closes; `None`: off.
    pub burst: Option<Arc<Burst>>,
    /// What the proxy in front is told when a request has ended.
    pub reports: Arc<[Report]>,
    /// Holds requests back while the pool is full; `None`: nothing waits here. Stays the same for the pool's life.
    pub flow: Option<Arc<FlowControl>>,
    /// Parts of the scheduler that learn from picks what other routers should know.
    pub learners: Arc<[Named<dyn Learner>]>,
    /// Makes tokens of prompts before the pick; `None`: the pool has no use for them.
    pub tokens: Option<Arc<dyn TokenSource>>,
    /// What must be known of the engines' caches; `None`: nothing.
    pub cache: Option<Arc<CacheNeeds>>,
    /// Says what of a prompt the engines have cached; `None`: nobody knows.
    pub prefixes: Option<Arc<dyn PrefixLookup>>,
}

impl Default for PoolPolicy {
    /// Power of two choices, nothing rewritten, every request alike.
    fn default() -> Self {
        Self {
            scheduler: Arc::new(PowerOfTwo::default()),
            rewrites: Arc::default(),
            objectives: Arc::default(),
            agent_identity: None,
            burst: None,
            reports: Arc::from([]),
            flow: None,
            learners: Arc::new([]),
            tokens: None,
            cache: None,
            prefixes: None,
        }
    }
}

impl std::fmt::Debug for PoolPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolPolicy")
            .field("rewrites", &self.rewrites)
            .field("objectives", &self.objectives)
            .finish_non_exhaustive()
    }
}

/// The policy of pools that have none of their own.
static PLAIN: LazyLock<Arc<PoolPolicy>> = LazyLock::new(Arc::default);

/// A pool and its endpoints in name order.
#[derive(Debug)]
pub struct Pool {
    /// Its declaration.
    pub spec: PoolSpec,
    /// How its requests are judged and placed.
    pub policy: Arc<PoolPolicy>,
    /// All of its endpoints, usable or not.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Where requests for one model go.
#[derive(Clone, Debug)]
pub struct Route {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Those of its endpoints that serve the model; all of them where none says so.
    pub endpoints: Arc<[Arc<Endpoint>]>,
}

impl Route {
    /// The same with only those endpoints whose `host:port` is in the comma-separated list.
    pub fn within(&self, subset: &str) -> Self {
        let named = |endpoint: &&Arc<Endpoint>| {
            let authority = &endpoint.spec().target.authority;
            subset.split(',').any(|name| name.trim() == authority)
        };
        Self {
            pool: Arc::clone(&self.pool),
            endpoints: self.endpoints.iter().filter(named).cloned().collect(),
        }
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct RoutingView {
    pools: Vec<Arc<Pool>>,
    routes: HashMap<String, Route>,
    /// By pool (its place in `pools`), for the models that its rewrites send requests to.
    targets: HashMap<(usize, Arc<str>), Route>,
    fallback: Option<Route>,
}

impl RoutingView {
    /// Builds a view of pools that have no policy of their own. See [`RoutingView::with_policies`].
    pub fn build(pools: impl IntoIterator<Item = (PoolSpec, Vec<Arc<Endpoint>>)>) -> Self {
        let plain = |(spec, endpoints)| (spec, Arc::clone(&PLAIN), endpoints);
        Self::with_policies(pools.into_iter().map(plain))
    }

    /// Builds a view. Which pool a model goes to:
    ///
    /// 1. the first pool (by name) that lists the model in its spec,
    /// 2. else the first pool of which a rewrite rule matches the model by name,
    /// 3. else the first pool without a list of which an endpoint reports the model,
    /// 4. else the pool marked as fallback; else the first pool with a rewrite rule for every request; else the only pool, as
    ///    long as none of its endpoints has said what it serves.
    ///
    /// Within the pool, an endpoint is a candidate if it reports the model. If none does (not known yet, or the pool's
    /// list has a name that engines do not know), all are.
    pub fn with_policies(
        pools: impl IntoIterator<Item = (PoolSpec, Arc<PoolPolicy>, Vec<Arc<Endpoint>>)>,
    ) -> Self {
        let mut pools: Vec<Arc<Pool>> = pools
            .into_iter()
            .map(|(spec, policy, mut endpoints)| {
                endpoints.sort_by(|a, b| a.spec().name.cmp(&b.spec().name));
                Arc::new(Pool {
                    spec,
                    policy,
                    endpoints,
                })
            })
            .collect();
        pools.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));

        let mut routes = HashMap::new();
        let listed = pools
            .iter()
            .flat_map(|p| p.spec.models.iter().map(move |m| (m.clone(), p)));
        let rewritten = pools.iter().flat_map(|p| {
            let matched = p.policy.rewrites.matched();
            matched.map(move |m| (m.to_owned(), p))
        });
        let reported: Vec<(String, &Arc<Pool>)> = pools
            .iter()
            .filter(|p| p.spec.models.is_empty())
            .flat_map(|p| p.endpoints.iter().map(move |e| (p, e.models())))
            .flat_map(|(p, models)| models.iter().map(|m| (m.id.clone(), p)).collect::<Vec<_>>())
            .collect();
        for (model, pool) in listed.chain(rewritten).chain(reported) {
            routes
                .entry(model)
                .or_insert_with_key(|model| route(pool, Some(model)));
        }
        let any_reported = || {
            pools
                .iter()
                .flat_map(|p| &p.endpoints)
                .any(|e| !e.models().is_empty())
        };
        let mut targets = HashMap::new();
        for (i, pool) in pools.iter().enumerate() {
            for target in pool.policy.rewrites.targets() {
                targets
                    .entry((i, Arc::clone(target)))
                    .or_insert_with(|| route(pool, Some(target)));
            }
        }
        let takes_all = pools
            .iter()
            .find(|p| p.spec.fallback)
            .or_else(|| pools.iter().find(|p| p.policy.rewrites.has_generic()));
        let fallback = match (takes_all, pools.as_slice()) {
            (Some(pool), _) => Some(route(pool, None)),
            (None, [only]) if only.spec.models.is_empty() && !any_reported() => {
                Some(route(only, None))
            }
            _ => None,
        };
        Self {
            pools,
            routes,
            targets,
            fallback,
        }
    }

    /// All pools by name.
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// Where a request for `model` goes; `None`: nobody serves it.
    pub fn route(&self, model: &str) -> Option<&Route> {
        self.routes.get(model).or(self.fallback.as_ref())
    }

    /// Where in `pool` a request goes that was rewritten to `model`.
    pub fn route_in(&self, pool: &Arc<Pool>, model: &Arc<str>) -> Route {
        let found = self
            .pools
            .iter()
            .position(|p| Arc::ptr_eq(p, pool))
            .and_then(|i| self.targets.get(&(i, Arc::clone(model))));
        match found {
            Some(found) => found.clone(),
            // Named by a header, or the view has changed since the request was rewritten.
            None => route(pool, Some(model)),
        }
    }

    /// A pool by name.
    pub fn pool(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools
            .binary_search_by(|pool| (*pool.spec.name).cmp(name))
            .ok()
            .and_then(|i| self.pools.get(i))
    }

    /// Where a request without a model (an engine-native path) goes: the fallback pool, else the only pool.
    pub fn route_without_model(&self) -> Option<Route> {
        match (&self.fallback, self.pools.as_slice()) {
            (Some(fallback), _) => Some(fallback.clone()),
            (None, [only]) => Some(route(only, None)),
            (None, _) => None,
        }
    }

    /// The union of models over pools: every routable name with what its engines say of it, by name.
    pub fn models(&self) -> BTreeMap<&str, ServedModel> {
        self.routes
            .iter()
            .map(|(id, route)| {
                let said = route
                    .endpoints
                    .iter()
                    .find_map(|e| e.models().iter().find(|m| m.id == *id).cloned());
                (
                    id.as_str(),
                    said.unwrap_or_else(|| ServedModel {
                        id: id.clone(),
                        ..Default::default()
                    }),
                )
            })
            .collect()
    }

    /// An endpoint by name.
    pub fn endpoint(&self, name: &str) -> Option<&Arc<Endpoint>> {
        self.pools
            .iter()
            .flat_map(|p| &p.endpoints)
            .find(|e| e.name() == name)
    }
}

fn route(pool: &Arc<Pool>, model: Option<&str>) -> Route {
    let serving: Vec<Arc<Endpoint>> = match model {
        Some(model) => pool
            .endpoints
            .iter()
            .filter(|e| e.models().iter().any(|m| m.id == model))
            .cloned()
            .collect(),
        None => Vec::new(),
    };
    let endpoints = if serving.is_empty() {
        pool.endpoints.clone()
    } else {
        serving
    };
    Route {
        pool: Arc::clone(pool),
        endpoints: endpoints.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::tests::endpoint;

    fn pool(name: &str, models: &[&str], fallback: bool) -> PoolSpec {
        PoolSpec {
            name: name.into(),
            models: models.iter().map(|m| (*m).to_owned()).collect(),
            fallback,
        }
    }

    fn serving(name: &str, models: &[&str]) -> Arc<Endpoint> {
        let e = endpoint(name);
        e.set_models(
            models
                .iter()
                .map(|m| ServedModel {
                    id: (*m).into(),
                    ..Default::default()
                })
                .collect(),
        );
        e
    }

    fn names(route: Option<&Route>) -> Vec<String> {
        route
            .map(|r| r.endpoints.iter().map(|e| e.name().to_owned()).collect())
            .unwrap_or_default()
    }

    #[test]
    fn listed_models_beat_reported_ones_and_adapters_narrow_the_candidates() {
        let view = RoutingView::build([
            (
                pool("b", &["shared"], false),
                vec![serving("b1", &["other"])],
            ),
            (
                pool("a", &[], false),
                vec![
                    serving("a2", &["base", "lora"]),
                    serving("a1", &["base", "shared"]),
                ],
            ),
        ]);
        assert_eq!(names(view.route("base")), ["a1", "a2"]);
        assert_eq!(names(view.route("lora")), ["a2"]);
        assert_eq!(names(view.route("shared")), ["b1"]);
        assert!(view.route("other").is_none() && view.route("none").is_none());
        assert_eq!(
            view.models().into_keys().collect::<Vec<_>>(),
            ["base", "lora", "shared"]
        );
        assert!(view.route_without_model().is_none());
    }

    #[test]
    fn rewrite_rules_route_their_names_to_their_pool() {
        use crate::rewrite::{ModelRewrite, RewriteRule, RewriteTarget};
        let policy = |matched: &[&str], target: &str| {
            let rule = RewriteRule {
                models: matched.iter().map(|m| (*m).to_owned()).collect(),
                targets: vec![RewriteTarget {
                    model: target.into(),
                    weight: None,
                }],
            };
            let rewrite = ModelRewrite {
                name: "r".into(),
                sticky: false,
                rules: vec![rule],
            };
            Arc::new(PoolPolicy {
                rewrites: Arc::new(ModelRewrites::new(vec![rewrite])),
                ..PoolPolicy::default()
            })
        };
        let view = RoutingView::with_policies([
            (
                pool("b", &[], false),
                policy(&["alias", "base"], "lora"),
                vec![serving("b1", &["base"]), serving("b2", &["base", "lora"])],
            ),
            (
                pool("a", &[], false),
                Arc::default(),
                vec![serving("a1", &["base"])],
            ),
        ]);
        assert_eq!(names(view.route("alias")), ["b1", "b2"]);
        assert_eq!(names(view.route("base")), ["b1", "b2"]);
        assert!(view.models().contains_key("alias"));
        let pool_b = &view.route("alias").unwrap().pool;
        assert_eq!(names(Some(&view.route_in(pool_b, &"lora".into()))), ["b2"]);
        assert_eq!(
            names(Some(&view.route_in(pool_b, &"unheard-of".into()))),
            ["b1", "b2"]
        );
        assert_eq!(view.pool("a").unwrap().endpoints.len(), 1);
        assert!(view.pool("c").is_none() && view.route("unheard-of").is_none());
        let generic = RoutingView::with_policies([
            (
                pool("a", &[], false),
                Arc::default(),
                vec![serving("a1", &["m"])],
            ),
            (
                pool("b", &[], false),
                policy(&[], "n"),
                vec![serving("b1", &["n"])],
            ),
        ]);
        assert_eq!(names(generic.route("unheard-of")), ["b1"]);
        assert_eq!(names(generic.route_without_model().as_ref()), ["b1"]);
        assert_eq!(names(generic.route("m")), ["a1"]);
    }

    #[test]
    fn a_single_pool_takes_everything_until_its_engines_have_spoken() {
        let silent = RoutingView::build([(pool("a", &[], false), vec![endpoint("a1")])]);
        assert_eq!(names(silent.route("anything")), ["a1"]);
        let spoken = RoutingView::build([(pool("a", &[], false), vec![serving("a1", &["m"])])]);
        assert!(spoken.route("anything").is_none());
        assert_eq!(names(spoken.route_without_model().as_ref()), ["a1"]);
        let fallback = RoutingView::build([
            (pool("a", &[], false), vec![serving("a1", &["m"])]),
            (pool("b", &[], true), vec![serving("b1", &["n"])]),
        ]);
        assert_eq!(names(fallback.route("anything")), ["b1"]);
    }
}
