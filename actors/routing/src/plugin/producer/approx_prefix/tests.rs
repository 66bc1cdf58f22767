use super::*;
use crate::endpoint::CacheShape;
use crate::pipeline::testing::Fixture;
use proptest::prelude::*;

fn producer(block_tokens: u32, capacity: usize) -> ApproxPrefix {
    ApproxPrefix {
        column: 0,
        prefill: None,
        auto_tune: false,
        block_tokens,
        max_tokens: 131_072,
        capacity,
        secret: 1,
        index: PrefixIndex::default(),
        size_now: AtomicU32::new(0),
        turn: AtomicUsize::new(0),
    }
}

fn request<'a>(model: &'a str, prompt: &'a dyn crate::pipeline::Prompt) -> SchedulingRequest<'a> {
    SchedulingRequest {
        model,
        prompt: Some(prompt),
        ..Default::default()
    }
}

/// What each row has after the prompt was looked up; then row `pick` gets it.
fn ask(
    f: &mut Fixture,
    p: &ApproxPrefix,
    request: &SchedulingRequest<'_>,
    pick: Option<Row>,
) -> (Vec<u32>, u32) {
    f.attributes
        .reset(crate::pipeline::testing::SHAPE, f.endpoints.len());
    f.produce(p, request);
    if let Some(row) = pick {
        f.with(request, |context, _| {
            p.on_picked(context, &Stages::default(), row, &mut Extras::default());
        });
    }
    let column = f.attributes.prefix(0).unwrap();
    (
        f.rows().iter().map(|row| column.matched(*row)).collect(),
        column.total_blocks,
    )
}

#[test]
fn what_was_sent_is_found_again_up_to_the_first_difference() {
    let mut f = Fixture::new(3);
    let p = producer(1, 1000);
    let abc: &[u8] = b"aaaabbbbcccc";
    assert_eq!(
        ask(&mut f, &p, &request("m", &abc), Some(1)),
        (vec![0, 0, 0], 3)
    );
    assert_eq!(
        ask(&mut f, &p, &request("m", &abc), Some(2)),
        (vec![0, 3, 0], 3)
    );
    let abd: &[u8] = b"aaaabbbbddddee";
    assert_eq!(
        ask(&mut f, &p, &request("m", &abd), None),
        (vec![0, 2, 2], 4)
    );
    // The same bytes elsewhere in the prompt, for another model, or with a salt are no hit.
    let xbc: &[u8] = b"xxxxbbbbcccc";
    assert_eq!(ask(&mut f, &p, &request("m", &xbc), None).0, [0, 0, 0]);
    assert_eq!(ask(&mut f, &p, &request("n", &abc), None).0, [0, 0, 0]);
    let salted = SchedulingRequest {
        cache_salt: Some("s"),
        ..request("m", &abc)
    };
    assert_eq!(ask(&mut f, &p, &salted, None).0, [0, 0, 0]);
    assert_eq!(
        ask(&mut f, &p, &SchedulingRequest::default(), Some(0)),
        (vec![0, 0, 0], 0)
    );
}

#[test]
fn an_endpoint_forgets_the_ends_of_its_oldest_prompts() {
    let mut f = Fixture::new(1);
    let p = producer(1, 4);
    let (one, two): (&[u8], &[u8]) = (b"aaaabbbbcccc", b"ddddeeee");
    ask(&mut f, &p, &request("m", &one), Some(0));
    ask(&mut f, &p, &request("m", &two), Some(0));
    assert_eq!(ask(&mut f, &p, &request("m", &one), None).0, [2]);
    assert_eq!(ask(&mut f, &p, &request("m", &two), None).0, [2]);
    assert_eq!(p.index.size(), (4, 1));
}

#[test]
fn endpoints_that_are_gone_leave_nothing_behind() {
    let mut f = Fixture::new(2);
    let p = producer(1, 100);
    let prompt: &[u8] = b"aaaabbbb";
    ask(&mut f, &p, &request("m", &prompt), Some(1));
    f.endpoints.pop();
    f.now += 60_000;
    let other: &[u8] = b"zzzz";
    ask(&mut f, &p, &request("m", &other), Some(0));
    assert_eq!(p.index.size(), (1, 1));
}

#[test]
fn block_size_and_capacity_follow_the_engine() {
    let mut f = Fixture::new(1);
    let p = ApproxPrefix {
        auto_tune: true,
        ..producer(16, 1)
    };
    let prompt = vec![7u8; 64 * 4 * 3];
    let prompt: &[u8] = &prompt;
    assert_eq!(ask(&mut f, &p, &request("m", &prompt), None).1, 3);
    f.endpoints[0].set_cache_shape(CacheShape {
        block_tokens: 128,
        blocks: 100,
    });
    assert_eq!(
        ask(&mut f, &p, &request("m", &prompt), Some(0)),
        (vec![0], 2)
    );
    assert_eq!(
        ask(&mut f, &p, &request("m", &prompt), None),
        (vec![2], 2),
        "room for 100 blocks"
    );
}

proptest! {
    /// However the text is cut into pieces, its hashes are the same; and they agree exactly on the common prefix's blocks.
    #[test]
    fn hashes_depend_on_the_text_alone(
        text in prop::collection::vec(any::<u8>(), 0..200),
        other in prop::collection::vec(any::<u8>(), 0..200),
        common in 0usize..200,
        cuts in prop::collection::vec(0usize..200, 0..6),
        block in 1usize..20,
        max in 1usize..50,
    ) {
        let hashes = |pieces: &[&[u8]]| {
            let pieces: Vec<&[u8]> = pieces.to_vec();
            let mut hashes = Vec::new();
            hash_blocks(&request("m", &pieces), 1, block, max, &mut hashes);
            hashes
        };
        let whole = hashes(&[&text]);
        prop_assert_eq!(whole.len(), text.len().div_ceil(block).min(max));
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&text[from..cut]);
            from = cut;
        }
        pieces.push(&text[from..]);
        prop_assert_eq!(&hashes(&pieces), &whole);

        let common = common.min(text.len());
        let mut changed = text[..common].to_vec();
        changed.extend(&other);
        let shared = text.iter().zip(&changed).take_while(|(a, b)| a == b).count();
        let got = hashes(&[&changed]);
        let equal = whole.iter().zip(&got).take_while(|(a, b)| a == b).count();
        let full = (shared / block).min(max);
        let same_text = text == changed;
        prop_assert_eq!(equal, if same_text { whole.len() } else { full.min(whole.len()).min(got.len()) });
    }
}
