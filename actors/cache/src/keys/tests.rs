//! Keys from tokens and keys from events are the same keys.

use super::*;
use crate::hash::Extra;
use proptest::prelude::*;
use quorate_routing::request::MediaKind;
use quorate_routing::tokens::MediaSpan;

fn tokens(ids: Vec<u32>) -> PromptTokens {
    PromptTokens {
        ids: ids.into(),
        media: Vec::new(),
        lora: None,
        salt: None,
        origin: Origin::Local,
        exact: true,
    }
}

fn space(algorithm: Option<&str>, seed: Option<&str>) -> KeySpace {
    let scheme = Scheme::of(algorithm, seed, ExtraForm::Untagged);
    KeySpace::new("m", 16, scheme).unwrap()
}

fn keys(space: &KeySpace, tokens: &PromptTokens) -> Vec<u64> {
    let mut keys = Vec::new();
    space.keys(tokens, None, usize::MAX, &mut keys).unwrap();
    keys
}

/// vLLM's own vectors: blocks 0..16 and 16..32, no extras.
#[test]
fn an_engines_hash_gives_the_key_of_the_prompt() {
    for (algorithm, seed, hashes) in [
        (
            "sha256",
            None,
            [3_262_291_359_910_021_016, 7_142_137_847_444_424_233],
        ),
        (
            "sha256_cbor",
            None,
            [2_233_398_808_101_521_225, 17_911_472_383_915_781_900],
        ),
        (
            "xxhash_cbor",
            Some("0"),
            [4_168_120_356_241_826_254, 9_934_807_162_112_882_475],
        ),
    ] {
        let space = space(Some(algorithm), seed);
        // The 33rd token is in no whole block.
        let prompt = tokens((0..33).collect());
        let told: Vec<u64> = hashes.map(|hash| space.key_of_hash(hash)).to_vec();
        assert_eq!(keys(&space, &prompt), told, "{algorithm}");
        let mut one = Vec::new();
        space.keys(&prompt, None, 1, &mut one).unwrap();
        assert_eq!(one, told[..1]);
    }
}

#[test]
fn settings_name_their_scheme() {
    let of = |algorithm, seed| Scheme::of(algorithm, seed, ExtraForm::Tagged);
    assert_eq!(of(None, Some("0")), Scheme::Own);
    assert_eq!(of(Some("builtin"), None), Scheme::Own);
    assert_eq!(of(Some("xxhash"), None), Scheme::Own, "a random seed");
    assert_eq!(of(Some("sglang"), None), Scheme::Sglang);
    let vllm = of(Some("sha256_cbor"), None);
    assert!(matches!(vllm, Scheme::Vllm { ref seed, .. } if seed.as_ref() == VLLM_SEED));
    for wrong in [0, MOST_BLOCK + 1] {
        assert!(KeySpace::new("m", wrong, Scheme::Own).is_err());
    }
    assert!(KeySpace::new(&"m".repeat(MOST_TEXT + 1), 16, Scheme::Own).is_err());
}

#[test]
fn spaces_keep_their_keys_apart() {
    let prompt = tokens((0..64).collect());
    let mut seen = std::collections::HashSet::new();
    for model in ["a", "b"] {
        for block in [16, 32] {
            for scheme in [
                Scheme::Own,
                Scheme::Sglang,
                Scheme::of(Some("sha256_cbor"), None, ExtraForm::Untagged),
                Scheme::of(Some("sha256_cbor"), Some("0"), ExtraForm::Untagged),
            ] {
                let space = KeySpace::new(model, block, scheme).unwrap();
                let keys = keys(&space, &prompt);
                assert_eq!(keys.len(), 64 / block as usize);
                assert!(keys.into_iter().all(|key| seen.insert(key)));
            }
        }
    }
}

#[test]
fn what_is_not_certain_has_no_keys() {
    for space in [space(None, None), space(Some("sha256_cbor"), None)] {
        let mut prompt = tokens((0..64).collect());
        prompt.origin = Origin::Estimate;
        assert!(keys(&space, &prompt).is_empty());
        let mut prompt = tokens((0..64).collect());
        let whole = keys(&space, &prompt);
        prompt.exact = false;
        prompt.media.push(MediaSpan {
            kind: MediaKind::Image,
            start: 40,
            len: 8,
            identifier: "x".into(),
        });
        assert_eq!(keys(&space, &prompt), whole[..2], "up to the guessed item");
        prompt.exact = true;
        let exact = keys(&space, &prompt);
        assert_eq!((exact.len(), &exact[..2]), (4, &whole[..2]));
        assert_ne!(exact[2], whole[2]);
    }
    let tagged = Scheme::of(Some("sha256_cbor"), None, ExtraForm::Tagged);
    let space = KeySpace::new("m", 16, tagged).unwrap();
    let mut prompt = tokens((0..64).collect());
    prompt.lora = Some("adapter".into());
    let mut out = vec![7];
    assert_eq!(
        space.keys(&prompt, None, 9, &mut out),
        Err(NotComputable::NotCovered)
    );
    assert_eq!(out, [7]);
    // With the path it is vLLM's own hash: of `("lora", "my-lora", "/adapters/my-lora")`, blocks 0..16 and 16..32.
    let mut prompt = tokens((0..40).collect());
    prompt.lora = Some("my-lora".into());
    let mut out = Vec::new();
    let path = Some("/adapters/my-lora");
    space.keys(&prompt, path, 9, &mut out).unwrap();
    let named = |hex: &str| space.key_of_hash(u64::from_str_radix(hex, 16).unwrap());
    // The last eight bytes of 6c108bf8…2b3776 and 1755b7c6…d2d346.
    assert_eq!(out, [named("c9fc53f5402b3776"), named("499c7f7e7df2d346")]);
    assert_eq!(
        space.keys(&tokens((0..16).collect()), path, 9, &mut out),
        Ok(())
    );
    assert_eq!(out.last(), Some(&named("1efea06206ac0749")), "no adapter");
}

fn any_space() -> impl Strategy<Value = KeySpace> {
    let algorithm = prop_oneof![
        Just(None),
        Just(Some("sglang")),
        Just(Some("sha256")),
        Just(Some("sha256_cbor")),
        Just(Some("xxhash_cbor")),
    ];
    ("[a-z/]{0,20}", 1u32..40, algorithm, any::<bool>()).prop_map(|(model, block, name, tagged)| {
        let form = match tagged {
            true => ExtraForm::Tagged,
            false => ExtraForm::Untagged,
        };
        KeySpace::new(&model, block, Scheme::of(name, Some("7"), form)).unwrap()
    })
}

proptest! {
    #[test]
    fn a_space_comes_back_from_the_log(space in any_space(), cut in 0usize..40) {
        let again = KeySpace::decode(space.encoded()).unwrap();
        prop_assert_eq!(&again, &space);
        prop_assert_eq!(again.key_of_hash(5), space.key_of_hash(5));
        let short = cut.min(space.encoded().len() - 1);
        prop_assert!(KeySpace::decode(&space.encoded()[..short]).is_err());
    }

    #[test]
    fn garbage_is_no_space(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(space) = KeySpace::decode(&bytes) {
            prop_assert_eq!(space.model().len() + 3 <= bytes.len(), true);
        }
    }

    /// The owner hears of blocks in pieces of any length, with an adapter, a salt and items; the router has the prompt.
    #[test]
    fn keys_of_events_are_those_of_the_prompt(
        own in any::<bool>(),
        block in 1u32..20,
        ids in prop::collection::vec(any::<u32>(), 0..120),
        lora in prop::option::of("[a-z]{1,5}"),
        salt in prop::option::of("[a-z]{1,5}"),
        item in prop::option::of((0usize..100, 1usize..40)),
    ) {
        let algorithm = (!own).then_some("sha256_cbor");
        let space = KeySpace::new("m", block, Scheme::of(algorithm, None, ExtraForm::Untagged)).unwrap();
        let mut prompt = tokens(ids);
        prompt.lora = lora.as_deref().map(Arc::from);
        prompt.salt = salt.as_deref().map(Arc::from);
        prompt.media.extend(item.map(|(start, len)| MediaSpan { kind: MediaKind::Image, start, len, identifier: "i".into() }));
        let (mut told, mut scratch) = (Vec::new(), Vec::new());
        let mut parent = None;
        let mut own_parent = space.own_root(lora.as_deref().unwrap_or(""), salt.as_deref().unwrap_or(""));
        for (at, piece) in prompt.ids.chunks_exact(block as usize).enumerate() {
            let (start, end) = (at * block as usize, (at + 1) * block as usize);
            let here = item.filter(|(from, len)| *from < end && from + len > start);
            let offset = here.map(|(from, _)| from as i64 - start as i64);
            match space.hasher() {
                Some(hasher) => {
                    let mut extras = Vec::new();
                    extras.extend(lora.as_deref().map(|name| Extra::Lora { name, path: "" }));
                    extras.extend(offset.map(|offset| Extra::Item { identifier: "i", offset }));
                    extras.extend(salt.as_deref().filter(|_| at == 0).map(Extra::Salt));
                    let digest = hasher.block(parent.as_ref(), piece, &extras, &mut scratch).unwrap();
                    told.push(space.key_of_hash(hasher.key(&digest)));
                    parent = Some(digest);
                }
                None => {
                    own_parent = space.own_key(own_parent, piece, offset.map(|offset| ("i", offset)));
                    told.push(own_parent);
                }
            }
        }
        prop_assert_eq!(keys(&space, &prompt), told);
    }
}
