//! The reference's placing, case by case; what holds for every window; and windows in time.

use super::placing::{Balance, Replica, Rules, place};
use super::*;
use crate::config::EndpointPickerConfig;
use crate::pipeline::testing::Fixture;
use proptest::prelude::*;
use std::collections::HashMap;

const RULES: Rules = Rules {
    max_per_replica: usize::MAX,
    min_colocate: 0,
    balance: Balance::Requests,
};

fn replicas(names: &[&'static str]) -> Vec<Replica<'static>> {
    names
        .iter()
        .map(|name| Replica { name, running: 0 })
        .collect()
}

/// A chain of blocks as hashing makes them: each stands for all before it.
fn chain(text: &str) -> Vec<u64> {
    let mut hash = 0;
    text.bytes()
        .map(|byte| {
            hash = xxhash_rust::xxh64::xxh64(&[byte], hash);
            hash
        })
        .collect()
}

/// Places by name, `-` for none.
fn placed(prompts: &[&str], names: &[&'static str], rules: Rules) -> String {
    let requests: Vec<_> = prompts.iter().map(|prompt| chain(prompt)).collect();
    let replicas = replicas(names);
    place(&requests, &replicas, &rules)
        .into_iter()
        .map(|place| place.map_or("-", |at| replicas[at].name))
        .collect()
}

#[test]
fn the_same_prompts_go_to_one_place_and_the_rest_nowhere() {
    assert_eq!(placed(&["aaa", "aaa", "aaa"], &["x", "y"], RULES), "xxx");
    // Two groups, two replicas; one that is alone and one without a prompt get none.
    let prompts = ["aaa", "bbb", "aaa", "lonely", "", "bbb"];
    assert_eq!(placed(&prompts, &["x", "y"], RULES), "xyx--y");
    assert_eq!(placed(&["aaa", "aaa"], &[], RULES), "--");
    assert_eq!(placed(&[], &["x"], RULES), "");
    // The longer group is placed first; the next goes where the least is.
    let prompts = ["ab", "ab", "abcd", "abcd", "abcd", "ef", "ef"];
    assert_eq!(placed(&prompts, &["x", "y"], RULES), "yyxxxyy");
}

#[test]
fn a_group_spills_over_when_its_replica_has_enough() {
    let two = Rules {
        max_per_replica: 2,
        ..RULES
    };
    assert_eq!(placed(&["a"; 5], &["x", "y", "z"], two), "xxyyz");
    // More than fits anywhere: one by one to the one with the least.
    assert_eq!(placed(&["a"; 6], &["x", "y"], two), "xxyyxy");
}

#[test]
fn equals_are_decided_by_running_requests_and_then_by_name() {
    let requests = [chain("a"), chain("a")];
    let replicas = |running: [u32; 3]| {
        let names = ["y", "x", "z"].into_iter();
        names
            .zip(running)
            .map(|(name, running)| Replica { name, running })
            .collect::<Vec<_>>()
    };
    assert_eq!(place(&requests, &replicas([1, 1, 1]), &RULES)[0], Some(1));
    assert_eq!(place(&requests, &replicas([1, 2, 0]), &RULES)[0], Some(2));
}

#[test]
fn different_prompts_with_one_beginning_go_together_up_to_a_fair_share() {
    let share = |blocks| Rules {
        min_colocate: blocks,
        ..RULES
    };
    // Four requests on two replicas: a fair share is two. The group goes first; the longest that begins like it follows it.
    let prompts = ["abcd", "abcd", "abcxyz", "abcq"];
    assert_eq!(placed(&prompts, &["x", "y"], share(3)), "xxyy");
    assert_eq!(placed(&prompts, &["x", "y"], RULES), "xx--");
    // They share two blocks only.
    assert_eq!(placed(&["abX", "abY"], &["x", "y"], share(3)), "--");
    assert_eq!(placed(&["abX", "abY"], &["x"], share(2)), "xx");
    // Two on three replicas: a share is one, so the second does not follow.
    assert_eq!(placed(&["abX", "abY"], &["x", "y", "z"], share(2)), "xy");
    // A second group follows the first within the share as well, and what is like neither in as much does not.
    let prompts = ["aaaa", "aaaa", "aabbbb", "aabbbb", "aabbb"];
    assert_eq!(placed(&prompts, &["x", "y"], share(2)), "xxxxy");
    assert_eq!(placed(&prompts, &["x", "y"], share(3)), "yyxxx");
}

#[test]
fn prompts_may_weigh_what_they_are_long() {
    let prompts = ["aaaaaaaa", "aaaaaaaa", "bb", "bb", "cc", "cc", "dd", "dd"];
    assert_eq!(placed(&prompts, &["x", "y"], RULES), "xxyyxxyy");
    let by_length = Rules {
        balance: Balance::Blocks,
        ..RULES
    };
    assert_eq!(placed(&prompts, &["x", "y"], by_length), "xxyyyyyy");
}

proptest! {
    /// Who has company is placed, the same prompts keep within the limit while there is room, and no replica has more than a fair
    /// share and one unit.
    #[test]
    fn windows_are_placed_whole(
        prompts in proptest::collection::vec("[ab]{0,4}", 0..40),
        count in 1usize..5,
        limit in 1usize..6,
        min_colocate in 0usize..3,
    ) {
        let names = ["v", "w", "x", "y", "z"];
        let rules = Rules { max_per_replica: limit, min_colocate, ..RULES };
        let requests: Vec<_> = prompts.iter().map(|prompt| chain(prompt)).collect();
        let places = place(&requests, &replicas(&names[..count]), &rules);
        prop_assert_eq!(places.len(), prompts.len());
        let mut groups: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, prompt) in prompts.iter().enumerate() {
            groups.entry(prompt).or_default().push(index);
            prop_assert!(places[index].is_none_or(|place| place < count));
            if prompt.is_empty() {
                prop_assert_eq!(places[index], None);
            }
        }
        for (prompt, members) in groups.iter().filter(|(prompt, _)| !prompt.is_empty()) {
            let alone = members.len() == 1
                && (min_colocate == 0 || {
                    let like = |other: &&String| {
                        other.len() >= min_colocate
                            && prompt.len() >= min_colocate
                            && other[..min_colocate] == prompt[..min_colocate]
                    };
                    prompts.iter().filter(like).count() < 2
                });
            let mut by_place: HashMap<usize, usize> = HashMap::new();
            for member in members {
                prop_assert_eq!(places[*member].is_none(), alone, "{}", prompt);
                if let Some(place) = places[*member] {
                    *by_place.entry(place).or_default() += 1;
                }
            }
            if members.len() <= limit * count {
                prop_assert!(by_place.values().all(|n| *n <= limit), "{}: {:?}", prompt, by_place);
            }
        }
    }
}

fn burst(parameters: &str) -> Arc<Burst> {
    let text = format!(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: burst-prefix-cache-producer\n  \
         parameters: {{{parameters}}}\n"
    );
    let config = EndpointPickerConfig::parse(&text).unwrap().config;
    config.compile().unwrap().burst.unwrap()
}

#[test]
fn a_window_gathers_until_it_closes() {
    let fixture = Fixture::new(3);
    let endpoints: Arc<[_]> = fixture.endpoints.clone().into();
    let burst = burst("blockSizeTokens: 1, windowDurationMs: 50, maxBatchSize: 3");
    let begin = Instant::now();
    let join = |prompt: &str, model: &str, after: u64| {
        let request = SchedulingRequest {
            model,
            prompt: Some(&prompt),
            ..Default::default()
        };
        burst.join(&request, &endpoints, begin + Duration::from_millis(after))
    };
    let first = join("one prompt", "m", 0).unwrap();
    let second = join("one prompt", "m", 10).unwrap();
    let other = join("one prompt", "another model", 20).unwrap();
    assert!(join("one prompt", "m", 30).is_none(), "the window is full");
    assert!(join("", "m", 30).is_none(), "nothing to compare");
    // The next window.
    let late = join("one prompt", "m", 50).unwrap();
    assert_eq!(first.closes(), begin + Duration::from_millis(50));
    assert_eq!(late.closes(), begin + Duration::from_millis(100));
    let [first, second] = [first, second].map(|seat| seat.take().endpoint.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(first.name(), "e0");
    let other = other.take();
    assert!(other.endpoint.is_none() && other.blocks == 3);
    // One that goes away before the end is company for nobody.
    let gone = join("one prompt", "m", 60).unwrap();
    drop(gone);
    assert!(late.take().endpoint.is_none());
}

#[test]
fn a_place_is_a_full_match_for_who_names_this_producer() {
    let text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: burst-prefix-cache-producer\n  parameters: \
                {windowDurationMs: 5}\n- type: prefix-cache-scorer\n  parameters: {prefixMatchInfoProducerName: \
                burst-prefix-cache-producer}\n";
    use crate::{PoolSpec, RoutingView, Scheduler, Tried};
    let compiled = EndpointPickerConfig::parse(text)
        .unwrap()
        .config
        .compile()
        .unwrap();
    let endpoints = Fixture::new(4).endpoints;
    let pool = PoolSpec {
        name: "p".into(),
        fallback: true,
        ..PoolSpec::default()
    };
    let view = RoutingView::build([(pool, endpoints.clone())]);
    let route = view.route("m").unwrap();
    let together = Together {
        endpoint: Some(Arc::clone(&endpoints[2])),
        blocks: 7,
    };
    let request = SchedulingRequest {
        together: Some(&together),
        ..Default::default()
    };
    for random in 0..20 {
        let picked =
            compiled
                .scheduler
                .schedule(&request, route, &Tried::default(), 1000, random, None);
        assert_eq!(picked.unwrap().destination().name(), "e2");
    }
    // Who names nobody reads the cache's own matches.
    let text = text.replace(
        "prefixMatchInfoProducerName: burst-prefix-cache-producer",
        "",
    );
    let compiled = EndpointPickerConfig::parse(&text)
        .unwrap()
        .config
        .compile()
        .unwrap();
    let mut picked = std::collections::HashSet::new();
    for random in 0..40 {
        let now =
            compiled
                .scheduler
                .schedule(&request, route, &Tried::default(), 1000, random, None);
        picked.insert(now.unwrap().destination().name().to_owned());
    }
    assert!(picked.len() > 1, "{picked:?}");
}

#[test]
fn parameters_are_checked() {
    let refused = |parameters: &str| {
        let text = format!(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: burst-prefix-cache-producer\n  \
             parameters: {{{parameters}}}\n"
        );
        let config = EndpointPickerConfig::parse(&text).unwrap().config;
        config.compile().err().map(|errors| errors.to_string())
    };
    for (parameters, key) in [
        ("windowDurationMs: 0", "windowDurationMs"),
        ("windowDurationMs: 10001", "windowDurationMs"),
        ("maxPerReplica: 0", "maxPerReplica"),
        ("maxPerReplica: -2", "maxPerReplica"),
        ("maxBatchSize: 0", "maxBatchSize"),
        ("balanceBy: luck", "balanceBy"),
        ("blockSizeTokens: 0", "blockSizeTokens"),
    ] {
        let said = refused(parameters).expect(parameters);
        assert!(said.contains(key), "{parameters}: {said}");
    }
    assert_eq!(
        refused("maxPerReplica: -1, maxBatchSize: -1, balanceBy: tokens"),
        None
    );
}
