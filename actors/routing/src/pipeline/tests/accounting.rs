//! What is reserved is exactly what is alive, for every preset and every mix of states.

use super::*;
use crate::endpoint::Failure;
use proptest::prelude::*;

proptest! {
    /// For every mix of states and every preset: a pick is usable, was not tried, is reserved exactly once, and nothing is left when
    /// it is over; the same input gives the same pick.
    #[test]
    fn picks_are_legal_and_nothing_leaks(
        preset in 0usize..crate::config::presets::ALL.len() + 1,
        states in prop::collection::vec((0u8..3, any::<bool>(), any::<bool>(), 0u8..3, 0u32..20, 0u32..9), 1..12),
        priority in -1i32..2,
        seeds in prop::collection::vec(any::<u64>(), 1..20),
    ) {
        let text = crate::config::presets::ALL.get(preset).map_or(HEAD, |(_, text)| text);
        let pipeline = EndpointPickerConfig::parse(text).unwrap().config.compile().unwrap().scheduler;
        let roles: Vec<Vec<(&str, &str)>> = states.iter().map(|(_, _, _, role, _, _)| match role {
            0 => vec![],
            1 => vec![("llm-d.ai/role", "prefill")],
            _ => vec![("llm-d.ai/role", "decode")],
        }).collect();
        let labels: Vec<&[(&str, &str)]> = roles.iter().map(|r| &r[..]).collect();
        let endpoints = endpoints(&labels);
        let mut tried = Tried::default();
        for (e, (health, draining, was_tried, _, remote, waiting)) in endpoints.iter().zip(&states) {
            e.set_health([Health::Unknown, Health::Ready, Health::Unhealthy][*health as usize], 1);
            e.set_draining(*draining);
            e.set_remote_in_flight(*remote);
            if *waiting > 0 {
                let figures = LoadFigures {
                    running: Some(*remote),
                    waiting: Some(*waiting),
                    kv_cache_usage: (*waiting < 5).then_some(0.1 * *waiting as f32),
                };
                e.set_load(figures, 5);
            }
            if *was_tried {
                tried.add(Arc::clone(e));
            }
        }
        let route = route(&endpoints);
        let mut held = Vec::new();
        for seed in seeds {
            let prompt = format!("{}", seed % 3).repeat(700);
            let text = prompt.as_str();
            let request = SchedulingRequest {
                model: "m",
                priority,
                prompt: Some(&text),
                prompt_bytes: text.len(),
                ..Default::default()
            };
            // Failures open breakers, so the best tier is asked for each time.
            let best = endpoints.iter().filter(|e| !tried.contains(e)).filter_map(|e| e.tier(10)).min();
            let before: u32 = endpoints.iter().map(|e| e.local_in_flight()).sum();
            match pipeline.schedule(&request, &route, &tried, 10, seed, None) {
                Ok(picked) => {
                    let endpoint = picked.reservation.endpoint();
                    prop_assert_eq!(endpoint.tier(10), best);
                    prop_assert!(!tried.contains(endpoint));
                    let after: u32 = endpoints.iter().map(|e| e.local_in_flight()).sum();
                    let places = 1 + picked.request_headers.len() as u32;
                    prop_assert_eq!(after, before + places);
                    if seed % 2 == 0 {
                        picked.reservation.progress(11);
                        prop_assert_eq!(endpoints.iter().map(|e| e.local_in_flight()).sum::<u32>(), before + 1);
                    }
                    if seed % 5 == 0 {
                        picked.reservation.failed(Failure::Reset, 11);
                    } else {
                        held.push(picked);
                    }
                }
                Err(NotPicked::Unavailable(_)) => {
                    prop_assert_eq!(endpoints.iter().map(|e| e.local_in_flight()).sum::<u32>(), before);
                }
                Err(NotPicked::Denied(denied)) => {
                    prop_assert!(priority < 0);
                    prop_assert_eq!(denied.status, StatusCode::TOO_MANY_REQUESTS);
                }
            }
        }
        drop(held);
        prop_assert!(endpoints.iter().all(|e| e.local_in_flight() == 0 && e.local_tokens() == 0));
    }
}
