//! How each pool schedules: from the declared scheduling configs, objectives and model rewrites to the policies of the routing view.
//!
//! A policy is kept for as long as what it is made of stays the same, and a compiled config for as long as its text does, because
//! both have state (counts, sessions, caches) that a needless change would lose. A config that this build cannot compile
//! leaves the one before it in use and says so.

use crate::catalog::Declared;
use metrics::{counter, gauge};
use quorate_proto::v1::{self, resource::Spec};
use quorate_routing::config::{CompiledPolicy, EndpointPickerConfig, Registry};
use quorate_routing::flow::FlowControl;
use quorate_routing::{
    ModelRewrite, ModelRewrites, Objectives, PoolPolicy, RewriteRule, RewriteTarget,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// The policies of all pools. Changed by the directory only.
#[derive(Default)]
pub struct Policies {
    pools: BTreeMap<String, PoolState>,
    registry: Registry,
}

#[derive(Default)]
struct PoolState {
    config: Option<Config>,
    /// Text that could not be compiled, and why.
    refused: Option<(String, String)>,
    /// Name and priority.
    objectives: Vec<(String, i32)>,
    rewrites: Vec<ModelRewrite>,
    policy: Arc<PoolPolicy>,
    /// Kept for the pool's life once it was needed: who waits in it keeps his place when the rules change.
    flow: Option<Arc<FlowControl>>,
}

/// A config in use.
struct Config {
    name: String,
    generation: u64,
    text: String,
    compiled: CompiledPolicy,
    warnings: Vec<String>,
}

impl Policies {
    /// None yet. Routers of the same cluster hash prompts alike, so that they can tell each other what they learnt.
    pub fn of_cluster(id: &str, registry: Registry) -> Self {
        Self {
            pools: BTreeMap::new(),
            registry: registry.with_secret(xxh3_64(id.as_bytes())),
        }
    }

    /// Takes in what is declared now.
    pub fn update(&mut self, declared: &Declared) {
        let pools: Vec<&str> = declared.pools.iter().filter_map(name_of).collect();
        self.pools.retain(|name, _| {
            let stays = pools.contains(&name.as_str());
            if !stays {
                report(name, 0);
            }
            stays
        });
        for pool in pools {
            let state = self.pools.entry(pool.to_owned()).or_default();
            state.update(pool, declared, &self.registry);
        }
    }

    /// A pool's policy.
    pub fn of(&self, pool: &str) -> Arc<PoolPolicy> {
        self.pools
            .get(pool)
            .map_or_else(Arc::default, |state| Arc::clone(&state.policy))
    }

    /// What a pool is scheduled by, but for the node that says so.
    pub fn status(&self, pool: &str) -> Option<v1::PoolStatus> {
        let state = self.pools.get(pool)?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let config = state.config.as_ref();
        Some(v1::PoolStatus {
            node_id: 0,
            scheduling_config: config.map(|c| c.name.clone()).unwrap_or_default(),
            generation: config.map_or(0, |c| c.generation),
            problem: state
                .refused
                .as_ref()
                .map(|(_, why)| why.clone())
                .unwrap_or_default(),
            warnings: config.map(|c| c.warnings.clone()).unwrap_or_default(),
            objectives: count(state.objectives.len()),
            rewrite_rules: count(state.rewrites.iter().map(|r| r.rules.len()).sum()),
        })
    }
}

impl PoolState {
    fn update(&mut self, pool: &str, declared: &Declared, registry: &Registry) {
        let config = self.take_config(pool, declared, registry);
        let objectives = objectives(pool, declared);
        let rewrites = rewrites(pool, declared);
        if !config && objectives == self.objectives && rewrites == self.rewrites {
            return;
        }
        let mut policy = PoolPolicy::clone(&self.policy);
        if config {
            let default = PoolPolicy::default();
            policy.scheduler = match &self.config {
                Some(config) => Arc::clone(&config.compiled.scheduler) as _,
                None => default.scheduler,
            };
            policy.learners = match &self.config {
                Some(config) => Arc::clone(&config.compiled.learners),
                None => default.learners,
            };
            let compiled = self.config.as_ref().map(|c| &c.compiled);
            policy.agent_identity = compiled.and_then(|c| c.agent_identity.clone());
            policy.burst = compiled.and_then(|c| c.burst.clone());
            policy.tokens = compiled.and_then(|c| c.tokens.clone());
            if let Some(tokens) = &policy.tokens {
                tokens.prepare();
            }
            policy.cache = compiled.and_then(|c| c.cache.clone());
            policy.prefixes = compiled.and_then(|c| c.prefixes.clone());
            policy.reports = compiled.map_or_else(|| Arc::from([]), |c| Arc::clone(&c.reports));
            let rules = compiled.and_then(|c| c.flow.clone());
            policy.flow = rules.map(|rules| {
                let new = || FlowControl::new(pool, rules.clone());
                let flow = self.flow.get_or_insert_with(new);
                flow.reconfigure(rules.clone());
                Arc::clone(flow)
            });
        }
        if objectives != self.objectives {
            policy.objectives = Arc::new(objectives.iter().cloned().collect::<Objectives>());
            self.objectives = objectives;
        }
        if rewrites != self.rewrites {
            policy.rewrites = Arc::new(ModelRewrites::new(rewrites.clone()));
            self.rewrites = rewrites;
        }
        self.policy = Arc::new(policy);
    }

    /// True if another config is in use from now on.
    fn take_config(&mut self, pool: &str, declared: &Declared, registry: &Registry) -> bool {
        let found = declared
            .configs
            .iter()
            .find_map(|r| match (&r.metadata, &r.spec) {
                (Some(meta), Some(Spec::SchedulingConfig(spec))) if spec.pool == pool => {
                    Some((meta, spec))
                }
                _ => None,
            });
        let Some((meta, spec)) = found else {
            self.refused = None;
            if self.config.take().is_none() {
                return false;
            }
            report(pool, 0);
            tracing::info!(pool, "the built-in scheduling is in effect");
            return true;
        };
        if let Some(config) = &mut self.config
            && config.text == spec.config
        {
            // Other labels, or back to what is in use still.
            config.name.clone_from(&meta.name);
            config.generation = meta.generation;
            self.refused = None;
            report(pool, meta.generation);
            return false;
        }
        if matches!(&self.refused, Some((text, _)) if *text == spec.config) {
            return false;
        }
        match compile(&spec.config, registry) {
            Ok((compiled, warnings)) => {
                tracing::info!(
                    pool,
                    config = meta.name,
                    generation = meta.generation,
                    "scheduling config in effect"
                );
                report(pool, meta.generation);
                self.refused = None;
                self.config = Some(Config {
                    name: meta.name.clone(),
                    generation: meta.generation,
                    text: spec.config.clone(),
                    compiled,
                    warnings,
                });
                true
            }
            Err(why) => {
                tracing::error!(
                    pool,
                    config = meta.name,
                    generation = meta.generation,
                    why,
                    "this build cannot use the scheduling config: the one before it stays in effect"
                );
                counter!("quorate_scheduling_config_refused_total", "pool" => pool.to_owned())
                    .increment(1);
                self.refused = Some((
                    spec.config.clone(),
                    format!("generation {} cannot be used: {why}", meta.generation),
                ));
                false
            }
        }
    }
}

fn compile(text: &str, registry: &Registry) -> Result<(CompiledPolicy, Vec<String>), String> {
    let parsed = EndpointPickerConfig::parse(text).map_err(|errors| errors.to_string())?;
    let compiled = parsed
        .config
        .compile_with(registry)
        .map_err(|errors| errors.to_string())?;
    let all = parsed.warnings.iter().chain(&compiled.warnings);
    let warnings = all.map(ToString::to_string).collect();
    Ok((compiled, warnings))
}

/// The generation in use, 0 for the built-in scheduling.
fn report(pool: &str, generation: u64) {
    gauge!("quorate_scheduling_config_generation", "pool" => pool.to_owned())
        .set(generation as f64);
}

fn name_of(resource: &v1::Resource) -> Option<&str> {
    resource.metadata.as_ref().map(|m| m.name.as_str())
}

/// Whether something is for this pool: it names it, or none.
fn is_for(pool: &str, named: &str) -> bool {
    named.is_empty() || named == pool
}

fn objectives(pool: &str, declared: &Declared) -> Vec<(String, i32)> {
    let of = |r: &v1::Resource| match &r.spec {
        Some(Spec::Objective(spec)) if is_for(pool, &spec.pool) => {
            Some((name_of(r)?.to_owned(), spec.priority))
        }
        _ => None,
    };
    declared.objectives.iter().filter_map(of).collect()
}

/// The oldest first: an incarnation is the number of the change that created the object.
fn rewrites(pool: &str, declared: &Declared) -> Vec<ModelRewrite> {
    let mut found: Vec<(u64, ModelRewrite)> = declared
        .rewrites
        .iter()
        .filter_map(|r| match (&r.metadata, &r.spec) {
            (Some(meta), Some(Spec::ModelRewrite(spec))) if is_for(pool, &spec.pool) => {
                Some((meta.incarnation, rewrite(&meta.name, spec)))
            }
            _ => None,
        })
        .collect();
    found.sort_by_key(|(incarnation, _)| *incarnation);
    found.into_iter().map(|(_, rewrite)| rewrite).collect()
}

fn rewrite(name: &str, spec: &v1::ModelRewriteSpec) -> ModelRewrite {
    let rule = |rule: &v1::ModelRewriteRule| RewriteRule {
        models: rule.matches.iter().map(|m| m.model.clone()).collect(),
        targets: rule
            .targets
            .iter()
            .map(|target| RewriteTarget {
                model: target.model.as_str().into(),
                weight: target.weight,
            })
            .collect(),
    };
    ModelRewrite {
        name: name.into(),
        sticky: spec.sticky,
        rules: spec.rules.iter().map(rule).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::pool;

    fn resource(name: &str, incarnation: u64, generation: u64, spec: Spec) -> v1::Resource {
        v1::Resource {
            metadata: Some(v1::Metadata {
                name: name.into(),
                incarnation,
                generation,
                ..Default::default()
            }),
            spec: Some(spec),
        }
    }

    fn config(pool: &str, generation: u64, text: &str) -> v1::Resource {
        let spec = v1::SchedulingConfigSpec {
            pool: pool.into(),
            config: text.into(),
        };
        resource("c", 1, generation, Spec::SchedulingConfig(spec))
    }

    fn objective(name: &str, pool: &str, priority: i32) -> v1::Resource {
        let pool = pool.into();
        let spec = v1::ObjectiveSpec { pool, priority };
        resource(name, 1, 1, Spec::Objective(spec))
    }

    fn rewriting(name: &str, incarnation: u64, pool: &str, from: &str, to: &str) -> v1::Resource {
        let spec = v1::ModelRewriteSpec {
            pool: pool.into(),
            rules: vec![v1::ModelRewriteRule {
                matches: vec![v1::ModelMatch { model: from.into() }],
                targets: vec![v1::ModelRewriteTarget {
                    model: to.into(),
                    weight: None,
                }],
            }],
            sticky: false,
        };
        resource(name, incarnation, 1, Spec::ModelRewrite(spec))
    }

    fn two_pools() -> Declared {
        Declared {
            pools: vec![
                pool("a", v1::PoolSpec::default()),
                pool("b", v1::PoolSpec::default()),
            ],
            ..Declared::default()
        }
    }

    const GOOD: &str = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorer\n\
                        - type: max-score-picker\nschedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: queue-scorer\n";

    #[test]
    fn a_policy_stays_as_long_as_nothing_in_it_changes() {
        let mut policies = Policies::default();
        let mut declared = two_pools();
        policies.update(&declared);
        let (a, b) = (policies.of("a"), policies.of("b"));
        declared.configs = vec![config("a", 1, GOOD)];
        policies.update(&declared);
        let with_config = policies.of("a");
        assert!(!Arc::ptr_eq(&a, &with_config) && Arc::ptr_eq(&b, &policies.of("b")));
        assert_eq!(policies.status("a").unwrap().generation, 1);
        // The same text under another generation (labels alone do not make one, but going back and forth does).
        declared.configs = vec![config("a", 3, GOOD)];
        policies.update(&declared);
        assert!(Arc::ptr_eq(&with_config, &policies.of("a")));
        assert_eq!(policies.status("a").unwrap().generation, 3);
        // An objective changes the policy, and keeps the compiled pipeline with all that it remembers.
        declared.objectives = vec![objective("o", "", 7), objective("only-b", "b", 1)];
        policies.update(&declared);
        let with_objective = policies.of("a");
        assert!(!Arc::ptr_eq(&with_config, &with_objective));
        assert!(Arc::ptr_eq(
            &with_config.scheduler,
            &with_objective.scheduler
        ));
        assert_eq!(with_objective.objectives.priority(Some("o")), 7);
        assert_eq!(with_objective.objectives.priority(Some("only-b")), 0);
        assert_eq!(policies.of("b").objectives.priority(Some("only-b")), 1);
        // Without the config the built-in scheduling is back, and the objective stays.
        declared.configs.clear();
        policies.update(&declared);
        assert!(!Arc::ptr_eq(
            &policies.of("a").scheduler,
            &with_config.scheduler
        ));
        assert_eq!(policies.of("a").objectives.priority(Some("o")), 7);
        assert_eq!(policies.status("a").unwrap().scheduling_config, "");
        declared.pools.remove(0);
        policies.update(&declared);
        assert!(policies.status("a").is_none());
    }

    #[test]
    fn flow_control_outlives_its_rules() {
        let mut policies = Policies::default();
        let mut declared = two_pools();
        let gated = |ttl: &str| {
            format!(
                "{GOOD}featureGates: [flowControl]\nflowControl: {{defaultRequestTTL: {ttl}}}\n"
            )
        };
        declared.configs = vec![config("a", 1, &gated("10s"))];
        policies.update(&declared);
        let first = policies.of("a").flow.clone().unwrap();
        assert!(policies.of("b").flow.is_none());
        declared.configs = vec![config("a", 2, &gated("20s"))];
        policies.update(&declared);
        let second = policies.of("a").flow.clone().unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        declared.configs = vec![config("a", 3, GOOD)];
        policies.update(&declared);
        assert!(policies.of("a").flow.is_none());
    }

    #[test]
    fn what_cannot_be_used_leaves_the_one_before_in_use() {
        let mut policies = Policies::default();
        let mut declared = two_pools();
        declared.configs = vec![config("a", 1, GOOD)];
        policies.update(&declared);
        let before = policies.of("a");
        let unknown = GOOD.replace("max-score-picker", "from-the-future");
        declared.configs = vec![config("a", 2, &unknown)];
        policies.update(&declared);
        assert!(Arc::ptr_eq(&before, &policies.of("a")));
        let status = policies.status("a").unwrap();
        assert_eq!(status.generation, 1);
        assert!(
            status.problem.contains("generation 2") && status.problem.contains("from-the-future"),
            "{}",
            status.problem
        );
        declared.configs = vec![config("a", 3, GOOD)];
        policies.update(&declared);
        assert!(Arc::ptr_eq(&before, &policies.of("a")));
        let status = policies.status("a").unwrap();
        assert_eq!((status.generation, status.problem.as_str()), (3, ""));
    }

    #[test]
    fn the_oldest_rewrite_goes_first() {
        let mut policies = Policies::default();
        let mut declared = two_pools();
        declared.rewrites = vec![
            rewriting("a-young", 9, "a", "m", "young"),
            rewriting("b-old", 3, "", "m", "old"),
            rewriting("c-other", 1, "b", "m", "other"),
        ];
        policies.update(&declared);
        let target = |pool: &str| {
            let policy = policies.of(pool);
            let rewritten = policy.rewrites.decide("m", None, 0).unwrap();
            rewritten.model.to_string()
        };
        assert_eq!(
            (target("a").as_str(), target("b").as_str()),
            ("old", "other")
        );
        assert_eq!(policies.status("a").unwrap().rewrite_rules, 2);
    }
}
