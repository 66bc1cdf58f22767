//! Which part of each endpoint's capacity a region's routers may use. Each region has a dispatcher of its own, and the picker knows no
//! regions: without a division every region would fill the whole pool.
//!
//! An endpoint is its own region's. A region whose usable endpoints cannot do all that the pool's can (it has none, or no prefill)
//! is a guest in the others and gets an even part of each endpoint; endpoints of regions without routers are divided evenly. The parts
//! of an endpoint sum up to one wherever the regions see the same endpoints and nodes.

use quorate_routing::Endpoint;
use quorate_routing::flow::saturation::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The part of each endpoint that routers of `here` may use, in their order. `regions`: those with live routers, `here` among
/// them.
pub fn parts(
    endpoints: &[Arc<Endpoint>],
    regions: &BTreeSet<&str>,
    here: &str,
    now: u64,
) -> Vec<f64> {
    if regions.len() < 2 {
        return vec![1.0; endpoints.len()];
    }
    let usable: Vec<(&str, Role)> = endpoints
        .iter()
        .filter(|e| e.tier(now).is_some())
        .map(|e| (&*e.spec().region, role(e)))
        .collect();
    let guests = guests(&usable, regions);
    endpoints
        .iter()
        .map(|e| part(&e.spec().region, &guests, regions, here))
        .collect()
}

fn role(endpoint: &Endpoint) -> Role {
    let labels = &endpoint.spec().labels;
    Role::of(labels.get("llm-d.ai/role").map(String::as_str))
}

/// Regions whose endpoints lack what those of others can do.
fn guests<'a>(usable: &[(&str, Role)], regions: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let does = |role: Role| match role {
        Role::Prefill => (true, false),
        Role::Decode => (false, true),
        Role::Both => (true, true),
        Role::Neither => (false, false),
    };
    let mut all = (false, false);
    let mut own: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for (region, role) in usable {
        let (prefill, decode) = does(*role);
        let own = own.entry(region).or_default();
        *own = (own.0 | prefill, own.1 | decode);
        all = (all.0 | prefill, all.1 | decode);
    }
    let lacks = |region: &&&str| own.get(**region).copied().unwrap_or_default() != all;
    regions.iter().filter(lacks).copied().collect()
}

fn part(region: &str, guests: &BTreeSet<&str>, regions: &BTreeSet<&str>, here: &str) -> f64 {
    let (mine, claims) = match regions.contains(region) {
        false => (true, regions.len()),
        true => {
            let others = guests.iter().filter(|guest| **guest != region).count();
            (here == region || guests.contains(here), others + 1)
        }
    };
    match mine {
        true => 1.0 / claims.max(1) as f64,
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(usable: &[(&str, Role)], regions: &[&str], here: &str) -> Vec<f64> {
        let regions: BTreeSet<&str> = regions.iter().copied().collect();
        let guests = guests(usable, &regions);
        usable
            .iter()
            .map(|(region, _)| part(region, &guests, &regions, here))
            .collect()
    }

    #[test]
    fn a_region_has_its_own_endpoints_and_no_others() {
        let pool = [("a", Role::Both), ("a", Role::Both), ("b", Role::Both)];
        assert_eq!(of(&pool, &["a", "b"], "a"), [1.0, 1.0, 0.0]);
        assert_eq!(of(&pool, &["a", "b"], "b"), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_region_without_endpoints_is_a_guest_and_orphans_are_divided() {
        let pool = [("a", Role::Both), ("b", Role::Both), ("gone", Role::Both)];
        let third = 1.0 / 3.0;
        assert_eq!(of(&pool, &["a", "b", "c"], "a"), [0.5, 0.0, third]);
        assert_eq!(of(&pool, &["a", "b", "c"], "c"), [0.5, 0.5, third]);
    }

    #[test]
    fn a_region_without_prefill_is_a_guest_too() {
        let pool = [
            ("a", Role::Prefill),
            ("a", Role::Decode),
            ("b", Role::Decode),
        ];
        assert_eq!(of(&pool, &["a", "b"], "b"), [0.5, 0.5, 1.0]);
        assert_eq!(of(&pool, &["a", "b"], "a"), [0.5, 0.5, 0.0]);
    }

    proptest! {
        #[test]
        fn every_endpoint_is_given_out_once_and_nobody_goes_without(
            pool in prop::collection::vec((0usize..5, 0usize..3), 1..12),
            live in prop::collection::btree_set(0usize..5, 1..5),
        ) {
            const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
            const ROLES: [Role; 3] = [Role::Both, Role::Prefill, Role::Decode];
            let pool: Vec<_> = pool.into_iter().map(|(r, role)| (NAMES[r], ROLES[role])).collect();
            let regions: Vec<_> = live.into_iter().map(|r| NAMES[r]).collect();
            let mut sums = vec![0.0; pool.len()];
            for here in &regions {
                let parts = of(&pool, &regions, here);
                for wanted in [Role::Prefill, Role::Decode] {
                    let can = |(_, role): &&(&str, Role)| *role == wanted || *role == Role::Both;
                    if pool.iter().any(|e| can(&e)) {
                        let has = pool.iter().zip(&parts).any(|(e, part)| can(&e) && *part > 0.0);
                        prop_assert!(has, "{here} has nothing for {wanted:?}");
                    }
                }
                sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
            }
            for sum in sums {
                prop_assert!((sum - 1.0f64).abs() < 1e-9, "{sum}");
            }
        }
    }
}
