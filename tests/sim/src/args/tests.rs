//! Which options make which servers.

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    sim: SimArgs,
}

fn configs(args: &[&str]) -> anyhow::Result<Vec<SimConfig>> {
    Cli::try_parse_from(std::iter::once("sim").chain(args.iter().copied()))?
        .sim
        .configs()
}

#[test]
fn defaults_are_valid_and_options_arrive() {
    assert_eq!(configs(&[]).unwrap().len(), 1);
    let all = configs(&[
        "--listen",
        "[::1]:9000",
        "--count",
        "2",
        "--data-parallel-size",
        "2",
        "--model-profile",
        "llama-8b/h100",
        "--served-model-name",
        "a",
        "b",
        "--lora-modules",
        "x=/p",
        r#"{"name":"y","path":"/q","base_model_name":"a"}"#,
        "--max-loras",
        "2",
        "--num-gpu-blocks",
        "100",
        "--fault",
        "stall-after=2,probability=0.5",
        "--pod-name",
        "p0",
        "--failure-types",
        "rate_limit",
        "server_error",
        "--fake-metrics",
        r#"{"kv-cache-usage": 0.5}"#,
    ])
    .unwrap();
    let ports: Vec<u16> = all.iter().map(|c| c.listen.port()).collect();
    assert_eq!(ports, [9000, 9001, 9002, 9003]);
    assert_eq!(all.iter().map(|c| c.rank).collect::<Vec<_>>(), [0, 1, 0, 1]);
    let first = &all[0];
    assert_eq!(first.served_model_names, ["a", "b"]);
    assert_eq!(first.loras[1].base_model.as_deref(), Some("a"));
    assert_eq!((first.engine.num_blocks, first.max_model_len), (100, 1600));
    assert_eq!(first.failures.types.len(), 2);
    assert_eq!(first.response_headers[0].1, "p0");
    assert!(first.fake_metrics.is_some());
}

#[test]
fn nonsense_is_refused() {
    for args in [
        &["--model-profile", "x"][..],
        &["--listen", "127.0.0.1:65535", "--count", "2"],
        &["--ttft", "100ms", "--ttft-std-dev", "90ms"],
        &["--model-profile", "llama-8b/h100", "--ttft", "100ms"],
        &["--max-model-len", "5000", "--num-gpu-blocks", "10"],
        &["--fault", "explode"],
        &["--time-scale", "0"],
        &["--block-size", "0"],
        &["--lora-modules", "nopath"],
        &["--time-factor-under-load", "0.5"],
        &["--max-loras", "3", "--max-cpu-loras", "2"],
        &["--ssl-certfile", "cert.pem"],
        &["--min-tool-call-integer-param", "101"],
        &["--tool-call-extra-call-probability", "101"],
        &["--dataset-path", "/nowhere/d.jsonl"],
    ] {
        assert!(configs(args).is_err(), "{args:?}");
    }
}

#[test]
fn parts_of_the_command_line_leave_its_description_alone() {
    use clap::CommandFactory;
    let about = Cli::command().render_help().to_string();
    assert!(about.starts_with("Simulate model servers"), "{about}");
    for option in ["--config", "--tool-call-extra-call-probability"] {
        assert!(about.contains(option), "{option}");
    }
}
