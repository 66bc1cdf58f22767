//! The pipeline as a whole, on compiled configurations.

mod accounting;

use super::*;
use crate::config::EndpointPickerConfig;
use crate::endpoint::tests::spec;
use crate::endpoint::{Health, LoadFigures};
use crate::view::{PoolSpec, RoutingView};
use http::{HeaderMap, HeaderValue, StatusCode};

const HEAD: &str = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";

fn compiled(rest: &str) -> Arc<Pipeline> {
    let parsed = EndpointPickerConfig::parse(&format!("{HEAD}{rest}")).unwrap();
    parsed.config.compile().unwrap().scheduler
}

fn endpoints(labels: &[&[(&str, &str)]]) -> Vec<Arc<Endpoint>> {
    labels
        .iter()
        .enumerate()
        .map(|(i, labels)| {
            let mut spec = spec(&format!("e{i}"));
            spec.target = crate::Target::new(false, "10.0.0.1", 8000 + i as u16);
            spec.labels = labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            let endpoint = Arc::new(Endpoint::new(spec, None));
            endpoint.set_health(Health::Ready, 1);
            endpoint
        })
        .collect()
}

fn route(endpoints: &[Arc<Endpoint>]) -> Route {
    let pool = PoolSpec {
        name: "p".into(),
        fallback: true,
        ..Default::default()
    };
    let view = RoutingView::build([(pool, endpoints.to_vec())]);
    view.route("m").unwrap().clone()
}

fn pick(
    pipeline: &Pipeline,
    route: &Route,
    request: &SchedulingRequest<'_>,
    random: u64,
) -> Result<Picked, NotPicked> {
    pipeline.schedule(request, route, &Tried::default(), 10, random, None)
}

#[test]
fn a_burst_between_two_readings_spreads_evenly() {
    let pipeline = compiled("");
    let endpoints = endpoints(&[&[][..]; 4]);
    let route = route(&endpoints);
    // One looks a little better at the last reading; a burst must not pile up on it.
    for (i, e) in endpoints.iter().enumerate() {
        let usage = if i == 2 { 0.10 } else { 0.11 };
        let figures = LoadFigures {
            running: Some(10),
            waiting: Some(0),
            kv_cache_usage: Some(usage),
        };
        e.set_load(figures, 5);
    }
    let held: Vec<_> = (0..200)
        .map(|i| pick(&pipeline, &route, &SchedulingRequest::default(), i).unwrap())
        .collect();
    for e in &endpoints {
        assert!(
            (45..=55).contains(&e.local_in_flight()),
            "{}: {}",
            e.name(),
            e.local_in_flight()
        );
    }
    drop(held);
    assert!(
        endpoints
            .iter()
            .all(|e| e.local_in_flight() == 0 && e.local_tokens() == 0)
    );
}

#[test]
fn prompts_stay_where_they_are_cached() {
    let pipeline = compiled("");
    let endpoints = endpoints(&[&[][..]; 4]);
    let route = route(&endpoints);
    let prompts: Vec<String> = (0..8).map(|i| format!("{i:04}").repeat(400)).collect();
    let ask = |prompt: &str| {
        let request = SchedulingRequest {
            model: "m",
            prompt: Some(&prompt),
            prompt_bytes: prompt.len(),
            ..Default::default()
        };
        let picked = pick(&pipeline, &route, &request, 7).unwrap();
        picked.reservation.endpoint().name().to_owned()
    };
    let homes: Vec<String> = prompts.iter().map(|p| ask(p)).collect();
    for _ in 0..3 {
        let again: Vec<String> = prompts.iter().map(|p| ask(p)).collect();
        assert_eq!(again, homes);
    }
}

#[test]
fn a_record_says_everything_and_changes_nothing() {
    let pipeline = compiled(
        "plugins:\n- type: queue-scorer\n- type: utilization-filter\n  parameters:\n    conditions: [{metric: waiting-queue, maxValue: 5}]\n- type: max-score-picker\n  parameters: {maxNumOfEndpoints: 2}\n",
    );
    let endpoints = endpoints(&[&[][..]; 4]);
    endpoints[3].set_draining(true);
    for (i, waiting) in [4, 1, 9].into_iter().enumerate() {
        let figures = LoadFigures {
            running: Some(1),
            waiting: Some(waiting),
            kv_cache_usage: Some(0.5),
        };
        endpoints[i].set_load(figures, 5);
    }
    let route = route(&endpoints);
    let request = SchedulingRequest {
        prompt_bytes: 40,
        ..Default::default()
    };
    let mut record = Decision::default();
    let picked = pipeline
        .schedule(
            &request,
            &route,
            &Tried::default(),
            10,
            1,
            Some(&mut record),
        )
        .unwrap();
    assert_eq!(picked.reservation.endpoint().name(), "e1");
    assert_eq!(picked.fallbacks[0].name(), "e0");
    assert_eq!(record.unusable, ["e3"]);
    assert_eq!(record.candidates.len(), 3);
    assert_eq!(
        (record.candidates[0].queue, record.candidates[0].age_ms),
        (4.0, Some(5))
    );
    let profile = &record.profiles[0];
    assert_eq!(profile.filters[0].removed, ["e2"]);
    assert_eq!(profile.endpoints, ["e0", "e1"]);
    assert_eq!(profile.scores[0].values, [0.0, 1.0]);
    assert_eq!(
        (&profile.totals[..], &profile.picked[..]),
        (&[0.0, 1.0][..], &[Name::from("e1"), "e0".into()][..])
    );
    assert_eq!(
        (&record.picked[..], record.reserved_tokens),
        (&[Name::from("e1"), "e0".into()][..], 10)
    );
    let json = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Decision>(&json).unwrap(), record);
    drop(picked);
    let plain = pick(&pipeline, &route, &request, 1).unwrap();
    assert_eq!(plain.reservation.endpoint().name(), "e1");
}

#[test]
fn filters_that_leave_nobody_are_429_and_constraints_are_503() {
    let pipeline = compiled("plugins:\n- type: prefill-filter\n");
    let endpoints = endpoints(&[&[][..]; 2]);
    let route = route(&endpoints);
    let none = pick(&pipeline, &route, &SchedulingRequest::default(), 1).unwrap_err();
    assert_eq!(none, Unavailable::Filtered.into());
    assert_eq!(
        (none.status(), none.dropped_reason()),
        (StatusCode::TOO_MANY_REQUESTS, Some("rejected-saturated"))
    );
    let request = SchedulingRequest {
        subset: Some(&["10.9.9.9:1"]),
        ..Default::default()
    };
    let none = pick(&pipeline, &route, &request, 1).unwrap_err();
    assert_eq!(
        (none.status(), none.dropped_reason()),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            Some("rejected-no-endpoints")
        )
    );
    let empty = self::route(&[]);
    assert_eq!(
        pick(&pipeline, &empty, &SchedulingRequest::default(), 1).unwrap_err(),
        Unavailable::Empty.into()
    );
}

#[test]
fn if_available_is_412_until_something_is_cached() {
    let pipeline = compiled("");
    let endpoints = endpoints(&[&[][..]; 2]);
    let route = route(&endpoints);
    let prompt = "y".repeat(600);
    let text = prompt.as_str();
    let mut headers = HeaderMap::new();
    headers.insert("prefer", HeaderValue::from_static("if-available"));
    let plain = SchedulingRequest {
        model: "m",
        prompt: Some(&text),
        prompt_bytes: text.len(),
        ..Default::default()
    };
    let request = SchedulingRequest {
        headers: &headers,
        ..plain
    };
    let refused = pick(&pipeline, &route, &request, 1).unwrap_err();
    assert_eq!(refused.status(), StatusCode::PRECONDITION_FAILED);
    assert!(endpoints.iter().all(|e| e.local_in_flight() == 0));
    pick(&pipeline, &route, &plain, 1).unwrap();
    assert!(pick(&pipeline, &route, &request, 1).is_ok());
    // Nothing knows what is cached: nothing is refused.
    let blind = compiled("plugins:\n- type: queue-scorer\n");
    assert!(pick(&blind, &route, &request, 1).is_ok());
}

#[test]
fn a_denied_request_keeps_its_own_status() {
    let pipeline = compiled("");
    let endpoints = endpoints(&[&[]]);
    let figures = LoadFigures {
        running: Some(9),
        waiting: Some(50),
        kv_cache_usage: Some(0.9),
    };
    endpoints[0].set_load(figures, 5);
    let route = route(&endpoints);
    let request = SchedulingRequest {
        priority: -1,
        ..Default::default()
    };
    let denied = pick(&pipeline, &route, &request, 1).unwrap_err();
    assert_eq!(
        (denied.status(), denied.dropped_reason()),
        (StatusCode::TOO_MANY_REQUESTS, Some("rejected-saturated"))
    );
    assert!(pick(&pipeline, &route, &SchedulingRequest::default(), 1).is_ok());
    assert_eq!(endpoints[0].local_in_flight(), 0, "nothing stays reserved");
}

const PD: &str = include_str!("../config/presets/pd.yaml");

#[test]
fn prefill_and_decode_on_different_endpoints() {
    let pipeline = EndpointPickerConfig::parse(PD)
        .unwrap()
        .config
        .compile()
        .unwrap()
        .scheduler;
    let role = |r| [("llm-d.ai/role", r)];
    let (p, d) = (role("prefill"), role("decode"));
    let endpoints = endpoints(&[&p, &d, &p, &d]);
    let route = route(&endpoints);
    let prompt = "x".repeat(4000);
    let text = prompt.as_str();
    let request = SchedulingRequest {
        model: "m",
        prompt: Some(&text),
        prompt_bytes: text.len(),
        ..Default::default()
    };
    let picked = pick(&pipeline, &route, &request, 1).unwrap();
    let decode = Arc::clone(picked.reservation.endpoint());
    assert_eq!(decode.spec().labels["llm-d.ai/role"], "decode");
    let (name, address) = &picked.request_headers[0];
    assert_eq!(name, "x-prefiller-host-port");
    let prefill = endpoints
        .iter()
        .find(|e| *address == e.spec().target.authority)
        .unwrap();
    assert_eq!(prefill.spec().labels["llm-d.ai/role"], "prefill");
    assert_eq!(
        (prefill.local_in_flight(), prefill.local_tokens()),
        (1, 1000)
    );
    picked.reservation.progress(11);
    assert_eq!((prefill.local_in_flight(), prefill.local_tokens()), (0, 0));
    assert_eq!((decode.local_in_flight(), decode.local_tokens()), (1, 0));
    drop(picked);
    assert_eq!(decode.local_in_flight(), 0);
    // Now it is cached where it was decoded: no transfer, if the pick is the same endpoint.
    let other = endpoints
        .iter()
        .find(|e| !Arc::ptr_eq(e, &decode) && e.spec().labels["llm-d.ai/role"] == "decode");
    other.unwrap().set_draining(true);
    let again = pick(&pipeline, &route, &request, 1).unwrap();
    assert!(again.request_headers.is_empty());
    // Without prefill endpoints the decoding one does it all; without decoding ones nothing works.
    let alone = self::route(&endpoints[3..]);
    endpoints[3].set_draining(false);
    assert!(
        pick(&pipeline, &alone, &request, 1)
            .unwrap()
            .request_headers
            .is_empty()
    );
    let none = self::route(&endpoints[..1]);
    assert_eq!(
        pick(&pipeline, &none, &request, 1).unwrap_err(),
        Unavailable::Filtered.into()
    );
}

#[test]
fn prefill_first_and_encoders() {
    let pipeline = compiled(
        "plugins:\n- type: prefill-filter\n- type: decode-filter\n- type: encode-filter\n- type: always-disagg-multimodal-decider\n- type: disagg-profile-handler\n  parameters:\n    stageOrder: prefill-first\n    deciders: {encode: always-disagg-multimodal-decider}\nschedulingProfiles:\n- {name: prefill, plugins: [{pluginRef: prefill-filter}]}\n- {name: decode, plugins: [{pluginRef: decode-filter}]}\n- {name: encode, plugins: [{pluginRef: encode-filter}]}\n",
    );
    let role = |r| [("llm-d.ai/role", r)];
    let (e, p, d) = (role("encode"), role("prefill"), role("decode"));
    let endpoints = endpoints(&[&e, &p, &d]);
    let route = route(&endpoints);
    let header = |picked: &Picked, name: &str| {
        picked
            .request_headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.to_str().unwrap().to_owned())
    };
    let picked = pick(&pipeline, &route, &SchedulingRequest::default(), 1).unwrap();
    assert_eq!(picked.reservation.endpoint().name(), "e2");
    assert_eq!(
        header(&picked, "x-prefiller-host-port").as_deref(),
        Some("10.0.0.1:8001")
    );
    assert_eq!(header(&picked, "x-encoder-hosts-ports"), None);
    let request = SchedulingRequest {
        multimodal: &[100],
        ..Default::default()
    };
    let picked = pick(&pipeline, &route, &request, 1).unwrap();
    assert_eq!(
        header(&picked, "x-encoder-hosts-ports").as_deref(),
        Some("10.0.0.1:8000")
    );
    assert_eq!(endpoints[0].local_in_flight(), 1);
}

#[test]
fn a_header_chooses_the_profile() {
    let pipeline = compiled(
        "plugins:\n- type: prefill-filter\n- type: decode-filter\n- type: header-profile-handler\nschedulingProfiles:\n- {name: prefill, plugins: [{pluginRef: prefill-filter}]}\n- {name: decode, plugins: [{pluginRef: decode-filter}]}\n",
    );
    let (p, d) = (
        [("llm-d.ai/role", "prefill")],
        [("llm-d.ai/role", "decode")],
    );
    let route = route(&endpoints(&[&p, &d]));
    for (value, expected) in [
        (None, Some("e1")),
        (Some("prefill"), Some("e0")),
        (Some("other"), None),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(value) = value {
            headers.insert("EPP-Profile", HeaderValue::from_static(value));
        }
        let request = SchedulingRequest {
            headers: &headers,
            ..Default::default()
        };
        match (pick(&pipeline, &route, &request, 1), expected) {
            (Ok(picked), Some(name)) => assert_eq!(picked.reservation.endpoint().name(), name),
            (Err(refused), None) => assert_eq!(refused.status(), StatusCode::BAD_REQUEST),
            (got, _) => panic!("{value:?}: {got:?}"),
        }
    }
}

#[test]
fn data_parallel_ranks_are_reached_through_their_front() {
    let pipeline = compiled(
        "plugins:\n- type: active-request-scorer\n- type: data-parallel-profile-handler\n",
    );
    let endpoints = endpoints(&[&[], &[]]);
    let route = route(&endpoints);
    let _front = endpoints[0].reserve(1).unwrap();
    let picked = pick(&pipeline, &route, &SchedulingRequest::default(), 1).unwrap();
    assert_eq!(
        (
            picked.reservation.endpoint().name(),
            picked.destination().name()
        ),
        ("e1", "e0")
    );
    assert_eq!(picked.request_headers[0].0, "x-data-parallel-host-port");
    assert_eq!(picked.request_headers[0].1, "10.0.0.1:8001");
    let _more = [endpoints[1].reserve(1), endpoints[1].reserve(1)];
    let picked = pick(&pipeline, &route, &SchedulingRequest::default(), 1).unwrap();
    assert_eq!(picked.destination().name(), "e0");
    assert!(picked.via.is_none() && picked.request_headers.is_empty());
}

#[test]
fn an_endpoint_in_its_slow_start_takes_its_share() {
    let pipeline = compiled("plugins:\n- type: random-picker\n");
    let endpoints = endpoints(&[&[][..]; 2]);
    endpoints[0].set_health(Health::Unhealthy, 1);
    endpoints[0].set_health(Health::Ready, 9);
    assert_eq!(endpoints[0].share_percent(10), 10);
    let route = route(&endpoints);
    let mut random = Random::new(3);
    let slow = (0..2000)
        .map(|_| {
            pick(
                &pipeline,
                &route,
                &SchedulingRequest::default(),
                random.bits(),
            )
            .unwrap()
        })
        .filter(|picked| picked.reservation.endpoint().name() == "e0")
        .count();
    assert!((50..160).contains(&slow), "about 5 %: {slow}");
}
