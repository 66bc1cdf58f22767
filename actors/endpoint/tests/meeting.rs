//! When a node that starts has heard the others.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use std::time::Duration;
use support::cluster::{Node, Peers, State};
use support::patiently;

#[tokio::test]
async fn a_node_has_met_the_others_when_it_hears_them() {
    let (state, known) = (State::default(), Peers::default());
    let one = Node::start(1, &state, &known).await;
    patiently("nobody else is known", one.plane.met()).await;
    // Known, and not there; of another region, and not waited for.
    known.add(2, "r", "127.0.0.1:1".parse().unwrap());
    known.add(3, "far", "127.0.0.1:1".parse().unwrap());
    let waited = tokio::time::timeout(Duration::from_millis(200), one.plane.met()).await;
    assert!(waited.is_err(), "{:?}", one.live());
    let known_to_two = Peers::default();
    known_to_two.add(1, "r", one.address);
    let _two = Node::start(2, &state, &known_to_two).await;
    patiently("the other one is heard", one.plane.met()).await;
    assert_eq!(one.live(), [1, 2]);
}
