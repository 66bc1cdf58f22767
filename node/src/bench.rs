//! `quorate bench`: the load generators, and how their reports are printed.

use clap::{Args, Subcommand, ValueEnum};

/// What `quorate bench` takes.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
    /// Form of the report.
    #[arg(long, short, global = true, default_value = "table")]
    output: Output,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Load on a gateway: open or closed loop, streaming or not.
    Http(Box<quorate_bench::HttpArgs>),
    /// Load on the control API: durable writes, linearizable reads, failover time.
    Control(quorate_bench::ControlArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For reading.
    Table,
    /// One JSON object.
    Json,
}

/// Measures and prints.
///
/// # Errors
/// Nothing could be measured.
pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let report = match args.what {
        What::Http(http) => quorate_bench::run_http(*http)?,
        What::Control(control) => quorate_bench::run_control(control, |line| eprintln!("{line}"))?,
    };
    match args.output {
        Output::Table => println!("{report}"),
        Output::Json => println!("{}", serde_json::to_string(&report)?),
    }
    Ok(())
}
