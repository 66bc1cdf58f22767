//! SGLang's page: the names of its scheduler and tokenizer-manager collectors.

use super::page::Page;
use super::{Bounds, Snapshot};

const TTFT: &[f64] = &[
    0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0,
    400.0,
];
const ITL: &[f64] = &[
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2,
    0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0,
];
const LATENCY: &[f64] = &[
    0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0,
    400.0, 600.0, 1200.0, 1800.0, 2400.0,
];

pub(super) fn bounds() -> Bounds {
    Bounds {
        ttft: TTFT,
        itl: ITL,
        latency: LATENCY,
    }
}

pub(super) fn render(s: &Snapshot) -> String {
    let rank = s.rank.to_string();
    let m = &s.metrics;
    let mut p = Page::new(
        &[
            ("dp_rank", &rank),
            ("engine_type", "unified"),
            ("model_name", &s.model),
            ("pp_rank", "0"),
            ("tp_rank", "0"),
        ],
        None,
    );
    let capacity = f64::from(s.num_blocks) * f64::from(s.block_size);
    let queries = s.counters.prefix_queries;
    let hit_rate = if queries == 0 {
        0.0
    } else {
        s.counters.prefix_hits as f64 / queries as f64
    };
    p.gauge(
        "sglang:num_running_reqs",
        "The number of running requests.",
        s.running,
    );
    p.gauge(
        "sglang:num_queue_reqs",
        "The number of requests in the waiting queue.",
        s.waiting,
    );
    p.gauge(
        "sglang:num_used_tokens",
        "The number of used tokens.",
        (s.kv_usage * capacity).round(),
    );
    p.gauge("sglang:token_usage", "The token usage.", s.kv_usage);
    p.gauge(
        "sglang:max_total_num_tokens",
        "Maximum total number of tokens in the KV cache pool.",
        capacity,
    );
    p.gauge(
        "sglang:cache_hit_rate",
        "The prefix cache hit rate.",
        hit_rate,
    );
    p.header(
        "sglang:cache_config_info",
        "gauge",
        "Information of the KV cache.",
    );
    let (pages, size) = (s.num_blocks.to_string(), s.block_size.to_string());
    p.sample(
        "sglang:cache_config_info",
        &[("num_pages", &pages), ("page_size", &size)],
        1.0,
    );
    p.counter(
        "sglang:prompt_tokens_total",
        "Number of prefill tokens processed.",
        m.prompt_total,
    );
    p.counter(
        "sglang:generation_tokens_total",
        "Number of generation tokens processed.",
        m.generation_total,
    );
    p.counter(
        "sglang:cached_tokens_total",
        "Number of cached prompt tokens.",
        m.cached_total,
    );
    let (aborted, done) = m
        .success
        .iter()
        .fold((0, 0), |(aborted, done), (reason, count)| {
            if reason == "abort" {
                (aborted + count, done)
            } else {
                (aborted, done + count)
            }
        });
    p.counter(
        "sglang:num_requests_total",
        "Number of requests processed.",
        done,
    );
    p.counter(
        "sglang:num_aborted_requests_total",
        "Number of requests aborted.",
        aborted,
    );
    p.counter(
        "sglang:num_retracted_reqs_total",
        "Total number of retracted requests.",
        s.counters.preemptions,
    );
    for (name, help, histogram) in [
        (
            "sglang:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            &m.ttft,
        ),
        (
            "sglang:inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            &m.itl,
        ),
        (
            "sglang:e2e_request_latency_seconds",
            "Histogram of End-to-end request latency in seconds",
            &m.e2e,
        ),
        (
            "sglang:queue_time_seconds",
            "Histogram of queueing time in seconds.",
            &m.queue,
        ),
    ] {
        p.histogram(name, help, histogram);
    }
    p.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Dialect;

    #[test]
    fn load_and_cache_size_can_be_read() {
        let page = render(&super::super::tests::snapshot(Dialect::Sglang));
        let labels =
            r#"dp_rank="0",engine_type="unified",model_name="m\"x",pp_rank="0",tp_rank="0""#;
        for line in [
            format!("sglang:num_queue_reqs{{{labels}}} 2.0"),
            format!("sglang:token_usage{{{labels}}} 0.25"),
            format!("sglang:num_used_tokens{{{labels}}} 1600.0"),
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        assert!(page.contains(r#"num_pages="400",page_size="16""#));
    }
}
