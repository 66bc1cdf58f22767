//! Which declared endpoint belongs to which pool and with which policies. Pure: declared resources in, a placement out.

use crate::policy::{self, HealthPolicy};
use quorate_proto::v1::{self, resource::Spec};
use quorate_routing::{EndpointSpec, PoolSpec, Target, TargetError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the cluster's replicated state declares; pushed whole with every change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// Resources with a pool spec.
    pub pools: Vec<v1::Resource>,
    /// Resources with an endpoint spec.
    pub endpoints: Vec<v1::Resource>,
    /// Resources with a scheduling config spec.
    pub configs: Vec<v1::Resource>,
    /// Resources with an objective spec.
    pub objectives: Vec<v1::Resource>,
    /// Resources with a model rewrite spec.
    pub rewrites: Vec<v1::Resource>,
}

/// How an endpoint is looked after.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeSpec {
    /// Timers, thresholds and path.
    pub health: HealthPolicy,
    /// The engine if the endpoint or its pool says.
    pub engine: v1::Engine,
    /// The metrics page if it is not on the endpoint's own address.
    pub metrics: Option<PageUrl>,
}

/// Address of a page: where to connect, and what to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageUrl {
    /// Scheme, host and port.
    pub target: Target,
    /// Path and query; begins with a slash.
    pub path: String,
}

impl PageUrl {
    /// Parses `http://host:port/path?query`.
    ///
    /// # Errors
    /// What is wrong with scheme, host or port.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let after_scheme = url.find("://").map_or(0, |at| at + 3);
        let authority = url.get(after_scheme..).unwrap_or_default();
        let slash = authority
            .find('/')
            .map_or(url.len(), |at| after_scheme + at);
        let (base, path) = url.split_at(slash);
        Ok(Self {
            target: Target::parse(base)?,
            path: if path.is_empty() { "/" } else { path }.to_owned(),
        })
    }
}

/// One endpoint with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// What the request path needs.
    pub endpoint: EndpointSpec,
    /// What its owner needs.
    pub probe: ProbeSpec,
    /// Takes no new requests.
    pub draining: bool,
}

/// All pools and endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    /// Pools by name.
    pub pools: BTreeMap<Arc<str>, PoolSpec>,
    /// Endpoints by name; each one's pool is in `pools`.
    pub endpoints: BTreeMap<Arc<str>, Placed>,
    /// Declared endpoints that cannot be used at all, with the reason.
    pub unplaced: BTreeMap<String, String>,
}

/// Places every declared endpoint. An endpoint goes to the pool that it names, else to the first pool by name whose selector
/// it matches; an empty selector matches nothing.
pub fn place(declared: &Declared) -> Placement {
    let pools: BTreeMap<&str, &v1::PoolSpec> = declared
        .pools
        .iter()
        .filter_map(|r| match (&r.metadata, &r.spec) {
            (Some(meta), Some(Spec::Pool(pool))) => Some((meta.name.as_str(), pool)),
            _ => None,
        })
        .collect();
    let names: BTreeSet<Arc<str>> = pools.keys().map(|name| Arc::from(*name)).collect();
    let mut placement = Placement {
        pools: pools
            .iter()
            .map(|(name, pool)| {
                let name: Arc<str> = Arc::from(*name);
                let spec = PoolSpec {
                    name: Arc::clone(&name),
                    models: pool.models.clone(),
                    fallback: pool.fallback,
                };
                (name, spec)
            })
            .collect(),
        ..Default::default()
    };
    for resource in &declared.endpoints {
        let (Some(meta), Some(Spec::Endpoint(spec))) = (&resource.metadata, &resource.spec) else {
            continue;
        };
        match place_one(meta, spec, &pools, &names) {
            Ok(placed) => {
                let name = Arc::clone(&placed.endpoint.name);
                placement.endpoints.insert(name, placed);
            }
            Err(why) => {
                placement.unplaced.insert(meta.name.clone(), why);
            }
        }
    }
    placement
}

fn place_one(
    meta: &v1::Metadata,
    spec: &v1::EndpointSpec,
    pools: &BTreeMap<&str, &v1::PoolSpec>,
    names: &BTreeSet<Arc<str>>,
) -> Result<Placed, String> {
    let (pool_name, pool) = if spec.pool.is_empty() {
        pools
            .iter()
            .find(|(_, pool)| selects(&pool.selector, &meta.labels))
            .ok_or("it names no pool and no pool's selector matches its labels")?
    } else {
        pools
            .get_key_value(spec.pool.as_str())
            .ok_or_else(|| format!("its pool {:?} does not exist", spec.pool))?
    };
    let target = Target::parse(&spec.url).map_err(|e| format!("its url is not usable: {e}"))?;
    let metrics = match spec.metrics_url.as_str() {
        "" => None,
        url => {
            Some(PageUrl::parse(url).map_err(|e| format!("its metrics_url is not usable: {e}"))?)
        }
    };
    let engine = match spec.engine() {
        v1::Engine::Unspecified => pool.engine(),
        engine => engine,
    };
    let health = HealthPolicy::from_proto(pool.health.as_ref());
    Ok(Placed {
        endpoint: EndpointSpec {
            name: meta.name.as_str().into(),
            incarnation: meta.incarnation,
            pool: names
                .get(*pool_name)
                .cloned()
                .unwrap_or_else(|| Arc::from(*pool_name)),
            target,
            h2c: pool.app_protocol == "kubernetes.io/h2c",
            region: spec.region.as_str().into(),
            rank: spec.data_parallel_rank,
            labels: meta.labels.clone(),
            breaker: policy::breaker(pool.breaker.as_ref()),
            slow_start: health.slow_start,
            stall_timeout: health.stall_timeout,
        },
        probe: ProbeSpec {
            health,
            engine,
            metrics,
        },
        draining: spec.draining,
    })
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn pool(name: &str, spec: v1::PoolSpec) -> v1::Resource {
        v1::Resource {
            metadata: Some(v1::Metadata {
                name: name.into(),
                incarnation: 1,
                ..Default::default()
            }),
            spec: Some(Spec::Pool(spec)),
        }
    }

    pub(crate) fn endpoint(name: &str, pool: &str, url: &str) -> v1::Resource {
        v1::Resource {
            metadata: Some(v1::Metadata {
                name: name.into(),
                incarnation: 7,
                ..Default::default()
            }),
            spec: Some(Spec::Endpoint(v1::EndpointSpec {
                pool: pool.into(),
                url: url.into(),
                ..Default::default()
            })),
        }
    }

    fn labelled(mut r: v1::Resource, labels: &[(&str, &str)]) -> v1::Resource {
        r.metadata.as_mut().unwrap().labels = labels
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        r
    }

    fn selecting(k: &str, v: &str) -> v1::PoolSpec {
        v1::PoolSpec {
            selector: BTreeMap::from([(k.into(), v.into())]),
            engine: v1::Engine::Sglang as i32,
            app_protocol: "kubernetes.io/h2c".into(),
            ..Default::default()
        }
    }

    #[test]
    fn named_pools_go_before_selectors_and_the_rest_says_why_not() {
        let declared = Declared {
            pools: vec![
                pool("a", v1::PoolSpec::default()),
                pool("b", selecting("app", "x")),
                pool("c", selecting("app", "x")),
            ],
            endpoints: vec![
                labelled(endpoint("named", "a", "http://h:1"), &[("app", "x")]),
                labelled(
                    endpoint("selected", "", "http://[::1]:1"),
                    &[("app", "x"), ("t", "1")],
                ),
                labelled(endpoint("nowhere", "", "http://h:1"), &[("app", "y")]),
                endpoint("lost", "z", "http://h:1"),
                endpoint("bad", "a", "h:1"),
            ],
            ..Declared::default()
        };
        let placement = place(&declared);
        let of = |name: &str| placement.endpoints.get(name).unwrap();
        assert_eq!(&*of("named").endpoint.pool, "a");
        assert!(!of("named").endpoint.h2c);
        assert_eq!(&*of("selected").endpoint.pool, "b");
        assert!(of("selected").endpoint.h2c);
        assert_eq!(of("selected").probe.engine, v1::Engine::Sglang);
        assert_eq!(placement.endpoints.len(), 2);
        assert_eq!(
            placement.unplaced.keys().collect::<Vec<_>>(),
            ["bad", "lost", "nowhere"]
        );
        assert!(placement.unplaced["lost"].contains("\"z\" does not exist"));
        assert!(placement.unplaced["bad"].contains("http://"));
    }

    #[test]
    fn page_urls_have_a_path_of_their_own() {
        let page = PageUrl::parse("http://[fd00::1]:8002/m?x=1").unwrap();
        assert_eq!(page.target.authority, "[fd00::1]:8002");
        assert_eq!(page.path, "/m?x=1");
        assert_eq!(PageUrl::parse("https://h").unwrap().path, "/");
        for bad in ["h/metrics", "http:///metrics", "", "http://u@h/"] {
            assert!(PageUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
