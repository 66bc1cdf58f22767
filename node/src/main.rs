//! `quorate`: the one binary. Parses the command line and hands over to the part that was asked for.

mod admin;
mod bench;
mod cache;
mod config;
mod control;
mod dev;
mod explain;
mod grpc;
mod log;
mod node;
mod others;
mod prometheus;
mod router;
mod serve;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Routes, replicates and runs a fleet of LLM model servers: every router node is active, and all share one view.
#[derive(Parser)]
#[command(
    name = "quorate",
    version,
    max_term_width = 110,
    after_help = "\
Try it:        quorate dev
One router:    quorate serve --listen 127.0.0.1:8080 --endpoints http://gpu-1:8000,http://gpu-2:8000
A cluster:     quorate router --config /etc/quorate/router.toml --bootstrap   (first node, once)
               quorate router --config /etc/quorate/router.toml --join HOST:7071   (the others)
Operate it:    quorate cluster status; quorate get endpoints; quorate apply -f pool.yaml"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try Quorate: three routers and four simulated model servers on this machine.
    Dev(dev::DevArgs),
    /// Run a router node of a cluster.
    Router(router::RouterArgs),
    /// Run one router in front of running engines, with nothing to configure and nothing kept on disk.
    Serve(serve::ServeArgs),
    /// Run simulated model servers.
    Sim(Box<quorate_sim::SimArgs>),
    /// Measure a gateway or a control API.
    Bench(bench::BenchArgs),
    #[command(flatten)]
    Client(quorate_cli::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Dev(args) => dev::run(args),
        Command::Router(args) => router::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Sim(args) => router::with_signals(|stop| quorate_sim::run(*args, stop)),
        Command::Bench(args) => bench::run(args),
        Command::Client(command) => {
            return quorate_cli::run(command, Cli::command);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate: {error:#}");
            ExitCode::FAILURE
        }
    }
}
