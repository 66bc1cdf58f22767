//! Scheduling configs and their history, objectives, rewrites, tenants and keys.

use proptest::prelude::*;
use quorate_proto::{
    store::v1::{Command, Rejection, rejection::Code},
    v1::{
        ApiKeySpec, ApplyOutcome, Kind, Limits, ModelMatch, ModelRewriteRule, ModelRewriteSpec,
        ModelRewriteTarget, ObjectiveSpec, Resource, SchedulingConfigSpec, TenantSpec,
        resource::Spec,
    },
};

use super::fixtures::*;
use crate::{
    snapshot,
    state::{CONFIG_HISTORY, ControlState, Reply, ResourceExt as _, schema_of},
};

struct Machine {
    state: ControlState,
    index: u64,
}

impl Machine {
    fn new() -> Self {
        let mut machine = Self {
            state: ControlState::default(),
            index: 0,
        };
        machine.ok(init("c", "n1"));
        machine.ok(put(pool("p")));
        machine.ok(put(pool("q")));
        machine
    }

    fn run(&mut self, command: Command) -> Reply {
        self.index += 1;
        let before = bytes(&self.state);
        let mut applied = self.state.apply(self.index, &batch([command])).unwrap();
        let reply = applied.replies.remove(0);
        if let Reply::Rejected(_) = &reply {
            assert_eq!(bytes(&self.state), before, "a refusal changes nothing");
        }
        reply
    }

    fn ok(&mut self, command: Command) -> (Resource, ApplyOutcome) {
        match self.run(command) {
            Reply::Applied {
                resource, outcome, ..
            } => (Resource::clone(&resource), outcome),
            Reply::Rejected(rejection) => panic!("{rejection:?}"),
        }
    }

    fn refused(&mut self, command: Command) -> Rejection {
        match self.run(command) {
            Reply::Rejected(rejection) => rejection,
            Reply::Applied { resource, .. } => panic!("{resource:?}"),
        }
    }

    fn history(&self, config: &str) -> Vec<(u64, String)> {
        let view = self.state.view(self.index, 1);
        let mut kept: Vec<_> = view
            .list(Kind::ConfigRevision)
            .filter_map(|r| r.config_revision())
            .filter(|spec| spec.scheduling_config == config)
            .map(|spec| (spec.generation, spec.config.clone()))
            .collect();
        kept.sort();
        kept
    }
}

fn config(name: &str, pool: &str, text: &str) -> Resource {
    resource(
        name,
        Spec::SchedulingConfig(SchedulingConfigSpec {
            pool: pool.into(),
            config: text.into(),
        }),
    )
}

fn objective(name: &str, pool: &str, priority: i32) -> Resource {
    let pool = pool.into();
    resource(name, Spec::Objective(ObjectiveSpec { pool, priority }))
}

fn rewrite(pool: &str, rules: Vec<ModelRewriteRule>) -> Resource {
    let pool = pool.into();
    resource(
        "w",
        Spec::ModelRewrite(ModelRewriteSpec {
            pool,
            rules,
            sticky: true,
        }),
    )
}

fn rule(models: &[&str], targets: &[(&str, Option<u32>)]) -> ModelRewriteRule {
    ModelRewriteRule {
        matches: models
            .iter()
            .map(|m| ModelMatch { model: (*m).into() })
            .collect(),
        targets: targets
            .iter()
            .map(|(model, weight)| ModelRewriteTarget {
                model: (*model).into(),
                weight: *weight,
            })
            .collect(),
    }
}

fn tenant(spec: TenantSpec) -> Resource {
    resource("t", Spec::Tenant(spec))
}

fn key(name: &str, digest: u8) -> Resource {
    let spec = ApiKeySpec {
        tenant: "t".into(),
        sha256: vec![digest; 32],
        ..ApiKeySpec::default()
    };
    resource(name, Spec::ApiKey(spec))
}

#[test]
fn each_version_of_a_config_is_kept_until_there_are_too_many() {
    let mut m = Machine::new();
    for i in 1..=CONFIG_HISTORY as u64 + 3 {
        let (written, _) = m.ok(put(config("c", "p", &format!("v{i}"))));
        assert_eq!(written.metadata.unwrap().generation, i);
    }
    let kept = m.history("c");
    assert_eq!(kept.len(), CONFIG_HISTORY);
    assert_eq!(kept.first().unwrap(), &(4, "v4".to_owned()));
    assert_eq!(kept.last().unwrap(), &(23, "v23".to_owned()));
    // The same again, or other labels, is no new version.
    assert_eq!(
        m.ok(put(config("c", "p", "v23"))).1,
        ApplyOutcome::Unchanged
    );
    let mut labelled = config("c", "p", "v23");
    labelled
        .metadata
        .as_mut()
        .unwrap()
        .labels
        .insert("a".into(), "b".into());
    assert_eq!(m.ok(put(labelled)).1, ApplyOutcome::Updated);
    assert_eq!(m.history("c"), kept);
    // An old text is a new version of its own: that is a rollback.
    m.ok(put(config("c", "p", "v4")));
    assert_eq!(m.history("c").last().unwrap(), &(24, "v4".to_owned()));

    m.ok(put(config("other", "q", "x")));
    m.ok(delete(Kind::SchedulingConfig, "c"));
    assert!(m.history("c").is_empty());
    assert_eq!(m.history("other").len(), 1);
    m.ok(put(config("c", "p", "again")));
    assert_eq!(m.history("c"), [(1, "again".to_owned())]);
}

#[test]
fn watchers_see_a_version_with_its_config() {
    let mut m = Machine::new();
    let applied = m
        .state
        .apply(9, &batch([put(config("c", "p", "x"))]))
        .unwrap();
    let kinds: Vec<_> = applied.events.iter().map(|e| e.resource.kind()).collect();
    assert_eq!(kinds, [Kind::SchedulingConfig, Kind::ConfigRevision]);
    let revisions: Vec<_> = applied.events.iter().map(|e| e.revision).collect();
    assert_eq!(revisions[0] + 1, revisions[1]);
}

#[test]
fn a_pool_has_one_config_and_is_not_deleted_under_what_is_for_it() {
    let mut m = Machine::new();
    m.ok(put(config("c", "p", "x")));
    assert_eq!(
        m.refused(put(config("d", "p", "x"))).code(),
        Code::FailedPrecondition
    );
    let lost = m.refused(put(config("d", "nowhere", "x")));
    assert_eq!(lost.code(), Code::FailedPrecondition);
    assert!(lost.message.contains("\"nowhere\" does not exist"));
    m.ok(put(objective("o", "q", 1)));
    m.ok(put(objective("everywhere", "", -1)));
    assert!(
        m.refused(delete(Kind::Pool, "p"))
            .message
            .contains("scheduling config c")
    );
    assert!(
        m.refused(delete(Kind::Pool, "q"))
            .message
            .contains("objective o")
    );
    m.ok(delete(Kind::Objective, "o"));
    m.ok(put(rewrite("q", vec![rule(&[], &[("m", None)])])));
    assert!(
        m.refused(delete(Kind::Pool, "q"))
            .message
            .contains("model rewrite w")
    );
    m.ok(delete(Kind::ModelRewrite, "w"));
    m.ok(delete(Kind::Pool, "q"));
    // A config can move to another pool.
    m.ok(put(pool("r")));
    m.ok(put(config("c", "r", "x")));
    m.ok(put(config("d", "p", "x")));
}

#[test]
fn keys_belong_to_tenants_and_are_unique() {
    let mut m = Machine::new();
    assert_eq!(m.refused(put(key("k", 1))).code(), Code::FailedPrecondition);
    m.ok(put(tenant(TenantSpec::default())));
    m.ok(put(key("k", 1)));
    m.ok(put(key("k", 1)));
    assert!(m.refused(put(key("l", 1))).message.contains("same digest"));
    m.ok(put(key("l", 2)));
    assert!(
        m.refused(delete(Kind::Tenant, "t"))
            .message
            .contains("API key k, l")
    );
    m.ok(delete(Kind::ApiKey, "k"));
    m.ok(delete(Kind::ApiKey, "l"));
    m.ok(delete(Kind::Tenant, "t"));
}

#[test]
fn bad_fields_are_named() {
    let mut m = Machine::new();
    m.ok(put(tenant(TenantSpec::default())));
    let limits = |limits| Some(limits);
    let short_key = {
        let mut key = key("k", 1);
        if let Some(Spec::ApiKey(spec)) = &mut key.spec {
            spec.sha256.pop();
        }
        key
    };
    let many = vec![rule(&[], &[("m", None)]); 65];
    for (resource, field) in [
        (config("c", "", "x"), "spec.scheduling_config.pool"),
        (config("c", "p", " \n"), "spec.scheduling_config.config"),
        (
            config("c", "p", &"x".repeat((256 << 10) + 1)),
            "spec.scheduling_config.config",
        ),
        (config(&"c".repeat(201), "p", "x"), "metadata.name"),
        (objective("o", "P", 0), "spec.objective.pool"),
        (rewrite("p", vec![]), "spec.model_rewrite.rules"),
        (rewrite("p", many), "spec.model_rewrite.rules"),
        (
            rewrite("p", vec![rule(&["m"], &[])]),
            "spec.model_rewrite.rules[0].targets",
        ),
        (
            rewrite("p", vec![rule(&["m", ""], &[("t", None)])]),
            "spec.model_rewrite.rules[0].matches[1].model",
        ),
        (
            rewrite("p", vec![rule(&["m"], &[("t", Some(1)), ("u", Some(0))])]),
            "spec.model_rewrite.rules[0].targets[1].weight",
        ),
        (
            tenant(TenantSpec {
                models: vec!["a*b".into()],
                ..TenantSpec::default()
            }),
            "spec.tenant.models[0]",
        ),
        (
            tenant(TenantSpec {
                objectives: vec!["a".into()],
                default_objective: "b".into(),
                ..TenantSpec::default()
            }),
            "spec.tenant.default_objective",
        ),
        (
            tenant(TenantSpec {
                fairness_id: "a b".into(),
                ..TenantSpec::default()
            }),
            "spec.tenant.fairness_id",
        ),
        (
            tenant(TenantSpec {
                limits: limits(Limits {
                    requests_per_second: Some(f64::NAN),
                    ..Limits::default()
                }),
                ..TenantSpec::default()
            }),
            "spec.tenant.limits.requests_per_second",
        ),
        (
            tenant(TenantSpec {
                limits: limits(Limits {
                    concurrent: Some(0),
                    ..Limits::default()
                }),
                ..TenantSpec::default()
            }),
            "spec.tenant.limits.concurrent",
        ),
        (short_key, "spec.api_key.sha256"),
    ] {
        let rejection = m.refused(put(resource));
        assert_eq!(
            (rejection.code(), rejection.field.as_str()),
            (Code::Invalid, field),
            "{}",
            rejection.message
        );
    }
    m.ok(put(config("c", "p", "x")));
    let view = m.state.view(m.index, 1);
    let revision = view.list(Kind::ConfigRevision).next().unwrap();
    assert_eq!(
        m.refused(put(Resource::clone(revision))).code(),
        Code::Invalid
    );
    assert_eq!(
        m.refused(delete(Kind::ConfigRevision, "c:1")).code(),
        Code::Invalid
    );
}

#[test]
fn entries_carry_the_lowest_schema_that_does() {
    assert_eq!(schema_of(&[put(pool("p")), put(setting("s", "1"))]), 1);
    assert_eq!(schema_of(&[put(pool("p")), put(objective("o", "", 1))]), 2);
    assert_eq!(schema_of(&[delete(Kind::Tenant, "t")]), 2);
    assert_eq!(schema_of(&[delete(Kind::Pool, "t")]), 1);
}

proptest! {
    /// Whatever is written and deleted: the newest versions are there, without a gap, and a snapshot brings all of it back.
    #[test]
    fn history_is_the_tail_of_what_was_written(
        steps in proptest::collection::vec((0..2usize, 0..4u8, 0..8u8), 1..120)
    ) {
        let names = ["a", "b"];
        let mut m = Machine::new();
        let mut written: [Vec<String>; 2] = [vec![], vec![]];
        for (which, text, op) in steps {
            let name = names[which];
            if op == 0 {
                if !written[which].is_empty() {
                    m.ok(delete(Kind::SchedulingConfig, name));
                }
                written[which].clear();
            } else {
                let text = format!("v{text}");
                m.ok(put(config(name, ["p", "q"][which], &text)));
                if written[which].last() != Some(&text) {
                    written[which].push(text);
                }
            }
            for (name, written) in names.iter().zip(&written) {
                let from = written.len().saturating_sub(CONFIG_HISTORY);
                let expected: Vec<_> = (from as u64 + 1..).zip(written[from..].iter().cloned()).collect();
                prop_assert_eq!(m.history(name), expected);
            }
        }
        let bytes = bytes(&m.state);
        let expected = snapshot::Expected { cluster_id: Some("c"), group: "control" };
        let (_, restored) = snapshot::read_state(&*bytes, expected).unwrap();
        prop_assert_eq!(super::fixtures::bytes(&restored), bytes);
    }
}
