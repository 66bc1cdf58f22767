//! Prompts that are tokenized before the pick, and what engines are told of their caches.

use super::talk::*;
use crate::config::ExtProcConfig;
use quorate_routing::tokens::{Origin, PromptTokens, TokenRequest, TokenSource, Tokenizing};
use quorate_routing::{
    Decision, Endpoint, NotPicked, Picked, PoolPolicy, Route, Scheduler, SchedulingRequest, Tried,
};
use std::sync::Arc;
use std::time::Duration;

/// Takes a while.
struct Slow;

impl TokenSource for Slow {
    fn tokens<'a>(&'a self, _: TokenRequest<'a>, _: &'a [Arc<Endpoint>]) -> Tokenizing<'a> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some(PromptTokens {
                ids: (0..3).collect(),
                media: Vec::new(),
                lora: None,
                salt: None,
                origin: Origin::Local,
                exact: true,
            })
        })
    }
}

/// The endpoint whose number is the prompt's length in tokens, from 1.
struct ByLength;

impl Scheduler for ByLength {
    fn schedule(
        &self,
        request: &SchedulingRequest<'_>,
        route: &Route,
        _: &Tried,
        now: u64,
        _: u64,
        _: Option<&mut Decision>,
    ) -> Result<Picked, NotPicked> {
        let tokens = request.tokens.map_or(1, |tokens| tokens.ids.len());
        let place = route.endpoints[tokens - 1].reserve_with(now, 1).unwrap();
        Ok(Picked {
            kv_hints: Some(r#""kv_load_tiers":[]"#.into()),
            ..Picked::new(place)
        })
    }
}

#[tokio::test]
async fn the_pick_waits_for_the_tokens_and_the_body_has_the_hints() {
    let policy = PoolPolicy {
        scheduler: Arc::new(ByLength),
        tokens: Some(Arc::new(Slow)),
        ..PoolPolicy::default()
    };
    let world = with_policy(4, ExtProcConfig::default(), policy);
    let mut talk = world.open();
    let mut said = talk.request("/v1/completions", r#"{"model":"m","prompt":"a b c"}"#);
    assert!(said.is_empty(), "it waits for its tokens");
    assert_eq!(world.in_flight(), [0; 4]);
    while said.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        said = talk.said();
    }
    assert_eq!(lb(&said[0]), "10.0.0.3:8000");
    assert_eq!(world.in_flight(), [0, 0, 1, 0]);
    let (body, last) = piece(&said[1]);
    let expected = r#"{"kv_transfer_params":{"kv_load_tiers":[]},"model":"m","prompt":"a b c"}"#;
    assert_eq!(
        (String::from_utf8(body).unwrap().as_str(), last),
        (expected, true)
    );
    // Who goes away while it waits has taken no place.
    let mut gone = world.open();
    assert!(
        gone.request("/v1/completions", r#"{"model":"m","prompt":"a"}"#)
            .is_empty()
    );
    drop(gone);
    drop(talk);
    assert_eq!(world.in_flight(), [0; 4]);
}
