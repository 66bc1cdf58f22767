//! Heavy requests that come to several routers at the same instant.

use super::*;
use crate::EndpointObserver;
use crate::beside::Beside;
use crate::endpoint::Failure;

struct Router(Option<Beside>);

impl EndpointObserver for Router {
    fn breaker_opened(&self, _: &Endpoint, _: Failure) {}
    fn breaker_closed(&self, _: &Endpoint) {}
    fn beside(&self) -> Option<Beside> {
        self.0
    }
}

/// What a router sees of eight servers.
fn seen_by(beside: Option<Beside>) -> Route {
    let observer: Arc<dyn EndpointObserver> = Arc::new(Router(beside));
    let endpoints: Vec<_> = (0..8)
        .map(|i| {
            let endpoint = Endpoint::new(spec(&format!("e{i}")), Some(Arc::clone(&observer)));
            endpoint.set_health(Health::Ready, 1);
            Arc::new(endpoint)
        })
        .collect();
    route(&endpoints)
}

/// Ten requests for three routers in turn, of which none hears of the others. Gives how many each server got.
fn burst(chance: f32, tokens: u64, random: u64) -> [usize; 8] {
    let preset = crate::config::presets::get("optimized-baseline").unwrap();
    let pipeline = EndpointPickerConfig::parse(preset).unwrap();
    let pipeline = pipeline.config.compile().unwrap().scheduler;
    let routers: Vec<Route> = (0..3)
        .map(|rank| {
            seen_by((chance > 0.0).then_some(Beside {
                rank,
                count: 3,
                chance,
            }))
        })
        .collect();
    let mut got = [0; 8];
    let mut places = Vec::new();
    for n in 0..10 {
        let request = SchedulingRequest {
            prompt_tokens: Some(tokens),
            ..Default::default()
        };
        let picked = pick(&pipeline, &routers[n % 3], &request, random + n as u64).unwrap();
        let name = picked.reservation.endpoint().name();
        got[name[1..].parse::<usize>().unwrap()] += 1;
        places.push(picked);
    }
    got
}

#[test]
fn routers_that_count_on_each_other_leave_no_server_without_work() {
    let idle = |chance, tokens| {
        let bursts = (0..200).map(|seed| burst(chance, tokens, seed * 100));
        bursts
            .map(|got| got.iter().filter(|n| **n == 0).count())
            .sum::<usize>()
    };
    let alone = idle(0.0, 8_000);
    assert!(alone > 200, "{alone} servers idle in 200 bursts");
    assert_eq!(idle(1.0, 8_000), 0);
    assert_eq!(idle(0.5, 8_000), 0);
    // Light requests go where they went before.
    let light = idle(1.0, 200);
    assert!(light > 200, "{light}");
}

#[test]
fn what_begins_with_another_is_taken_all_the_same_when_it_has_less_to_do() {
    let pipeline = compiled(
        "plugins:\n- type: token-load-scorer\nschedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: token-load-scorer\n",
    );
    let route = seen_by(Some(Beside {
        rank: 0,
        count: 2,
        chance: 1.0,
    }));
    let request = SchedulingRequest {
        prompt_tokens: Some(8_000),
        ..Default::default()
    };
    // Its own (e0, e2, e4, e6) have more waiting than two such requests.
    for own in [0, 2, 4, 6] {
        route.endpoints[own].set_remote_tokens(20_000);
    }
    let mut decision = Decision::default();
    let picked = pipeline
        .schedule(
            &request,
            &route,
            &Tried::default(),
            10,
            3,
            Some(&mut decision),
        )
        .unwrap();
    let name = picked.reservation.endpoint().name().to_owned();
    assert!(["e1", "e3", "e5", "e7"].contains(&name.as_str()), "{name}");
    assert_eq!(decision.beside.map(|b| b.count), Some(2));
}
