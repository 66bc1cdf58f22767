//! Heavy requests wait for their router's turn, light ones do not, and nothing waits for long.

use crate::support::*;
use quorate_routing::turns::{Carrier, HEAVY_TOKENS, LATE_MS, Message, Turn, Turns};
use quorate_routing::{Endpoint, EndpointObserver, Failure, now_ms};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// What the router says to the others; nobody answers.
#[derive(Default)]
struct Said {
    asked: AtomicUsize,
    placed: AtomicUsize,
}

impl Carrier for Said {
    fn send(&self, _: u64, message: Message) {
        if let Message::Ask(_) = message {
            self.asked.fetch_add(1, SeqCst);
        }
    }

    fn placed(&self) {
        self.placed.fetch_add(1, SeqCst);
    }
}

struct Observer(Arc<Turns>);

impl EndpointObserver for Observer {
    fn breaker_opened(&self, _: &Endpoint, _: Failure) {}
    fn breaker_closed(&self, _: &Endpoint) {}
    fn turn(&self) -> Option<Turn> {
        self.0.ask(now_ms())
    }
}

/// The turns of router 2 beside router 1 that keeps them, both used to each other.
fn turns(said: &Arc<Said>) -> Arc<Turns> {
    let turns = Turns::new(2, 0, Arc::<Said>::clone(said));
    turns.set_routers([1, 2].into(), now_ms());
    for moment in 0..20 {
        turns.heavy_placed(moment * 1_000);
        turns.heavy_heard(moment * 1_000);
    }
    Arc::new(turns)
}

fn prompt(tokens: u64) -> String {
    let text = "word ".repeat(tokens as usize);
    format!(r#"{{"model":"m","prompt":"{text}"}}"#)
}

#[tokio::test]
async fn a_heavy_request_waits_for_its_turn_but_not_for_long() {
    let engines = [
        Engine::start(|_| async { json("{}") }).await,
        Engine::start(|_| async { json("{}") }).await,
    ];
    let said = Arc::<Said>::default();
    let turns = turns(&said);
    let endpoints: Vec<_> = engines
        .iter()
        .map(|engine| {
            let url = format!("http://{}", engine.addr);
            observed(
                &url,
                &url,
                false,
                Some(Arc::new(Observer(Arc::clone(&turns)))),
            )
        })
        .collect();
    let front = Front::of(config(), endpoints.clone());
    let post = async |tokens| {
        let reply = front.post("/v1/completions", &prompt(tokens)).await;
        assert_eq!(reply.status, 200);
    };
    post(HEAVY_TOKENS / 10).await;
    assert_eq!(said.asked.load(SeqCst), 0, "a light one");
    // Nobody gives it a turn: it goes all the same.
    post(HEAVY_TOKENS).await;
    assert_eq!(said.asked.load(SeqCst), 1);
    // The keeper answers the second time. That is asked for once the first is late.
    tokio::time::sleep(Duration::from_millis(LATE_MS + 5)).await;
    let keeper = async {
        while said.asked.load(SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        let (turn, after) = (2, None);
        turns.hear(1, Message::Yours { turn, after }, now_ms());
    };
    tokio::join!(post(HEAVY_TOKENS), keeper);
    assert_eq!(said.placed.load(SeqCst), 1);

    let alone = Front::of(config(), endpoints[..1].to_vec());
    let body = prompt(HEAVY_TOKENS);
    assert_eq!(alone.post("/v1/completions", &body).await.status, 200);
    assert_eq!(said.asked.load(SeqCst), 2, "there is nothing to choose");
}
