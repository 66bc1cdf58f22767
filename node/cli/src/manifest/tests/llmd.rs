//! Scheduling: Quorate's own form and llm-d's objects, good and bad.

use quorate_proto::v1::{
    ApiKeySpec, Limits, ModelMatch, ModelRewriteRule, ModelRewriteSpec, ModelRewriteTarget,
    ObjectiveSpec, SchedulingConfigSpec, TenantSpec, resource::Spec,
};

use super::*;

fn spec_of(document: &Document) -> &Spec {
    document.resource.spec.as_ref().unwrap()
}

fn problems(text: &str) -> String {
    parse(text)
        .map(|m| format!("{m:?}"))
        .unwrap_err()
        .to_string()
}

const EPP: &str = "\
# What we use in production.
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer # not the newest
- type: prefix-cache-scorer
  parameters: {a: 1}
";

#[test]
fn an_endpoint_picker_config_is_kept_to_the_letter() {
    let document = one(EPP);
    let Spec::SchedulingConfig(spec) = spec_of(&document) else {
        panic!("{document:?}");
    };
    assert_eq!((spec.config.as_str(), spec.pool.as_str()), (EPP, ""));
    assert_eq!(document.name(), "");
    // The server names places in the text; they are lines of the file.
    assert_eq!(document.line_of("spec.config.plugins[1].type"), 6);
    assert_eq!(document.line_of("spec.config.plugins[1].parameters.a"), 7);
    assert_eq!(document.line_of("spec.config.plugins[9].type"), 4);

    let with_pool = format!(
        "{FULL_POOL}---\n{EPP}metadata:\n  annotations: {{quorate/pool: chat}}\n  name: tuned\n...\n"
    );
    let manifest = parse(&with_pool).unwrap();
    let [_, document] = manifest.documents.as_slice() else {
        panic!("{manifest:?}");
    };
    let Spec::SchedulingConfig(spec) = spec_of(document) else {
        panic!("{document:?}");
    };
    assert_eq!((document.name(), spec.pool.as_str()), ("tuned", "chat"));
    assert!(spec.config.starts_with("# What we use") && spec.config.ends_with("name: tuned\n"));

    // What cannot be cut out as text is written anew.
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: llm-d.ai/v1alpha1, kind: EndpointPickerConfig, plugins: []}\n";
    let document = one(list);
    let Spec::SchedulingConfig(spec) = spec_of(&document) else {
        panic!("{document:?}");
    };
    assert!(
        spec.config.contains("kind: EndpointPickerConfig"),
        "{spec:?}"
    );
}

#[test]
fn llm_d_objects_are_taken_as_they_are() {
    let objective = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata: {name: batch, namespace: prod}
spec:
  priority: -10
  criticality: Sheddable
  poolRef: {group: inference.networking.k8s.io, kind: InferencePool, name: chat}
status: {conditions: []}
";
    let manifest = parse(objective).unwrap();
    assert_eq!(
        spec_of(&manifest.documents[0]),
        &Spec::Objective(ObjectiveSpec {
            pool: "chat".into(),
            priority: -10
        })
    );
    let warned: Vec<_> = manifest.warnings.iter().map(|w| w.path.as_str()).collect();
    assert_eq!(warned, ["metadata.namespace", "spec.criticality"]);

    let rewrite = "\
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: {name: canary}
spec:
  poolRef: {name: chat}
  rules:
  - matches: [{model: {type: Exact, value: gpt}}, {model: {value: gpt-5}}]
    targets: [{modelRewrite: a, weight: 90}, {modelRewrite: b, weight: 10}]
  - targets: [{modelRewrite: c}]
";
    let target = |model: &str, weight| ModelRewriteTarget {
        model: model.into(),
        weight,
    };
    let matching = |model: &str| ModelMatch {
        model: model.into(),
    };
    let expected = ModelRewriteSpec {
        pool: "chat".into(),
        rules: vec![
            ModelRewriteRule {
                matches: vec![matching("gpt"), matching("gpt-5")],
                targets: vec![target("a", Some(90)), target("b", Some(10))],
            },
            ModelRewriteRule {
                matches: vec![],
                targets: vec![target("c", None)],
            },
        ],
        sticky: false,
    };
    assert_eq!(
        spec_of(&one(rewrite)),
        &Spec::ModelRewrite(expected.clone())
    );
    let own = "\
apiVersion: quorate/v1
kind: ModelRewrite
metadata: {name: canary}
spec:
  pool: chat
  sticky: true
  rules:
  - matches: [{model: gpt}, {model: gpt-5}]
    targets: [{model: a, weight: 90}, {model: b, weight: 10}]
  - targets: [{model: c}]
";
    let sticky = ModelRewriteSpec {
        sticky: true,
        ..expected
    };
    assert_eq!(spec_of(&one(own)), &Spec::ModelRewrite(sticky));
}

#[test]
fn mistakes_in_llm_d_objects_are_errors() {
    let rewrite = |rules: &str| {
        problems(&format!(
            "apiVersion: llm-d.ai/v1alpha2\nkind: InferenceModelRewrite\nmetadata: {{name: x}}\nspec: {{rules: {rules}}}\n"
        ))
    };
    for (rules, said) in [
        (
            "[{matches: [{model: {type: Prefix, value: a}}], targets: [{modelRewrite: b}]}]",
            "\"Prefix\" is none of Exact",
        ),
        (
            "[{matches: [{}], targets: [{modelRewrite: b}]}]",
            "spec.rules[0].matches[0].model: is missing",
        ),
        (
            "[{targets: [{weight: 3}]}]",
            "spec.rules[0].targets[0].modelRewrite: is missing",
        ),
        (
            "[{targets: [{modelRewrite: b, weight: heavy}]}]",
            "must be a whole number",
        ),
        ("7", "must be a list"),
    ] {
        let problems = rewrite(rules);
        assert!(problems.contains(said), "{problems}");
    }
    let objective = problems(
        "apiVersion: llm-d.ai/v1alpha2\nkind: InferenceObjective\nmetadata: {name: x}\nspec: {priority: 3000000000}\n",
    );
    assert!(
        objective.contains("from -2147483648 to 2147483647"),
        "{objective}"
    );
}

#[test]
fn own_forms_of_scheduling_and_tenancy() {
    let config = one(
        "apiVersion: quorate/v1\nkind: SchedulingConfig\nmetadata: {name: chat}\nspec:\n  pool: chat\n  config:\n    \
         plugins:\n    - type: queue-scorer\n",
    );
    assert_eq!(
        spec_of(&config),
        &Spec::SchedulingConfig(SchedulingConfigSpec {
            pool: "chat".into(),
            config: "{\"plugins\":[{\"type\":\"queue-scorer\"}]}".into()
        })
    );
    assert_eq!(config.line_of("spec.config.plugins[0].type"), 8);
    let tenant = one(
        "apiVersion: quorate/v1\nkind: Tenant\nmetadata: {name: t}\nspec:\n  models: ['a*', b]\n  objectives: [o]\n  \
         defaultObjective: o\n  fairnessId: f\n  trusted: true\n  limits: {requestsPerSecond: 0.5, tokensPerMinute: 9, concurrent: 2}\n",
    );
    assert_eq!(
        spec_of(&tenant),
        &Spec::Tenant(TenantSpec {
            models: vec!["a*".into(), "b".into()],
            objectives: vec!["o".into()],
            default_objective: "o".into(),
            fairness_id: "f".into(),
            trusted: true,
            limits: Some(Limits {
                requests_per_second: Some(0.5),
                tokens_per_minute: Some(9),
                concurrent: Some(2)
            }),
            ..TenantSpec::default()
        })
    );
    let digest = "0f".repeat(32);
    let key = one(&format!(
        "apiVersion: quorate/v1\nkind: ApiKey\nmetadata: {{name: k}}\nspec: {{tenant: t, sha256: {digest}, expiresAt: 2030-01-01T00:00:00Z, revoked: true}}\n"
    ));
    assert_eq!(
        spec_of(&key),
        &Spec::ApiKey(ApiKeySpec {
            tenant: "t".into(),
            sha256: vec![15; 32],
            expires_at: Some(prost_types::Timestamp {
                seconds: 1_893_456_000,
                nanos: 0
            }),
            revoked: true,
            ..ApiKeySpec::default()
        })
    );
    for (spec, said) in [
        (
            "kind: ApiKey\nspec: {tenant: t, sha256: abc}",
            "64 hexadecimal digits",
        ),
        (
            "kind: ApiKey\nspec: {tenant: t, sha256: x, expiresAt: soon}",
            "is no time",
        ),
        (
            "kind: Tenant\nspec: {limits: {concurent: 3}}",
            "did you mean \"concurrent\"?",
        ),
        (
            "kind: Objective\nspec: {priority: high}",
            "must be a whole number",
        ),
        (
            "kind: SchedulingConfig\nspec: {pool: p, config: [a]}",
            "must be an object or its text",
        ),
        (
            "kind: SchedulingConfig\nspec: {config: a}",
            "spec.pool: is missing",
        ),
        (
            "kind: ConfigRevision\nspec: {}",
            "written by the cluster itself",
        ),
    ] {
        let problems = problems(&format!(
            "apiVersion: quorate/v1\nmetadata: {{name: x}}\n{spec}\n"
        ));
        assert!(problems.contains(said), "{problems}");
    }
}
