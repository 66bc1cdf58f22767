//! Our ZeroMQ against libzmq (pyzmq), both ways. Needs QUORATE_PYTHON, a Python with tests/python/requirements.txt.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_cache::events::{Batch, Event, decode};
use quorate_cache::link::{
    Address, Direction, LinkConfig, LinkEvent, Policy, ReplayAt, Subscriber,
};
use quorate_sim::KvEventsConfig;
use serde_json::json;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use support::{get, post, start};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;

fn python(args: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let python = std::env::var_os("QUORATE_PYTHON").expect("QUORATE_PYTHON names no Python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python/kv_events.py");
    let mut child = Command::new(python)
        .arg(script)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<String> {
    tokio::time::timeout(Duration::from_secs(60), lines.next_line())
        .await
        .expect("Python hangs")
        .unwrap()
}

#[tokio::test]
#[ignore = "needs QUORATE_PYTHON; tests/run sets it"]
async fn a_libzmq_publisher_that_loses_batches() {
    let (_child, mut lines) = python(&["publish"]);
    let ports = line(&mut lines).await.unwrap();
    let (events, replay) = ports.split_once(' ').unwrap();
    let address = |port: &str| Address::parse(&format!("tcp://127.0.0.1:{port}")).unwrap();
    let (out, mut batches) = mpsc::channel(16);
    let link = Subscriber::start(
        LinkConfig {
            replay: ReplayAt::Address(address(replay)),
            policy: Policy {
                silence: 300,
                ..Policy::default()
            },
            heartbeat: Duration::from_millis(100),
            ..LinkConfig::new(Direction::Dial(address(events)))
        },
        out,
    )
    .await
    .unwrap();
    let mut batch = Batch::new();
    for wanted in 0..200 {
        let event = tokio::time::timeout(Duration::from_secs(60), batches.recv());
        let event = event
            .await
            .unwrap_or_else(|_| panic!("{:?}", link.status()));
        let Some(LinkEvent::Batch { seq, payload, .. }) = event else {
            panic!("{event:?}");
        };
        assert_eq!(seq, wanted);
        decode(&payload, &mut batch).unwrap();
        let removed = batch.events().next();
        assert!(matches!(removed, Some(Event::Removed(r)) if r.hashes == [wanted]));
    }
    // Pings are sent and answered meanwhile, or the link would have broken.
    tokio::time::sleep(Duration::from_millis(800)).await;
    let status = link.status();
    let status = status.values().next().unwrap();
    assert!(status.counters.replayed > 0, "{status:?}");
    assert_eq!((link.trouble(), status.counters.losses), (None, 0));
}

#[tokio::test]
#[ignore = "needs QUORATE_PYTHON; tests/run sets it"]
async fn a_libzmq_subscriber_of_the_simulator() {
    let json = r#"{"endpoint":"tcp://127.0.0.1:0","bind":true,"replay_endpoint":"tcp://127.0.0.1:0","topic":"kv@sim@m"}"#;
    let events = KvEventsConfig::parse(json).unwrap();
    let sim = start(|config| config.kv_events = events).await;
    let shown = get(sim.addr(), "/sim/kv-events").await.json();
    let address = |key: &str| shown[key].as_str().unwrap().to_owned();
    let (events, replay) = (address("endpoint"), address("replay-endpoint"));
    let (_child, mut lines) = python(&["subscribe", &events, &replay, "4"]);
    assert_eq!(line(&mut lines).await.as_deref(), Some("ready"));
    let ask = async |at: u32| {
        let prompt: Vec<u32> = (0..64).map(|i| at * 64 + i).collect();
        let body = json!({"model": "sim-model", "prompt": prompt, "max_tokens": 1});
        assert_eq!(post(sim.addr(), "/v1/completions", &body).await.status, 200);
    };
    // Until it has what it waits for: the subscription takes a moment to arrive.
    let mut live = Vec::new();
    for at in 0.. {
        ask(at).await;
        let next = tokio::time::timeout(Duration::from_millis(50), lines.next_line());
        if let Ok(said) = next.await {
            live.push(said.unwrap().unwrap());
            break;
        }
        assert!(at < 500, "nothing arrives");
    }
    for at in 1000..1003 {
        ask(at).await;
    }
    let mut replayed = Vec::new();
    while let Some(said) = line(&mut lines).await {
        match said.strip_prefix("replayed ") {
            Some(rest) => replayed.push(rest.to_owned()),
            None => live.push(said),
        }
    }
    assert_eq!(live.len(), 4);
    let live: Vec<&str> = live
        .iter()
        .map(|said| said.strip_prefix("live ").unwrap())
        .collect();
    // The replay begins with the first batch of all and has what came live.
    assert!(replayed[0].starts_with("0 "));
    let at = replayed.iter().position(|said| said == live[0]).unwrap();
    assert_eq!(&replayed[at..at + 4], &live[..]);
    let mut batch = Batch::new();
    for said in &replayed {
        let hex = said.split_once(' ').unwrap().1.as_bytes();
        let payload: Vec<u8> = hex
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        decode(&payload, &mut batch).unwrap();
        assert!(!batch.is_empty());
    }
}
