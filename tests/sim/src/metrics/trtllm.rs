//! TensorRT-LLM's page, and the page of Triton with the TensorRT-LLM backend.

use super::Snapshot;
use super::page::Page;

fn used_blocks(s: &Snapshot) -> f64 {
    (s.kv_usage * f64::from(s.num_blocks)).round()
}

/// `trtllm-serve`: the names of its metrics collector.
pub(super) fn render(s: &Snapshot) -> String {
    let m = &s.metrics;
    let mut p = Page::new(
        &[("engine_type", "trtllm"), ("model_name", &s.model)],
        Some(m.created),
    );
    let queries = s.counters.prefix_queries;
    let hit_rate = if queries == 0 {
        0.0
    } else {
        s.counters.prefix_hits as f64 / queries as f64
    };
    let blocks = f64::from(s.num_blocks);
    for (name, help, value) in [
        (
            "trtllm_num_requests_running",
            "Number of active requests",
            s.running,
        ),
        (
            "trtllm_num_requests_waiting",
            "Number of queued requests",
            s.waiting,
        ),
        (
            "trtllm_max_num_active_requests",
            "Maximum number of active requests",
            s.max_num_seqs as f64,
        ),
        ("trtllm_kv_cache_hit_rate", "KV cache hit rate", hit_rate),
        (
            "trtllm_kv_cache_utilization",
            "KV cache utilization",
            s.kv_usage,
        ),
        (
            "trtllm_kv_cache_max_blocks",
            "Maximum number of KV cache blocks",
            blocks,
        ),
        (
            "trtllm_kv_cache_used_blocks",
            "Number of used KV cache blocks",
            used_blocks(s),
        ),
        (
            "trtllm_kv_cache_free_blocks",
            "Number of free KV cache blocks",
            blocks - used_blocks(s),
        ),
        (
            "trtllm_kv_cache_tokens_per_block",
            "Number of tokens per KV cache block",
            f64::from(s.block_size),
        ),
        (
            "trtllm_num_paused_requests",
            "Number of paused requests",
            0.0,
        ),
    ] {
        p.gauge(name, help, value);
    }
    p.counter(
        "trtllm_prompt_tokens_total",
        "Cumulative number of prompt (input) tokens processed.",
        m.prompt_total,
    );
    p.counter(
        "trtllm_generation_tokens_total",
        "Cumulative number of generation (output) tokens produced.",
        m.generation_total,
    );
    p.counter(
        "trtllm_prompt_cached_tokens_total",
        "Cumulative number of prompt tokens found in the KV cache.",
        m.cached_total,
    );
    p.header(
        "trtllm_request_success_total",
        "counter",
        "Count of successfully processed requests.",
    );
    for (reason, count) in m.success.iter().filter(|(reason, _)| reason != "abort") {
        p.sample(
            "trtllm_request_success_total",
            &[("finished_reason", reason)],
            *count as f64,
        );
    }
    let done = m
        .success
        .iter()
        .filter(|(reason, _)| reason != "abort")
        .map(|(_, count)| count)
        .sum();
    p.counter(
        "trtllm_num_requests_completed_total",
        "Total number of completed requests across iterations",
        done,
    );
    for (name, help, histogram) in [
        (
            "trtllm_e2e_request_latency_seconds",
            "Histogram of end to end request latency in seconds.",
            &m.e2e,
        ),
        (
            "trtllm_time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            &m.ttft,
        ),
        (
            "trtllm_time_per_output_token_seconds",
            "Histogram of time per output token in seconds.",
            &m.request_tpot,
        ),
        (
            "trtllm_request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            &m.queue,
        ),
    ] {
        p.histogram(name, help, histogram);
    }
    p.finish()
}

/// Triton: two families, the meaning in a label.
pub(super) fn render_triton(s: &Snapshot) -> String {
    let mut p = Page::new(&[("model", "tensorrt_llm"), ("version", "1")], None);
    let blocks = f64::from(s.num_blocks);
    p.header(
        "nv_trt_llm_request_metrics",
        "gauge",
        "TRT LLM request metrics",
    );
    for (kind, value) in [
        ("waiting", s.waiting),
        ("scheduled", s.running),
        ("active", s.running + s.waiting),
        ("max", s.max_num_seqs as f64),
    ] {
        p.sample(
            "nv_trt_llm_request_metrics",
            &[("request_type", kind)],
            value,
        );
    }
    p.header(
        "nv_trt_llm_kv_cache_block_metrics",
        "gauge",
        "TRT LLM KV cache block metrics",
    );
    for (kind, value) in [
        ("fraction", s.kv_usage),
        ("tokens_per", f64::from(s.block_size)),
        ("max", blocks),
        ("used", used_blocks(s)),
        ("free", blocks - used_blocks(s)),
    ] {
        p.sample(
            "nv_trt_llm_kv_cache_block_metrics",
            &[("kv_cache_block_type", kind)],
            value,
        );
    }
    let done: u64 = s.metrics.success.iter().map(|(_, count)| count).sum();
    p.counter(
        "nv_inference_request_success",
        "Number of successful inference requests, all batch sizes",
        done,
    );
    p.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Dialect;

    #[test]
    fn load_and_cache_size_can_be_read() {
        let snapshot = super::super::tests::snapshot(Dialect::Trtllm);
        let page = render(&snapshot);
        for line in [
            r#"trtllm_num_requests_waiting{engine_type="trtllm",model_name="m\"x"} 2.0"#,
            r#"trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m\"x"} 0.25"#,
            r#"trtllm_kv_cache_max_blocks{engine_type="trtllm",model_name="m\"x"} 400.0"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        let page = render_triton(&snapshot);
        for line in [
            r#"nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2.0"#,
            r#"nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.25"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }
}
