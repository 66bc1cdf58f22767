//! What the gateway routes by: pools, their endpoints, and which model goes where. Built anew when any of that changes and
//! published whole; loads and health change inside the endpoints without a new view.

use crate::endpoint::{Endpoint, ServedModel};
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

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

/// A pool and its endpoints in name order.
#[derive(Debug)]
pub struct Pool {
    /// Its declaration.
    pub spec: PoolSpec,
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

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct RoutingView {
    pools: Vec<Arc<Pool>>,
    routes: HashMap<String, Route>,
    fallback: Option<Route>,
}

impl RoutingView {
    /// Builds a view. Which pool a model goes to:
    ///
    /// 1. the first pool (by name) that lists the model in its spec,
    /// 2. else the first pool without such a list of which an endpoint reports the model,
    /// 3. else the pool marked as fallback; else the only pool, as long as none of its endpoints has said what it serves.
    ///
    /// Within the pool, an endpoint is a candidate if it reports the model. If none does (not known yet, or the pool's
    /// list has a name that engines do not know), all are.
    pub fn build(pools: impl IntoIterator<Item = (PoolSpec, Vec<Arc<Endpoint>>)>) -> Self {
        let mut pools: Vec<Arc<Pool>> = pools
            .into_iter()
            .map(|(spec, mut endpoints)| {
                endpoints.sort_by(|a, b| a.spec().name.cmp(&b.spec().name));
                Arc::new(Pool { spec, endpoints })
            })
            .collect();
        pools.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));

        let mut routes = HashMap::new();
        let listed = pools
            .iter()
            .flat_map(|p| p.spec.models.iter().map(move |m| (m.clone(), p)));
        let reported: Vec<(String, &Arc<Pool>)> = pools
            .iter()
            .filter(|p| p.spec.models.is_empty())
            .flat_map(|p| p.endpoints.iter().map(move |e| (p, e.models())))
            .flat_map(|(p, models)| models.iter().map(|m| (m.id.clone(), p)).collect::<Vec<_>>())
            .collect();
        for (model, pool) in listed.chain(reported) {
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
        let fallback = match (pools.iter().find(|p| p.spec.fallback), pools.as_slice()) {
            (Some(pool), _) => Some(route(pool, None)),
            (None, [only]) if only.spec.models.is_empty() && !any_reported() => {
                Some(route(only, None))
            }
            _ => None,
        };
        Self {
            pools,
            routes,
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
