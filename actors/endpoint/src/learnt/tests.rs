use super::*;
use quorate_routing::config::EndpointPickerConfig;
use quorate_routing::config::presets;
use quorate_routing::learnt::SessionBinding;
use quorate_routing::{BreakerPolicy, EndpointSpec, PoolPolicy, PoolSpec, Target};
use std::time::Duration;

fn endpoint() -> Arc<Endpoint> {
    let spec = EndpointSpec {
        name: "e".into(),
        incarnation: 7,
        pool: "p".into(),
        target: Target::new(false, "127.0.0.1", 1),
        h2c: false,
        region: "r".into(),
        rank: None,
        labels: Default::default(),
        breaker: BreakerPolicy::default(),
        slow_start: Duration::ZERO,
        stall_timeout: Duration::from_secs(60),
    };
    Arc::new(Endpoint::new(spec, None))
}

#[test]
fn what_was_learnt_survives_the_wire() {
    let binding = SessionBinding {
        session: u64::MAX,
        stamp: 5,
        idle_ms: 9,
    };
    let blocks = Learnt::Blocks {
        block_tokens: 64,
        hashes: vec![1, u64::MAX],
    };
    for learnt in [
        blocks,
        Learnt::Sessions(vec![binding; 3]),
        Learnt::Cold { ago_ms: 4 },
    ] {
        let wire = message::to_proto("p", "x", &endpoint(), learnt.clone());
        assert_eq!((wire.endpoint.as_str(), wire.incarnation), ("e", 7));
        assert_eq!(message::words(&wire), learnt.words());
        assert_eq!(message::from_proto(&wire), Some(learnt));
    }
    assert_eq!(message::from_proto(&wire::Learnt::default()), None);
    let mut bad = message::to_proto("p", "x", &endpoint(), Learnt::Sessions(vec![binding; 3]));
    if let Some(wire::learnt::What::Sessions(all)) = &mut bad.what {
        all.stamps.pop();
    }
    assert_eq!(message::from_proto(&bad), None);
}

#[test]
fn only_the_plugin_and_incarnation_that_is_meant_takes_it() {
    let text = presets::get("optimized-baseline-v1").unwrap();
    let compiled = EndpointPickerConfig::parse(text)
        .unwrap()
        .config
        .compile()
        .unwrap();
    let policy = PoolPolicy {
        scheduler: compiled.scheduler,
        learners: compiled.learners,
        ..PoolPolicy::default()
    };
    let pool = PoolSpec {
        name: "p".into(),
        ..PoolSpec::default()
    };
    let plugin = policy.learners[0].name.to_string();
    let endpoint = endpoint();
    let view = RoutingView::with_policies([(pool, Arc::new(policy), vec![Arc::clone(&endpoint)])]);
    let kinds = [
        Learnt::Blocks {
            block_tokens: 64,
            hashes: vec![1, 2],
        },
        Learnt::Cold { ago_ms: 1 },
    ];
    let taken = kinds.map(|learnt| {
        take_in(
            &view,
            &message::to_proto("p", &plugin, &endpoint, learnt),
            1000,
        )
    });
    assert!(
        taken.contains(&TakenIn::Yes) && taken.contains(&TakenIn::No),
        "{taken:?}"
    );
    let good = message::to_proto("p", &plugin, &endpoint, Learnt::Cold { ago_ms: 1 });
    for change in [
        |w: &mut wire::Learnt| w.pool = "q".into(),
        |w: &mut wire::Learnt| w.plugin = "q".into(),
        |w: &mut wire::Learnt| w.endpoint = "q".into(),
        |w: &mut wire::Learnt| w.incarnation = 8,
    ] {
        let mut wire = good.clone();
        change(&mut wire);
        assert_eq!(take_in(&view, &wire, 1000), TakenIn::NotYet);
    }
}

#[test]
fn so_many_words_a_second_and_a_message() {
    let mut purse = Purse::default();
    let mut told = 0;
    for now in 5_000..15_000 {
        let may = purse.open(now);
        assert!(may <= WORDS_A_MESSAGE);
        purse.pay(may);
        told += may as u64;
    }
    let most = 11 * WORDS_A_SECOND;
    assert!((9 * WORDS_A_SECOND..=most).contains(&told), "{told}");
}

#[test]
fn copies_go_in_pieces_and_lose_nothing() {
    let hashes: Vec<u64> = (0..3 * WORDS_A_MESSAGE as u64 + 5).collect();
    let cut = pieces(Learnt::Blocks {
        block_tokens: 64,
        hashes: hashes.clone(),
    });
    let mut joined = Vec::new();
    for piece in cut {
        assert!(piece.words() <= WORDS_A_MESSAGE);
        if let Learnt::Blocks { hashes, .. } = piece {
            joined.extend(hashes);
        }
    }
    assert_eq!(joined, hashes);
    assert_eq!(
        pieces(Learnt::Cold { ago_ms: 1 }),
        [Learnt::Cold { ago_ms: 1 }]
    );
}
