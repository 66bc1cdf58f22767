//! What the pick knows of a prompt's tokens, what it tells the engine, and whether it was right.

use crate::support::*;
use quorate_routing::tokens::{Origin, PromptTokens, TokenRequest, TokenSource, Tokenizing};
use quorate_routing::{
    Decision, Endpoint, NotPicked, Picked, PoolPolicy, Route, Scheduler, SchedulingRequest, Tried,
};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// A token for each word, unless the prompt says otherwise.
#[derive(Default)]
struct Words {
    asked: AtomicUsize,
}

impl TokenSource for Words {
    fn tokens<'a>(
        &'a self,
        request: TokenRequest<'a>,
        endpoints: &'a [Arc<Endpoint>],
    ) -> Tokenizing<'a> {
        self.asked.fetch_add(1, Relaxed);
        assert!(!endpoints.is_empty());
        let text = String::from_utf8_lossy(request.body).into_owned();
        Box::pin(async move {
            tokio::task::yield_now().await;
            let ids = text.split(' ').map(|word| word.len() as u32).collect();
            (!text.contains("unspeakable")).then_some(PromptTokens {
                ids,
                media: Vec::new(),
                lora: None,
                salt: None,
                origin: Origin::Local,
                exact: true,
            })
        })
    }
}

/// Takes the endpoints in order, and notes what it saw.
#[derive(Default)]
struct InOrder {
    seen: Mutex<Vec<(Option<u64>, Option<usize>)>>,
}

impl Scheduler for InOrder {
    fn schedule(
        &self,
        request: &SchedulingRequest<'_>,
        route: &Route,
        tried: &Tried,
        now: u64,
        _: u64,
        _: Option<&mut Decision>,
    ) -> Result<Picked, NotPicked> {
        let tokens = request.tokens.map(|tokens| tokens.ids.len());
        self.seen
            .lock()
            .unwrap()
            .push((request.prompt_tokens, tokens));
        let next = route.endpoints.iter().find(|e| !tried.contains(e));
        let place = next.and_then(|e| e.reserve_with(now, 1)).unwrap();
        Ok(Picked {
            kv_hints: Some(r#""kv_load_tiers":[]"#.into()),
            cached_tokens: Some(16),
            ..Picked::new(place)
        })
    }
}

fn policy() -> (Arc<Words>, Arc<InOrder>, PoolPolicy) {
    let (words, order) = (Arc::new(Words::default()), Arc::new(InOrder::default()));
    let policy = PoolPolicy {
        scheduler: Arc::clone(&order) as _,
        tokens: Some(Arc::clone(&words) as _),
        ..PoolPolicy::default()
    };
    (words, order, policy)
}

#[tokio::test]
async fn a_prompt_is_tokenized_once_for_all_attempts() {
    let bad = Engine::start(|_| async { answer(503, "text/plain", "no") }).await;
    let good = Engine::start(|_| async { json("{}") }).await;
    let (words, order, policy) = policy();
    let front = Front::with(config(), policy, endpoints(&[&bad, &good]));
    let body = r#"{"model":"m","prompt":"three words here"}"#;
    assert_eq!(front.post("/v1/completions", body).await.status, 200);
    assert_eq!(words.asked.load(Relaxed), 1);
    assert_eq!(*order.seen.lock().unwrap(), [(Some(3), Some(3)); 2]);
    // What cannot be tokenized is served all the same.
    let body = r#"{"model":"m","prompt":"unspeakable"}"#;
    assert_eq!(front.post("/v1/completions", body).await.status, 200);
    assert_eq!(order.seen.lock().unwrap().last(), Some(&(None, None)));
    assert_eq!(front.reserved(), 0);
}

#[tokio::test]
async fn engines_are_told_what_the_pick_says_of_their_caches() {
    let engine = Engine::start(|seen| async move {
        let length = seen.headers["content-length"].to_str().unwrap().to_owned();
        assert_eq!(length, seen.body.len().to_string());
        answer(200, "application/json", seen.body)
    })
    .await;
    let (_, _, policy) = policy();
    let front = Front::with(config(), policy, endpoints(&[&engine]));
    let told = front
        .post("/v1/chat/completions", r#"{"model":"m","messages":[]}"#)
        .await;
    let expected = r#"{"kv_transfer_params":{"kv_load_tiers":[]},"model":"m","messages":[]}"#;
    assert_eq!(told.text(), expected);
    let own = r#"{"model":"m","prompt":"a","kv_transfer_params":{"x":1}}"#;
    assert_eq!(front.post("/v1/completions", own).await.text(), own);
}

#[tokio::test]
async fn predictions_are_compared_with_what_engines_report() {
    let engine = Engine::start(|seen| async move {
        let cached = if seen.body.ends_with(b"\"more\"}") { 48 } else { 10 };
        let usage = format!(
            r#"{{"usage":{{"prompt_tokens":50,"completion_tokens":1,"prompt_tokens_details":{{"cached_tokens":{cached}}}}}}}"#
        );
        answer(200, "application/json", usage)
    })
    .await;
    let (_, _, policy) = policy();
    let place = endpoint("predicted-0", &format!("http://{}", engine.addr), false);
    let front = Front::with(config(), policy, vec![place]);
    for prompt in ["less", "more"] {
        let body = format!(r#"{{"model":"m","prompt":"{prompt}"}}"#);
        assert_eq!(front.post("/v1/completions", &body).await.status, 200);
    }
    let page = crate::metrics::recorder().render();
    let value = |name: &str| {
        page.lines()
            .filter(|line| line.starts_with(&format!("{name}{{")))
            .find(|line| line.contains("endpoint=\"predicted-0\""))
            .and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    assert_eq!(value("quorate_prefix_predictions_total"), Some(2));
    assert_eq!(value("quorate_prefix_predicted_tokens_total"), Some(32));
    assert_eq!(value("quorate_prefix_found_tokens_total"), Some(58));
    // 6 too many, 32 too few.
    assert_eq!(value("quorate_prefix_error_tokens_total"), Some(38));
}
