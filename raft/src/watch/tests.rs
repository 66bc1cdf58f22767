// long: one test for each promise of a watch, and the model of them all.
use std::{collections::BTreeMap, task::Poll};

use futures_util::{FutureExt as _, StreamExt as _};
use proptest::prelude::*;
use quorate_proto::v1::Resource;

use super::*;
use crate::state::{ChangeType, ControlState, ResourceExt as _, tests::fixtures::*};

/// A state machine with a hub behind it, as a node has them.
struct Node {
    state: ControlState,
    index: u64,
    hub: WatchHub,
    /// All changes ever.
    history: Vec<ChangeEvent>,
}

impl Node {
    fn new(limits: WatchLimits) -> Self {
        let mut state = ControlState::default();
        let history = state.apply(1, &batch([init("c1", "n1")])).unwrap().events;
        let hub = WatchHub::new(Arc::new(state.view(1, 1)), limits);
        Self {
            state,
            index: 1,
            hub,
            history,
        }
    }

    fn apply(&mut self, commands: Vec<quorate_proto::store::v1::Command>) {
        self.index += 1;
        let applied = self.state.apply(self.index, &batch(commands)).unwrap();
        self.history.extend(applied.events.iter().cloned());
        self.hub.publish(self.view(), applied.events);
    }

    fn set(&mut self, name: &str, value: u32) {
        self.apply(vec![put(setting(name, &value.to_string()))]);
    }

    fn view(&self) -> Arc<ControlView> {
        Arc::new(self.state.view(self.index, 1))
    }
}

fn limits(events: usize) -> WatchLimits {
    WatchLimits {
        events,
        ..WatchLimits::default()
    }
}

fn settings() -> WatchFilter {
    WatchFilter {
        kinds: vec![Kind::Setting],
        name: None,
    }
}

/// What the watch has to say now, without waiting.
fn now(watch: &mut WatchStream) -> Poll<Result<WatchEvent, WatchError>> {
    watch
        .next()
        .now_or_never()
        .map_or(Poll::Pending, Poll::Ready)
}

fn expect(watch: &mut WatchStream) -> WatchEvent {
    match now(watch) {
        Poll::Ready(Ok(event)) => event,
        other => panic!("{other:?}"),
    }
}

fn said(event: &WatchEvent) -> (WatchEventType, String) {
    let json = event
        .resource
        .as_ref()
        .map(|r| format!("{}={}", r.name(), r.setting().map_or("", |s| &s.json)));
    (event.kind, json.unwrap_or_default())
}

#[test]
fn state_then_synced_then_changes() {
    let mut node = Node::new(WatchLimits::default());
    node.set("a", 1);
    node.set("b", 1);
    let mut watch = node.hub.subscribe(settings(), None).unwrap();
    node.set("a", 2);
    node.apply(vec![delete(Kind::Setting, "b")]);
    use WatchEventType::{Delete, Put, Synced};
    let expected = [
        (Put, "a=1", false),
        (Put, "b=1", false),
        (Synced, "", true),
        (Put, "a=2", true),
        (Delete, "b=1", true),
    ];
    for (kind, text, resumable) in expected {
        let event = expect(&mut watch);
        assert_eq!(said(&event), (kind, text.to_owned()));
        assert_eq!(event.resume_token.is_some(), resumable);
    }
    assert!(now(&mut watch).is_pending());
    assert_eq!(node.hub.subscribers(), 1);
    drop(watch);
    assert_eq!(node.hub.subscribers(), 0);
}

#[test]
fn kinds_come_in_the_order_of_their_references() {
    let mut node = Node::new(WatchLimits::default());
    node.apply(vec![
        put(setting("a", "1")),
        put(pool("p")),
        put(endpoint("e", "p", "r1")),
    ]);
    let mut watch = node.hub.subscribe(WatchFilter::default(), None).unwrap();
    let kinds: Vec<_> = (0..5)
        .map(|_| expect(&mut watch).resource.unwrap().kind())
        .collect();
    assert_eq!(kinds, crate::state::KINDS[..5]);
}

#[test]
fn a_name_selects() {
    let mut node = Node::new(WatchLimits::default());
    node.set("a", 1);
    node.set("b", 1);
    let filter = WatchFilter {
        kinds: vec![],
        name: Some("b".into()),
    };
    let mut watch = node.hub.subscribe(filter, None).unwrap();
    node.set("a", 2);
    node.set("b", 2);
    let all: Vec<_> = (0..3).map(|_| said(&expect(&mut watch)).1).collect();
    assert_eq!(all, ["b=1", "", "b=2"]);
    assert!(now(&mut watch).is_pending());
}

#[test]
fn a_token_resumes_on_another_node() {
    let (mut a, mut b) = (
        Node::new(WatchLimits::default()),
        Node::new(WatchLimits::default()),
    );
    let mut watch = a.hub.subscribe(settings(), None).unwrap();
    a.set("x", 1);
    b.set("x", 1);
    assert_eq!(expect(&mut watch).kind, WatchEventType::Synced);
    let token = expect(&mut watch).resume_token.unwrap().to_string();
    for node in [&mut a, &mut b] {
        node.set("x", 2);
        let mut resumed = node
            .hub
            .subscribe(settings(), Some(&token.parse().unwrap()))
            .unwrap();
        assert_eq!(said(&expect(&mut resumed)).1, "x=2");
        assert!(now(&mut resumed).is_pending());
    }
}

#[test]
fn a_node_that_lags_behind_the_token_waits_for_its_own_log() {
    let (mut ahead, mut behind) = (
        Node::new(WatchLimits::default()),
        Node::new(WatchLimits::default()),
    );
    ahead.set("x", 1);
    ahead.set("x", 2);
    let token = ahead.view().resume_token();
    let mut watch = behind.hub.subscribe(settings(), Some(&token)).unwrap();
    behind.set("x", 1);
    assert!(now(&mut watch).is_pending());
    behind.set("x", 2);
    assert!(
        now(&mut watch).is_pending(),
        "both were seen before the token"
    );
    behind.set("x", 3);
    assert_eq!(said(&expect(&mut watch)).1, "x=3");
}

#[test]
fn tokens_that_cannot_be_honoured_are_refused() {
    let mut node = Node::new(limits(2));
    let old = node.view().resume_token();
    (0..3).for_each(|i| node.set("x", i));
    let subscribe = |token: &ResumeToken| node.hub.subscribe(settings(), Some(token)).err();
    assert_eq!(subscribe(&old), Some(WatchError::Compacted));
    assert_eq!(subscribe(&ResumeToken::new("c1", old.revision() + 1)), None);
    let foreign = ResumeToken::new("c2", 3);
    assert!(matches!(
        subscribe(&foreign),
        Some(WatchError::WrongCluster { .. })
    ));
    for text in [
        "",
        "q1",
        "q1.1",
        "q1.x.c1",
        "q1.+1.c1",
        "q1.01.c1",
        "q2.1.c1",
        "q1.ffffffffffffffffff.c1",
        "1.c1",
    ] {
        assert_eq!(
            text.parse::<ResumeToken>(),
            Err(WatchError::BadToken),
            "{text}"
        );
    }
}

#[test]
fn a_slow_subscriber_is_told() {
    let mut node = Node::new(limits(4));
    node.set("a", 0);
    let mut watch = node.hub.subscribe(settings(), None).unwrap();
    let mut in_the_middle = node.hub.subscribe(WatchFilter::default(), None).unwrap();
    expect(&mut in_the_middle);
    expect(&mut watch);
    assert_eq!(expect(&mut watch).kind, WatchEventType::Synced);
    (0..4).for_each(|i| node.set("x", i));
    assert_eq!(
        said(&expect(&mut watch)).1,
        "x=0",
        "four behind is not too far"
    );
    (4..20).for_each(|i| node.set("x", i));
    let rest: Vec<_> = std::iter::from_fn(|| match now(&mut watch) {
        Poll::Ready(result) => Some(result.map(|e| said(&e).1)),
        Poll::Pending => None,
    })
    .take(4)
    .collect();
    let text = |value: &str| Ok(value.to_owned());
    assert_eq!(
        rest,
        [
            text("x=1"),
            text("x=2"),
            text("x=3"),
            Err(WatchError::Compacted)
        ]
    );
    assert_eq!(now(&mut watch), Poll::Ready(Err(WatchError::Closed)));
    assert_eq!(
        now(&mut in_the_middle),
        Poll::Ready(Err(WatchError::Compacted))
    );
}

#[test]
fn the_ring_is_bounded_by_bytes_too() {
    let mut node = Node::new(WatchLimits {
        events: 1000,
        bytes: 10_000,
    });
    let start = node.view().resume_token();
    let large = format!("\"{}\"", "x".repeat(4_000));
    (0..3).for_each(|i| node.apply(vec![put(setting(&format!("s{i}"), &large))]));
    let resume = |revision| {
        node.hub
            .subscribe(settings(), Some(&ResumeToken::new("c1", revision)))
            .err()
    };
    assert_eq!(resume(start.revision()), Some(WatchError::Compacted));
    assert_eq!(resume(start.revision() + 1), None);
    let huge = format!("\"{}\"", "x".repeat(40_000));
    node.apply(vec![put(setting("huge", &huge))]);
    let before = ResumeToken::new("c1", node.state.revision() - 1);
    let mut watch = node.hub.subscribe(settings(), Some(&before)).unwrap();
    assert_eq!(
        expect(&mut watch).resource.unwrap().name(),
        "huge",
        "the newest change is always kept"
    );
}

#[test]
fn quiet_watches_get_bookmarks() {
    let mut node = Node::new(WatchLimits::default());
    let mut watch = node
        .hub
        .subscribe(
            WatchFilter {
                kinds: vec![Kind::Pool],
                name: None,
            },
            None,
        )
        .unwrap();
    assert_eq!(watch.bookmark(), None, "the state has not been sent");
    assert_eq!(expect(&mut watch).kind, WatchEventType::Synced);
    (0..255).for_each(|i| node.set("x", i));
    assert!(now(&mut watch).is_pending());
    let bookmark = watch.bookmark().unwrap();
    assert_eq!(bookmark.kind, WatchEventType::Bookmark);
    assert_eq!(
        bookmark.resume_token,
        Some(node.view().resume_token()),
        "on demand, as far as it has looked"
    );
    (0..600).for_each(|i| node.set("x", i + 1000));
    let bookmark = expect(&mut watch);
    assert_eq!(bookmark.kind, WatchEventType::Bookmark);
    assert!(bookmark.resume_token.unwrap().revision() > node.state.revision() - 600);
}

#[test]
fn an_installed_snapshot_restarts_the_history() {
    let (mut node, mut other) = (
        Node::new(WatchLimits::default()),
        Node::new(WatchLimits::default()),
    );
    (0..5).for_each(|i| other.set("x", i));
    let mut watch = node.hub.subscribe(settings(), None).unwrap();
    assert_eq!(expect(&mut watch).kind, WatchEventType::Synced);
    let before = node.view().resume_token();
    node.state = other.state.clone();
    node.hub.reset(node.view());
    assert_eq!(now(&mut watch), Poll::Ready(Err(WatchError::Compacted)));
    assert_eq!(
        node.hub.subscribe(settings(), Some(&before)).err(),
        Some(WatchError::Compacted)
    );
    let mut watch = node
        .hub
        .subscribe(settings(), Some(&node.view().resume_token()))
        .unwrap();
    node.set("x", 9);
    assert_eq!(said(&expect(&mut watch)).1, "x=9");

    // Events that do not continue the history do the same, even without a reset.
    let mut gap = node.history.pop().into_iter().collect::<Vec<_>>();
    gap.iter_mut().for_each(|event| event.revision += 5);
    (0..5).for_each(|i| {
        node.state
            .apply(50, &batch([put(setting("y", &i.to_string()))]))
            .unwrap();
    });
    node.hub.publish(node.view(), gap);
    assert_eq!(now(&mut watch), Poll::Ready(Err(WatchError::Compacted)));
}

#[tokio::test]
async fn a_waiting_watch_wakes_and_ends_with_its_hub() {
    let mut node = Node::new(WatchLimits::default());
    let watch = node
        .hub
        .subscribe(settings(), Some(&node.view().resume_token()))
        .unwrap();
    let reader = tokio::spawn(async move { watch.into_stream().collect::<Vec<_>>().await });
    for i in 0..10 {
        tokio::task::yield_now().await;
        node.set("x", i);
    }
    drop(node);
    let seen = reader.await.unwrap();
    assert_eq!(seen.len(), 11);
    assert_eq!(seen.last(), Some(&Err(WatchError::Closed)));
}

/// One thing that happens between a node and its subscribers.
#[derive(Clone, Debug)]
enum Step {
    /// Puts (Some) or deletes (None) so many settings in one entry.
    Write(Vec<(u8, Option<u8>)>),
    Subscribe(Option<u8>),
    /// Reads so many messages of a subscriber.
    Read(prop::sample::Index, u8),
    /// A subscriber breaks off and comes back with its last token.
    Resume(prop::sample::Index),
    /// The node restarts or installs a snapshot: same state, no history.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = prop::collection::vec((0..4u8, prop::option::weighted(0.7, any::<u8>())), 1..4);
    let step = prop_oneof![
        8 => write.prop_map(Step::Write),
        2 => prop::option::of(0..4u8).prop_map(Step::Subscribe),
        8 => (any::<prop::sample::Index>(), 1..6u8).prop_map(|(who, count)| Step::Read(who, count)),
        2 => any::<prop::sample::Index>().prop_map(Step::Resume),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..120)
}

/// A client that checks what it is told against the whole history.
struct Subscriber {
    watch: WatchStream,
    name: Option<String>,
    known: BTreeMap<String, Arc<Resource>>,
    token: Option<ResumeToken>,
}

impl Subscriber {
    fn wants(&self, event: &ChangeEvent) -> bool {
        event.resource.kind() == Kind::Setting
            && self
                .name
                .as_ref()
                .is_none_or(|name| name == event.resource.name())
    }

    /// Settings as of a revision.
    fn state_at(&self, history: &[ChangeEvent], revision: u64) -> BTreeMap<String, Arc<Resource>> {
        let mut state = BTreeMap::new();
        for event in history
            .iter()
            .take_while(|e| e.revision <= revision)
            .filter(|e| self.wants(e))
        {
            match event.change {
                ChangeType::Put => state.insert(
                    event.resource.name().to_owned(),
                    Arc::clone(&event.resource),
                ),
                ChangeType::Delete => state.remove(event.resource.name()),
            };
        }
        state
    }

    fn take(&mut self, event: WatchEvent, history: &[ChangeEvent]) {
        let since = self.token.as_ref().map(ResumeToken::revision);
        let Some(token) = event.resume_token else {
            assert!(since.is_none() && event.kind == WatchEventType::Put);
            let resource = event.resource.unwrap();
            let repeated = self.known.insert(resource.name().to_owned(), resource);
            assert!(repeated.is_none());
            return;
        };
        let mut skipped = history
            .iter()
            .filter(|e| Some(e.revision) > since && e.revision <= token.revision());
        match (event.kind, event.resource) {
            (WatchEventType::Synced, None) => {
                assert!(since.is_none());
                assert_eq!(self.known, self.state_at(history, token.revision()));
            }
            (WatchEventType::Bookmark, None) => assert!(skipped.all(|e| !self.wants(e))),
            (kind, Some(resource)) => {
                let wanted: Vec<_> = skipped.filter(|e| self.wants(e)).collect();
                assert_eq!(wanted.len(), 1, "a gap or a repeat");
                assert_eq!(wanted[0].resource, resource);
                assert_eq!(
                    wanted[0].change == ChangeType::Put,
                    kind == WatchEventType::Put
                );
            }
            other => panic!("{other:?}"),
        }
        self.token = Some(token);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn subscribers_see_history_without_gap_or_repeat(steps in steps(), ring in 1..12usize) {
        let mut node = Node::new(limits(ring));
        let mut subscribers: Vec<Subscriber> = Vec::new();
        // The newest change that is no longer kept.
        let mut floor = node.state.revision();
        for step in steps {
            match step {
                Step::Write(writes) => {
                    let command = |(name, value): &(u8, Option<u8>)| match value {
                        Some(value) => put(setting(&format!("s{name}"), &value.to_string())),
                        None => delete(Kind::Setting, &format!("s{name}")),
                    };
                    node.apply(writes.iter().map(command).collect());
                    floor = floor.max(node.state.revision().saturating_sub(ring as u64));
                }
                Step::Subscribe(name) => {
                    let name = name.map(|name| format!("s{name}"));
                    let filter = WatchFilter { name: name.clone(), ..settings() };
                    let watch = node.hub.subscribe(filter, None).unwrap();
                    subscribers.push(Subscriber { watch, name, known: BTreeMap::new(), token: None });
                }
                Step::Read(who, count) if !subscribers.is_empty() => {
                    let who = who.index(subscribers.len());
                    for _ in 0..count {
                        match now(&mut subscribers[who].watch) {
                            Poll::Pending => {
                                let subscriber = &subscribers[who];
                                let since = subscriber.token.as_ref().unwrap().revision();
                                let missed = node.history.iter().any(|e| e.revision > since && subscriber.wants(e));
                                prop_assert!(!missed, "it waits although there is something to say");
                                break;
                            }
                            Poll::Ready(Ok(event)) => subscribers[who].take(event, &node.history),
                            Poll::Ready(Err(error)) => {
                                prop_assert_eq!(error, WatchError::Compacted);
                                let subscriber = subscribers.remove(who);
                                let since = subscriber.token.map_or(0, |t| t.revision());
                                prop_assert!(since < floor, "what it needs is still kept");
                                break;
                            }
                        }
                    }
                }
                Step::Resume(who) if !subscribers.is_empty() => {
                    let who = who.index(subscribers.len());
                    let Some(token) = subscribers[who].token.clone() else { continue };
                    let filter = WatchFilter { name: subscribers[who].name.clone(), ..settings() };
                    match node.hub.subscribe(filter, Some(&token.to_string().parse().unwrap())) {
                        Ok(watch) => {
                            prop_assert!(token.revision() >= floor);
                            subscribers[who].watch = watch;
                        }
                        Err(error) => {
                            prop_assert_eq!(error, WatchError::Compacted);
                            prop_assert!(token.revision() < floor);
                            subscribers.remove(who);
                        }
                    }
                }
                Step::Restart => {
                    node.hub.reset(node.view());
                    floor = node.state.revision();
                }
                Step::Read(..) | Step::Resume(_) => {}
            }
        }
        // Whoever is left hears the rest.
        for mut subscriber in subscribers {
            loop {
                match now(&mut subscriber.watch) {
                    Poll::Ready(Ok(event)) => subscriber.take(event, &node.history),
                    Poll::Ready(Err(error)) => {
                        prop_assert_eq!(error, WatchError::Compacted);
                        break;
                    }
                    Poll::Pending => {
                        let since = subscriber.token.as_ref().unwrap().revision();
                        prop_assert!(!node.history.iter().any(|e| e.revision > since && subscriber.wants(e)));
                        break;
                    }
                }
            }
        }
    }
}
