//! Reading and compiling: a corpus of configurations, what is refused and how it is said.

mod corpus;

use super::*;
use corpus::CORPUS;
use proptest::prelude::*;
use std::time::Duration;

const HEAD: &str = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";

fn parse(rest: &str) -> Result<Parsed, ConfigErrors> {
    EndpointPickerConfig::parse(&format!("{HEAD}{rest}"))
}

fn errors(rest: &str) -> String {
    match parse(rest).map(|parsed| parsed.config.compile()) {
        Err(errors) | Ok(Err(errors)) => errors.to_string(),
        Ok(Ok(_)) => panic!("accepted: {rest}"),
    }
}

fn warnings(rest: &str) -> Vec<String> {
    let parsed = parse(rest).unwrap();
    let compiled = parsed.config.compile().unwrap();
    parsed
        .warnings
        .iter()
        .chain(&compiled.warnings)
        .map(ToString::to_string)
        .collect()
}

#[test]
fn the_corpus_and_the_presets_compile_and_come_back() {
    let texts = CORPUS.iter().map(|rest| format!("{HEAD}{rest}"));
    for text in texts.chain(presets::ALL.iter().map(|(_, text)| (*text).to_owned())) {
        let parsed = EndpointPickerConfig::parse(&text).unwrap_or_else(|e| panic!("{text}\n{e}"));
        parsed
            .config
            .compile()
            .unwrap_or_else(|e| panic!("{text}\n{e}"));
        let yaml = parsed.config.to_yaml().unwrap();
        let again = EndpointPickerConfig::parse(&yaml).unwrap_or_else(|e| panic!("{yaml}\n{e}"));
        assert_eq!(again.config, parsed.config, "{yaml}");
        let json = serde_json::to_string(&parsed.config).unwrap();
        assert_eq!(
            EndpointPickerConfig::parse(&json).unwrap().config,
            parsed.config
        );
    }
}

#[test]
fn every_type_compiles_or_says_why_not() {
    for kind in registry::type_names() {
        let text = format!(
            "plugins:\n- type: {kind}\n- {{name: other, type: queue-scorer}}\nschedulingProfiles:\n- {{name: decode, plugins: [{{pluginRef: other}}]}}\n"
        );
        if let Err(errors) = parse(&text).unwrap().config.compile() {
            let said = errors.to_string();
            assert!(
                [
                    "is not supported",
                    "is required",
                    "must not be empty",
                    "is no decider",
                    "there is no profile"
                ]
                .iter()
                .any(|why| said.contains(why)),
                "{kind}: {said}"
            );
        }
    }
}

#[test]
fn without_profiles_the_plugins_make_one() {
    let compiled = parse("plugins:\n- type: queue-scorer\n- type: random-picker\n")
        .unwrap()
        .config
        .compile()
        .unwrap();
    let profile = &compiled.scheduler.profiles[0];
    assert_eq!(
        (&*profile.name, profile.scorers.len(), &*profile.picker.name),
        ("default", 1, "random-picker")
    );
    assert_eq!(profile.scorers[0].weight, 1.0);
    let builtin = parse("").unwrap().config.compile().unwrap().scheduler;
    let weights: Vec<(&str, f64)> = builtin.profiles[0]
        .scorers
        .iter()
        .map(|s| (&*s.scorer.name, s.weight))
        .collect();
    assert_eq!(
        weights,
        [
            ("queue-scorer", 2.0),
            ("kv-cache-utilization-scorer", 2.0),
            ("prefix-cache-scorer", 3.0)
        ]
    );
    assert_eq!(&*builtin.producers[0].name, "approx-prefix-cache-producer");
    assert_eq!(&*builtin.admitters[0].name, "sheddable");
}

#[test]
fn producers_come_in_the_order_of_their_needs() {
    let baseline = presets::get("optimized-baseline").unwrap();
    let scheduler = EndpointPickerConfig::parse(baseline)
        .unwrap()
        .config
        .compile()
        .unwrap()
        .scheduler;
    let names: Vec<&str> = scheduler.producers.iter().map(|p| &*p.name).collect();
    assert_eq!(
        names,
        ["approx-prefix-cache-producer", "inflight-load-producer"]
    );
    assert!(scheduler.tokens.is_some());
    // Configured the other way round, or not at all.
    for text in [
        "plugins:\n- type: inflight-load-producer\n- type: approx-prefix-cache-producer\n- type: token-load-scorer\n- type: prefix-cache-scorer\n",
        "plugins:\n- type: token-load-scorer\n- type: prefix-cache-scorer\n",
    ] {
        let scheduler = parse(text).unwrap().config.compile().unwrap().scheduler;
        let names: Vec<&str> = scheduler.producers.iter().map(|p| &*p.name).collect();
        assert_eq!(
            names,
            ["approx-prefix-cache-producer", "inflight-load-producer"],
            "{text}"
        );
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_the_nearest_name() {
    for (text, said) in [
        (
            "plugin: []",
            "plugin: is not known; did you mean `plugins`?",
        ),
        (
            "plugins:\n- type: queue-scorr",
            "plugins[0].type: `queue-scorr` is no plugin type; did you mean `queue-scorer`?",
        ),
        (
            "plugins:\n- {type: no-hit-lru-scorer, parameters: {lruSze: 5}}",
            "plugins[0].parameters.lruSze: is not known; did you mean `lruSize`?",
        ),
        (
            "plugins:\n- {type: no-hit-lru-scorer, parameters: {lruSize: 0}}",
            "plugins[0].parameters.lruSize: must be 1 to 16777216, not 0",
        ),
        (
            "plugins:\n- {type: load-aware-scorer, parameters: {threshold: many}}",
            "plugins[0].parameters.threshold: must be a whole number, 0 or more, not the string `many`",
        ),
        (
            "plugins:\n- {type: latency-scorer, parameters: {headroomSelectionStrategy: leest}}",
            "`leest` is none of least, most; did you mean `least`?",
        ),
        (
            "plugins:\n- {type: queue-scorer, parameters: {x: 1}}",
            "plugins[0].parameters.x: is not known",
        ),
        ("plugins:\n- name: a", "plugins[0].type: is required"),
        (
            "plugins:\n- type: queue-scorer\n- type: queue-scorer",
            "plugins[1].name: `queue-scorer` is the name of another plugin",
        ),
        (
            "plugins:\n- type: queue-scorer\nschedulingProfiles:\n- {name: a, plugins: [{pluginRef: queue-scorre}]}",
            "schedulingProfiles[0].plugins[0].pluginRef: there is no plugin `queue-scorre`; did you mean `queue-scorer`?",
        ),
        (
            "plugins:\n- type: always-disagg-pd-decider\nschedulingProfiles:\n- {name: a, plugins: [{pluginRef: always-disagg-pd-decider}]}",
            "`always-disagg-pd-decider` is no filter, scorer or picker",
        ),
        (
            "plugins:\n- type: random-picker\n- type: max-score-picker",
            "`max-score-picker` is a second picker",
        ),
        (
            "plugins:\n- type: queue-scorer\nschedulingProfiles:\n- {name: a, plugins: [{pluginRef: queue-scorer}]}\n- {name: b, plugins: [{pluginRef: queue-scorer}]}",
            "2 profiles need a profile handler",
        ),
        (
            "plugins:\n- type: single-profile-handler\n- type: queue-scorer\nschedulingProfiles:\n- {name: a, plugins: [{pluginRef: queue-scorer}]}\n- {name: b, plugins: [{pluginRef: queue-scorer}]}",
            "needs exactly one scheduling profile; there are 2",
        ),
        (
            "plugins:\n- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: nobody}}",
            "prefixMatchInfoProducerName: `nobody` is no plugin that produces this",
        ),
        (
            "plugins:\n- type: multicluster-queue-scorer",
            "`multicluster-queue-scorer` is not supported",
        ),
        (
            "featureGates: [flowContrl]",
            "featureGates[0]: `flowContrl` is not known; did you mean `flowControl`?",
        ),
        (
            "featureGates: [flowControl=yes]",
            "`yes` is neither true nor false",
        ),
        (
            "featureGates: [flowControl]\nflowControl: {defaultRequestTTL: 60}",
            "flowControl.defaultRequestTTL: must be a duration such as 1m30s, not 60",
        ),
        (
            "featureGates: [flowControl]\nflowControl: {maxBytes: 10GiB}",
            "flowControl.maxBytes: `10GiB` is no quantity",
        ),
        (
            "featureGates: [flowControl]\nflowControl: {priorityBands: [{priority: 1}, {priority: 1}]}",
            "has priority 1 more than once",
        ),
        (
            "featureGates: [flowControl]\nflowControl: {priorityBands: [{maxRequests: 1}]}",
            "flowControl.priorityBands[0].priority: is required",
        ),
        (
            "featureGates: [flowControl]\nflowControl: {priorityBands: [{priority: 1, fairnessPolicyRef: round-robin}]}",
            "`round-robin` is no fairness policy; did you mean `round-robin-fairness-policy`?",
        ),
        (
            "featureGates: [flowControl]\nflowControl: {saturationDetector: {pluginRef: fcfs-ordering-policy}}",
            "`fcfs-ordering-policy` is no saturation detector",
        ),
        ("plugins: {}", "plugins: must be a list, not an object"),
        (
            "plugins: [1]",
            "plugins[0]: must be an object, not a number",
        ),
        (
            "schedulingProfiles: [{plugins: []}]",
            "schedulingProfiles[0].name: is required",
        ),
    ] {
        let got = errors(text);
        assert!(got.contains(said), "{text}\n{got}\nis not\n{said}");
    }
}

#[test]
fn all_errors_are_said_at_once() {
    let got = parse("plugins:\n- type: queue-scorer\n  nam: x\nunknown: 1\n").unwrap_err();
    assert_eq!(got.0.len(), 2, "{got}");
    for (text, said) in [
        ("", "must be an object"),
        ("[]", "must be an object, not a list"),
        ("a: b: c", "line 1"),
        (
            "apiVersion: v1\nkind: EndpointPickerConfig",
            "apiVersion: must be `llm-d.ai/v1alpha1`",
        ),
        (
            "apiVersion: llm-d.ai/v1alpha1\nkind: InferencePool",
            "kind: must be `EndpointPickerConfig`",
        ),
        ("kind: EndpointPickerConfig", "apiVersion: is required"),
    ] {
        let got = EndpointPickerConfig::parse(text).unwrap_err().to_string();
        assert!(got.contains(said), "{text}: {got}");
    }
}

#[test]
fn deprecated_and_meaningless_things_are_named() {
    let got = warnings(CORPUS[8]);
    for said in [
        "saturationDetector: is deprecated: use `flowControl.saturationDetector`",
        "parser: is deprecated: use `requestHandler.parsers`",
        "plugins[0].type: `by-label` is deprecated: use label-selector-filter",
        "plugins[2].type: `precise-prefix-cache-scorer` is deprecated",
    ] {
        assert!(got.iter().any(|w| w.contains(said)), "{got:?} lack {said}");
    }
    let got = warnings(CORPUS[4]);
    for said in [
        "dataLayer.discovery: has no meaning here",
        "`file-discovery` has no meaning here",
        "featureGates[0]: has no meaning here",
    ] {
        assert!(got.iter().any(|w| w.contains(said)), "{got:?} lack {said}");
    }
    assert!(warnings(CORPUS[1]).is_empty());
    let got = warnings("plugins:\n- type: queue-scorer\nflowControl: {maxRequests: 5}\n");
    assert!(
        got[0].contains("has no effect without the feature gate"),
        "{got:?}"
    );
}

#[test]
fn flow_control_is_resolved() {
    let flow = parse(CORPUS[2])
        .unwrap()
        .config
        .compile()
        .unwrap()
        .flow
        .unwrap();
    assert_eq!(
        (flow.max_bytes, flow.max_requests),
        (Some(10 << 30), Some(1000))
    );
    assert_eq!(flow.no_endpoint_request_ttl, Some(Duration::from_secs(60)));
    let bands: Vec<(i32, u64, bool)> = flow
        .bands
        .iter()
        .map(|b| (b.priority, b.max_requests, b.shed))
        .collect();
    assert_eq!(bands, [(100, 500, false), (0, 200, false), (-10, 50, true)]);
    assert_eq!(flow.bands[0].fairness, FairnessPolicy::RoundRobin);
    assert_eq!(flow.bands[2].fairness, FairnessPolicy::GlobalStrict);
    assert!(matches!(
        flow.saturation,
        SaturationDetector::Concurrency {
            max_concurrency: 132,
            mode: ConcurrencyMode::Requests,
            ..
        }
    ));

    let plain = parse("featureGates: [flowControl]\n")
        .unwrap()
        .config
        .compile()
        .unwrap();
    assert_eq!(plain.flow, Some(FlowControlConfig::default()));
    assert!(plain.scheduler.admitters.is_empty());
    assert_eq!(parse("").unwrap().config.compile().unwrap().flow, None);

    let text = "featureGates: [flowControl]
plugins:
- type: priority-holdback-policy
  parameters: {minCeiling: 0.5, domain: value}
- {name: fair, type: program-aware-fairness, parameters: {lasWeightService: 0.6}}
flowControl:
  defaultRequestTTL: 0s
  noEndpointRequestTTL: 5m
  usageLimitPolicyPluginRef: priority-holdback-policy
  enableEviction: true
  defaultPriorityBand: {maxRequests: 7, fairnessPolicyRef: fair, orderingPolicyRef: edf-ordering-policy}
";
    let flow = parse(text).unwrap().config.compile().unwrap().flow.unwrap();
    assert_eq!(
        (flow.default_request_ttl, flow.no_endpoint_request_ttl),
        (None, Some(Duration::from_secs(300)))
    );
    assert_eq!(
        flow.usage_limit,
        UsageLimitPolicy::PriorityHoldback {
            min_ceiling: 0.5,
            max_ceiling: 1.0,
            domain: HoldbackDomain::Value
        }
    );
    assert!(flow.eviction);
    assert_eq!(
        (flow.default_band.max_requests, flow.default_band.ordering),
        (7, OrderingPolicy::Edf)
    );
    assert!(
        matches!(flow.default_band.fairness, FairnessPolicy::ProgramAware(p) if p.weight_service == 0.6 && p.weight_head_wait == 0.2)
    );
    assert_eq!(flow.default_negative_band.max_requests, 5000);
}

#[test]
fn agents_are_told_apart_if_configured() {
    assert_eq!(
        parse("").unwrap().config.compile().unwrap().agent_identity,
        None
    );
    let text = "plugins:\n- {type: agent-identity, parameters: {additionalSessionHeaders: [x-mine]}}\n- type: queue-scorer\n";
    let identity = parse(text)
        .unwrap()
        .config
        .compile()
        .unwrap()
        .agent_identity
        .unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("session-id", http::HeaderValue::from_static("b"));
    assert_eq!(identity.of(&headers), Some("b"));
    headers.insert("x-mine", http::HeaderValue::from_static("a"));
    assert_eq!(identity.of(&headers), Some("a"));
    let bad = errors(
        "plugins:\n- {type: agent-identity, parameters: {additionalSessionHeaders: ['a b']}}\n",
    );
    assert!(bad.contains("`a b` is no name of a header"), "{bad}");
}

#[test]
fn another_crate_can_bring_a_producer() {
    use crate::pipeline::{Attributes, DataProducer, Prediction, ProducerInput};
    struct Same(usize);
    impl DataProducer for Same {
        fn produce(&self, input: &ProducerInput<'_>, attributes: &mut Attributes) {
            for row in input.rows {
                let prediction = Prediction {
                    ttft_ms: 1.0,
                    tpot_ms: 1.0,
                    ttft_headroom_ms: 1.0,
                    tpot_headroom_ms: 1.0,
                };
                attributes.set_prediction(self.0, *row, prediction);
            }
        }
    }
    let registry = Registry::default().with("predicted-latency-producer", |fields, build| {
        fields.flag("streamingMode", false);
        registry::Built::producer(Same(build.own(registry::Produces::Prediction)))
    });
    let config = parse(CORPUS[5]).unwrap().config;
    let with = config.compile_with(&registry).unwrap();
    assert!(
        with.scheduler
            .producers
            .iter()
            .any(|p| &*p.name == "predicted-latency-producer")
    );
    let without = config.compile().unwrap();
    assert!(
        without
            .warnings
            .iter()
            .any(|w| w.message.contains("is not available"))
    );
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[a-zA-Z0-9:{}\\[\\], \n'\"&*|>#%@!-]{0,80}") {
        let _ = EndpointPickerConfig::parse(&text);
        if let Ok(parsed) = parse(&text) {
            let _ = parsed.config.compile();
        }
    }

    /// Any line of a good configuration may be lost or doubled: it is accepted and comes back, or is refused with words.
    #[test]
    fn damaged_configurations_are_accepted_whole_or_refused(
        which in 0usize..CORPUS.len(),
        line in any::<prop::sample::Index>(),
        double in any::<bool>(),
    ) {
        let text = format!("{HEAD}{}", CORPUS[which]);
        let mut lines: Vec<&str> = text.lines().collect();
        let at = line.index(lines.len());
        if double { lines.insert(at, lines[at]); } else { lines.remove(at); }
        match EndpointPickerConfig::parse(&lines.join("\n")) {
            Ok(parsed) => {
                let yaml = parsed.config.to_yaml().unwrap();
                prop_assert_eq!(EndpointPickerConfig::parse(&yaml).unwrap().config, parsed.config.clone());
                if let Err(errors) = parsed.config.compile() {
                    prop_assert!(!errors.0.is_empty());
                }
            }
            Err(errors) => prop_assert!(!errors.0.is_empty() && !errors.to_string().is_empty()),
        }
    }
}
