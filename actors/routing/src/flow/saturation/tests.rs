//! The detectors' arithmetic.

use super::*;

fn concurrency(mode: ConcurrencyMode) -> SaturationDetector {
    SaturationDetector::Concurrency {
        max_concurrency: 100,
        max_token_concurrency: 1_000,
        mode,
        headroom: 0.0,
    }
}

fn load(requests: u64, tokens: u64) -> Load {
    Load { requests, tokens }
}

#[test]
fn concurrency_counts_what_its_mode_says() {
    let two = [EndpointLoad::default(); 2];
    let at = |mode, l| budget(&concurrency(mode), &two, l).saturation(l);
    assert_eq!(at(ConcurrencyMode::Requests, load(50, 9_999)), 0.25);
    assert_eq!(at(ConcurrencyMode::Tokens, load(500, 3_000)), 1.5);
    assert_eq!(at(ConcurrencyMode::Hybrid, load(50, 1_000)), 0.5);
    let b = budget(&concurrency(ConcurrencyMode::Requests), &two, load(0, 0));
    assert_eq!(b.limit(1.0), load(200, u64::MAX));
    assert_eq!(b.limit(0.701).requests, 141);
    assert_eq!(b.limit(0.0).requests, 0);
}

#[test]
fn of_a_part_of_an_endpoint_whole_places_count_and_at_least_one() {
    let of = |parts: &[f64], each| {
        let detector = SaturationDetector::Concurrency {
            max_concurrency: each,
            max_token_concurrency: 0,
            mode: ConcurrencyMode::Requests,
            headroom: 0.0,
        };
        let part = |part: &f64| EndpointLoad {
            part: *part,
            ..EndpointLoad::default()
        };
        let all: Vec<_> = parts.iter().map(part).collect();
        budget(&detector, &all, load(0, 0)).limit(1.0).requests
    };
    let third = 1.0 / 3.0;
    assert_eq!(of(&[1.0, third], 100), 133);
    assert_eq!(of(&[third; 3], 100), 100);
    assert_eq!(of(&[third, 0.0], 8), 2);
    assert_eq!(of(&[third], 1), 1);
    assert_eq!(of(&[0.0], 8), 0);
    assert_eq!(of(&[1.0], 0), 0);
}

#[test]
fn no_endpoint_is_full_and_unknown_is_not() {
    for detector in [
        SaturationDetector::default(),
        concurrency(ConcurrencyMode::Requests),
    ] {
        let none = budget(&detector, &[], load(0, 0));
        assert_eq!(
            (none.saturation(load(0, 0)), none.limit(1.0)),
            (1.0, load(0, 0))
        );
    }
    let unknown = budget(
        &SaturationDetector::default(),
        &[EndpointLoad::default(); 3],
        load(7, 0),
    );
    assert_eq!((unknown.saturation(load(7, 0)), unknown.stale), (0.0, 3));
    assert_eq!(unknown.limit(1.0), Load::UNLIMITED);
}

#[test]
fn utilization_is_the_mean_of_the_worse_ratio_and_moves_with_what_is_released() {
    let e = |waiting, running, in_flight, kv| EndpointLoad {
        in_flight,
        waiting: Some(waiting),
        running: Some(running),
        kv_cache_usage: Some(kv),
        ..EndpointLoad::default()
    };
    let detector = SaturationDetector::default();
    let two = [e(5, 3, 8, 0.4), e(0, 3, 3, 0.4)];
    let b = budget(&detector, &two, load(11, 0));
    assert!((b.saturation(load(11, 0)) - 0.75).abs() < 1e-9);
    // Ten queue places in all.
    assert!((b.saturation(load(13, 0)) - 0.95).abs() < 1e-9);
    assert_eq!(b.limit(1.0).requests, 14);
    // Two went there since the page was read, and one is released but not there yet.
    let later = budget(&detector, &[e(0, 3, 5, 0.0)], load(6, 0));
    assert!((later.saturation(load(6, 0)) - 0.6).abs() < 1e-9);
    // An unknown one next to a full one leaves the full one's word.
    let mixed = budget(
        &detector,
        &[e(10, 0, 10, 0.0), EndpointLoad::default()],
        load(10, 0),
    );
    assert_eq!((mixed.saturation(load(10, 0)), mixed.stale), (2.0, 1));
}

#[test]
fn the_fuller_stage_counts() {
    let of = |role| EndpointLoad {
        role,
        ..Default::default()
    };
    let pool = [
        of(Role::Prefill),
        of(Role::Decode),
        of(Role::Decode),
        of(Role::Neither),
    ];
    let b = budget(&concurrency(ConcurrencyMode::Requests), &pool, load(0, 0));
    assert_eq!(b.limit(1.0).requests, 100);
    assert_eq!(b.by_stage(load(50, 0)), (Some(0.5), Some(0.25)));
    assert_eq!(Role::of(Some("prefill-decode")), Role::Both);
    assert_eq!(Role::of(None), Role::Both);
}
