//! Options of the KV cache below and beside the GPU: tiers, events, hints.

use super::nanos;
use crate::config::SimConfig;
use crate::duration;
use crate::engine::tiers::{Medium, TierConfig};
use crate::kv_events::{EventFaults, EventFormat, KvEventsConfig, SecondGroup};
use anyhow::{Context, bail};
use quorate_cache::hash::Algorithm;
use std::time::Duration;

/// Tiers below the GPU, and KV events.
#[derive(Clone, Debug, clap::Args)]
pub struct KvArgs {
    /// KV blocks that host memory holds below the GPU. Prompt blocks are written there as they are computed, the least recently
    /// used go; a prefix that only host memory has is loaded and counts as cached.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_cpu_blocks: u32,

    /// Time to load one block from host memory. 16 tokens of a model with 128 KiB of KV cache a token are 2 MiB: 0.1ms is 20 GB/s.
    #[arg(long, value_name = "TIME", default_value = "0.1ms", value_parser = duration::parse)]
    pub cpu_block_load_time: Duration,

    /// KV blocks that a disk holds below host memory, in the same way.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_disk_blocks: u32,

    /// Time to load one block from disk: 0.5ms is 4 GB/s in the same case.
    #[arg(long, value_name = "TIME", default_value = "0.5ms", value_parser = duration::parse)]
    pub disk_block_load_time: Duration,

    /// Write blocks of generated tokens to the tiers too (vLLM's "offload_prompt_only": false).
    #[arg(long)]
    pub offload_generated: bool,

    /// Bytes of KV cache a token takes, for the metrics of offloading.
    #[arg(long, value_name = "BYTES", default_value_t = 128 << 10)]
    pub kv_bytes_per_token: u64,

    /// Lend prefixes in host memory to other servers of this process, whose requests name this host and port in
    /// kv_transfer_params.remote_kv_source. Each further server takes the next port. Nothing listens there.
    #[arg(long, value_name = "PORT")]
    pub p2p_port: Option<u16>,

    /// Time to load one block from another server.
    #[arg(long, value_name = "TIME", default_value = "0.2ms", value_parser = duration::parse)]
    pub p2p_block_load_time: Duration,

    /// Publish KV events: vLLM's JSON of the same name, such as {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:6557"}.
    /// Each further server counts the ports up. "bind" overrides who dials.
    #[arg(long, value_name = "JSON")]
    pub kv_events_config: Option<String>,

    /// Their wire format.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "vllm-0.33",
        requires = "kv_events_config"
    )]
    pub kv_events_format: EventFormat,

    /// What befalls them: loss=SHARE, duplicate=SHARE, reorder=SHARE, drop-next=N, no-replay. POST /sim/kv-events changes it.
    #[arg(long, value_name = "FAULTS", default_value = "", value_parser = EventFaults::parse, requires = "kv_events_config")]
    pub kv_events_fault: EventFaults,

    /// How published block hashes are computed (vLLM's formats): sha256, sha256_cbor, xxhash or xxhash_cbor.
    #[arg(long, value_name = "NAME", default_value = "sha256_cbor", value_parser = parse_algorithm)]
    pub prefix_caching_hash_algo: Algorithm,

    /// Seed of published block hashes, in place of vLLM's own.
    #[arg(long, env = "PYTHONHASHSEED", value_name = "SEED")]
    pub hash_seed: Option<String>,

    /// Tell tokens of blocks below the GPU in vLLM's formats too, rather than hashes without tokens.
    #[arg(long, requires = "kv_events_config")]
    pub self_describing_kv_events: bool,

    /// Publish a second cache group, as hybrid models have it, in vLLM's formats from 0.20 on: KIND:TOKENS, such as
    /// sliding_window:1024. Of each run of blocks it has those in the window.
    #[arg(long, value_name = "GROUP", value_parser = SecondGroup::parse, requires = "kv_events_config")]
    pub kv_events_second_group: Option<SecondGroup>,
}

fn parse_algorithm(text: &str) -> Result<Algorithm, String> {
    Algorithm::of_name(text).ok_or_else(|| format!("there is no block hash `{text}`"))
}

impl KvArgs {
    /// Writes everything into a configuration.
    pub(super) fn apply(&self, config: &mut SimConfig) -> anyhow::Result<()> {
        config.kv_events = self.events()?;
        config.kv_bytes_per_token = self.kv_bytes_per_token;
        config.p2p_port = self.p2p_port;
        let engine = &mut config.engine;
        engine.offload_generated = self.offload_generated;
        engine.peer_load_block = nanos(self.p2p_block_load_time);
        engine.tiers = [
            (Medium::Cpu, self.num_cpu_blocks, self.cpu_block_load_time),
            (
                Medium::Disk,
                self.num_disk_blocks,
                self.disk_block_load_time,
            ),
        ]
        .into_iter()
        .filter(|(_, blocks, _)| *blocks > 0)
        .map(|(medium, blocks, time)| TierConfig {
            medium,
            blocks,
            load_block: nanos(time),
        })
        .collect();
        if self.p2p_port.is_some() && self.num_cpu_blocks == 0 {
            bail!(
                "--p2p-port lends what is in host memory: --num-cpu-blocks says how much that is"
            );
        }
        Ok(())
    }

    /// The same for the server that is `by` places on.
    pub(super) fn offset(&self, config: &mut SimConfig, by: u32) -> anyhow::Result<()> {
        if let Some(events) = config.kv_events.take() {
            config.kv_events = Some(events.offset(by).map_err(anyhow::Error::msg)?);
        }
        if let Some(port) = self.p2p_port {
            let port = u32::from(port) + by;
            let port = u16::try_from(port)
                .ok()
                .with_context(|| format!("port {port} does not exist"))?;
            config.p2p_port = Some(port);
        }
        Ok(())
    }

    fn events(&self) -> anyhow::Result<Option<KvEventsConfig>> {
        let Some(text) = &self.kv_events_config else {
            return Ok(None);
        };
        let parsed = KvEventsConfig::parse(text).map_err(anyhow::Error::msg);
        let parsed = parsed.context("--kv-events-config")?;
        if self.kv_events_second_group.is_some() && !self.kv_events_format.has_groups() {
            bail!(
                "--kv-events-second-group: the format {} has no groups",
                self.kv_events_format.name()
            );
        }
        Ok(parsed.map(|events| KvEventsConfig {
            format: self.kv_events_format,
            algorithm: self.prefix_caching_hash_algo,
            hash_seed: self.hash_seed.clone(),
            self_describing: self.self_describing_kv_events,
            second_group: self.kv_events_second_group.clone(),
            faults: self.kv_events_fault.clone(),
            ..events
        }))
    }
}
