//! Hashes of the engines themselves, and of CPython's own pickler.

use super::*;
use proptest::prelude::*;

fn tokens(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

fn two_blocks(hasher: &Hasher, extras: &PromptExtras<'_>) -> (String, String, Vec<u64>) {
    let mut scratch = Vec::new();
    let root = hasher.root(extras.salt);
    let mut keys: Vec<Extra<'_>> = Vec::new();
    if let Some((name, path)) = extras.lora {
        keys.push(Extra::Lora { name, path });
    }
    let second = keys.clone();
    if let Some(salt) = extras.salt {
        keys.push(Extra::Salt(salt));
    }
    let a = hasher
        .block(root.as_ref(), &tokens(0..16), &keys, &mut scratch)
        .unwrap();
    let b = hasher
        .block(Some(&a), &tokens(16..32), &second, &mut scratch)
        .unwrap();
    let mut of_prompt = Vec::new();
    hasher
        .prompt(&tokens(0..40), 16, extras, &mut of_prompt)
        .unwrap();
    assert_eq!(of_prompt, [hasher.key(&a), hasher.key(&b)]);
    (format!("{a:?}"), format!("{b:?}"), of_prompt)
}

fn vllm(algorithm: Algorithm, form: ExtraForm, seed: &str) -> Hasher {
    Hasher::vllm(algorithm, form, Some(seed)).unwrap()
}

#[test]
fn vllm_without_extras() {
    use Algorithm::*;
    let none = PromptExtras::default();
    // (algorithm, seed, parent of the first block, block 0, block 1, keys)
    for (algorithm, seed, root, a, b, keys) in [
        (
            Sha256,
            VLLM_SEED,
            "066b1e8987e027138e98701c46128929378935f9b6cd1549105ae6b4f0d71198",
            "fe8fa5dda3210d0ca2031e37cbe3b001186773cd1c710beb2d45fcb51d434798",
            "8be7aaa33831156d316f1f463ae57e643deb63f42e633e2d631df88815cc4629",
            [3262291359910021016, 7142137847444424233],
        ),
        (
            Sha256,
            "0",
            "1973e23848344dc43a988a9b478663803cfffe1243480253f9a3cf004b14aa7c",
            "6358e31578a64b75ebe28cdb99d3beae65de82a2087321dc6ec84ae048faaaa6",
            "",
            [7982712666671721126, 12675106281628537544],
        ),
        (
            Sha256Cbor,
            VLLM_SEED,
            "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0",
            "dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749",
            "c300ec275d7bf08af8fc63e76cdc0086911bbc7091e03c5cf892553bef84ef0c",
            [2233398808101521225, 17911472383915781900],
        ),
        (
            Sha256Cbor,
            "0",
            "",
            "d830de3d42c00f25a2949b5d12d98642664a44872c1614c5b0147556276afc9c",
            "",
            [12687895063098490012, 1814341696565857452],
        ),
        (
            XxhashCbor,
            "0",
            "1ebe36576dcb573f26b99533a20aaeca",
            "209f5d549fc07c8e39d823615ede61ce",
            "03888914ee75b87e89df867a21beb72b",
            [4168120356241826254, 9934807162112882475],
        ),
    ] {
        let hasher = vllm(algorithm, ExtraForm::Tagged, seed);
        let got = two_blocks(&hasher, &none);
        let got_root = format!("{:?}", hasher.root(None).unwrap());
        for (got, want) in [(&got_root, root), (&got.0, a), (&got.1, b)] {
            assert!(want.is_empty() || got == want, "{algorithm:?} {seed}");
        }
        assert_eq!(got.2, keys);
    }
    assert_eq!(
        Hasher::vllm(Xxhash, ExtraForm::Tagged, None).unwrap_err(),
        NotComputable::RandomSeed
    );
}

#[test]
fn vllm_with_extras() {
    let tagged = vllm(Algorithm::Sha256Cbor, ExtraForm::Tagged, VLLM_SEED);
    let untagged = vllm(Algorithm::Sha256Cbor, ExtraForm::Untagged, VLLM_SEED);
    let lora = PromptExtras {
        lora: Some(("my-lora", "/adapters/my-lora")),
        ..PromptExtras::default()
    };
    let (a, b, _) = two_blocks(&tagged, &lora);
    assert_eq!(
        (a.as_str(), b.as_str()),
        (
            "6c108bf8f53864ec2a8669a86c68cede2fc85442ea7483fac9fc53f5402b3776",
            "1755b7c66a56a7fd778028363da303e6056a2a4199098cf6499c7f7e7df2d346"
        )
    );
    assert_eq!(
        two_blocks(&untagged, &lora).0,
        "88672dfb59bd2dde5bb2e77cc8480c8fe96ad64f863daef93d5684c85bdb1555"
    );
    let salt = PromptExtras {
        salt: Some("tenant-a"),
        ..PromptExtras::default()
    };
    let (a, b, _) = two_blocks(&tagged, &salt);
    assert_eq!(
        (a.as_str(), b.as_str()),
        (
            "4e31e1ced73eb044a95997f0109d0ddab3d9145878214f1a0ee37c048b397859",
            "dd153a6b48192c90c7d94ac9bb001d90b8150f328f74b1ea6f85313d4ecba23f"
        )
    );
}

/// `hashlib.sha256(pickle.dumps((bytes(range(32)), tokens, extras), protocol=5))` of CPython 3.11.
#[test]
fn pickles_as_cpython_does() {
    let parent = Digest::for_test(&(0..32).collect::<Vec<u8>>());
    let many = tokens(0..16);
    let long = "x".repeat(300);
    let lora = Extra::Lora {
        name: "my-lora",
        path: "/adapters/my-lora",
    };
    let item = |identifier, offset| Extra::Item { identifier, offset };
    let (salt, zeros) = (Extra::Salt("tenant-a"), [0; 32]);
    let all = [
        lora,
        item("img-1", -2),
        item("img-2", 5),
        salt,
        Extra::Embeds(&zeros),
    ];
    let bare = [lora, item("img-1", -2), item(&long, 70000), salt];
    use ExtraForm::{Tagged, Untagged};
    let cases: [(ExtraForm, &[u32], &[Extra<'_>], &str); 7] = [
        (
            Tagged,
            &many,
            &[],
            "2a41d0398641430aed4851f2032f6c83080415d23ad70ed3489939462928279d",
        ),
        (
            Tagged,
            &[1, 300],
            &[],
            "804ef490836b73251240e23930c7bbe1b285544320c77b8a9fea7fee51be47bf",
        ),
        (
            Tagged,
            &[7],
            &[],
            "ffe65d8a50298d8c6778ec76000fa89e7dbbd82bde051246b1142295ca6c37a7",
        ),
        (
            Tagged,
            &[1, 300, 70000, 3000000000],
            &[],
            "f3b152211cdd6d981ae74348533274529c80ca0833935d073589a1cc8017695c",
        ),
        (
            Tagged,
            &many,
            &[lora],
            "3293753299768a477a5db1386bfa340a8c8f28e7055e47a349f3694fc837af58",
        ),
        (
            Tagged,
            &many,
            &all,
            "f36b040d4852f2c5da915a43657a9bdbfacb682183a640936001b9dec4789ac6",
        ),
        (
            Untagged,
            &many,
            &bare,
            "ed212ea9d665617b7b849038f4cf978ac228a0eef85001472e867925cb7890c7",
        ),
    ];
    let mut scratch = Vec::new();
    for (form, tokens, extras, want) in cases {
        let hasher = vllm(Algorithm::Sha256, form, VLLM_SEED);
        let got = hasher
            .block(Some(&parent), tokens, extras, &mut scratch)
            .unwrap();
        assert_eq!(format!("{got:?}"), want);
    }
}

#[test]
fn the_cbor_of_wide_tokens() {
    let parent = Digest::for_test(&(0..32).collect::<Vec<u8>>());
    let hasher = vllm(Algorithm::Sha256Cbor, ExtraForm::Tagged, VLLM_SEED);
    let got = hasher
        .block(
            Some(&parent),
            &[1, 300, 70000, 3000000000],
            &[],
            &mut Vec::new(),
        )
        .unwrap();
    assert_eq!(
        format!("{got:?}"),
        "4948b3eeaaca7c439467220bbe2c9ac60176ebb0716213c15f3c31c81db36a0f"
    );
}

#[test]
fn strings_that_could_be_one_object_are_refused() {
    let twice = [
        Extra::Item {
            identifier: "same",
            offset: 0,
        },
        Extra::Item {
            identifier: "same",
            offset: 8,
        },
    ];
    let mut scratch = Vec::new();
    let pickled = vllm(Algorithm::Sha256, ExtraForm::Tagged, VLLM_SEED);
    assert_eq!(
        pickled.block(None, &[1], &twice, &mut scratch),
        Err(NotComputable::SharedObjects)
    );
    let named_as_tag = [Extra::Lora {
        name: "lora",
        path: "p",
    }];
    assert!(
        pickled
            .block(None, &[1], &named_as_tag, &mut scratch)
            .is_err()
    );
    let cbor = vllm(Algorithm::Sha256Cbor, ExtraForm::Tagged, VLLM_SEED);
    assert!(cbor.block(None, &[1], &twice, &mut scratch).is_ok());
}

#[test]
fn sglang() {
    let none = PromptExtras::default();
    let (a, b, keys) = two_blocks(&Hasher::Sglang, &none);
    assert_eq!(
        a,
        "5d85718ec594b982c252d0279e5966ffca33a5eaf2a455038d3ab331fde70cea"
    );
    assert!(b.starts_with("4681c0107c38f402"));
    assert_eq!(keys, [6738917275443968386, 5080553031686747138]);
    let salted = PromptExtras {
        salt: Some("t1"),
        ..none
    };
    assert_ne!(two_blocks(&Hasher::Sglang, &salted).2, keys);
    let lora = PromptExtras {
        lora: Some(("a", "b")),
        ..none
    };
    let mut out = vec![1];
    let refused = Hasher::Sglang.prompt(&tokens(0..32), 16, &lora, &mut out);
    assert_eq!((refused, out), (Err(NotComputable::NotCovered), vec![1]));
}

#[test]
fn items_enter_the_blocks_that_they_reach_into() {
    let items = [
        Item {
            identifier: "a",
            start: 2,
            len: 5,
        },
        Item {
            identifier: "b",
            start: 7,
            len: 1,
        },
    ];
    let extras = PromptExtras {
        items: &items,
        ..PromptExtras::default()
    };
    let hasher = vllm(Algorithm::Sha256Cbor, ExtraForm::Tagged, VLLM_SEED);
    let mut got = Vec::new();
    hasher.prompt(&tokens(0..12), 4, &extras, &mut got).unwrap();
    let item = |identifier, offset| Extra::Item { identifier, offset };
    let per_block: [&[Extra<'_>]; 3] = [&[item("a", 2)], &[item("a", -2), item("b", 3)], &[]];
    let (mut parent, mut want, mut scratch) = (None, Vec::new(), Vec::new());
    for (at, extras) in per_block.into_iter().enumerate() {
        let block = tokens(at as u32 * 4..at as u32 * 4 + 4);
        let digest = hasher
            .block(parent.as_ref(), &block, extras, &mut scratch)
            .unwrap();
        want.push(hasher.key(&digest));
        parent = Some(digest);
    }
    assert_eq!(got, want);
}

proptest! {
    /// The keys of a prompt are those of every longer prompt's beginning, and of no other beginning.
    #[test]
    fn prefixes_share_keys(
        prompt in proptest::collection::vec(any::<u32>(), 1..80),
        more in proptest::collection::vec(any::<u32>(), 0..40),
        block_size in 1usize..9,
        changed in any::<proptest::sample::Index>(),
        which in 0usize..5,
    ) {
        use Algorithm::*;
        let hasher = match which {
            4 => Hasher::Sglang,
            at => vllm([Sha256, Sha256Cbor, Xxhash, XxhashCbor][at], ExtraForm::Tagged, "7"),
        };
        let keys = |tokens: &[u32]| {
            let mut keys = Vec::new();
            hasher.prompt(tokens, block_size, &PromptExtras::default(), &mut keys).unwrap();
            keys
        };
        let short = keys(&prompt);
        prop_assert_eq!(short.len(), prompt.len() / block_size);
        let mut long = prompt.clone();
        long.extend(&more);
        prop_assert_eq!(&keys(&long)[..short.len()], &short[..]);
        let at = changed.index(prompt.len());
        let mut other = prompt.clone();
        other[at] ^= 1;
        for (block, (a, b)) in short.iter().zip(keys(&other)).enumerate() {
            prop_assert_eq!(*a == b, block < at / block_size);
        }
    }
}
