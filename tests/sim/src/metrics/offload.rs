//! What the pages say of the tiers below the GPU, in the engines' names, and of the oracle.

use super::Snapshot;
use super::page::Page;
use crate::engine::tiers::{Medium, TierCount};

/// The tiers themselves, without other engines.
fn own(s: &Snapshot) -> impl Iterator<Item = &TierCount> {
    s.tiers.iter().filter(|tier| tier.medium != Medium::Peer)
}

fn name(medium: Medium) -> &'static str {
    match medium {
        Medium::Gpu => "GPU",
        Medium::Cpu => "CPU",
        Medium::Disk => "STORAGE",
        Medium::Peer => "P2P",
    }
}

/// vLLM's offloading connector: nothing without a tier, as there.
pub(super) fn vllm(s: &Snapshot) -> String {
    let loads = s.tiers.iter().any(|tier| tier.loaded > 0);
    if own(s).next().is_none() && !loads {
        return String::new();
    }
    let rank = s.rank.to_string();
    let labels = [("engine", rank.as_str()), ("model_name", s.model.as_str())];
    let mut p = Page::new(&labels, Some(s.metrics.created));
    p.counter(
        "vllm:external_prefix_cache_queries_total",
        "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of queried tokens.",
        s.counters.prefix_queries.saturating_sub(s.counters.prefix_hits),
    );
    p.counter(
        "vllm:external_prefix_cache_hits_total",
        "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of cached tokens.",
        s.counters.loaded_hits,
    );
    let mut family = |metric: &str, help: &str, value: &dyn Fn(&TierCount) -> f64, load: bool| {
        p.header(metric, "counter", help);
        for tier in &s.tiers {
            let tier_name = name(tier.medium);
            let way = match (load, tier.medium) {
                (false, Medium::Peer) => continue,
                (true, _) => format!("{tier_name}_to_GPU"),
                (false, _) => format!("GPU_to_{tier_name}"),
            };
            p.sample(metric, &[("transfer_type", &way)], value(tier));
        }
    };
    let bytes = |blocks: u64| blocks.saturating_mul(s.block_bytes) as f64;
    family(
        "vllm:kv_offload_load_bytes_total",
        "Bytes loaded to the GPU.",
        &|tier| bytes(tier.loaded),
        true,
    );
    family(
        "vllm:kv_offload_load_time_total",
        "Seconds that loads to the GPU took.",
        &|tier| tier.load_time as f64 * 1e-9,
        true,
    );
    family(
        "vllm:kv_offload_store_bytes_total",
        "Bytes stored from the GPU.",
        &|tier| bytes(tier.stored),
        false,
    );
    if let Some(cpu) = own(s).find(|tier| tier.medium == Medium::Cpu) {
        p.gauge(
            "vllm:kv_offload_cpu_cache_usage_perc",
            "CPU offload cache usage. 1 means 100 percent usage.",
            cpu.cached as f64 / f64::from(cpu.blocks.max(1)),
        );
        p.gauge(
            "vllm:kv_offload_cpu_allocation_size",
            "Bytes of host memory for offloaded blocks.",
            bytes(u64::from(cpu.blocks)),
        );
    }
    p.finish()
}

/// SGLang's hierarchical cache.
pub(super) fn sglang(s: &Snapshot) -> String {
    let Some(cpu) = own(s).find(|tier| tier.medium == Medium::Cpu) else {
        return String::new();
    };
    let mut p = Page::new(&[("model_name", &s.model)], None);
    let tokens = |blocks: f64| blocks * f64::from(s.block_size);
    p.gauge(
        "sglang:hicache_host_used_tokens",
        "The number of tokens in the host KV cache.",
        tokens(cpu.cached as f64),
    );
    p.gauge(
        "sglang:hicache_host_total_tokens",
        "The number of tokens that the host KV cache can hold.",
        tokens(f64::from(cpu.blocks)),
    );
    p.finish()
}

/// What arrived at this server against the best choice; no engine has this.
pub(super) fn oracle(s: &Snapshot) -> String {
    let rank = s.rank.to_string();
    let labels = [("engine", rank.as_str()), ("model_name", s.model.as_str())];
    let mut p = Page::new(&labels, None);
    for (name, help, value) in [
        (
            "quorate_sim_oracle_prompts_total",
            "Prompts that arrived.",
            s.oracle.prompts,
        ),
        (
            "quorate_sim_oracle_prompt_tokens_total",
            "Tokens of the prompts that arrived.",
            s.oracle.prompt_tokens,
        ),
        (
            "quorate_sim_oracle_cached_tokens_total",
            "Prompt tokens that were cached here on arrival.",
            s.oracle.cached_tokens,
        ),
        (
            "quorate_sim_oracle_best_tokens_total",
            "Prompt tokens that were cached on arrival at the server of this process that had most.",
            s.oracle.best_tokens,
        ),
    ] {
        p.counter(name, help, value);
    }
    p.finish()
}

#[cfg(test)]
mod tests {
    use super::super::tests::snapshot;
    use crate::config::Dialect;

    #[test]
    fn tiers_under_the_engines_names() {
        let page = snapshot(Dialect::Vllm).render(Dialect::Vllm);
        for line in [
            r#"vllm:external_prefix_cache_queries_total{engine="0",model_name="m\"x"} 24.0"#,
            r#"vllm:external_prefix_cache_hits_total{engine="0",model_name="m\"x"} 8.0"#,
            r#"vllm:kv_offload_load_bytes_total{engine="0",model_name="m\"x",transfer_type="CPU_to_GPU"} 2000.0"#,
            r#"vllm:kv_offload_load_time_total{engine="0",model_name="m\"x",transfer_type="CPU_to_GPU"} 0.5"#,
            r#"vllm:kv_offload_cpu_cache_usage_perc{engine="0",model_name="m\"x"} 0.25"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        let mut none = snapshot(Dialect::Vllm);
        none.tiers.clear();
        assert!(!none.render(Dialect::Vllm).contains("offload"));
        let page = snapshot(Dialect::Sglang).render(Dialect::Sglang);
        assert!(page.contains("sglang:hicache_host_used_tokens{model_name=\"m\\\"x\"} 400.0"));
    }
}
