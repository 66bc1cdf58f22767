//! Requests that wait for others with the same prompt.

use super::talk::*;
use crate::config::ExtProcConfig;
use quorate_routing::PoolPolicy;
use quorate_routing::config::EndpointPickerConfig;
use std::time::Duration;

const PLUGINS: &str = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: burst-prefix-cache-producer\n  \
                       parameters: {windowDurationMs: 1500}\n- type: prefix-cache-scorer\n  parameters: \
                       {prefixMatchInfoProducerName: burst-prefix-cache-producer}\n";

fn body(prompt: &str) -> String {
    serde_json::json!({"model": "m", "prompt": prompt}).to_string()
}

#[tokio::test]
async fn the_same_prompts_of_one_moment_go_to_one_endpoint() {
    let config = EndpointPickerConfig::parse(PLUGINS).unwrap().config;
    let compiled = config.compile().unwrap();
    let policy = PoolPolicy {
        scheduler: compiled.scheduler,
        burst: compiled.burst,
        ..PoolPolicy::default()
    };
    let world = with_policy(5, ExtProcConfig::default(), policy);
    let mut talks: Vec<Talk> = (0..9).map(|_| world.open()).collect();
    for (i, talk) in talks.iter_mut().enumerate() {
        let prompt = if i % 3 == 0 { "first" } else { "second" };
        let said = talk.request("/v1/completions", &body(&prompt.repeat(100)));
        assert!(said.is_empty(), "it waits for the others");
    }
    // One that goes away in between holds nobody up.
    drop(talks.remove(0));
    assert_eq!(world.in_flight(), [0; 5]);
    let mut places = Vec::new();
    for talk in &mut talks {
        let mut said = talk.said();
        while said.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            said = talk.said();
        }
        places.push(lb(&said[0]));
    }
    let (first, second): (Vec<_>, Vec<_>) = places
        .into_iter()
        .enumerate()
        .partition(|(i, _)| (i + 1) % 3 == 0);
    for group in [&first, &second] {
        assert!(
            group.iter().all(|(_, place)| *place == group[0].1),
            "{group:?}"
        );
    }
    assert_ne!(first[0].1, second[0].1);
    // Without a prompt there is nothing to wait for.
    let mut other = world.open();
    other.send(head("GET", "/version", true, &[]));
    assert!(!other.said().is_empty());
}
