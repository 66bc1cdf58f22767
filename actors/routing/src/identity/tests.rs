//! Keys, tokens and limits, one rule at a time; limits over several routers against what they promise.

mod tokens;

use super::*;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const NOW: u64 = 1_800_000_000_000;

fn tenant(name: &str) -> TenantRule {
    TenantRule {
        name: name.into(),
        ..TenantRule::default()
    }
}

fn key(name: &str, tenant: &str) -> KeyRule {
    KeyRule {
        name: name.into(),
        tenant: tenant.into(),
        sha256: digest_of(&secret(name)),
        ..KeyRule::default()
    }
}

fn secret(name: &str) -> String {
    format!("qk-{name}")
}

fn door(tenants: &[TenantRule], keys: &[KeyRule]) -> Authenticator {
    let door = Authenticator::default();
    let table = IdentityTable::build(tenants, keys, &IdentityTable::default(), 1);
    door.set_table(Arc::new(table));
    door
}

fn limits(requests: Option<f64>, tokens: Option<u64>, concurrent: Option<u32>) -> Limits {
    Limits {
        requests_per_second: requests,
        tokens_per_minute: tokens,
        concurrent,
    }
}

#[test]
fn keys_are_found_by_their_digest() {
    let mut expired = key("old", "t");
    expired.expires_unix_ms = Some(NOW);
    let mut revoked = key("gone", "t");
    revoked.revoked = true;
    let off = TenantRule {
        disabled: true,
        ..tenant("off")
    };
    let door = door(
        &[tenant("t"), off],
        &[
            key("good", "t"),
            expired,
            revoked,
            key("off", "off"),
            key("lost", "nobody"),
        ],
    );
    let who = |shown: Option<&str>| {
        door.identify(shown, NOW)
            .map(|caller| caller.fairness_id().to_string())
    };
    assert_eq!(who(Some("qk-good")), Ok("t".to_owned()));
    assert_eq!(who(None), Err(Denied::Missing));
    assert_eq!(who(Some("")), Err(Denied::Missing));
    for wrong in ["qk-goo", "qk-good ", "QK-good", "qk-lost", "x"] {
        assert_eq!(who(Some(wrong)), Err(Denied::Unknown), "{wrong}");
    }
    assert_eq!(who(Some("qk-old")), Err(Denied::Expired));
    assert!(door.identify(Some("qk-old"), NOW - 1).is_ok());
    assert_eq!(who(Some("qk-gone")), Err(Denied::Revoked));
    assert_eq!(who(Some("qk-off")), Err(Denied::Disabled));
    assert!(Denied::Disabled.is_known() && !Denied::Unknown.is_known());
    // Without an issuer's keys a token is a key that nobody has.
    assert_eq!(who(Some("eyJ.a.b")), Err(Denied::Unknown));
}

#[test]
fn tenant_and_key_must_both_allow() {
    let tenant = TenantRule {
        models: vec!["llama*".into(), "qwen".into()],
        objectives: vec!["fast".into(), "batch".into()],
        default_objective: "batch".into(),
        fairness_id: "flow".into(),
        ..tenant("t")
    };
    let narrow = KeyRule {
        models: vec!["llama-3".into(), "other".into()],
        objectives: vec!["fast".into()],
        ..key("narrow", "t")
    };
    let door = door(&[tenant], &[key("wide", "t"), narrow]);
    let wide = door.identify(Some("qk-wide"), NOW).unwrap();
    let narrow = door.identify(Some("qk-narrow"), NOW).unwrap();
    for (model, by_wide, by_narrow) in [
        ("llama-3", true, true),
        ("llama", true, false),
        ("qwen", true, false),
        ("qwen2", false, false),
        ("other", false, false),
        ("", false, false),
    ] {
        assert_eq!(wide.allows(model).is_ok(), by_wide, "{model}");
        assert_eq!(narrow.allows(model).is_ok(), by_narrow, "{model}");
    }
    assert_eq!(wide.objective(None), Ok(Some("batch")));
    assert_eq!(wide.objective(Some("fast")), Ok(Some("fast")));
    assert_eq!(
        wide.objective(Some("best")),
        Err(Refused::Objective("best".into()))
    );
    // The default is none that the key may name.
    assert_eq!(narrow.objective(None), Ok(None));
    assert!(narrow.objective(Some("batch")).is_err());
    assert_eq!(&**narrow.fairness_id(), "flow");
    assert_eq!(&*narrow.grant().tenant, "t");
    assert_eq!(narrow.grant().key.as_deref(), Some("narrow"));
}

#[test]
fn requests_are_limited_by_rate_and_at_once() {
    let budget = [Arc::new(Budget::new(
        "b".into(),
        limits(Some(2.0), None, Some(3)),
        0,
    ))];
    let first = Budget::begin(&budget, 0).unwrap();
    let second = Budget::begin(&budget, 0).unwrap();
    let third = Budget::begin(&budget, 0).unwrap_err();
    assert_eq!(third, Exhausted::Requests(Duration::from_millis(500)));
    let third = Budget::begin(&budget, 500).unwrap();
    let fourth = Budget::begin(&budget, 5_000).unwrap_err();
    assert!(matches!(fourth, Exhausted::Concurrent(_)));
    drop(first);
    let _fourth = Budget::begin(&budget, 5_000).unwrap();
    drop((second, third));
    assert_eq!(budget[0].totals().open, 1);
    assert_eq!(budget[0].totals().requests, 4);
}

#[test]
fn tokens_are_taken_when_they_are_known() {
    let budget = [Arc::new(Budget::new(
        "b".into(),
        limits(None, Some(600), None),
        0,
    ))];
    let request = Budget::begin(&budget, 0).unwrap();
    request.tokens(900, 0);
    drop(request);
    // 300 below zero, and 10 come back each second.
    let refused = Budget::begin(&budget, 0).unwrap_err();
    assert_eq!(refused.retry_after(), Duration::from_secs(30));
    assert!(Budget::begin(&budget, 29_000).is_err());
    assert!(Budget::begin(&budget, 30_100).is_ok());
    assert_eq!(budget[0].totals().tokens, 900);
}

#[test]
fn a_request_takes_of_all_its_budgets_or_of_none() {
    let of_tenant = Arc::new(Budget::new("t".into(), limits(Some(10.0), None, None), 0));
    let of_key = Arc::new(Budget::new("k".into(), limits(None, None, Some(1)), 0));
    let both = [Arc::clone(&of_tenant), of_key];
    let one = Budget::begin(&both, 0).unwrap();
    for _ in 0..50 {
        assert!(Budget::begin(&both, 0).is_err());
    }
    assert_eq!(of_tenant.totals().requests, 1);
    assert_eq!(of_tenant.totals().open, 1);
    drop(one);
    for _ in 0..9 {
        assert!(Budget::begin(&both, 0).is_ok());
    }
    assert!(Budget::begin(&both, 0).is_err());
}

#[test]
fn limits_change_without_forgetting() {
    let rule = |requests| TenantRule {
        limits: limits(Some(requests), None, None),
        ..tenant("t")
    };
    let first = IdentityTable::build(
        &[rule(10.0)],
        &[key("k", "t")],
        &IdentityTable::default(),
        0,
    );
    let budget = Arc::clone(first.budget_of("tenant/t").unwrap());
    for _ in 0..10 {
        Budget::begin(std::slice::from_ref(&budget), 0).unwrap();
    }
    // Nothing is left of ten, so nothing is left of a hundred.
    let second = IdentityTable::build(&[rule(100.0)], &[key("k", "t")], &first, 0);
    assert!(Arc::ptr_eq(second.budget_of("tenant/t").unwrap(), &budget));
    assert!(Budget::begin(std::slice::from_ref(&budget), 0).is_err());
    assert!(Budget::begin(std::slice::from_ref(&budget), 20).is_ok());
    let none = IdentityTable::build(&[tenant("t")], &[], &second, 0);
    assert!(none.budgets().next().is_none());
}

#[test]
fn the_others_count_and_are_forgotten() {
    let mine = [Arc::new(Budget::new(
        "b".into(),
        limits(Some(10.0), Some(600), Some(4)),
        0,
    ))];
    let said = |requests, tokens, open| Totals {
        requests,
        tokens,
        open,
    };
    // What was before this router heard of the other one is past.
    mine[0].absorb(7, said(1_000, 1_000_000, 3), 0);
    let one = Budget::begin(&mine, 0).unwrap();
    assert!(matches!(
        Budget::begin(&mine, 0),
        Err(Exhausted::Concurrent(_))
    ));
    mine[0].absorb(7, said(1_009, 1_000_000, 0), 0);
    assert!(matches!(
        Budget::begin(&mine, 0),
        Err(Exhausted::Requests(_))
    ));
    mine[0].absorb(7, said(1_009, 1_000_700, 2), 10_000);
    assert!(matches!(
        Budget::begin(&mine, 10_000),
        Err(Exhausted::Tokens(_))
    ));
    mine[0].forget(7);
    mine[0].forget(7);
    assert!(Budget::begin(&mine, 40_000).is_ok());
    drop(one);
}

proptest! {
    /// Three routers, arrivals spread in any way, each tells the others every 100 ms: over a long time no more is admitted than
    /// the limit, but for one bucket and what was on its way; and not much less than the limit if enough is asked for.
    #[test]
    fn routers_together_admit_what_the_limit_says(
        skew in proptest::collection::vec(1..20u32, 3),
        rate in 5..200u32,
        seed in any::<u64>(),
    ) {
        let rate = f64::from(rate);
        let routers: Vec<_> = (0..3)
            .map(|_| Arc::new(Budget::new("b".into(), limits(Some(rate), None, None), 0)))
            .collect();
        let tell = |now: u64| {
            for (from, budget) in routers.iter().enumerate() {
                for (to, other) in routers.iter().enumerate() {
                    if from != to {
                        other.absorb(from as u64, budget.totals(), now);
                    }
                }
            }
        };
        tell(0);
        let total: u32 = skew.iter().sum();
        let (mut admitted, mut random) = (0u32, seed);
        let seconds = 30u64;
        for now in 0..seconds * 1000 {
            // Four times the limit is asked for.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let draw = (random >> 33) as f64 / f64::from(1u32 << 31);
            if draw < 4.0 * rate / 1000.0 {
                let mut at = (random >> 20) as u32 % total;
                let mut which = 0;
                while at >= skew[which] {
                    at -= skew[which];
                    which += 1;
                }
                admitted += u32::from(Budget::begin(std::slice::from_ref(&routers[which]), now).is_ok());
            }
            if now % 100 == 99 {
                tell(now);
            }
        }
        let allowed = rate * seconds as f64;
        // A full bucket at the beginning, once for each router that had not heard yet, and what came in one round.
        let slack = 3.0 * rate + 0.1 * 4.0 * rate + 3.0;
        prop_assert!(f64::from(admitted) <= allowed + slack, "{admitted} of {allowed}");
        prop_assert!(f64::from(admitted) >= 0.9 * allowed - 3.0, "{admitted} of {allowed}");
    }

    /// Open requests are counted in and out exactly, in every order.
    #[test]
    fn open_requests_never_leak(steps in proptest::collection::vec((0..4u8, 0..8usize), 0..200)) {
        let budget = [Arc::new(Budget::new("b".into(), limits(None, None, Some(5)), 0))];
        let mut open = Vec::new();
        let mut elsewhere = [0u32; 2];
        for (op, which) in steps {
            match op {
                0 => {
                    let all = open.len() as u32 + elsewhere.iter().sum::<u32>();
                    let begun = Budget::begin(&budget, 0);
                    prop_assert_eq!(begun.is_ok(), all < 5);
                    open.extend(begun.ok());
                }
                1 if !open.is_empty() => {
                    open.swap_remove(which % open.len());
                }
                2 => {
                    elsewhere[which % 2] = which as u32;
                    budget[0].absorb((which % 2) as u64, Totals { open: which as u32, ..Totals::default() }, 0);
                }
                3 => {
                    elsewhere[which % 2] = 0;
                    budget[0].forget((which % 2) as u64);
                }
                _ => {}
            }
            prop_assert_eq!(budget[0].totals().open as usize, open.len());
        }
    }
}
