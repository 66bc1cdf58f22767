//! Requests with one prompt that come at one moment: all of them to one engine.

use crate::support::*;
use quorate_routing::PoolPolicy;
use quorate_routing::config::EndpointPickerConfig;

const CONFIG: &str = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: burst-prefix-cache-producer\n  \
                      parameters: {windowDurationMs: 1000}\n- type: prefix-cache-scorer\n  parameters: \
                      {prefixMatchInfoProducerName: burst-prefix-cache-producer}\n";

#[tokio::test]
async fn a_burst_of_one_prompt_goes_to_one_engine() {
    let start = || Engine::start(|_| async { json("{}") });
    let engines = [start().await, start().await, start().await];
    let compiled = EndpointPickerConfig::parse(CONFIG)
        .unwrap()
        .config
        .compile()
        .unwrap();
    let policy = PoolPolicy {
        scheduler: compiled.scheduler,
        burst: compiled.burst,
        ..PoolPolicy::default()
    };
    let front = Front::with(config(), policy, endpoints(&engines.each_ref()));
    let body = |prompt: &str| format!(r#"{{"model":"m","prompt":"{}"}}"#, prompt.repeat(200));
    let (one, other) = (body("one "), body("other "));
    let asked = futures_util::future::join_all((0..12).map(|i| {
        let body = if i % 4 == 0 { &other } else { &one };
        front.post("/v1/completions", body)
    }))
    .await;
    assert!(asked.iter().all(|reply| reply.status == 200));
    let mut counts = engines.each_ref().map(Engine::requests);
    counts.sort_unstable();
    assert_eq!(counts, [0, 3, 9]);
}
