//! Replays: the same configuration changes nothing, another one may, and what is not known is said.

use super::*;
use crate::endpoint::tests::spec;
use crate::endpoint::{AdapterLoad, Endpoint, Health, LoadFigures};
use crate::random::Random;
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use std::time::Duration;

fn config(yaml: &str) -> EndpointPickerConfig {
    let head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";
    EndpointPickerConfig::parse(&format!("{head}{yaml}"))
        .unwrap()
        .config
}

fn pool(random: &mut Random, n: usize) -> Vec<Arc<Endpoint>> {
    (0..n)
        .map(|i| {
            let mut spec = spec(&format!("e{i}"));
            spec.slow_start = Duration::ZERO;
            spec.target = crate::Target::new(false, &format!("10.0.0.{i}"), 8000);
            for (key, values) in [
                ("llm-d.ai/role", ["decode", "prefill", "both"]),
                ("tier", ["a", "b", "c"]),
            ] {
                spec.labels
                    .insert(key.into(), values[random.below(3)].into());
            }
            let endpoint = Arc::new(Endpoint::new(spec, None));
            endpoint.set_health(Health::Ready, 1);
            if random.below(5) > 0 {
                let figures = LoadFigures {
                    running: Some(random.below(9) as u32),
                    waiting: Some(random.below(4) as u32),
                    kv_cache_usage: Some(random.below(100) as f32 / 100.0),
                };
                endpoint.set_load(figures, 50 + random.below(9) as u64);
            }
            endpoint.set_remote_in_flight(random.below(6) as u32);
            endpoint.set_remote_tokens(random.below(4000) as u64);
            if random.below(2) == 0 {
                endpoint.set_adapter_load(AdapterLoad {
                    running: vec!["m".into()],
                    waiting: vec![],
                    max: 2,
                });
            }
            endpoint
        })
        .collect()
}

fn route(endpoints: &[Arc<Endpoint>]) -> Route {
    Route {
        pool: Arc::new(Pool {
            spec: PoolSpec::default(),
            policy: Arc::new(PoolPolicy::default()),
            endpoints: Vec::new(),
        }),
        endpoints: endpoints.into(),
    }
}

fn record(
    scheduler: &dyn Scheduler,
    route: &Route,
    request: &SchedulingRequest<'_>,
    random: u64,
) -> RequestRecord {
    let record = recorded(scheduler, route, request, random);
    from_disk(&record)
}

/// As it comes back from disk. JSON may change the last bit of a number.
fn from_disk(record: &RequestRecord) -> RequestRecord {
    serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap()
}

fn recorded(
    scheduler: &dyn Scheduler,
    route: &Route,
    request: &SchedulingRequest<'_>,
    random: u64,
) -> RequestRecord {
    let mut decision = Decision::default();
    let tried = Tried::default();
    drop(scheduler.schedule(request, route, &tried, 100, random, Some(&mut decision)));
    RequestRecord {
        model: request.incoming_model.to_owned(),
        target_model: request.model.to_owned(),
        priority: request.priority,
        request: Some(RequestFacts::of(request)),
        attempts: vec![crate::explain::Attempt {
            decision: Some(decision),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn decision(record: &RequestRecord) -> &Decision {
    record.attempts[0].decision.as_ref().unwrap()
}

const PLUGINS: &[&str] = &[
    "{type: queue-scorer}",
    "{type: kv-cache-utilization-scorer}",
    "{type: running-requests-size-scorer}",
    "{type: load-aware-scorer}",
    "{type: active-request-scorer}",
    "{type: token-load-scorer}",
    "{type: prefix-cache-scorer}",
    "{type: no-hit-lru-scorer}",
    "{type: lora-affinity-scorer}",
    "{type: session-affinity-scorer, parameters: {strategy: session_id}}",
    "{type: session-affinity-filter, parameters: {strategy: session_id}}",
    "{type: decode-filter}",
    "{type: prefix-cache-affinity-filter}",
    "{type: label-selector-filter, parameters: {matchLabels: {tier: a}}}",
    "{type: utilization-detector}",
];
const PICKERS: &[&str] = &[
    "{type: max-score-picker}",
    "{type: max-score-picker, parameters: {maxNumOfEndpoints: 3}}",
    "{type: random-picker}",
    "{type: weighted-random-picker}",
];

fn pipeline_of(random: &mut Random) -> String {
    let mut yaml = String::from("plugins:\n");
    for plugin in PLUGINS.iter().filter(|_| random.below(3) == 0) {
        yaml.push_str(&format!("- {plugin}\n"));
    }
    yaml.push_str(&format!("- {}\n", PICKERS[random.below(PICKERS.len())]));
    yaml
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the pipeline, the endpoints and what went before: the same configuration decides as it did.
    #[test]
    fn the_same_config_changes_nothing(seed in any::<u64>(), n in 1usize..9) {
        let mut random = Random::new(seed);
        let yaml = pipeline_of(&mut random);
        let config = config(&yaml);
        let scheduler = config.compile().unwrap().scheduler;
        let replay = Replay::new(config).unwrap();
        let endpoints = pool(&mut random, n);
        let route = route(&endpoints);
        let prompts: Vec<String> = (0..3).map(|i| format!("{i} ").repeat(600)).collect();
        for i in 0..6 {
            let mut headers = HeaderMap::new();
            if random.below(2) == 0 {
                let session = format!("s-{}", random.below(2));
                headers.insert("x-session-id", HeaderValue::from_str(&session).unwrap());
            }
            let prompt = prompts[random.below(3)].as_str();
            let request = SchedulingRequest {
                incoming_model: "m",
                model: "m",
                headers: &headers,
                priority: random.below(3) as i32 - 1,
                prompt: Some(&prompt),
                prompt_bytes: prompt.len(),
                ..Default::default()
            };
            let record = recorded(&*scheduler, &route, &request, random.bits());
            let (then, stored) = (decision(&record), from_disk(&record));
            let now = replay.decide(&stored, decision(&stored));
            let now = now.map_err(|lacks| TestCaseError::fail(format!("{i}: {lacks}\n{yaml}")))?;
            prop_assert_eq!(&now.picked, &then.picked, "{}: {}", i, yaml);
            prop_assert_eq!(&now.refused, &then.refused, "{}: {}", i, yaml);
            prop_assert_eq!(&now.candidates, &then.candidates, "{}", yaml);
            prop_assert_eq!(now.profiles.len(), then.profiles.len());
            for (now, then) in now.profiles.iter().zip(&then.profiles) {
                prop_assert_eq!(&now.filters, &then.filters, "{}: {}", i, yaml);
                prop_assert_eq!(&now.totals, &then.totals, "{}: {}", i, yaml);
            }
        }
    }
}

fn two_endpoints() -> Vec<Arc<Endpoint>> {
    let endpoints = pool(&mut Random::new(3), 2);
    for (endpoint, (waiting, usage)) in endpoints.iter().zip([(0, 0.9), (5, 0.1)]) {
        let figures = LoadFigures {
            running: Some(1),
            waiting: Some(waiting),
            kv_cache_usage: Some(usage),
        };
        endpoint.set_remote_in_flight(0);
        endpoint.set_load(figures, 99);
    }
    endpoints
}

#[test]
fn another_config_decides_otherwise() {
    let request = SchedulingRequest::default();
    let queue = config("plugins: [{type: queue-scorer}]")
        .compile()
        .unwrap()
        .scheduler;
    let record = record(&*queue, &route(&two_endpoints()), &request, 1);
    assert_eq!(decision(&record).picked, ["e0"]);
    let kv = Replay::new(config("plugins: [{type: kv-cache-utilization-scorer}]")).unwrap();
    let now = kv.decide(&record, decision(&record)).unwrap();
    assert_eq!(now.picked, ["e1"]);
    let none = "plugins: [{type: label-selector-filter, parameters: {matchLabels: {tier: none}}}]";
    let now = Replay::new(config(none))
        .unwrap()
        .decide(&record, decision(&record))
        .unwrap();
    assert!(now.picked.is_empty() && now.refused.is_some());
}

#[test]
fn what_is_not_in_the_record_is_said() {
    let lacks = |record: &RequestRecord, yaml: &str| {
        let replay = Replay::new(config(yaml)).unwrap();
        replay
            .decide(record, decision(record))
            .unwrap_err()
            .to_string()
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-session-id", HeaderValue::from_static("s"));
    let request = SchedulingRequest {
        headers: &headers,
        ..Default::default()
    };
    let plain = record(
        &crate::PowerOfTwo::default(),
        &route(&two_endpoints()),
        &request,
        1,
    );
    assert_eq!(decision(&plain).candidates.len(), 2);
    for (yaml, expected) in [
        (
            "plugins: [{type: prefix-cache-scorer}]",
            "how much of the prompt",
        ),
        ("plugins: [{type: latency-scorer}]", "which latency"),
        (
            "plugins: [{type: approx-prefix-cache-producer}, {type: no-hit-lru-scorer}]",
            "how much",
        ),
        (
            "plugins: [{type: session-affinity-filter, parameters: {strategy: session_id}}]",
            "`session-affinity-filter` remembered",
        ),
        (
            "plugins: [{type: session-id-producer, parameters: {cookieName: sid}}, {type: queue-scorer}]",
            "`cookie`",
        ),
    ] {
        let said = lacks(&plain, yaml);
        assert!(said.contains(expected), "{yaml}: {said}");
    }
    let prefix = config("plugins: [{type: prefix-cache-scorer}]")
        .compile()
        .unwrap()
        .scheduler;
    let prefix = record(&*prefix, &route(&two_endpoints()), &request, 1);
    let said = lacks(&prefix, "plugins: [{type: no-hit-lru-scorer}]");
    assert!(said.contains("`no-hit-lru-scorer` remembered"), "{said}");
    let nothing = RequestRecord::default();
    let replay = Replay::new(config("plugins: [{type: queue-scorer}]")).unwrap();
    assert!(replay.decide(&nothing, &Decision::default()).is_err());
}
