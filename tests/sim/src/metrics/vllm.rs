//! vLLM's page: names, types, labels and buckets of its V1 engine's Prometheus logger.

use super::page::Page;
use super::{Bounds, Snapshot};

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const ITL: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

pub(super) fn bounds() -> Bounds {
    Bounds {
        ttft: TTFT,
        itl: ITL,
        latency: LATENCY,
    }
}

/// 1, 2, 5, 10, 20, 50 ... up to `max`.
pub(super) fn one_two_five(max: u32) -> Vec<f64> {
    let max = f64::from(max);
    let mut bounds = Vec::new();
    let mut power = 1.0;
    loop {
        for mantissa in [1.0, 2.0, 5.0] {
            if mantissa * power > max {
                return bounds;
            }
            bounds.push(mantissa * power);
        }
        power *= 10.0;
    }
}

pub(super) fn render(s: &Snapshot) -> String {
    let rank = s.rank.to_string();
    let m = &s.metrics;
    let mut p = Page::new(
        &[("engine", &rank), ("model_name", &s.model)],
        Some(m.created),
    );
    p.gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        s.running,
    );
    p.gauge(
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        s.waiting,
    );
    p.gauge(
        "vllm:kv_cache_usage_perc",
        "KV-cache usage. 1 means 100 percent usage.",
        s.kv_usage,
    );
    p.counter(
        "vllm:prefix_cache_queries_total",
        "Prefix cache queries, in terms of number of queried tokens.",
        s.counters.prefix_queries,
    );
    p.counter(
        "vllm:prefix_cache_hits_total",
        "Prefix cache hits, in terms of number of cached tokens.",
        s.counters.prefix_hits,
    );
    p.counter(
        "vllm:num_preemptions_total",
        "Cumulative number of preemption from the engine.",
        s.counters.preemptions,
    );
    p.counter(
        "vllm:prompt_tokens_total",
        "Number of prefill tokens processed.",
        m.prompt_total,
    );
    p.counter(
        "vllm:generation_tokens_total",
        "Number of generation tokens processed.",
        m.generation_total,
    );
    let help = "Count of successfully processed requests.";
    p.header("vllm:request_success_total", "counter", help);
    for (reason, count) in &m.success {
        p.sample(
            "vllm:request_success_total",
            &[("finished_reason", reason)],
            *count as f64,
        );
    }
    p.header("vllm:request_success_created", "gauge", help);
    for (reason, _) in &m.success {
        p.sample(
            "vllm:request_success_created",
            &[("finished_reason", reason)],
            m.created,
        );
    }
    for (name, help, histogram) in [
        (
            "vllm:request_prompt_tokens",
            "Number of prefill tokens processed.",
            &m.prompt,
        ),
        (
            "vllm:request_generation_tokens",
            "Number of generation tokens processed.",
            &m.generation,
        ),
        (
            "vllm:request_params_n",
            "Histogram of the n request parameter.",
            &m.n,
        ),
        (
            "vllm:request_params_max_tokens",
            "Histogram of the max_tokens request parameter.",
            &m.max_tokens,
        ),
        (
            "vllm:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            &m.ttft,
        ),
        (
            "vllm:inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            &m.itl,
        ),
        (
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            &m.request_tpot,
        ),
        (
            "vllm:e2e_request_latency_seconds",
            "Histogram of e2e request latency in seconds.",
            &m.e2e,
        ),
        (
            "vllm:request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            &m.queue,
        ),
        (
            "vllm:request_inference_time_seconds",
            "Histogram of time spent in RUNNING phase for request.",
            &m.inference,
        ),
        (
            "vllm:request_prefill_time_seconds",
            "Histogram of time spent in PREFILL phase for request.",
            &m.prefill,
        ),
        (
            "vllm:request_decode_time_seconds",
            "Histogram of time spent in DECODE phase for request.",
            &m.decode,
        ),
    ] {
        p.histogram(name, help, histogram);
    }
    let mut out = p.finish();

    let mut info = Page::new(&[], None);
    info.header(
        "vllm:cache_config_info",
        "gauge",
        "Information of the LLMEngine CacheConfig",
    );
    info.sample(
        "vllm:cache_config_info",
        &[
            ("block_size", &s.block_size.to_string()),
            ("cache_dtype", "auto"),
            ("calculate_kv_scales", "False"),
            (
                "enable_prefix_caching",
                if s.prefix_caching { "True" } else { "False" },
            ),
            ("engine", &rank),
            ("gpu_memory_utilization", "0.9"),
            ("num_cpu_blocks", "None"),
            ("num_gpu_blocks", &s.num_blocks.to_string()),
            ("num_gpu_blocks_override", "None"),
            ("sliding_window", "None"),
        ],
        1.0,
    );
    if !s.loras.is_empty() {
        info.header(
            "vllm:lora_requests_info",
            "gauge",
            "Running stats on lora requests.",
        );
    }
    for (running, waiting, at) in &s.loras {
        let max = s.max_loras.to_string();
        info.sample(
            "vllm:lora_requests_info",
            &[
                ("max_lora", &max),
                ("running_lora_adapters", running),
                ("waiting_lora_adapters", waiting),
            ],
            *at,
        );
    }
    out.push_str(&info.finish());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Dialect;

    #[test]
    fn token_bounds_are_one_two_five() {
        assert_eq!(one_two_five(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
    }

    #[test]
    fn lines_read_as_vllm_writes_them() {
        let page = render(&super::super::tests::snapshot(Dialect::Vllm));
        for line in [
            "# TYPE vllm:num_requests_running gauge",
            r#"vllm:num_requests_running{engine="0",model_name="m\"x"} 3.0"#,
            r#"vllm:num_requests_waiting{engine="0",model_name="m\"x"} 2.0"#,
            r#"vllm:kv_cache_usage_perc{engine="0",model_name="m\"x"} 0.25"#,
            r#"vllm:prefix_cache_hits_total{engine="0",model_name="m\"x"} 16.0"#,
            r#"vllm:request_success_total{engine="0",finished_reason="length",model_name="m\"x"} 1.0"#,
            r#"vllm:time_to_first_token_seconds_bucket{engine="0",le="0.04",model_name="m\"x"} 0.0"#,
            r#"vllm:time_to_first_token_seconds_bucket{engine="0",le="0.06",model_name="m\"x"} 1.0"#,
            r#"vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m\"x"} 1.0"#,
            r#"vllm:inter_token_latency_seconds_sum{engine="0",model_name="m\"x"} 0.04"#,
            r#"vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters=""} 1700000001.0"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        assert!(page.contains(r#"num_gpu_blocks="400""#));
    }
}
