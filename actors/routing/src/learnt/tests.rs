//! Routers of one configuration that tell each other what they learnt.

use super::*;
use crate::config::registry::Registry;
use crate::config::{CompiledPolicy, EndpointPickerConfig};
use crate::endpoint::Health;
use crate::endpoint::tests::spec;
use crate::view::{PoolSpec, RoutingView};
use crate::{Scheduler, SchedulingRequest, Tried};
use http::{HeaderMap, HeaderValue};
use std::collections::VecDeque;

const ENDPOINTS: usize = 4;
const CONFIG: &str = "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
- type: no-hit-lru-scorer
- type: session-affinity-scorer
  parameters: {strategy: session_id}
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: prefix-cache-scorer
  - pluginRef: no-hit-lru-scorer
  - pluginRef: session-affinity-scorer
    weight: 10
  - pluginRef: max-score-picker
";

struct Router {
    policy: CompiledPolicy,
    view: RoutingView,
}

impl Router {
    fn new(secret: u64) -> Self {
        let registry = Registry::default().with_secret(secret);
        let parsed = EndpointPickerConfig::parse(CONFIG).unwrap();
        let endpoints = (0..ENDPOINTS).map(|i| {
            let endpoint = Endpoint::new(spec(&format!("e{i}")), None);
            endpoint.set_health(Health::Ready, 1);
            Arc::new(endpoint)
        });
        let pool = PoolSpec {
            name: "pool".into(),
            fallback: true,
            ..PoolSpec::default()
        };
        Self {
            policy: parsed.config.compile_with(&registry).unwrap(),
            view: RoutingView::build([(pool, endpoints.collect())]),
        }
    }

    fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.view.pools()[0].endpoints
    }

    /// Name of the endpoint that gets the prompt.
    fn pick(&self, prompt: &str, session: Option<&'static str>, now: u64, random: u64) -> String {
        let mut headers = HeaderMap::new();
        if let Some(session) = session {
            headers.insert("x-session-id", HeaderValue::from_static(session));
        }
        let request = SchedulingRequest {
            model: "m",
            prompt: Some(&prompt),
            headers: &headers,
            ..Default::default()
        };
        let route = self.view.route("m").unwrap();
        let picked = self
            .policy
            .scheduler
            .schedule(&request, route, &Tried::default(), now, random, None)
            .unwrap();
        picked.destination().name().to_owned()
    }

    /// Everything learnt and not yet told.
    fn take(&self, now: u64) -> VecDeque<(usize, String, Learnt)> {
        let mut budget = usize::MAX;
        let learners = self.policy.learners.iter().enumerate();
        learners
            .flat_map(|(i, l)| {
                let taken = l.plugin.take(self.endpoints(), &mut budget, now);
                taken
                    .into_iter()
                    .map(move |(e, what)| (i, e.name().to_owned(), what))
            })
            .collect()
    }

    fn hear(&self, learner: usize, name: &str, learnt: &Learnt, now: u64) -> Result<(), NotLearnt> {
        let endpoint = self.endpoints().iter().find(|e| e.name() == name).unwrap();
        self.policy.learners[learner]
            .plugin
            .learn(endpoint, learnt, now)
    }
}

fn prompt(of: char) -> String {
    of.to_string().repeat(2000)
}

#[test]
fn what_one_router_sent_somewhere_the_others_send_there_too() {
    let routers: Vec<Router> = (0..3).map(|_| Router::new(7)).collect();
    for (i, of) in ('a'..'i').enumerate() {
        let from = &routers[i % 3];
        let now = 1000 + 10 * i as u64;
        let picked = from.pick(&prompt(of), None, now, i as u64);
        for (learner, name, learnt) in from.take(now) {
            assert!(learnt.words() > 0);
            for to in routers.iter().filter(|r| !std::ptr::eq(*r, from)) {
                to.hear(learner, &name, &learnt, now + 1).unwrap();
            }
        }
        assert!(from.take(now).is_empty(), "told once");
        for (n, to) in routers.iter().enumerate() {
            assert_eq!(
                to.pick(&prompt(of), None, now + 2, 99),
                picked,
                "{of} on {n}"
            );
        }
        assert!(
            routers.iter().all(|r| r.take(now + 3).is_empty()),
            "what was heard is not told on"
        );
    }
    // Cold prompts went round: with one order of use on all routers each endpoint had two.
    let mut first: Vec<String> = ('a'..'e')
        .map(|of| routers[0].pick(&prompt(of), None, 3000, 1))
        .collect();
    first.sort_unstable();
    first.dedup();
    assert_eq!(first.len(), ENDPOINTS);
}

#[test]
fn without_the_same_secret_nothing_matches() {
    let (a, b) = (Router::new(1), Router::new(2));
    // Cold prompts go round: not in step.
    b.pick(&prompt('z'), None, 999, 3);
    let mut hits = 0;
    for (i, of) in ('a'..='y').enumerate() {
        let picked = a.pick(&prompt(of), None, 1000, i as u64);
        for (learner, name, learnt) in a.take(1000) {
            if matches!(learnt, Learnt::Blocks { .. }) {
                b.hear(learner, &name, &learnt, 1000).unwrap();
            }
        }
        hits += u32::from(b.pick(&prompt(of), None, 1001, 1000 + i as u64) == picked);
        b.take(1001);
    }
    assert!(hits < 20, "{hits} of 25 on the same of four endpoints");
}

#[test]
fn a_session_stays_where_another_router_bound_it() {
    let (a, b) = (Router::new(7), Router::new(7));
    let picked = a.pick(&prompt('a'), Some("s"), 1000, 5);
    let learnt = a.take(1000);
    assert!(
        learnt
            .iter()
            .any(|(_, name, what)| *name == picked && matches!(what, Learnt::Sessions(_)))
    );
    for (learner, name, learnt) in &learnt {
        b.hear(*learner, name, learnt, 1000).unwrap();
    }
    for (i, of) in ('b'..'h').enumerate() {
        assert_eq!(b.pick(&prompt(of), Some("s"), 1100, i as u64), picked);
    }
}

#[test]
fn a_router_that_starts_gets_a_copy() {
    let (old, new) = (Router::new(7), Router::new(7));
    let picked = old.pick(&prompt('a'), Some("s"), 1000, 5);
    for (learner, named) in old.policy.learners.iter().enumerate() {
        for endpoint in old.endpoints() {
            if let Some(copy) = named.plugin.copy(endpoint, 1000, 1000) {
                new.hear(learner, endpoint.name(), &copy, 1).unwrap();
            }
        }
    }
    assert_eq!(new.pick(&prompt('a'), None, 2, 1), picked);
    assert_eq!(new.pick(&prompt('b'), Some("s"), 2, 1), picked);
    assert!(old.policy.learners.iter().all(|l| l.plugin.lost() == 0));
}

#[test]
fn what_is_of_no_use_is_refused_and_changes_nothing() {
    let (a, b) = (Router::new(7), Router::new(7));
    a.pick(&prompt('a'), Some("s"), 1000, 5);
    for (learner, name, learnt) in a.take(1000) {
        for other in 0..b.policy.learners.len() {
            if other != learner {
                assert_eq!(b.hear(other, &name, &learnt, 1000), Err(NotLearnt::Kind));
            }
        }
        if let Learnt::Blocks { hashes, .. } = learnt {
            let other = Learnt::Blocks {
                block_tokens: 128,
                hashes,
            };
            assert_eq!(
                b.hear(learner, &name, &other, 1000),
                Err(NotLearnt::BlockSize)
            );
        }
    }
    for (endpoint, named) in b.endpoints().iter().zip(b.policy.learners.iter()) {
        assert_eq!(named.plugin.copy(endpoint, 1000, 1000), None);
    }
}
