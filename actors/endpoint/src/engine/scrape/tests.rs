//! Pages as the engines write them, and pages as nobody should.

use super::*;
use proptest::prelude::*;

const VLLM: &str = include_str!("testdata/vllm.txt");
const VLLM_DP: &str = include_str!("testdata/vllm_dp.txt");
const SGLANG: &str = include_str!("testdata/sglang.txt");
const TRTLLM: &str = include_str!("testdata/trtllm.txt");
const TRITON: &str = include_str!("testdata/triton.txt");

fn load(running: u32, waiting: u32, usage: f32) -> LoadFigures {
    LoadFigures {
        running: Some(running),
        waiting: Some(waiting),
        kv_cache_usage: Some(usage),
    }
}

#[test]
fn vllm() {
    let s = parse(VLLM.as_bytes(), None);
    assert_eq!(s.engine, Engine::Vllm);
    assert_eq!(s.load, load(5, 2, 0.25));
    assert_eq!(s.adapters, ["sql-lora", "tweet-lora"]);
    let adapters = AdapterLoad {
        running: vec!["sql-lora".into(), "tweet-lora".into()],
        waiting: Vec::new(),
        max: 4,
    };
    assert_eq!(s.adapter_load, adapters);
    let cache = |block_tokens, blocks| {
        Some(CacheShape {
            block_tokens,
            blocks,
        })
    };
    assert_eq!(s.cache, cache(16, 4096));
    assert_eq!(parse(TRTLLM.as_bytes(), None).cache, cache(32, 0));
    assert_eq!(parse(TRITON.as_bytes(), None).cache, cache(64, 800));
    assert_eq!(parse(SGLANG.as_bytes(), None).cache, None);
    assert_eq!(s.sleeping, Some(false));
    assert_eq!(s.tokens, Some(1234.0));
}

#[test]
fn vllm_data_parallel_ranks_add_up_or_stand_alone() {
    assert_eq!(parse(VLLM_DP.as_bytes(), None).load, load(7, 3, 0.5));
    assert_eq!(parse(VLLM_DP.as_bytes(), Some(1)).load, load(4, 3, 0.9));
    // A rank's own page may number its only engine in its own way.
    assert_eq!(parse(VLLM.as_bytes(), Some(3)).load, load(5, 2, 0.25));
}

#[test]
fn sglang_tensor_ranks_repeat_and_data_ranks_add_up() {
    let s = parse(SGLANG.as_bytes(), None);
    assert_eq!(s.engine, Engine::Sglang);
    assert_eq!(s.load, load(5, 4, 0.5));
    assert_eq!(parse(SGLANG.as_bytes(), Some(0)).load, load(3, 4, 0.4));
}

#[test]
fn tensorrt_llm() {
    let s = parse(TRTLLM.as_bytes(), None);
    assert_eq!((s.engine, s.load), (Engine::Trtllm, load(8, 1, 0.75)));
    assert_eq!(s.tokens, None);
}

#[test]
fn triton() {
    let s = parse(TRITON.as_bytes(), None);
    assert_eq!((s.engine, s.load), (Engine::Triton, load(6, 2, 0.125)));
}

#[test]
fn sleeping() {
    let page = "vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 0.0\n\
                vllm:engine_sleep_state{engine=\"0\",sleep_state=\"weights_offloaded\"} 1.0\n";
    assert_eq!(parse(page.as_bytes(), None).sleeping, Some(true));
}

#[test]
fn a_page_of_something_else_says_nothing() {
    let page = "# HELP process_cpu_seconds_total CPU\nprocess_cpu_seconds_total 12.5\nup 1\n";
    assert_eq!(parse(page.as_bytes(), None), Scrape::default());
    assert_eq!(parse(b"", None), Scrape::default());
}

#[test]
fn odd_lines() {
    let cases: [(&str, Option<u32>); 9] = [
        ("vllm:num_requests_running 3", Some(3)),
        ("vllm:num_requests_running{} 3 1395066363000", Some(3)),
        (
            "vllm:num_requests_running{model_name=\"a}\\\"b\",x=\"{\"} 3e0\r\n",
            Some(3),
        ),
        ("vllm:num_requests_running{model_name=\"a\",} 3", Some(3)),
        ("vllm:num_requests_running{model_name=\"a\"} NaN", None),
        ("vllm:num_requests_running{model_name=\"a\"} -4", Some(0)),
        ("vllm:num_requests_running{model_name=\"a", None),
        ("vllm:num_requests_running_total 3", None),
        (
            "vllm:num_requests_running{model_name=\"a\"} 1e300",
            Some(u32::MAX),
        ),
    ];
    for (line, running) in cases {
        assert_eq!(parse(line.as_bytes(), None).load.running, running, "{line}");
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(page in prop::collection::vec(any::<u8>(), 0..400)) {
        parse(&page, Some(1));
    }

    #[test]
    fn mangled_pages_never_panic(at in 0usize..VLLM.len(), byte in any::<u8>(), cut in 0usize..VLLM.len()) {
        let mut page = VLLM.as_bytes().to_vec();
        page[at] = byte;
        page.truncate(cut);
        parse(&page, None);
    }
}
