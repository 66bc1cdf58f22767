//! Hardware profiles: what a model on a GPU costs and holds.
//!
//! Every figure is an order of magnitude for 16-bit weights, taken from what is published:
//!
//! - (P) llm-d-inference-sim, `docs/latency-profiles.md`: inter-token latency at batch 1, prefill overhead and prefill time
//!   per token for model sizes on H100, A100 and L40S. The lower end of its ranges is used, since its values hold engine
//!   overheads that a warm server does not pay twice.
//! - (R) llm-d's guides on prefix-aware and sticky routing: measured prefill rate of one endpoint (Qwen3-32B, two H100:
//!   15,928 to 20,480 tokens/s) and output of eight endpoints at saturation (13,163 to 14,892 tokens/s).
//! - (B) GPU data sheets: memory bandwidth 3.35 TB/s (H100), 0.86 TB/s (L40S), 0.60 TB/s (A10). Reading one token of context
//!   back costs its KV bytes over 70 % of the bandwidth of all GPUs of the group. KV bytes per token: 128 KiB for 8B,
//!   320 KiB for 70B (P), 256 KiB for Qwen3-32B (64 layers, 8 KV heads, head size 128).
//! - KV blocks: what 90 % of the memory leaves beside the weights and 3 GB of activations a GPU, in blocks of 16 tokens.

use crate::engine::latency::{FixedLatency, Latency, StepCosts};

/// A model on some GPUs.
#[derive(Clone, Debug)]
pub struct Profile {
    /// As given to `--model-profile`.
    pub name: &'static str,
    /// One line for `--help` and errors.
    pub about: &'static str,
    /// Time model.
    pub latency: Latency,
    /// KV blocks of 16 tokens.
    pub num_blocks: u32,
    /// vLLM's default for the GPU.
    pub max_num_seqs: usize,
    /// vLLM's default for the GPU.
    pub max_num_batched_tokens: u32,
    /// Context window, cut to what the GPUs hold.
    pub max_model_len: u32,
}

const MS: f64 = 1e6;
const US: f64 = 1e3;

/// Every profile that there is.
pub fn all() -> Vec<Profile> {
    let batched =
        |name, about, costs, num_blocks, max_num_seqs, max_num_batched_tokens, max_model_len| {
            Profile {
                name,
                about,
                latency: Latency::Batched(costs),
                num_blocks,
                max_num_seqs,
                max_num_batched_tokens,
                max_model_len,
            }
        };
    vec![
        Profile {
            name: "fixed",
            about: "no hardware: a time to first token and an inter-token latency for every request",
            latency: Latency::Fixed(FixedLatency::default()),
            num_blocks: 131_072,
            max_num_seqs: 16_384,
            max_num_batched_tokens: 8192,
            max_model_len: 131_072,
        },
        batched(
            "llama-8b/h100",
            "Llama 3.1 8B on one H100",
            // (P) 7-8B: ITL 10-15 ms, prefill 25-40 ms + 0.15-0.30 ms a token. (B) 128 KiB / 2.3 TB/s.
            StepCosts {
                base: 10.0 * MS,
                prefill_step: 15.0 * MS,
                prefill_token: 150.0 * US,
                decode_seq: 40.0 * US,
                context_token: 0.056 * US,
            },
            25_900,
            1024,
            8192,
            131_072,
        ),
        batched(
            "qwen3-32b-tp2/h100",
            "Qwen3 32B on two H100",
            // (R) 15,928 prefill tokens/s; 1,600-1,900 output tokens/s an endpoint at some 64 sequences of 8,000 tokens.
            // (B) 65 GB of weights over 6.7 TB/s gives 10 ms at best, 256 KiB / 4.7 TB/s for context.
            StepCosts {
                base: 14.0 * MS,
                prefill_step: 6.0 * MS,
                prefill_token: 62.8 * US,
                decode_seq: 60.0 * US,
                context_token: 0.056 * US,
            },
            17_800,
            1024,
            8192,
            40_960,
        ),
        batched(
            "llama-70b-tp4/h100",
            "Llama 3.1 70B on four H100",
            // (P) 70B TP=4: ITL 25-40 ms, prefill 70-110 ms + 0.60-0.90 ms a token. (B) 320 KiB / 9.4 TB/s.
            StepCosts {
                base: 25.0 * MS,
                prefill_step: 45.0 * MS,
                prefill_token: 600.0 * US,
                decode_seq: 90.0 * US,
                context_token: 0.035 * US,
            },
            26_900,
            1024,
            8192,
            131_072,
        ),
        batched(
            "llama-70b-tp8/h100",
            "Llama 3.1 70B on eight H100",
            // (P) 70B TP=8: ITL 18-28 ms, prefill 60-100 ms + 0.40-0.60 ms a token. (B) 320 KiB / 18.8 TB/s.
            StepCosts {
                base: 18.0 * MS,
                prefill_step: 42.0 * MS,
                prefill_token: 400.0 * US,
                decode_seq: 60.0 * US,
                context_token: 0.018 * US,
            },
            78_500,
            1024,
            8192,
            131_072,
        ),
        batched(
            "llama-8b/a100",
            "Llama 3.1 8B on one A100",
            // (P) 7-8B: ITL 15-25 ms, prefill 25-40 ms + 0.30-0.55 ms a token. (B) 128 KiB / 1.4 TB/s.
            StepCosts {
                base: 15.0 * MS,
                prefill_step: 10.0 * MS,
                prefill_token: 300.0 * US,
                decode_seq: 90.0 * US,
                context_token: 0.094 * US,
            },
            25_900,
            256,
            2048,
            131_072,
        ),
        batched(
            "llama-8b/a10",
            "Llama 3 8B on one A10",
            // Not in (P); (B) 16 GB of weights over 0.60 TB/s is 27 ms at best, 128 KiB / 0.42 TB/s for context. Prefill from
            // the L40S row of (P), whose dense 16-bit rate is about 1.5 times higher: 0.65-1.00 ms a token.
            StepCosts {
                base: 30.0 * MS,
                prefill_step: 10.0 * MS,
                prefill_token: 650.0 * US,
                decode_seq: 200.0 * US,
                context_token: 0.31 * US,
            },
            1_250,
            256,
            2048,
            8192,
        ),
        batched(
            "small-3b/l40s",
            "a model of 1 to 3 billion parameters on one L40S",
            // (P) 1-3B: ITL 12-18 ms, prefill 15-25 ms + 0.35-0.55 ms a token.
            StepCosts {
                base: 12.0 * MS,
                prefill_step: 8.0 * MS,
                prefill_token: 350.0 * US,
                decode_seq: 50.0 * US,
                context_token: 0.19 * US,
            },
            18_000,
            256,
            2048,
            32_768,
        ),
    ]
}

/// The profile with this name; the error lists the names that exist.
pub fn find(name: &str) -> Result<Profile, String> {
    let all = all();
    all.iter()
        .find(|profile| profile.name == name)
        .cloned()
        .ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|profile| profile.name).collect();
            format!(
                "there is no model profile `{name}`; the profiles are {}",
                names.join(", ")
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::latency::StepWork;

    /// What one endpoint puts out at saturation lies in the range that the guides report, prefill of the unshared part of
    /// the prompts included (1,200 of 7,200 tokens, 1,000 tokens out).
    #[test]
    fn qwen_reproduces_the_published_endpoint_throughput() {
        let Latency::Batched(costs) = find("qwen3-32b-tp2/h100").unwrap().latency else {
            panic!("batched");
        };
        let batch = 64;
        let decode = StepWork {
            prefill_tokens: 0,
            decode_seqs: batch,
            context_tokens: batch * 7_700,
        };
        let decode_s = costs.step(&decode) as f64 / 1e9;
        let prefill_s = 1_200.0 * costs.prefill_token / 1e9;
        // One request costs its share of 1,000 decode steps and its own prefill.
        let per_request = 1_000.0 * decode_s / batch as f64 + prefill_s;
        let tokens_per_s = 1_000.0 / per_request;
        assert!(
            (1_200.0..1_950.0).contains(&tokens_per_s),
            "{tokens_per_s} tokens/s"
        );
    }

    #[test]
    fn every_profile_holds_its_context_window() {
        for profile in all() {
            assert!(
                profile.num_blocks * 16 >= profile.max_model_len,
                "{}",
                profile.name
            );
        }
    }

    #[test]
    fn unknown_profile_lists_the_known_ones() {
        assert!(find("gpt-9").unwrap_err().contains("llama-8b/h100"));
    }
}
